"""Floats of every format: subnormals, saturation, conversions and directed rounding.

Directed rounding computes the exact result in double as an unevaluated sum s + e: a sum by Knuth's
two-sum; a product of two floats is exact in double; for a quotient or a root, e is the remainder,
which has the sign of the error. `s` is rounded to the nearest float, and where that lies on the
wrong side of s + e, its neighbour is taken. "odd" takes the neighbour with an odd last bit (round
to odd), so that a second rounding, to a 16-bit float, gives the correctly rounded result.
"""

from __future__ import annotations

from gpuconv.sim.emit import Emitter
from gpuconv.sim.program import WIDTH, Instruction

_EXPONENT = {"float": 0x7F800000, "half": 0x7C00, "bfloat": 0x7F80}


def flush(b: Emitter, value: str, llvm: str = "float") -> str:
    """Flush a subnormal to zero of the same sign, in software."""
    word, sign_bit = f"i{WIDTH[llvm]}", -(1 << WIDTH[llvm] - 1)
    bits = b.op(f"bitcast {llvm} {value} to {word}")
    exponent = b.op(f"and {word} {bits}, {_EXPONENT[llvm]}")
    small = b.op(f"icmp eq {word} {exponent}, 0")
    sign = b.op(f"and {word} {bits}, {sign_bit}")
    bits = b.op(f"select i1 {small}, {word} {sign}, {word} {bits}")
    return b.op(f"bitcast {word} {bits} to {llvm}")


def saturate(b: Emitter, i: Instruction, llvm: str, value: str) -> str:
    """A float or double, clamped to 0 ... 1 where the instruction says .sat; NaN becomes 0."""
    if "sat" not in i.mods:
        return value
    positive = b.op(f"fcmp ogt {llvm} {value}, 0.0")
    value = b.op(f"select i1 {positive}, {llvm} {value}, {llvm} 0.0")
    below = b.op(f"fcmp olt {llvm} {value}, 1.0")
    return b.op(f"select i1 {below}, {llvm} {value}, {llvm} 1.0")


def relu(b: Emitter, i: Instruction, value: str) -> str:
    """A float, 0 in place of a negative one where the instruction says .relu."""
    if "relu" not in i.mods:
        return value
    negative = b.op(f"fcmp olt float {value}, 0.0")
    return b.op(f"select i1 {negative}, float 0.0, float {value}")


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
    rounded = bits
    if mode == "rn":
        last = b.op(f"and i32 {b.op(f'lshr i32 {bits}, 16')}, 1")
        rounded = b.op(f"add i32 {b.op(f'add i32 {bits}, 32767')}, {last}")
    nan = b.op(f"fcmp uno float {value}, 0.0")
    rounded = b.op(f"select i1 {nan}, i32 2147418112, i32 {rounded}")
    return b.op(f"trunc i32 {b.op(f'lshr i32 {rounded}, 16')} to i16")


def round_double(b: Emitter, mode: str, s: str, e: str = "0.0") -> str:
    """s + e, of two doubles, as a float; e is at most half a unit in the last place of s."""
    nearest = b.op(f"fptrunc double {s} to float")
    bits = b.op(f"bitcast float {nearest} to i32")
    wide = b.op(f"fpext float {nearest} to double")
    equal = b.op(f"fcmp oeq double {wide}, {s}")
    sides = []  # whether the nearest float lies above s + e, and whether it lies below
    for order, opposite in (("ogt", "olt"), ("olt", "ogt")):
        rest = b.op(f"fcmp {opposite} double {e}, 0.0")
        rest = b.op(f"and i1 {equal}, {rest}")
        sides.append(b.op(f"or i1 {b.op(f'fcmp {order} double {wide}, {s}')}, {rest}"))
    negative = b.op(f"icmp slt i32 {bits}, 0")
    positive = b.op(f"xor i1 {negative}, true")
    even = b.op(f"xor i1 {b.op(f'trunc i32 {bits} to i1')}, true")
    # where a float above the result moves down, and where one below moves up
    masks = {"rm": ("true", "false"), "rp": ("false", "true"), "rz": (positive, negative)}
    down, up = (
        b.op(f"and i1 {side}, {mask}")
        for side, mask in zip(sides, masks.get(mode, (even, even)), strict=True)
    )
    one = b.op(f"select i1 {negative}, i32 -1, i32 1")
    result = b.op(f"select i1 {down}, i32 {b.op(f'sub i32 {bits}, {one}')}, i32 {bits}")
    result = b.op(f"select i1 {up}, i32 {b.op(f'add i32 {bits}, {one}')}, i32 {result}")
    return b.op(f"bitcast i32 {result} to float")


def round_sum(b: Emitter, mode: str, x: str, y: str) -> str:
    """x + y, of two doubles, as a float."""
    s = b.op(f"fadd double {x}, {y}")
    second = b.op(f"fsub double {s}, {x}")
    first = b.op(f"fsub double {s}, {second}")
    rest = b.op(f"fsub double {x}, {first}"), b.op(f"fsub double {y}, {second}")
    result = round_double(b, mode, s, b.op(f"fadd double {rest[0]}, {rest[1]}"))
    if mode != "rm":
        return result
    # rounded down, a sum that cancels exactly is -0
    signs = b.op(f"or i64 {b.reshape(x, 'double', 'i64')}, {b.reshape(y, 'double', 'i64')}")
    minus = b.op(f"and i1 {b.op(f'fcmp oeq double {s}, 0.0')}, {b.op(f'icmp slt i64 {signs}, 0')}")
    return b.op(f"select i1 {minus}, float -0.0, float {result}")


def round_directed(b: Emitter, op: str, mode: str, values: list[str]) -> str:
    """add, sub, mul, fma, div or sqrt of floats, rounded "rz", "rm", "rp" or "odd"."""
    if op == "sub":
        op, values = "add", [values[0], b.op(f"fneg float {values[1]}")]
    x, *rest = (b.op(f"fpext float {v} to double") for v in values)
    if op == "add":
        return round_sum(b, mode, x, rest[0])
    if op == "sqrt":
        s = b.intrinsic("sqrt", "double", x)
        error = b.intrinsic("fma", "double", b.op(f"fneg double {s}"), s, x)
        return round_double(b, mode, s, error)
    y = rest[0]
    if op == "div":
        s = b.op(f"fdiv double {x}, {y}")
        error = b.intrinsic("fma", "double", b.op(f"fneg double {s}"), y, x)
        opposite, flip = b.op(f"fneg double {error}"), b.op(f"fcmp olt double {y}, 0.0")
        error = b.op(f"select i1 {flip}, double {opposite}, double {error}")
        return round_double(b, mode, s, error)
    product = b.op(f"fmul double {x}, {y}")
    return round_sum(b, mode, product, rest[1]) if op == "fma" else round_double(b, mode, product)
