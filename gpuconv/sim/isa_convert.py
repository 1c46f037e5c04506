"""cvt: conversions among and between integer and float types, in every rounding mode."""

from __future__ import annotations

from gpuconv.sim.emit import Emitter, lowers
from gpuconv.sim.program import TYPES, Instruction, bits_of
from gpuconv.sim.rounding import (
    flush,
    narrow,
    relu,
    round_double,
    round_sum,
    saturate,
    widen,
)

_INTEGERS = {"u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"}
_HALF = {"f16", "bf16"}
_WHOLE = {"rni": "roundeven", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}
_FLAGS = {"rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi", "rna", "ftz", "sat", "relu"}


@lowers("cvt")
def _cvt(b: Emitter, i: Instruction) -> None:
    *flags, to, source = i.mods
    b.need(set(flags) <= _FLAGS)
    if len(i.operands) == 3:
        _pack(b, i, flags, to, source)
    elif to in _INTEGERS and source in _INTEGERS:
        _integer(b, i, to, source)
    elif to in _INTEGERS:
        _to_integer(b, i, to, source)
    elif source in _INTEGERS:
        _from_integer(b, i, to, source)
    else:
        _float(b, i, to, source)


def _mode(i: Instruction, among: tuple[str, ...], default: str) -> str:
    return next((m for m in i.mods if m in among), default)


def _integer(b: Emitter, i: Instruction, to: str, source: str) -> None:
    """Extend by the source's sign, or truncate; .sat clamps to the range of the result."""
    value, have, want = b.read(i.operands[1], source), TYPES[source], TYPES[to]
    if "sat" in i.mods:
        value = b.op(f"{'sext' if source[0] == 's' else 'zext'} {have} {value} to i128")
        bits = bits_of(to)
        low, high = (
            (-(1 << bits - 1), (1 << bits - 1) - 1) if to[0] == "s" else (0, (1 << bits) - 1)
        )
        value = b.intrinsic("smax", "i128", value, str(low))
        value = b.intrinsic("smin", "i128", value, str(high))
        have = "i128"
    value = b.reshape(value, have, want, signed=source[0] == "s")
    b.write(i.operands[0], to, value)


def _source_float(b: Emitter, i: Instruction, source: str) -> tuple[str, str]:
    """(value, LLVM type): a 16-bit format is widened to float; .ftz flushes a float."""
    if source in _HALF:
        return widen(b, b.read(i.operands[1], "b16"), source), "float"
    b.need(source in ("f32", "f64"))
    value = b.read(i.operands[1], source)
    if "ftz" in i.mods and source == "f32":
        value = flush(b, value)
    return value, TYPES[source]


def _to_integer(b: Emitter, i: Instruction, to: str, source: str) -> None:
    """Round, clamp to the range; NaN gives 0, or the top bit where either side has 64 bits."""
    mode = _mode(i, tuple(_WHOLE), "")
    b.need(mode != "", f"'{i.name}' (float to integer without a rounding)")
    value, llvm = _source_float(b, i, source)
    if mode != "rzi":
        value = b.intrinsic(_WHOLE[mode], llvm, value)
    want, short = TYPES[to], "f32" if llvm == "float" else "f64"
    name = f"llvm.fpto{'s' if to[0] == 's' else 'u'}i.sat.{want}.{short}"
    result = b.call(want, name, f"{llvm} {value}")
    if source == "f64" or bits_of(to) == 64:
        nan = b.op(f"fcmp uno {llvm} {value}, 0.0")
        result = b.op(f"select i1 {nan}, {want} {-(1 << (bits_of(to) - 1))}, {want} {result}")
    b.write(i.operands[0], to, result)


