"""Floating-point arithmetic: f32 with and without .ftz, f64, and the 16-bit formats.

A number of a 16-bit format is widened to float, computed there so that the second rounding does no
harm, and rounded. Approximate instructions (ex2.approx, rcp.approx, ...) give the correctly rounded
value or libm's. That is within the error that PTX allows, but not the hardware's bits.
"""

from __future__ import annotations

from gpuconv.sim.emit import FLOAT_TABLE, Emitter, lowers
from gpuconv.sim.program import TYPES, Instruction
from gpuconv.sim.rounding import flush, narrow, relu, round_directed, saturate, widen

FLOATS = {"f32", "f64", "f16", "bf16", "f16x2", "bf16x2"}
_ROUNDINGS = {"rn", "rz", "rm", "rp"}
_SELECT = {"min", "max", "abs", "neg"}  # what they give for flushed operands is flushed
_FUNCTIONS = {
    "ex2": "llvm.exp2.f32",
    "lg2": "llvm.log2.f32",
    "sin": "llvm.sin.f32",
    "cos": "llvm.cos.f32",
    "tanh": "tanhf",
}
_OF_HALVES = _SELECT | {"add", "sub", "mul", "fma", "ex2", "tanh"}


def float_arithmetic(b: Emitter, i: Instruction) -> None:
    """add, sub, mul, fma, mad, div, min, max, abs, neg, ... of any float type.

    The functions of FLOAT_TABLE give the result for operands that are flushed where .ftz says so.
    """
    type_ = i.mods[-1]
    if type_ not in ("f32", "f64"):
        _half_arithmetic(b, i, type_)
        return
    ftz = "ftz" in i.mods and type_ == "f32" and not _flushed_in_hardware(b, i)
    values = [b.read(o, type_) for o in i.operands[1:]]
    values = [flush(b, v) for v in values] if ftz else values
    value = FLOAT_TABLE[i.op](b, i, TYPES[type_], values)
    value = flush(b, value) if ftz and i.op not in _SELECT else value
    b.write(i.operands[0], type_, saturate(b, i, TYPES[type_], value))


def _flushed_in_hardware(b: Emitter, i: Instruction) -> bool:
    """Whether the processor's own flush-to-zero mode does what .ftz says.

    It does in arithmetic, but not where bits are looked at: by libm, by a comparison, and by the
    code for directed rounding.
    """
    looks = i.op in _SELECT or i.op in _FUNCTIONS or set(i.mods) & {"rz", "rm", "rp"}
    return b.flush_in_hardware and not looks


def _half_arithmetic(b: Emitter, i: Instruction, type_: str) -> None:
    """Arithmetic on f16 and bf16, one number or two packed."""
    b.need(i.op in _OF_HALVES)
    format_, lanes = type_.removesuffix("x2"), 2 if type_.endswith("x2") else 1
    llvm, word = f"i{16 * lanes}", f"b{16 * lanes}"
    sources, result = [b.read(o, word) for o in i.operands[1:]], "0"
    for place in range(0, 16 * lanes, 16):
        pieces = [b.reshape(b.op(f"lshr {llvm} {s}, {place}"), llvm, "i16") for s in sources]
        bits = b.reshape(_half_lane(b, i, format_, pieces), "i16", llvm)
        result = b.op(f"or {llvm} {result}, {b.op(f'shl {llvm} {bits}, {place}')}")
    b.write(i.operands[0], word, result)


def _half_lane(b: Emitter, i: Instruction, format_: str, pieces: list[str]) -> str:
    def flushed(bits: str) -> str:
        if "ftz" not in i.mods:
            return bits
        half = TYPES[format_]
        return b.reshape(flush(b, b.reshape(bits, "i16", half), half), half, "i16")

    values = [widen(b, flushed(bits), format_) for bits in pieces]
    value = saturate(b, i, "float", FLOAT_TABLE[i.op](b, i, "float", values))
    return flushed(narrow(b, relu(b, i, value), format_))


_ALSO = {"div": {"approx", "full"}, "rcp": {"approx", "full"}, "sqrt": {"approx"}, "fma": {"relu"}}


