"""Integer arithmetic, logic and bit instructions."""

from __future__ import annotations

from gpuconv.sim import doubt
from gpuconv.sim.emit import Emitter, lowers
from gpuconv.sim.program import TYPES, Imm, Instruction, Operand, bits_of

PACKED = {"u16x2", "s16x2"}
INTEGERS = {"u16", "s16", "u32", "s32", "u64", "s64"}


def _type(b: Emitter, i: Instruction, allowed: set[str], flags: set[str] = frozenset()) -> str:  # type: ignore
    type_ = i.mods[-1]
    b.need(type_ in allowed and set(i.mods[:-1]) <= flags)
    return type_


def _three(b: Emitter, i: Instruction, type_: str) -> tuple[str, str, str]:
    """LLVM type and the two sources of a three-operand instruction."""
    b.need(len(i.operands) == 3)
    return TYPES[type_], b.read(i.operands[1], type_), b.read(i.operands[2], type_)


@lowers("add", "sub", "addc", "subc")
def _add(b: Emitter, i: Instruction) -> None:
    """add, sub, addc, subc: wrap around, or saturate with .sat (s32)."""
    type_ = _type(b, i, INTEGERS | PACKED, {"sat", "cc"})
    b.need(type_ not in PACKED or i.name in ("add.u16x2", "add.s16x2"))
    b.need("sat" not in i.mods or (type_ == "s32" and i.op in ("add", "sub")))
    b.write(i.operands[0], type_, _added(b, i, i.op[:3], *_three(b, i, type_)))


def _added(b: Emitter, i: Instruction, verb: str, llvm: str, x: str, y: str) -> str:
    """x + y or x - y: with the carry (borrow) of the last .cc for addc, subc and madc.

    .sat saturates; .cc writes the carry, for which the sum is computed with one bit more.
    """
    if "sat" in i.mods:
        return b.intrinsic(f"s{verb}.sat", llvm, x, y)
    carried = i.op in ("addc", "subc", "madc")
    if not carried and "cc" not in i.mods:
        return b.op(f"{verb} {llvm} {x}, {y}")
    slot, wide = f'%"{b.frame.prefix}cc"', f"i{int(llvm[1:]) + 1}"
    x, y = b.op(f"zext {llvm} {x} to {wide}"), b.op(f"zext {llvm} {y} to {wide}")
    total = b.op(f"{verb} {wide} {x}, {y}")
    if carried:
        carry = b.op(f"zext i1 {b.op(f'load i1, ptr {slot}')} to {wide}")
        total = b.op(f"{verb} {wide} {total}, {carry}")
    if "cc" in i.mods:
        out = b.op(f"trunc {wide} {b.op(f'lshr {wide} {total}, {llvm[1:]}')} to i1")
        b.emit(f"store i1 {out}, ptr {slot}")
    return b.op(f"trunc {wide} {total} to {llvm}")


def _product(b: Emitter, i: Instruction, half: str, type_: str) -> tuple[str, str]:
    """(value, PTX type) of the product a * b: its low or high half, or all of it for .wide."""
    llvm, bits = TYPES[type_], bits_of(type_)
    x, y = b.read(i.operands[1], type_), b.read(i.operands[2], type_)
    if half == "lo":
        return b.op(f"mul {llvm} {x}, {y}"), type_
    wide, extend = f"i{2 * bits}", "sext" if type_[0] == "s" else "zext"
    x, y = b.op(f"{extend} {llvm} {x} to {wide}"), b.op(f"{extend} {llvm} {y} to {wide}")
    product = b.op(f"mul {wide} {x}, {y}")
    if half == "wide":
        b.need(bits < 64)
        return product, f"{type_[0]}{2 * bits}"
    b.need(half == "hi")
    return b.op(f"trunc {wide} {b.op(f'lshr {wide} {product}, {bits}')} to {llvm}"), type_


@lowers("mul", "mad", "madc")
def _mul(b: Emitter, i: Instruction) -> None:
    """mul.{lo,hi,wide}, mad.{lo,hi,wide}, and madc.{lo,hi} with the carry in"""
    half, type_ = i.mods[0], _type(b, i, INTEGERS, {"lo", "hi", "wide", "sat", "cc"})
    value, result = _product(b, i, half, type_)
    b.need("cc" not in i.mods or i.op != "mul")
    b.need("sat" not in i.mods or (i.op, half, type_) == ("mad", "hi", "s32"))
    b.need(half != "wide" or i.op != "madc")
    if i.op != "mul":
        value = _added(b, i, "add", TYPES[result], value, b.read(i.operands[3], result))
    b.write(i.operands[0], result, value)