def _from_integer(b: Emitter, i: Instruction, to: str, source: str) -> None:
    value, have = b.read(i.operands[1], source), TYPES[source]
    verb = "sitofp" if source[0] == "s" else "uitofp"
    mode = _mode(i, ("rn", "rz", "rm", "rp"), "rn")
    if to in _HALF:
        b.need(mode == "rn" and "sat" not in i.mods)
        odd = _rounded_integer(b, value, have, verb, "odd")
        b.write(i.operands[0], "b16", narrow(b, odd, to))
        return
    b.need(to == "f32" or (to == "f64" and (mode == "rn" or bits_of(source) <= 32)))
    if to == "f32" and mode != "rn":
        value = _rounded_integer(b, value, have, verb, mode)
    else:
        value = b.op(f"{verb} {have} {value} to {TYPES[to]}")
    b.write(i.operands[0], to, saturate(b, i, TYPES[to], value))


def _rounded_integer(b: Emitter, value: str, have: str, verb: str, mode: str) -> str:
    """An integer as a float in a directed rounding mode.

    The high and the low 32 bits are each exact as a double; their sum is rounded once.
    """
    wide = b.reshape(value, have, "i128", signed=verb == "sitofp")
    low = b.op(f"and i64 {b.op(f'trunc i128 {wide} to i64')}, 4294967295")
    low = b.op(f"sitofp i64 {low} to double")
    shifted = b.op(f"ashr i128 {wide}, 32")
    shifted = b.op(f"trunc i128 {shifted} to i64")
    high = b.op(f"fmul double {b.op(f'sitofp i64 {shifted} to double')}, 4294967296.0")
    return round_sum(b, mode, high, low)


def _float(b: Emitter, i: Instruction, to: str, source: str) -> None:
    """Float to float; .rni, .rzi, .rmi and .rpi round to an integer within the type."""
    if to == "tf32":
        _tf32(b, i)
        return
    value, llvm = _source_float(b, i, source)
    whole = _mode(i, tuple(_WHOLE), "")
    if whole:
        value = b.intrinsic(_WHOLE[whole], llvm, value)
    mode = _mode(i, ("rn", "rz", "rm", "rp"), "rn")
    if to in _HALF:
        if source == "f64":
            value = round_double(b, "odd", value)
        value = saturate(b, i, "float", relu(b, i, value))
        b.write(i.operands[0], "b16", narrow(b, value, to, mode))
        return
    b.need(to in ("f32", "f64") and "relu" not in i.mods)
    if to == "f64" and llvm == "float":
        value = b.op(f"fpext float {value} to double")
    elif to == "f32" and llvm == "double":
        if mode == "rn":
            value = b.op(f"fptrunc double {value} to float")
        else:
            value = round_double(b, mode, value)
    if to == "f32" and "ftz" in i.mods:
        value = flush(b, value)
    b.write(i.operands[0], to, saturate(b, i, TYPES[to], value))


def _pack(b: Emitter, i: Instruction, flags: list[str], to: str, source: str) -> None:
    """cvt.rn.{f16x2,bf16x2}.f32 d, a, b: a in the high half, b in the low"""
    b.need(to in ("f16x2", "bf16x2") and source == "f32" and set(flags) <= {"rn", "rz", "relu"})
    halves = []
    for operand in i.operands[1:]:
        value = relu(b, i, b.read(operand, "f32"))
        bits = narrow(b, value, to[:-2], _mode(i, ("rn", "rz"), "rn"))
        halves.append(b.op(f"zext i16 {bits} to i32"))
    b.write(i.operands[0], "b32", b.op(f"or i32 {b.op(f'shl i32 {halves[0]}, 16')}, {halves[1]}"))


def _tf32(b: Emitter, i: Instruction) -> None:
    """cvt.rna.tf32.f32: to 10 fraction bits, ties away from zero; a NaN or infinity stays"""
    b.need(i.mods == ("rna", "tf32", "f32"))
    value = b.read(i.operands[1], "f32")
    bits = b.op(f"bitcast float {value} to i32")
    rounded = b.op(f"and i32 {b.op(f'add i32 {bits}, 4096')}, -8192")
    special = b.op(f"icmp eq i32 {b.op(f'and i32 {bits}, 2139095040')}, 2139095040")
    b.write(i.operands[0], "b32", b.op(f"select i1 {special}, i32 {bits}, i32 {rounded}"))
