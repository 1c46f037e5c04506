"""f16 and bf16: each lane is widened to float, computed there or exactly, and rounded once."""

from __future__ import annotations

from gpuconv.sim.emit import Emitter
from gpuconv.sim.program import TYPES, Instruction

HALVES = {"f16": "f16", "bf16": "bf16", "f16x2": "f16", "bf16x2": "bf16"}
FUNCTIONS = {
    "ex2": "llvm.exp2.f32",
    "lg2": "llvm.log2.f32",
    "sin": "llvm.sin.f32",
    "cos": "llvm.cos.f32",
    "tanh": "tanhf",
}


def flush(b: Emitter, value: str) -> str:
    """Flush a subnormal float to zero, in software."""
    return b.call("float", "sim.flush", f"float {value}")


def saturate(b: Emitter, i: Instruction, type_: str, value: str) -> str:
    """A float or double, clamped to 0 ... 1 where the instruction says .sat."""
    if "sat" not in i.mods:
        return value
    return b.call(TYPES[type_], f"sim.saturate.{type_}", f"{TYPES[type_]} {value}")


def widen(b: Emitter, bits: str, format_: str) -> str:
    """The f16 or bf16 in an i16, as a float; this is exact."""
    if format_ == "f16":
        return b.op(f"fpext half {b.op(f'bitcast i16 {bits} to half')} to float")
    wide = b.op(f"shl i32 {b.op(f'zext i16 {bits} to i32')}, 16")
    return b.op(f"bitcast i32 {wide} to float")


def narrow(b: Emitter, value: str, format_: str, mode: str = "rn") -> str:
    """A float rounded to f16 or bf16 (bits in an i16), to nearest even or towards zero."""
    if format_ == "f16" and mode == "rn":
        return b.op(f"bitcast half {b.op(f'fptrunc float {value} to half')} to i16")
    b.need(mode in ("rn", "rz") and format_ == "bf16")
    bits = b.op(f"bitcast float {value} to i32")
    if mode == "rn":
        last = b.op(f"and i32 {b.op(f'lshr i32 {bits}, 16')}, 1")
        rounded = b.op(f"add i32 {b.op(f'add i32 {bits}, 32767')}, {last}")
    else:
        rounded = bits
    nan = b.op(f"fcmp uno float {value}, 0.0")
    rounded = b.op(f"select i1 {nan}, i32 2147418112, i32 {rounded}")
    return b.op(f"trunc i32 {b.op(f'lshr i32 {rounded}, 16')} to i16")


def half_arithmetic(b: Emitter, i: Instruction, type_: str) -> None:
    """Arithmetic on f16 and bf16, one number or two packed."""
    b.need(set(i.mods[:-1]) <= {"rn", "ftz", "sat", "NaN", "relu", "approx"})
    format_, lanes = HALVES[type_], 2 if type_.endswith("x2") else 1
    llvm, type_ = f"i{16 * lanes}", f"b{16 * lanes}"
    sources, result = [b.read(o, type_) for o in i.operands[1:]], "0"
    for place in range(0, 16 * lanes, 16):
        pieces = [b.reshape(b.op(f"lshr {llvm} {s}, {place}"), llvm, "i16") for s in sources]
        bits = b.reshape(_half_lane(b, i, format_, pieces), "i16", llvm)
        result = b.op(f"or {llvm} {result}, {b.op(f'shl {llvm} {bits}, {place}')}")
    b.write(i.operands[0], type_, result)


def _half_lane(b: Emitter, i: Instruction, format_: str, pieces: list[str]) -> str:
    if i.op in ("abs", "neg") and "ftz" not in i.mods:
        change = "and i16 32767" if i.op == "abs" else "xor i16 -32768"
        return b.op(f"{change}, {pieces[0]}")
    values = [widen(b, p, format_) for p in pieces]
    if "ftz" in i.mods:
        values = [_flush_half(b, v, format_) for v in values]
    if i.op in ("add", "sub", "mul") and format_ == "f16":
        value = b.op(f"f{i.op} float {values[0]}, {values[1]}")
    elif i.op in ("add", "sub", "mul", "fma"):
        value = _exact(b, i.op, values)
    elif i.op in ("min", "max"):
        name = f"{i.op}imum{'' if 'NaN' in i.mods else 'num'}"
        value = b.intrinsic(name, "float", *values)
    elif i.op in ("ex2", "tanh"):
        value = b.call("float", FUNCTIONS[i.op], f"float {values[0]}")
    elif i.op == "neg":
        value = b.op(f"fneg float {values[0]}")
    elif i.op == "abs":
        value = b.intrinsic("fabs", "float", values[0])
    else:
        raise b.unsupported()
    value = saturate(b, i, "f32", value)
    if "relu" in i.mods:
        b.need(i.op == "fma")
        low = b.op(f"fcmp ult float {value}, 0.0")
        nan = b.op(f"fcmp uno float {value}, 0.0")
        value = b.op(f"select i1 {b.op(f'xor i1 {low}, {nan}')}, float 0.0, float {value}")
    bits = narrow(b, value, format_)
    if "ftz" in i.mods:
        bits = narrow(b, _flush_half(b, widen(b, bits, format_), format_), format_)
    return bits


def _exact(b: Emitter, op: str, values: list[str]) -> str:
    """a * b + c, or a part of it, rounded to odd as a float, so that narrowing rounds correctly."""
    if op == "sub":
        values = [values[0], b.op(f"fneg float {values[1]}")]
    if op in ("add", "sub"):
        values.insert(1, "1.0")
    name = f"sim.round.{'mul' if op == 'mul' else 'fma'}.odd"
    return b.call("float", name, *(f"float {v}" for v in values))


def _flush_half(b: Emitter, value: str, format_: str) -> str:
    """A widened f16 or bf16 with the subnormals of its format flushed to zero."""
    if format_ == "bf16":
        return flush(b, value)
    size = b.intrinsic("fabs", "float", value)
    small = b.op(f"fcmp olt float {size}, 0x3F10000000000000")
    zero = b.intrinsic("copysign", "float", "0.0", value)
    return b.op(f"select i1 {small}, float {zero}, float {value}")