@lowers("mul24", "mad24")
def _mul24(b: Emitter, i: Instruction) -> None:
    """mul24, mad24 .{lo,hi}: product of the low 24 bits; lo is its bits 0-31, hi its bits 16-47."""
    half, type_ = i.mods[0], _type(b, i, {"u32", "s32"}, {"lo", "hi"})
    values = []
    for operand in i.operands[1:3]:
        wide = b.op(f"zext i32 {b.read(operand, type_)} to i64")
        values.append(_low_bits(b, "i64", wide, "24", type_[0] == "s"))
    product = b.op(f"mul i64 {values[0]}, {values[1]}")
    if half == "hi":
        product = b.op(f"lshr i64 {product}, 16")
    value = b.op(f"trunc i64 {product} to i32")
    if i.op == "mad24":
        value = b.op(f"add i32 {value}, {b.read(i.operands[3], type_)}")
    b.write(i.operands[0], type_, value)


@lowers("div", "rem")
def _div(b: Emitter, i: Instruction) -> None:
    """div, rem: division by zero gives all ones, the remainder the dividend; INT_MIN / -1 wraps.

    In checked mode the use of such a result is an error.
    """
    type_ = _type(b, i, INTEGERS)
    llvm, x, y = _three(b, i, type_)
    zero = b.op(f"icmp eq {llvm} {y}, 0")
    if b.module.check and not isinstance(i.operands[2], Imm):
        doubt.divided(b, i, zero)
    safe, overflow = b.op(f"select i1 {zero}, {llvm} 1, {llvm} {y}"), "false"
    if type_[0] == "s":
        lowest = b.op(f"icmp eq {llvm} {x}, {-(1 << (bits_of(type_) - 1))}")
        overflow = b.op(f"and i1 {lowest}, {b.op(f'icmp eq {llvm} {y}, -1')}")
        safe = b.op(f"select i1 {overflow}, {llvm} 1, {llvm} {safe}")
    value = b.op(f"{type_[0]}{i.op} {llvm} {x}, {safe}")
    value = b.op(f"select i1 {zero}, {llvm} {'-1' if i.op == 'div' else x}, {llvm} {value}")
    b.write(i.operands[0], type_, value)


@lowers("abs", "neg")
def _abs(b: Emitter, i: Instruction) -> None:
    """abs, neg of integers: INT_MIN stays INT_MIN."""
    type_ = _type(b, i, {"s16", "s32", "s64"})
    llvm, x = TYPES[type_], b.read(i.operands[1], type_)
    if i.op == "neg":
        b.write(i.operands[0], type_, b.op(f"sub {llvm} 0, {x}"))
    else:
        b.write(i.operands[0], type_, b.call(llvm, f"llvm.abs.{llvm}", f"{llvm} {x}", "i1 false"))


@lowers("min", "max")
def _min(b: Emitter, i: Instruction) -> None:
    """min, max"""
    type_ = _type(b, i, INTEGERS | PACKED)
    llvm, x, y = _three(b, i, type_)
    sign = "s" if type_[0] == "s" else "u"
    b.write(i.operands[0], type_, b.intrinsic(f"{sign}{i.op}", llvm, x, y))


@lowers("sad")
def _sad(b: Emitter, i: Instruction) -> None:
    """sad d, a, b, c: c + |a - b|"""
    type_ = _type(b, i, INTEGERS)
    llvm, sign = TYPES[type_], "s" if type_[0] == "s" else "u"
    x, y, z = (b.read(o, type_) for o in i.operands[1:4])
    high, low = (b.intrinsic(f"{sign}{which}", llvm, x, y) for which in ("max", "min"))
    b.write(i.operands[0], type_, b.op(f"add {llvm} {z}, {b.op(f'sub {llvm} {high}, {low}')}"))


@lowers("and", "or", "xor", "not", "cnot")
def _logic(b: Emitter, i: Instruction) -> None:
    """and, or, xor, not, cnot"""
    type_ = _type(b, i, {"pred", "b16", "b32", "b64"})
    llvm, x = TYPES[type_], b.read(i.operands[1], type_)
    if i.op == "not":
        value = b.op(f"xor {llvm} {x}, {'true' if type_ == 'pred' else '-1'}")
    elif i.op == "cnot":
        value = b.op(f"zext i1 {b.op(f'icmp eq {llvm} {x}, 0')} to {llvm}")
    else:
        value = b.op(f"{i.op} {llvm} {x}, {b.read(i.operands[2], type_)}")
    b.write(i.operands[0], type_, value)


