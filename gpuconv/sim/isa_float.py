"""Floating-point arithmetic: f32 with and without .ftz, f64, and the 16-bit formats.

Approximate instructions (ex2.approx, rcp.approx, ...) give the correctly rounded value or libm's.
That is within the error that PTX allows, but not the hardware's bits.
"""

from __future__ import annotations

from gpuconv.sim.emit import FLOAT_TABLE, Emitter, lowers
from gpuconv.sim.isa_half import FUNCTIONS, HALVES, flush, half_arithmetic, saturate
from gpuconv.sim.program import TYPES, Instruction, Operand

FLOATS = {"f32", "f64", *HALVES}
_ROUNDINGS = {"rn", "rz", "rm", "rp"}


def read(b: Emitter, operand: Operand, type_: str, ftz: bool) -> str:
    value = b.read(operand, type_)
    return flush(b, value) if ftz and type_ == "f32" and not b.flush_in_hardware else value


def finish(b: Emitter, i: Instruction, type_: str, value: str, force: bool = False) -> None:
    """Saturate and flush a result as the instruction says, then write it.

    force: flush in software, because the processor's mode has no effect on this result.
    """
    if "ftz" in i.mods and type_ == "f32" and (force or not b.flush_in_hardware):
        value = flush(b, value)
    b.write(i.operands[0], type_, saturate(b, i, type_, value))


def float_arithmetic(b: Emitter, i: Instruction) -> None:
    """add, sub, mul, fma, mad, div, min, max, abs, neg, ... of any float type."""
    type_ = i.mods[-1]
    if type_ in HALVES:
        half_arithmetic(b, i, type_)
    else:
        FLOAT_TABLE[i.op](b, i, type_)


_ALSO = {"div": {"approx", "full"}, "rcp": {"approx", "full"}, "sqrt": {"approx"}}


@lowers("add", "sub", "mul", "fma", "mad", "div", "rcp", "sqrt", table=FLOAT_TABLE)
def _rounded(b: Emitter, i: Instruction, type_: str) -> None:
    """The correctly rounded result; mad has been fma for floats since sm_20."""
    b.need(set(i.mods[:-1]) <= _ROUNDINGS | {"ftz", "sat"} | _ALSO.get(i.op, set()))
    mode = next((m for m in i.mods if m in _ROUNDINGS), "rn")
    values = [read(b, o, type_, "ftz" in i.mods) for o in i.operands[1:]]
    op, llvm = {"mad": "fma", "rcp": "div"}.get(i.op, i.op), TYPES[type_]
    if i.op == "rcp":
        values.insert(0, "1.0")
    if mode != "rn":
        _directed(b, i, type_, op, mode, values)
    elif op in ("fma", "sqrt"):
        finish(b, i, type_, b.intrinsic(op, llvm, *values))
    else:
        finish(b, i, type_, b.op(f"f{op} {llvm} {values[0]}, {values[1]}"))


def _directed(
    b: Emitter, i: Instruction, type_: str, op: str, mode: str, values: list[str]
) -> None:
    b.need(type_ == "f32", f"'{i.name}' (directed rounding of double)")
    kind = "float"
    if op == "sub":
        op, values = "add", [values[0], b.op(f"fneg float {values[1]}")]
    if op == "add":
        kind, values = "double", [b.op(f"fpext float {v} to double") for v in values]
    value = b.call("float", f"sim.round.{op}.{mode}", *(f"{kind} {v}" for v in values))
    finish(b, i, type_, value, force=True)


@lowers("rsqrt", table=FLOAT_TABLE)
def _rsqrt(b: Emitter, i: Instruction, type_: str) -> None:
    """rsqrt.approx: computed in double and rounded once"""
    b.need(set(i.mods[:-1]) <= {"approx", "ftz"})
    x = read(b, i.operands[1], type_, "ftz" in i.mods)
    if type_ == "f32":
        x = b.op(f"fpext float {x} to double")
    value = b.op(f"fdiv double 1.0, {b.intrinsic('sqrt', 'double', x)}")
    if type_ == "f32":
        value = b.op(f"fptrunc double {value} to float")
    finish(b, i, type_, value)


@lowers("ex2", "lg2", "sin", "cos", "tanh", table=FLOAT_TABLE)
def _function(b: Emitter, i: Instruction, type_: str) -> None:
    """ex2, lg2, sin, cos, tanh .approx"""
    b.need(type_ == "f32" and set(i.mods[:-1]) <= {"approx", "ftz"})
    x = b.read(i.operands[1], type_)
    if "ftz" in i.mods:  # libm looks at the bits, so the processor's flush mode is not enough
        x = flush(b, x)
    finish(b, i, type_, b.call("float", FUNCTIONS[i.op], f"float {x}"), force=True)


@lowers("min", "max", table=FLOAT_TABLE)
def _extreme(b: Emitter, i: Instruction, type_: str) -> None:
    """min, max: of a number and a NaN the number, or NaN with .NaN; -0 is less than +0.

    .xorsign.abs compares magnitudes.
    """
    b.need(set(i.mods[:-1]) <= {"ftz", "NaN", "xorsign", "abs"})
    llvm = TYPES[type_]
    values = [b.read(o, type_) for o in i.operands[1:]]
    if "ftz" in i.mods:
        values = [flush(b, v) for v in values]
    sign = ""
    if "xorsign" in i.mods:
        b.need(type_ == "f32" and len(values) == 2)
        bits = [b.op(f"bitcast float {v} to i32") for v in values]
        sign = b.op(f"and i32 {b.op(f'xor i32 {bits[0]}, {bits[1]}')}, -2147483648")
        values = [b.intrinsic("fabs", llvm, v) for v in values]
    name = f"{i.op}imum{'' if 'NaN' in i.mods else 'num'}"
    value = values[0]
    for other in values[1:]:
        value = b.intrinsic(name, llvm, value, other)
    if sign:
        bits_ = b.op(f"or i32 {b.op(f'bitcast float {value} to i32')}, {sign}")
        value = b.op(f"bitcast i32 {bits_} to float")
    b.write(i.operands[0], type_, value)


@lowers("abs", "neg", table=FLOAT_TABLE)
def _sign(b: Emitter, i: Instruction, type_: str) -> None:
    """abs, neg: change the sign bit alone, of NaN too"""
    b.need(set(i.mods[:-1]) <= {"ftz"})
    llvm, value = TYPES[type_], b.read(i.operands[1], type_)
    value = flush(b, value) if "ftz" in i.mods else value
    negated = i.op == "neg"
    value = b.op(f"fneg {llvm} {value}") if negated else b.intrinsic("fabs", llvm, value)
    b.write(i.operands[0], type_, value)


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