@lowers("add", "sub", "mul", "fma", "mad", "div", "rcp", "sqrt", table=FLOAT_TABLE)
def _rounded(b: Emitter, i: Instruction, llvm: str, values: list[str]) -> str:
    """The correctly rounded result; mad has been fma for floats since sm_20.

    That of a 16-bit format is rounded to odd, except where float has bits enough without.
    """
    type_ = i.mods[-1]
    b.need(set(i.mods[:-1]) <= _ROUNDINGS | {"ftz", "sat"} | _ALSO.get(i.op, set()))
    b.need("relu" not in i.mods or type_ not in ("f32", "f64"))
    mode = next((m for m in i.mods if m in _ROUNDINGS), "rn")
    b.need(mode == "rn" or type_ == "f32", f"'{i.name}' (directed rounding of {type_})")
    op = {"mad": "fma", "rcp": "div"}.get(i.op, i.op)
    if i.op == "rcp":
        values = ["1.0", *values]
    if type_.startswith("bf16") or (type_.startswith("f16") and op == "fma"):
        mode = "odd"
    if mode != "rn":
        return round_directed(b, op, mode, values)
    if op in ("fma", "sqrt"):
        return b.intrinsic(op, llvm, *values)
    return b.op(f"f{op} {llvm} {values[0]}, {values[1]}")


@lowers("rsqrt", table=FLOAT_TABLE)
def _rsqrt(b: Emitter, i: Instruction, llvm: str, values: list[str]) -> str:
    """rsqrt.approx: computed in double and rounded once"""
    b.need(set(i.mods[:-1]) <= {"approx", "ftz"})
    x = values[0] if llvm == "double" else b.op(f"fpext float {values[0]} to double")
    value = b.op(f"fdiv double 1.0, {b.intrinsic('sqrt', 'double', x)}")
    return value if llvm == "double" else b.op(f"fptrunc double {value} to float")


@lowers(*_FUNCTIONS, table=FLOAT_TABLE)
def _function(b: Emitter, i: Instruction, llvm: str, values: list[str]) -> str:
    """ex2, lg2, sin, cos, tanh .approx"""
    b.need(llvm == "float" and set(i.mods[:-1]) <= {"approx", "ftz"})
    return b.call("float", _FUNCTIONS[i.op], f"float {values[0]}")


@lowers("min", "max", table=FLOAT_TABLE)
def _extreme(b: Emitter, i: Instruction, llvm: str, values: list[str]) -> str:
    """min, max: of a number and a NaN the number, or NaN with .NaN; -0 is less than +0.

    .xorsign.abs compares magnitudes.
    """
    b.need(set(i.mods[:-1]) <= {"ftz", "NaN", "xorsign", "abs"})
    sign = ""
    if "xorsign" in i.mods:
        b.need(i.mods[-1] == "f32" and len(values) == 2)
        bits = [b.op(f"bitcast float {v} to i32") for v in values]
        sign = b.op(f"and i32 {b.op(f'xor i32 {bits[0]}, {bits[1]}')}, -2147483648")
        values = [b.intrinsic("fabs", llvm, v) for v in values]
    name = f"{i.op}imum{'' if 'NaN' in i.mods else 'num'}"
    value = values[0]
    for other in values[1:]:
        value = b.intrinsic(name, llvm, value, other)
    if sign:
        magnitude = b.op(f"bitcast float {value} to i32")
        value = b.op(f"bitcast i32 {b.op(f'or i32 {magnitude}, {sign}')} to float")
    return value


@lowers("abs", "neg", table=FLOAT_TABLE)
def _sign(b: Emitter, i: Instruction, llvm: str, values: list[str]) -> str:
    """abs, neg: change the sign bit alone, of NaN too"""
    b.need(set(i.mods[:-1]) <= {"ftz"})
    if i.op == "abs":
        return b.intrinsic("fabs", llvm, values[0])
    return b.op(f"fneg {llvm} {values[0]}")


@lowers("copysign")
def _copysign(b: Emitter, i: Instruction) -> None:
    """copysign d, a, b: b with a's sign"""
    type_ = i.mods[-1]
    b.need(type_ in ("f32", "f64") and len(i.mods) == 1)
    llvm, sign, size = TYPES[type_], b.read(i.operands[1], type_), b.read(i.operands[2], type_)
    b.write(i.operands[0], type_, b.intrinsic("copysign", llvm, size, sign))


_CLASSES = {
    "finite": 0x1F8,
    "infinite": 0x204,
    "number": 0x3FC,
    "notanumber": 0x003,
    "normal": 0x108,
    "subnormal": 0x090,
}


@lowers("testp")
def _testp(b: Emitter, i: Instruction) -> None:
    """testp.{finite,infinite,number,notanumber,normal,subnormal}

    Zero is neither normal nor subnormal.
    """
    kind, type_ = i.mods
    b.need(kind in _CLASSES and type_ in ("f32", "f64"))
    llvm = TYPES[type_]
    tested = f"{llvm} {b.read(i.operands[1], type_)}", f"i32 {_CLASSES[kind]}"
    value = b.call("i1", f"llvm.is.fpclass.{type_}", *tested)
    b.write(i.operands[0], "pred", value)