@lowers("shl", "shr")
def _shift(b: Emitter, i: Instruction) -> None:
    """shl, shr: a count beyond the width gives 0, or copies of the sign for shr.s"""
    type_ = _type(b, i, {"b16", "b32", "b64"} | INTEGERS)
    llvm, bits = TYPES[type_], bits_of(type_)
    x, count = b.read(i.operands[1], type_), b.read(i.operands[2], "u32")
    signed = i.op == "shr" and type_[0] == "s"
    inside = b.op(f"icmp ult i32 {count}, {bits}")
    count = b.op(f"select i1 {inside}, i32 {count}, i32 {bits - 1 if signed else 0}")
    count = b.reshape(count, "i32", llvm)
    value = b.op(f"{'shl' if i.op == 'shl' else 'ashr' if signed else 'lshr'} {llvm} {x}, {count}")
    if not signed:
        value = b.op(f"select i1 {inside}, {llvm} {value}, {llvm} 0")
    b.write(i.operands[0], type_, value)


def _joined(b: Emitter, low: str, high: str) -> str:
    """Two words of 32 bits as one of 64."""
    high = b.op(f"shl i64 {b.op(f'zext i32 {high} to i64')}, 32")
    return b.op(f"or i64 {high}, {b.op(f'zext i32 {low} to i64')}")


def _counts(b: Emitter, operands: list[Operand], llvm: str, kept: int) -> list[str]:
    """The bits `kept` of each operand, at most the width of `llvm`.

    They are words twice as wide, so that a shift by them is defined.
    """
    counts = []
    for operand in operands:
        count = b.op(f"and i32 {b.read(operand, 'u32')}, {kept}")
        count = b.intrinsic("umin", "i32", count, llvm[1:])
        counts.append(b.reshape(count, "i32", _DOUBLE[llvm]))
    return counts


_DOUBLE = {"i32": "i64", "i64": "i128"}
_KEPT = {"clamp": -1, "wrap": 31}


@lowers("shf")
def _shf(b: Emitter, i: Instruction) -> None:
    """shf.{l,r}.{clamp,wrap}.b32 d, a, b, c: a funnel shift of b:a"""
    direction, mode, type_ = i.mods
    b.need(type_ == "b32" and mode in _KEPT and direction in ("l", "r"))
    both = _joined(b, b.read(i.operands[1], "b32"), b.read(i.operands[2], "b32"))
    (count,) = _counts(b, i.operands[3:], "i32", _KEPT[mode])
    if direction == "r":
        value = b.op(f"lshr i64 {both}, {count}")
    else:
        value = b.op(f"lshr i64 {b.op(f'shl i64 {both}, {count}')}, 32")
    b.write(i.operands[0], "b32", b.op(f"trunc i64 {value} to i32"))


@lowers("lop3")
def _lop3(b: Emitter, i: Instruction) -> None:
    """lop3.b32 d, a, b, c, table: bit 4a + 2b + c of the table, for each bit of a, b and c"""
    b.need(i.mods == ("b32",) and isinstance(i.operands[4], Imm))
    x, y, z = (b.read(o, "b32") for o in i.operands[1:4])
    table, terms = i.operands[4].bits, "0"  # type: ignore[union-attr]
    inverse = {v: b.op(f"xor i32 {v}, -1") for v in {x, y, z}}
    for row in range(8):
        if table >> row & 1:
            term = b.op(f"and i32 {x if row & 4 else inverse[x]}, {y if row & 2 else inverse[y]}")
            terms = b.op(
                f"or i32 {terms}, {b.op(f'and i32 {term}, {z if row & 1 else inverse[z]}')}"
            )
    b.write(i.operands[0], "b32", terms)


@lowers("popc", "clz", "brev")
def _count(b: Emitter, i: Instruction) -> None:
    """popc, clz: always a 32-bit result; brev: bits in reverse order"""
    type_ = _type(b, i, {"b32", "b64"})
    llvm, x = TYPES[type_], b.read(i.operands[1], type_)
    if i.op == "brev":
        b.write(i.operands[0], type_, b.intrinsic("bitreverse", llvm, x))
        return
    if i.op == "popc":
        value = b.intrinsic("ctpop", llvm, x)
    else:
        value = b.call(llvm, f"llvm.ctlz.{llvm}", f"{llvm} {x}", "i1 false")
    b.write(i.operands[0], "u32", b.reshape(value, llvm, "i32"))


