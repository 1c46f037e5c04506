"""mov, selp, slct, setp, set: moves, selections and comparisons."""

from __future__ import annotations

from gpuconv.sim.emit import Emitter, lowers
from gpuconv.sim.program import TYPES, WIDTH, Instruction, Not, Pair, Reg, Vector, bits_of


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
        value = b.call("float", "sim.flush", f"float {value}") if flags else value
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


def _compare(
    b: Emitter, i: Instruction, relation: str, type_: str, first: object, second: object
) -> str:
    flush = "ftz" in i.mods
    x, y = b.read(first, type_), b.read(second, type_)  # type: ignore[arg-type]
    if WIDTH[TYPES[type_]] and not TYPES[type_].startswith("i"):
        b.need(relation in _FLOAT and TYPES[type_] in ("float", "double", "half", "bfloat"))
        if flush and type_ == "f32" and not b.flush_in_hardware:
            x, y = (b.call("float", "sim.flush", f"float {v}") for v in (x, y))
        if flush and TYPES[type_] in ("half", "bfloat"):
            x, y = (_flush_small(b, v, TYPES[type_]) for v in (x, y))
        return b.op(f"fcmp {_FLOAT[relation]} {TYPES[type_]} {x}, {y}")
    table = _SIGNED if type_[0] == "s" else _UNSIGNED
    b.need(relation in table and (type_[0] != "b" or relation in ("eq", "ne")))
    return b.op(f"icmp {table[relation]} {TYPES[type_]} {x}, {y}")


def _combined(
    b: Emitter, i: Instruction, relation: str, rest: list[str], type_: str, operands: list
) -> tuple[str, str]:
    """The comparison and its negation, each combined with the predicate operand, if any."""
    test = _compare(b, i, relation, type_, operands[0], operands[1])
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
    relation, *rest, type_ = i.mods
    to, *operands = i.operands
    test, opposite = _combined(b, i, relation, rest, type_, operands)
    first, second = (to.first, to.second) if isinstance(to, Pair) else (to, None)
    b.need(isinstance(first, Reg) and not isinstance(first, Not))
    b.write(first, "pred", test)  # type: ignore[arg-type]
    if second is not None:
        b.write(second, "pred", opposite)  # type: ignore[arg-type]


@lowers("set")
def _set(b: Emitter, i: Instruction) -> None:
    """set.cmp{.bool}{.ftz}.dtype.stype d, a, b{, {!}c}: all ones (or 1.0) for true, 0 for false"""
    relation, *rest, result, type_ = i.mods
    to, *operands = i.operands
    if type_.endswith("x2"):
        _set_pair(b, i, relation, result, type_)
        return
    test, _ = _combined(b, i, relation, rest, type_, operands)
    if result in _ONES:
        bits = f"i{bits_of(result)}"
        b.write(to, f"b{bits[1:]}", b.op(f"select i1 {test}, {bits} {_ONES[result]}, {bits} 0"))
    else:
        b.need(result in ("u32", "s32", "u16", "s16"))
        b.write(to, result, b.op(f"sext i1 {test} to {TYPES[result]}"))


_ONES = {"f32": 0x3F800000, "f16": 0x3C00, "bf16": 0x3F80}


def _set_pair(b: Emitter, i: Instruction, relation: str, result: str, type_: str) -> None:
    """set.cmp.{f16x2,bf16x2,u32,s32}.{f16x2,bf16x2}: two comparisons, each gives 16 bits"""
    b.need(len(i.operands) == 3 and set(i.mods[1:-2]) <= {"ftz"} and relation in _FLOAT)
    true = _ONES[result[:-2]] if result.endswith("x2") else 0xFFFF
    pairs = [b.read(o, type_) for o in i.operands[1:]]
    llvm = TYPES[type_][5:-1]
    total = "0"
    for lane in range(2):
        x, y = (b.op(f"extractelement {TYPES[type_]} {p}, i32 {lane}") for p in pairs)
        if "ftz" in i.mods:
            x, y = (_flush_small(b, v, llvm) for v in (x, y))
        test = b.op(f"fcmp {_FLOAT[relation]} {llvm} {x}, {y}")
        piece = b.op(f"select i1 {test}, i32 {true << 16 * lane}, i32 0")
        total = b.op(f"or i32 {total}, {piece}")
    b.write(i.operands[0], "b32", total)


def _flush_small(b: Emitter, value: str, llvm: str) -> str:
    """A 16-bit float with subnormals flushed to zero of their sign."""
    bits = b.op(f"bitcast {llvm} {value} to i16")
    exponent = b.op(f"and i16 {bits}, {0x7C00 if llvm == 'half' else 0x7F80}")
    sign = b.op(f"and i16 {bits}, -32768")
    bits = b.op(f"select i1 {b.op(f'icmp eq i16 {exponent}, 0')}, i16 {sign}, i16 {bits}")
    return b.op(f"bitcast i16 {bits} to {llvm}")
