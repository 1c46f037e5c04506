"""mov, selp, slct, setp, set: moves, selections and comparisons."""

from __future__ import annotations

from gpuconv.sim.emit import Emitter, lowers
from gpuconv.sim.program import TYPES, Instruction, Operand, Vector, bits_of
from gpuconv.sim.rounding import flush


@lowers("mov")
def _mov(b: Emitter, i: Instruction) -> None:
    """mov.type d, a; mov also packs {a, b} into a wider register and unpacks such a register"""
    b.need(len(i.mods) == 1 and len(i.operands) == 2)
    type_, (to, source) = i.mods[0], i.operands
    if isinstance(to, Vector):
        whole, part = f"i{bits_of(type_)}", bits_of(type_) // len(to.items)
        value = b.reshape(b.read(source, type_), TYPES[type_], whole)
        for number, item in enumerate(to.items):
            piece = b.op(f"lshr {whole} {value}, {number * part}")
            b.write(item, f"b{part}", b.op(f"trunc {whole} {piece} to i{part}"))
        return
    if isinstance(source, Vector):
        whole, part = f"i{bits_of(type_)}", bits_of(type_) // len(source.items)
        value = "0"
        for number, item in enumerate(source.items):
            piece = b.op(f"zext i{part} {b.read(item, f'b{part}')} to {whole}")
            piece = b.op(f"shl {whole} {piece}, {number * part}")
            value = b.op(f"or {whole} {value}, {piece}")
        b.write(to, f"b{bits_of(type_)}", value)
        return
    b.write(to, type_, b.read(source, type_))


@lowers("selp")
def _selp(b: Emitter, i: Instruction) -> None:
    """selp.type d, a, b, p: p ? a : b."""
    type_, (to, first, second, condition) = i.mods[-1], i.operands
    b.need(len(i.mods) == 1)
    llvm = TYPES[type_]
    x, y = b.read(first, type_), b.read(second, type_)
    chosen = f"select i1 {b.read(condition, 'pred')}, {llvm} {x}, {llvm} {y}"
    b.write(to, type_, b.op(chosen))


@lowers("slct")
def _slct(b: Emitter, i: Instruction) -> None:
    """slct.dtype.{s32,f32} d, a, b, c: c >= 0 ? a : b, and b where c is NaN."""
    *flags, type_, kind = i.mods
    b.need(kind in ("s32", "f32") and set(flags) <= {"ftz"})
    to, first, second, third = i.operands
    value = b.read(third, kind)
    if kind == "f32":
        value = flush(b, value) if flags else value
        test = b.op(f"fcmp oge float {value}, 0.0")
    else:
        test = b.op(f"icmp sge i32 {value}, 0")
    llvm = TYPES[type_]
    chosen = f"select i1 {test}, {llvm} {b.read(first, type_)}, {llvm} {b.read(second, type_)}"
    b.write(to, type_, b.op(chosen))


_ORDERED = ("lt", "le", "gt", "ge")
_SIGNED = {"eq": "eq", "ne": "ne"} | {name: "s" + name for name in _ORDERED}
_UNSIGNED = {"eq": "eq", "ne": "ne"} | {name: "u" + name for name in _ORDERED}
_UNSIGNED |= {"lo": "ult", "ls": "ule", "hi": "ugt", "hs": "uge"}
# a comparison with a NaN is false, or true for a name that ends in u
_FLOAT = {"num": "ord", "nan": "uno"} | {name: "o" + name for name in ("eq", "ne", *_ORDERED)}
_FLOAT |= {name + "u": "u" + name for name in ("eq", "ne", *_ORDERED)}


def _compare(b: Emitter, i: Instruction, llvm: str, x: str, y: str) -> str:
    """Whether the instruction's relation, its first modifier, holds between x and y."""
    relation, type_ = i.mods[0], i.mods[-1]
    if llvm.startswith("i"):
        table = _SIGNED if type_[0] == "s" else _UNSIGNED
        b.need(relation in table and (type_[0] != "b" or relation in ("eq", "ne")))
        return b.op(f"icmp {table[relation]} {llvm} {x}, {y}")
    b.need(relation in _FLOAT and not llvm.startswith("<"))
    if "ftz" in i.mods and llvm != "double" and not (llvm == "float" and b.flush_in_hardware):
        x, y = flush(b, x, llvm), flush(b, y, llvm)
    return b.op(f"fcmp {_FLOAT[relation]} {llvm} {x}, {y}")


def _combined(
    b: Emitter, i: Instruction, rest: list[str], operands: list[Operand]
) -> tuple[str, str]:
    """The comparison and its negation, each combined with the predicate operand, if any."""
    type_ = i.mods[-1]
    test = _compare(b, i, TYPES[type_], b.read(operands[0], type_), b.read(operands[1], type_))
    opposite = b.op(f"xor i1 {test}, true")
    joins = [m for m in rest if m in ("and", "or", "xor")]
    b.need(len(joins) == len(operands) - 2 and set(rest) <= {"and", "or", "xor", "ftz"})
    if joins:
        other = b.read(operands[2], "pred")
        test, opposite = (b.op(f"{joins[0]} i1 {t}, {other}") for t in (test, opposite))
    return test, opposite


@lowers("setp")
def _setp(b: Emitter, i: Instruction) -> None:
    """setp.cmp{.bool}{.ftz}.type p|q, a, b{, {!}c}"""
    _, *rest, _ = i.mods
    to, *operands = i.operands
    test, opposite = _combined(b, i, rest, operands)
    b.write_pair(to, "pred", test, opposite)


@lowers("set")
def _set(b: Emitter, i: Instruction) -> None:
    """set.cmp{.bool}{.ftz}.dtype.stype d, a, b{, {!}c}: all ones (or 1.0) for true, 0 for false"""
    _, *rest, result, type_ = i.mods
    to, *operands = i.operands
    if type_.endswith("x2"):
        _set_pair(b, i, result, TYPES[type_])
        return
    test, _ = _combined(b, i, rest, operands)
    if result in _ONES:
        bits = f"i{bits_of(result)}"
        b.write(to, f"b{bits[1:]}", b.op(f"select i1 {test}, {bits} {_ONES[result]}, {bits} 0"))
    else:
        b.need(result in ("u32", "s32", "u16", "s16"))
        b.write(to, result, b.op(f"sext i1 {test} to {TYPES[result]}"))


_ONES = {"f32": 0x3F800000, "f16": 0x3C00, "bf16": 0x3F80}


def _set_pair(b: Emitter, i: Instruction, result: str, vector: str) -> None:
    """set.cmp.{f16x2,bf16x2,u32,s32}.{f16x2,bf16x2}: two comparisons, each gives 16 bits"""
    b.need(len(i.operands) == 3 and set(i.mods[1:-2]) <= {"ftz"})
    true = _ONES[result[:-2]] if result.endswith("x2") else 0xFFFF
    pairs = [b.read(o, i.mods[-1]) for o in i.operands[1:]]
    total = "0"
    for lane in range(2):
        x, y = (b.op(f"extractelement {vector} {p}, i32 {lane}") for p in pairs)
        test = _compare(b, i, vector[5:-1], x, y)
        piece = b.op(f"select i1 {test}, i32 {true << 16 * lane}, i32 0")
        total = b.op(f"or i32 {total}, {piece}")
    b.write(i.operands[0], "b32", total)