@lowers("bfind")
def _bfind(b: Emitter, i: Instruction) -> None:
    """bfind{.shiftamt}: position of the highest 1, for signed types of the highest non-sign bit.

    All ones where there is none.
    """
    type_ = _type(b, i, {"u32", "s32", "u64", "s64"}, {"shiftamt"})
    llvm, bits, x = TYPES[type_], bits_of(type_), b.read(i.operands[1], type_)
    if type_[0] == "s":
        x = b.op(f"xor {llvm} {x}, {b.op(f'ashr {llvm} {x}, {bits - 1}')}")
    zeros = b.reshape(b.call(llvm, f"llvm.ctlz.{llvm}", f"{llvm} {x}", "i1 false"), llvm, "i32")
    none = b.op(f"icmp eq {llvm} {x}, 0")
    place = zeros if "shiftamt" in i.mods else b.op(f"sub i32 {bits - 1}, {zeros}")
    b.write(i.operands[0], "u32", b.op(f"select i1 {none}, i32 -1, i32 {place}"))


def _ones(b: Emitter, wide: str, count: str) -> str:
    """(1 << count) - 1"""
    return b.op(f"xor {wide} {b.op(f'shl {wide} -1, {count}')}, -1")


def _low_bits(b: Emitter, wide: str, value: str, count: str, signed: bool) -> str:
    """The low `count` bits of a value, sign- or zero-extended."""
    value = b.op(f"and {wide} {value}, {_ones(b, wide, count)}")
    if not signed:
        return value
    sign = b.op(f"lshr {wide} {b.op(f'shl {wide} 1, {count}')}, 1")
    return b.op(f"sub {wide} {b.op(f'xor {wide} {value}, {sign}')}, {sign}")


@lowers("bfe")
def _bfe(b: Emitter, i: Instruction) -> None:
    """bfe d, a, place, length: a bit field, sign-extended (s) or zero-extended (u)"""
    type_ = _type(b, i, {"u32", "s32", "u64", "s64"})
    llvm, wide, signed = TYPES[type_], _DOUBLE[TYPES[type_]], type_[0] == "s"
    # extended first: where the field goes beyond the word, its last bit is the word's
    x = b.reshape(b.read(i.operands[1], type_), llvm, wide, signed)
    place, length = _counts(b, i.operands[2:], llvm, 255)
    value = _low_bits(b, wide, b.op(f"lshr {wide} {x}, {place}"), length, signed)
    b.write(i.operands[0], type_, b.reshape(value, wide, llvm))


@lowers("bfi")
def _bfi(b: Emitter, i: Instruction) -> None:
    """bfi f, a, b, place, length: insert the low bits of a into b"""
    type_ = _type(b, i, {"b32", "b64"})
    llvm, wide = TYPES[type_], _DOUBLE[TYPES[type_]]
    x, y = (b.reshape(b.read(o, type_), llvm, wide) for o in i.operands[1:3])
    place, length = _counts(b, i.operands[3:], llvm, 255)
    mask = b.op(f"shl {wide} {_ones(b, wide, length)}, {place}")
    inserted = b.op(f"and {wide} {b.op(f'shl {wide} {x}, {place}')}, {mask}")
    kept = b.op(f"and {wide} {y}, {b.op(f'xor {wide} {mask}, -1')}")
    value = b.op(f"or {wide} {inserted}, {kept}")
    b.write(i.operands[0], type_, b.reshape(value, wide, llvm))


@lowers("bmsk")
def _bmsk(b: Emitter, i: Instruction) -> None:
    """bmsk.{clamp,wrap}.b32 d, place, length: a mask of `length` ones that begins at bit `place`"""
    mode, type_ = i.mods
    b.need(type_ == "b32" and mode in _KEPT)
    place, length = _counts(b, i.operands[1:], "i32", _KEPT[mode])
    mask = b.op(f"shl i64 {_ones(b, 'i64', length)}, {place}")
    b.write(i.operands[0], "b32", b.reshape(mask, "i64", "i32"))


@lowers("szext")
def _szext(b: Emitter, i: Instruction) -> None:
    """szext.{clamp,wrap}.{u32,s32} d, a, count: a's low `count` bits, sign- or zero-extended"""
    mode, type_ = i.mods
    b.need(type_ in ("u32", "s32") and mode in _KEPT)
    x = b.reshape(b.read(i.operands[1], type_), "i32", "i64")
    (count,) = _counts(b, i.operands[2:], "i32", _KEPT[mode])
    value = _low_bits(b, "i64", x, count, type_ == "s32")
    b.write(i.operands[0], type_, b.reshape(value, "i64", "i32"))


@lowers("prmt")
def _prmt(b: Emitter, i: Instruction) -> None:
    """prmt.b32 d, a, b, selector: four bytes selected from b:a.

    Bit 3 of a 4-bit selector replicates the byte's sign.
    """
    b.need(i.mods == ("b32",), f"'{i.name}' (prmt with a mode)")
    x, y, selector = (b.read(o, "b32") for o in i.operands[1:4])
    both, result = _joined(b, x, y), "0"
    for byte in range(4):
        choice = b.op(f"lshr i32 {selector}, {4 * byte}")
        index = b.op(f"and i32 {choice}, 7")
        place = b.op(f"zext i32 {b.op(f'shl i32 {index}, 3')} to i64")
        value = b.op(f"trunc i64 {b.op(f'lshr i64 {both}, {place}')} to i8")
        signs = b.op(f"ashr i8 {value}, 7")
        copy = b.op(f"icmp ne i32 {b.op(f'and i32 {choice}, 8')}, 0")
        value = b.op(f"zext i8 {b.op(f'select i1 {copy}, i8 {signs}, i8 {value}')} to i32")
        result = b.op(f"or i32 {result}, {b.op(f'shl i32 {value}, {8 * byte}')}")
    b.write(i.operands[0], "b32", result)


@lowers("dp4a", "dp2a")
def _dp(b: Emitter, i: Instruction) -> None:
    """dp4a, dp2a{.lo,.hi}: c + the dot product of four bytes, or of two halves with two bytes"""
    *flags, first, second = i.mods
    x, y, total = (b.read(o, "b32") for o in i.operands[1:4])
    x, y = b.op(f"bitcast i32 {x} to {_LANES[i.op]}"), b.op(f"bitcast i32 {y} to <4 x i8>")
    lanes = "<4 x i32>" if i.op == "dp4a" else "<2 x i32>"
    x = b.op(f"{_extend(first)} {_LANES[i.op]} {x} to {lanes}")
    y = b.op(f"{_extend(second)} <4 x i8> {y} to <4 x i32>")
    if i.op == "dp2a":
        half = "<2 x i32> <i32 2, i32 3>" if "hi" in flags else "<2 x i32> <i32 0, i32 1>"
        y = b.op(f"shufflevector <4 x i32> {y}, <4 x i32> poison, {half}")
    product = b.op(f"mul {lanes} {x}, {y}")
    b.write(i.operands[0], "b32", _sum(b, total, product, lanes))


_LANES = {"dp4a": "<4 x i8>", "dp2a": "<2 x i16>"}


def _extend(type_: str) -> str:
    return "sext" if type_ == "s32" else "zext"


def _sum(b: Emitter, start: str, values: str, lanes: str) -> str:
    """start + the sum of the lanes of a vector of i32."""
    name = f"llvm.vector.reduce.add.v{lanes[1]}i32"
    return b.op(f"add i32 {start}, {b.call('i32', name, f'{lanes} {values}')}")


@lowers("vabsdiff4")
def _vabsdiff4(b: Emitter, i: Instruction) -> None:
    """vabsdiff4.type.type.type d, a, b, c: |a - b| of each byte; .add sums them into c"""
    types = [m for m in i.mods if m != "add"]
    b.need(len(types) == 3 and len(set(types)) == 1 and types[0] in ("u32", "s32"))
    b.need("add" in i.mods or types[0] == "u32")
    x, y = (b.op(f"bitcast i32 {b.read(o, 'b32')} to <4 x i8>") for o in i.operands[1:3])
    high, low = (b.intrinsic(types[0][0] + which, "<4 x i8>", x, y) for which in ("max", "min"))
    value = b.op(f"sub <4 x i8> {high}, {low}")
    if "add" in i.mods:
        value = b.op(f"zext <4 x i8> {value} to <4 x i32>")
        value = _sum(b, b.read(i.operands[3], "b32"), value, "<4 x i32>")
    else:
        value = b.op(f"bitcast <4 x i8> {value} to i32")
    b.write(i.operands[0], "b32", value)
