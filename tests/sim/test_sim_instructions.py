"""Each modelled PTX instruction against an independent definition, on random and edge values.

Integer instructions are defined on Python's ints, float instructions on exact rationals that are
rounded once. The definitions share no code with the simulator.
"""

from __future__ import annotations

import math
import random
from fractions import Fraction
from functools import cache

import numpy as np
import pytest

sim = pytest.importorskip("gpuconv.sim", reason="the simulator's dependencies are not installed")
if sim.available():
    pytest.skip(sim.available(), allow_module_level=True)

NUMPY = {
    "u8": np.uint8,
    "s8": np.int8,
    "u16": np.uint16,
    "s16": np.int16,
    "b16": np.uint16,
    "u32": np.uint32,
    "s32": np.int32,
    "b32": np.uint32,
    "u64": np.uint64,
    "s64": np.int64,
    "b64": np.uint64,
    "f32": np.float32,
    "f64": np.float64,
    "pred": np.uint32,
    "f16": np.uint16,
    "bf16": np.uint16,
}
BITS = {name: np.dtype(kind).itemsize * 8 for name, kind in NUMPY.items()}
REGISTER = {8: "b16", 16: "b16", 32: "b32", 64: "b64"}

# ---- exact rounding of rationals -----------------------------------------------------------------

FORMATS = {
    "f32": (24, -149, 127),
    "f64": (53, -1074, 1023),
    "f16": (11, -24, 15),
    "bf16": (8, -133, 127),
}


def round_integer(q: Fraction, mode: str) -> int:
    """A rational rounded to an integer."""
    low = q.numerator // q.denominator
    if q == low:
        return low
    if mode == "rm":
        return low
    if mode == "rp":
        return low + 1
    if mode == "rz":
        return low if q > 0 else low + 1
    if mode == "rna":
        return (
            low + 1 if (q - low > Fraction(1, 2) or (q - low == Fraction(1, 2) and q > 0)) else low
        )
    half = q - low
    if half != Fraction(1, 2):
        return low + (half > Fraction(1, 2))
    return low + (low & 1)


def rounded(q: Fraction, type_: str, mode: str = "rn") -> float:
    """A nonzero rational rounded to a float format, as a Python float."""
    precision, smallest, largest = FORMATS[type_]
    exponent = abs(q.numerator).bit_length() - q.denominator.bit_length()
    while Fraction(2) ** exponent <= abs(q):
        exponent += 1
    while Fraction(2) ** (exponent - 1) > abs(q):
        exponent -= 1
    step = Fraction(2) ** max(exponent - precision, smallest)
    value = round_integer(q / step, mode) * step
    limit = (2 - Fraction(2) ** (1 - precision)) * Fraction(2) ** largest
    if abs(value) > limit:
        upward = mode in ("rn",) or (mode == "rp" and q > 0) or (mode == "rm" and q < 0)
        return math.copysign(math.inf if upward else float(limit), 1 if q > 0 else -1)
    return math.copysign(float(value), 1 if q > 0 else -1)


def flushed(x: float) -> float:
    return math.copysign(0.0, x) if abs(x) < 2.0**-126 else x


def saturated(x: float) -> float:
    return 0.0 if math.isnan(x) or x <= 0 else min(x, 1.0)


def special_sum(values: list[float]) -> float | None:
    """A sum that contains an infinity or a NaN."""
    if any(math.isnan(v) for v in values):
        return math.nan
    infinite = {v for v in values if math.isinf(v)}
    if infinite:
        return math.nan if len(infinite) > 1 else infinite.pop()
    return None


def exact_sum(x: float, y: float, type_: str, mode: str) -> float:
    if (found := special_sum([x, y])) is not None:
        return found
    total = Fraction(x) + Fraction(y)
    if total == 0:
        if x == 0 and y == 0 and math.copysign(1, x) == math.copysign(1, y):
            return x
        return -0.0 if mode == "rm" else 0.0
    return rounded(total, type_, mode)


def exact_product(x: float, y: float, type_: str, mode: str) -> float:
    if math.isnan(x) or math.isnan(y) or (math.isinf(x) and y == 0) or (x == 0 and math.isinf(y)):
        return math.nan
    sign = math.copysign(1, x) * math.copysign(1, y)
    if math.isinf(x) or math.isinf(y):
        return sign * math.inf
    return rounded(Fraction(x) * Fraction(y), type_, mode) if x and y else sign * 0.0


def exact_fma(x: float, y: float, z: float, type_: str, mode: str) -> float:
    if not _finite(x, y):
        return special_sum([exact_product(x, y, type_, mode), z])  # type: ignore[return-value]
    if not _finite(z):
        return z
    total = Fraction(x) * Fraction(y) + Fraction(z)
    if total == 0:
        sign = math.copysign(1, x) * math.copysign(1, y)
        if (x == 0 or y == 0) and sign == math.copysign(1, z):
            return z
        return -0.0 if mode == "rm" else 0.0
    return rounded(total, type_, mode)


def _finite(*values: float) -> bool:
    return all(math.isfinite(v) for v in values)


def exact_quotient(x: float, y: float, type_: str, mode: str) -> float:
    if math.isnan(x) or math.isnan(y) or (x == 0 and y == 0) or (math.isinf(x) and math.isinf(y)):
        return math.nan
    sign = math.copysign(1, x) * math.copysign(1, y)
    if math.isinf(x) or y == 0:
        return sign * math.inf
    if x == 0 or math.isinf(y):
        return sign * 0.0
    return rounded(Fraction(x) / Fraction(y), type_, mode)


def exact_root(x: float, type_: str, mode: str) -> float:
    if math.isnan(x) or x < 0:
        return math.nan
    if x == 0 or math.isinf(x):
        return x
    scale = Fraction(2) ** 300  # the root to 300 bits, a sticky last digit where it is not exact
    root = math.isqrt(int(Fraction(x) * scale * scale * Fraction(2) ** 600)) * 2
    approx = Fraction(root, 2) / Fraction(2) ** 300 / scale
    if approx * approx != Fraction(x):
        approx += Fraction(1, 2) / Fraction(2) ** 300 / scale
    return rounded(approx, type_, mode)


# ---- values --------------------------------------------------------------------------------------

chooser = random.Random(1)
FLOAT_EDGES = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    1.5,
    -2.5,
    0.5,
    3.0,
    math.inf,
    -math.inf,
    math.nan,
    2.0**-126,
    -(2.0**-126),
    2.0**-149,
    -(2.0**-149),
    2.0**-130 * 1.25,
    3.4028234663852886e38,
    -3.4028234663852886e38,
    2.0**31,
    -(2.0**31),
    2.0**32,
    2.0**63,
    2.0**-24,
    1 + 2.0**-23,
    16777217.0,
    1e-20,
    1e20,
    0.1,
    2.5,
    3.5,
    -0.5,
]
DOUBLE_EDGES = [
    *FLOAT_EDGES,
    5e-324,
    -5e-324,
    2.2250738585072014e-308,
    1e300,
    -1e300,
    1.7976931348623157e308,
    0.1 + 2.0**-50,
    2.0**52 + 0.5,
    1 + 2.0**-52,
    2.0**-1040,
]


def values(type_: str) -> list:
    if type_ in ("f32", "f64"):
        edges = FLOAT_EDGES if type_ == "f32" else DOUBLE_EDGES
        drawn = [chooser.uniform(-4, 4) for _ in range(12)] + [
            chooser.choice([-1, 1]) * 2.0 ** chooser.uniform(-140, 120) for _ in range(12)
        ]
        return [float(NUMPY[type_](v)) for v in (*edges, *drawn)]
    if type_ in ("f16", "bf16"):
        return [
            *range(0, 65536, 997),
            0,
            0x8000,
            1,
            0x8001,
            0x7C00,
            0xFC00,
            0x7F80,
            0xFF80,
            0x7FFF,
            0x3C00,
            0x3F80,
            0x03FF,
            0x0400,
            0x007F,
            0x0080,
            0x7BFF,
            0x7F7F,
        ]
    if type_ == "pred":
        return [0, 1]
    bits = BITS[type_]
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if type_[0] == "s" else (0, (1 << bits) - 1)
    edges = [
        0,
        1,
        2,
        3,
        7,
        8,
        15,
        16,
        31,
        32,
        33,
        63,
        64,
        65,
        255,
        256,
        low,
        low + 1,
        high,
        high - 1,
        high // 2,
        -1,
        -2,
        -7,
        -32,
        1 << bits - 1,
        0x5555555555555555,
        0x123456789ABCDEF,
    ]
    wrap = [((e - low) % (1 << bits)) + low for e in edges]
    return wrap + [chooser.randint(low, high) for _ in range(20)]


def operands(types: tuple[str, ...], count: int = 800) -> list[tuple]:
    sets = [values(t) for t in types]
    if len(sets) == 1:
        return [(v,) for v in sets[0]]
    pairs = [(x, y) for x in sets[0] for y in sets[1]]
    if len(sets) == 2 and len(pairs) <= 2 * count:
        return pairs
    return [tuple(chooser.choice(s) for s in sets) for _ in range(count)]


# ---- cases: name, instruction(s) over d, a, b, c; result type; source types; meaning -------------

CASES: list[tuple] = []


def case(code: str, result: str, sources: str, meaning, tolerance: float = 0.0) -> None:
    CASES.append((code, result, tuple(sources.split()), meaning, tolerance))


def signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> bits - 1 else value


def clamp(value: int, low: int, high: int) -> int:
    return max(low, min(high, value))


for t in ("u16", "s16", "u32", "s32", "u64", "s64"):
    n = BITS[t]
    tt = f"{t} {t}"
    case(f"add.{t} d, a, b;", t, tt, lambda a, b: a + b)
    case(f"sub.{t} d, a, b;", t, tt, lambda a, b: a - b)
    case(f"mul.lo.{t} d, a, b;", t, tt, lambda a, b: a * b)
    case(f"mul.hi.{t} d, a, b;", t, tt, lambda a, b, n=n: a * b >> n)
    case(f"mad.lo.{t} d, a, b, c;", t, f"{tt} {t}", lambda a, b, c: a * b + c)
    case(f"mad.hi.{t} d, a, b, c;", t, f"{tt} {t}", lambda a, b, c, n=n: (a * b >> n) + c)
    if n < 64:
        wide = f"{t[0]}{2 * n}"
        case(f"mul.wide.{t} d, a, b;", wide, tt, lambda a, b: a * b)
        case(f"mad.wide.{t} d, a, b, c;", wide, f"{tt} {wide}", lambda a, b, c: a * b + c)
    case(
        f"div.{t} d, a, b;",
        t,
        tt,
        lambda a, b: -1 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1),
    )
    case(
        f"rem.{t} d, a, b;",
        t,
        tt,
        lambda a, b: a if b == 0 else abs(a) % abs(b) * (-1 if a < 0 else 1),
    )
    case(f"min.{t} d, a, b;", t, tt, min)
    case(f"max.{t} d, a, b;", t, tt, max)
    case(f"sad.{t} d, a, b, c;", t, f"{tt} {t}", lambda a, b, c: c + abs(a - b))
    if t[0] == "s":
        case(f"abs.{t} d, a;", t, t, abs)
        case(f"neg.{t} d, a;", t, t, lambda a: -a)
    case(f"shr.{t} d, a, b;", t, f"{t} u32", lambda a, b, n=n: a >> min(b, n))
    for word, sign in (
        ("eq", "=="),
        ("ne", "!="),
        ("lt", "<"),
        ("le", "<="),
        ("gt", ">"),
        ("ge", ">="),
    ):
        case(f"setp.{word}.{t} d, a, b;", "pred", tt, eval(f"lambda a, b: int(a {sign} b)"))
    case(f"selp.{t} d, a, b, c;", t, f"{tt} pred", lambda a, b, c: a if c else b)
    case(f"slct.{t}.s32 d, a, b, c;", t, f"{tt} s32", lambda a, b, c: a if c >= 0 else b)
for t in ("b16", "b32", "b64"):
    n, tt = BITS[t], f"{t} {t}"
    case(f"and.{t} d, a, b;", t, tt, lambda a, b: a & b)
    case(f"or.{t} d, a, b;", t, tt, lambda a, b: a | b)
    case(f"xor.{t} d, a, b;", t, tt, lambda a, b: a ^ b)
    case(f"not.{t} d, a;", t, t, lambda a: ~a)
    case(f"cnot.{t} d, a;", t, t, lambda a: int(a == 0))
    case(f"shl.{t} d, a, b;", t, f"{t} u32", lambda a, b, n=n: a << b if b < n else 0)
    case(f"shr.{t} d, a, b;", t, f"{t} u32", lambda a, b: a >> b)
for t in ("b32", "b64"):
    n = BITS[t]
    case(f"popc.{t} d, a;", "u32", t, lambda a: a.bit_count())
    case(f"clz.{t} d, a;", "u32", t, lambda a, n=n: n - a.bit_length())
    case(f"brev.{t} d, a;", t, t, lambda a, n=n: int(f"{a:0{n}b}"[::-1], 2))
for t in ("u32", "s32", "u64", "s64"):
    n = BITS[t]
    case(f"bfind.{t} d, a;", "u32", t, lambda a: (a if a >= 0 else ~a).bit_length() - 1)
    case(
        f"bfind.shiftamt.{t} d, a;",
        "u32",
        t,
        lambda a, n=n: n - (a if a >= 0 else ~a).bit_length() if a not in (0, -1) else -1,
    )

    def bfe(a: int, b: int, c: int, n: int = n, sign: bool = t[0] == "s") -> int:
        place, length = b & 255, c & 255
        if length == 0:
            return 0
        field = (a >> place if sign else (a & (1 << n) - 1) >> place) & ((1 << length) - 1)
        return signed(field, length) if sign else field

    case(f"bfe.{t} d, a, b, c;", t, f"{t} u32 u32", bfe)
for t in ("b32", "b64"):

    def bfi(a: int, b: int, c: int, n: int = BITS[t]) -> int:
        place, length = c & 255, c >> 8 & 255
        mask = (1 << length) - 1 << place
        return (b & ~mask | a << place & mask) & (1 << n) - 1

    case(f"{{ .reg .b32 l; shr.u32 l, c, 8; bfi.{t} d, a, b, c, l; }}", t, f"{t} {t} u32", bfi)
case("add.sat.s32 d, a, b;", "s32", "s32 s32", lambda a, b: clamp(a + b, -(2**31), 2**31 - 1))
case("sub.sat.s32 d, a, b;", "s32", "s32 s32", lambda a, b: clamp(a - b, -(2**31), 2**31 - 1))
case("mul24.lo.u32 d, a, b;", "u32", "u32 u32", lambda a, b: (a & 0xFFFFFF) * (b & 0xFFFFFF))
case("mul24.hi.u32 d, a, b;", "u32", "u32 u32", lambda a, b: (a & 0xFFFFFF) * (b & 0xFFFFFF) >> 16)
case("mul24.lo.s32 d, a, b;", "s32", "s32 s32", lambda a, b: signed(a, 24) * signed(b, 24))
case(
    "mad24.lo.s32 d, a, b, c;",
    "s32",
    "s32 s32 s32",
    lambda a, b, c: signed(a, 24) * signed(b, 24) + c,
)
case(
    "{ .reg .b32 h; add.cc.u32 d, a, b; addc.u32 h, c, 0; xor.b32 d, d, h; }",
    "u32",
    "u32 u32 u32",
    lambda a, b, c: (a + b & 0xFFFFFFFF) ^ (c + (a + b >> 32) & 0xFFFFFFFF),
)
case(
    "{ .reg .b32 h; sub.cc.u32 d, a, b; subc.u32 h, c, 0; xor.b32 d, d, h; }",
    "u32",
    "u32 u32 u32",
    lambda a, b, c: (a - b & 0xFFFFFFFF) ^ (c - (a < b) & 0xFFFFFFFF),
)
case(
    "{ .reg .b32 h; mad.lo.cc.u32 d, a, b, c; madc.hi.u32 h, a, b, 0; xor.b32 d, d, h; }",
    "u32",
    "u32 u32 u32",
    lambda a, b, c: (a * b + c & 0xFFFFFFFF) ^ (a * b + c >> 32),
)
for mode in ("clamp", "wrap"):

    def funnel(a: int, b: int, c: int, left: bool = False, wrap: bool = mode == "wrap") -> int:
        shift = c & 31 if wrap else min(c, 32)
        return ((b << 32 | a) << shift >> 32) if left else ((b << 32 | a) >> shift)

    case(
        f"shf.l.{mode}.b32 d, a, b, c;",
        "b32",
        "b32 b32 u32",
        lambda a, b, c, f=funnel: f(a, b, c, True),
    )
    case(f"shf.r.{mode}.b32 d, a, b, c;", "b32", "b32 b32 u32", funnel)
    case(
        f"bmsk.{mode}.b32 d, a, b;",
        "b32",
        "u32 u32",
        (lambda a, b: ((1 << (b & 31)) - 1) << (a & 31))
        if mode == "wrap"
        else (lambda a, b: ((1 << min(b, 32)) - 1) << a if a < 32 else 0),
    )
    for t in ("u32", "s32"):

        def szext(a: int, b: int, sign: bool = t == "s32", wrap: bool = mode == "wrap") -> int:
            width = b & 31 if wrap else min(b, 32)
            if width == 0:
                return 0
            return signed(a, width) if sign else a & (1 << width) - 1

        case(f"szext.{mode}.{t} d, a, b;", t, f"{t} u32", szext)
for table in (0x00, 0x96, 0xE8, 0x1B, 0xFF, 0x40):

    def lop3(a: int, b: int, c: int, table: int = table) -> int:
        out = 0
        for bit in range(32):
            row = (a >> bit & 1) << 2 | (b >> bit & 1) << 1 | (c >> bit & 1)
            out |= (table >> row & 1) << bit
        return out

    case(f"lop3.b32 d, a, b, c, {table};", "b32", "b32 b32 b32", lop3)


def prmt(a: int, b: int, c: int) -> int:
    source, out = (b << 32 | a).to_bytes(8, "little"), 0
    for k in range(4):
        choice = c >> 4 * k & 15
        byte = source[choice & 7]
        out |= (0xFF * (byte >> 7) if choice & 8 else byte) << 8 * k
    return out


case("prmt.b32 d, a, b, c;", "b32", "b32 b32 b32", prmt)
for first in ("u32", "s32"):
    for second in ("u32", "s32"):

        def dp4a(a: int, b: int, c: int, f: str = first, s: str = second) -> int:
            pick = lambda v, t, k: signed(v >> 8 * k, 8) if t == "s32" else v >> 8 * k & 255  # noqa: E731
            return c + sum(pick(a, f, k) * pick(b, s, k) for k in range(4))

        case(f"dp4a.{first}.{second} d, a, b, c;", "b32", "b32 b32 b32", dp4a)
case(
    "dp2a.lo.s32.u32 d, a, b, c;",
    "b32",
    "b32 b32 b32",
    lambda a, b, c: c + signed(a, 16) * (b & 255) + signed(a >> 16, 16) * (b >> 8 & 255),
)
case(
    "dp2a.hi.u32.s32 d, a, b, c;",
    "b32",
    "b32 b32 b32",
    lambda a, b, c: c + (a & 65535) * signed(b >> 16, 8) + (a >> 16) * signed(b >> 24, 8),
)
for t in ("u16", "s16"):

    def pair(function, t=t):
        def run(a, b):
            low, high = (
                (lambda v, k=k: signed(v >> k, 16) if t == "s16" else v >> k & 65535)
                for k in (0, 16)
            )
            return (function(low(a), low(b)) & 65535) | (function(high(a), high(b)) & 65535) << 16

        return run

    case(f"add.{t}x2 d, a, b;", "b32", "b32 b32", pair(lambda x, y: x + y))
    case(f"min.{t}x2 d, a, b;", "b32", "b32 b32", pair(min))
    case(f"max.{t}x2 d, a, b;", "b32", "b32 b32", pair(max))
case(
    "vabsdiff4.u32.u32.u32 d, a, b, c;",
    "b32",
    "b32 b32 b32",
    lambda a, b, c: sum(abs((a >> k & 255) - (b >> k & 255)) << k for k in (0, 8, 16, 24)),
)
case(
    "vabsdiff4.u32.u32.u32.add d, a, b, c;",
    "b32",
    "b32 b32 b32",
    lambda a, b, c: c + sum(abs((a >> k & 255) - (b >> k & 255)) for k in (0, 8, 16, 24)),
)
case(
    "{ mov.b32 d, a; .reg .b16 l, h; mov.b32 {l, h}, d; mov.b32 d, {h, l}; }",
    "b32",
    "b32",
    lambda a: (a >> 16) | (a << 16),
)
case("set.lt.u32.s32 d, a, b;", "u32", "s32 s32", lambda a, b: -int(a < b))
case("set.gt.f32.u32 d, a, b;", "f32", "u32 u32", lambda a, b: float(a > b))
case(
    "{ .reg .pred p; setp.ne.u32 p, c, 0; setp.lt.and.s32 d, a, b, !p; }",
    "pred",
    "s32 s32 u32",
    lambda a, b, c: int(a < b and not c),
)
case(
    "{ .reg .pred p, q; setp.ne.u32 p, c, 0; setp.lt.xor.s32 q|d, a, b, p; }",
    "pred",
    "s32 s32 u32",
    lambda a, b, c: int((not a < b) != bool(c)),
)

# ---- floats --------------------------------------------------------------------------------------

ORDER = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


def with_ftz(meaning, ftz: bool):
    if not ftz:
        return meaning
    return lambda *v: flushed(meaning(*(flushed(x) for x in v)))


def smaller(a: float, b: float, sign: int = 1) -> float:
    if math.isnan(a) or math.isnan(b):
        return b if math.isnan(a) else a
    if a == b == 0:
        return min((a, b), key=lambda v: sign * math.copysign(1, v))
    return min((a, b), key=lambda v: sign * v)


for t, ftz in (("f32", ""), ("f32", ".ftz"), ("f64", "")):
    F = bool(ftz)
    pair = f"{t} {t}"
    modes = ("rn", "rz", "rm", "rp") if t == "f32" else ("rn",)
    for mode in modes:
        m = f".{mode}{ftz}.{t}"
        case(
            f"add{m} d, a, b;",
            t,
            pair,
            with_ftz(lambda a, b, t=t, r=mode: exact_sum(a, b, t, r), F),
        )
        case(
            f"sub{m} d, a, b;",
            t,
            pair,
            with_ftz(lambda a, b, t=t, r=mode: exact_sum(a, -b, t, r), F),
        )
        case(
            f"mul{m} d, a, b;",
            t,
            pair,
            with_ftz(lambda a, b, t=t, r=mode: exact_product(a, b, t, r), F),
        )
        case(
            f"fma{m} d, a, b, c;",
            t,
            f"{pair} {t}",
            with_ftz(lambda a, b, c, t=t, r=mode: exact_fma(a, b, c, t, r), F),
        )
        case(
            f"div{m} d, a, b;",
            t,
            pair,
            with_ftz(lambda a, b, t=t, r=mode: exact_quotient(a, b, t, r), F),
        )
        case(
            f"rcp{m} d, a;", t, t, with_ftz(lambda a, t=t, r=mode: exact_quotient(1.0, a, t, r), F)
        )
        case(f"sqrt{m} d, a;", t, t, with_ftz(lambda a, t=t, r=mode: exact_root(a, t, r), F))
    case(f"min{ftz}.{t} d, a, b;", t, pair, with_ftz(smaller, F))
    case(f"max{ftz}.{t} d, a, b;", t, pair, with_ftz(lambda a, b: smaller(a, b, -1), F))
    if t == "f32":
        case(
            f"min{ftz}.NaN.{t} d, a, b;",
            t,
            pair,
            with_ftz(lambda a, b: math.nan if math.isnan(a) or math.isnan(b) else smaller(a, b), F),
        )
        case(
            f"max{ftz}.NaN.{t} d, a, b;",
            t,
            pair,
            with_ftz(
                lambda a, b: math.nan if math.isnan(a) or math.isnan(b) else smaller(a, b, -1), F
            ),
        )
        case(
            f"add.rn{ftz}.sat.{t} d, a, b;",
            t,
            pair,
            with_ftz(lambda a, b, t=t: saturated(exact_sum(a, b, t, "rn")), F),
        )
        case(
            f"fma.rn{ftz}.sat.{t} d, a, b, c;",
            t,
            f"{pair} {t}",
            with_ftz(lambda a, b, c, t=t: saturated(exact_fma(a, b, c, t, "rn")), F),
        )
    case(f"abs{ftz}.{t} d, a;", t, t, with_ftz(abs, F))
    case(f"neg{ftz}.{t} d, a;", t, t, with_ftz(lambda a: -a, F))
    for word, order in ORDER.items():
        flat = flushed if F else float
        case(
            f"setp.{word}{ftz}.{t} d, a, b;",
            "pred",
            pair,
            lambda a, b, f=order, z=flat, w=word: int(
                f(z(a), z(b)) and not (w == "ne" and (math.isnan(a) or math.isnan(b)))
            ),
        )
        case(
            f"setp.{word}u{ftz}.{t} d, a, b;",
            "pred",
            pair,
            lambda a, b, f=order, z=flat: int(f(z(a), z(b)) or math.isnan(a) or math.isnan(b)),
        )
    case(
        f"setp.num{ftz}.{t} d, a, b;",
        "pred",
        pair,
        lambda a, b: int(not (math.isnan(a) or math.isnan(b))),
    )
    case(
        f"setp.nan{ftz}.{t} d, a, b;",
        "pred",
        pair,
        lambda a, b: int(math.isnan(a) or math.isnan(b)),
    )
for t in ("f32", "f64"):
    case(f"copysign.{t} d, a, b;", t, f"{t} {t}", lambda a, b: math.copysign(b, a))
    tiny = 2.0**-126 if t == "f32" else 2.0**-1022
    case(f"testp.finite.{t} d, a;", "pred", t, lambda a: int(math.isfinite(a)))
    case(f"testp.infinite.{t} d, a;", "pred", t, lambda a: int(math.isinf(a)))
    case(f"testp.number.{t} d, a;", "pred", t, lambda a: int(not math.isnan(a)))
    case(f"testp.notanumber.{t} d, a;", "pred", t, lambda a: int(math.isnan(a)))
    case(
        f"testp.normal.{t} d, a;",
        "pred",
        t,
        lambda a, z=tiny: int(math.isfinite(a) and abs(a) >= z),
    )
    case(f"testp.subnormal.{t} d, a;", "pred", t, lambda a, z=tiny: int(0 < abs(a) < z))
    case(f"selp.{t} d, a, b, c;", t, f"{t} {t} pred", lambda a, b, c: a if c else b)
    case(f"slct.{t}.f32 d, a, b, c;", t, f"{t} {t} f32", lambda a, b, c: a if c >= 0 else b)


def guarded(function, *errors: float):
    def run(a: float) -> float:
        try:
            return function(a)
        except OverflowError:
            return math.inf
        except ValueError:
            return errors[0] if errors else math.nan

    return run


for ftz in ("", ".ftz"):
    F = bool(ftz)
    case(
        f"ex2.approx{ftz}.f32 d, a;", "f32", "f32", with_ftz(guarded(lambda a: 2.0**a), F), 2.0**-22
    )
    case(
        f"lg2.approx{ftz}.f32 d, a;",
        "f32",
        "f32",
        with_ftz(guarded(lambda a: math.log2(a) if a != 0 else -math.inf), F),
        2.0**-22,
    )
    case(f"sin.approx{ftz}.f32 d, a;", "f32", "f32", with_ftz(guarded(math.sin), F), 2.0**-20.5)
    case(f"cos.approx{ftz}.f32 d, a;", "f32", "f32", with_ftz(guarded(math.cos), F), 2.0**-20.5)
    case(
        f"rcp.approx{ftz}.f32 d, a;",
        "f32",
        "f32",
        with_ftz(lambda a: exact_quotient(1.0, a, "f32", "rn"), F),
        2.0**-23,
    )
    case(
        f"rsqrt.approx{ftz}.f32 d, a;",
        "f32",
        "f32",
        with_ftz(
            lambda a: (
                math.nan
                if math.isnan(a) or a < 0
                else math.copysign(math.inf, a)
                if a == 0
                else 1 / math.sqrt(a)
            ),
            F,
        ),
        2.0**-22,
    )
    case(
        f"sqrt.approx{ftz}.f32 d, a;",
        "f32",
        "f32",
        with_ftz(lambda a: exact_root(a, "f32", "rn"), F),
        2.0**-23,
    )
    case(
        f"div.approx{ftz}.f32 d, a, b;",
        "f32",
        "f32 f32",
        with_ftz(lambda a, b: exact_quotient(a, b, "f32", "rn"), F),
        2.0**-22,
    )
    case(
        f"div.full{ftz}.f32 d, a, b;",
        "f32",
        "f32 f32",
        with_ftz(lambda a, b: exact_quotient(a, b, "f32", "rn"), F),
        2.0**-22,
    )
case("tanh.approx.f32 d, a;", "f32", "f32", math.tanh, 2.0**-11)

# ---- conversions ---------------------------------------------------------------------------------

INTEGERS = ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64")


def limits(t: str) -> tuple[int, int]:
    n = BITS[t]
    return (-(1 << n - 1), (1 << n - 1) - 1) if t[0] == "s" else (0, (1 << n) - 1)


for to in INTEGERS:
    for source in INTEGERS:
        if to != source:
            case(f"cvt.{to}.{source} d, a;", to, source, lambda a: a)
            case(f"cvt.sat.{to}.{source} d, a;", to, source, lambda a, to=to: clamp(a, *limits(to)))
for source in ("f32", "f64"):
    for to in ("u8", "s16", "u16", "u32", "s32", "u64", "s64"):
        for mode in ("rni", "rzi", "rmi", "rpi"):

            def to_integer(a: float, to: str = to, source: str = source, mode: str = mode) -> int:
                low, high = limits(to)
                if math.isnan(a):
                    return 1 << BITS[to] - 1 if source == "f64" or BITS[to] == 64 else 0
                if math.isinf(a):
                    return high if a > 0 else low
                return clamp(round_integer(Fraction(a), mode[:2]), low, high)

            case(f"cvt.{mode}.{to}.{source} d, a;", to, source, to_integer)
for to in ("f32", "f64"):
    for source in INTEGERS:
        for mode in ("rn", "rz", "rm", "rp") if to == "f32" else ("rn",):
            case(
                f"cvt.{mode}.{to}.{source} d, a;",
                to,
                source,
                lambda a, to=to, r=mode: rounded(Fraction(a), to, r) if a else 0.0,
            )


def narrowed(a: float, to: str, mode: str) -> float:
    return rounded(Fraction(a), to, mode) if math.isfinite(a) and a else a


for mode in ("rn", "rz", "rm", "rp"):
    case(f"cvt.{mode}.f32.f64 d, a;", "f32", "f64", lambda a, r=mode: narrowed(a, "f32", r))
case("cvt.rn.ftz.f32.f64 d, a;", "f32", "f64", lambda a: flushed(narrowed(a, "f32", "rn")))
case("cvt.f64.f32 d, a;", "f64", "f32", lambda a: a)
case("cvt.ftz.f64.f32 d, a;", "f64", "f32", flushed)
case("cvt.sat.f32.f32 d, a;", "f32", "f32", saturated)
case("cvt.ftz.sat.f32.f32 d, a;", "f32", "f32", lambda a: saturated(flushed(a)))
for t in ("f32", "f64"):
    for mode in ("rni", "rzi", "rmi", "rpi"):
        case(
            f"cvt.{mode}.{t}.{t} d, a;",
            t,
            t,
            lambda a, r=mode: (
                math.copysign(float(round_integer(Fraction(a), r[:2])), a)
                if math.isfinite(a)
                else a
            ),
        )


def half(bits: int, t: str) -> float:
    if t == "f16":
        return float(np.uint16(bits).view(np.float16))
    return float(np.uint32(bits << 16).view(np.float32))


def half_bits(a: float, t: str, mode: str = "rn") -> int:
    """The 16 bits of a float; every NaN becomes 0x7FFF."""
    if math.isnan(a):
        return 0x7FFF
    value = narrowed(a, t, mode)
    if t == "f16":
        return int(np.float16(value).view(np.uint16))
    return int(np.float32(value).view(np.uint32)) >> 16


for t in ("f16", "bf16"):
    case(f"cvt.f32.{t} d, a;", "f32", t, lambda a, t=t: half(a, t))
    case(f"cvt.rn.{t}.f32 d, a;", t, "f32", lambda a, t=t: half_bits(a, t))
    case(f"cvt.rn.relu.{t}.f32 d, a;", t, "f32", lambda a, t=t: half_bits(0.0 if a < 0 else a, t))
    case(
        f"cvt.rn.{t}x2.f32 d, a, b;",
        "b32",
        "f32 f32",
        lambda a, b, t=t: half_bits(a, t) << 16 | half_bits(b, t),
    )
    pair = f"{t} {t}"
    case(
        f"add.rn.{t} d, a, b;",
        t,
        pair,
        lambda a, b, t=t: half_bits(exact_sum(half(a, t), half(b, t), t, "rn"), t),
    )
    case(
        f"sub.rn.{t} d, a, b;",
        t,
        pair,
        lambda a, b, t=t: half_bits(exact_sum(half(a, t), -half(b, t), t, "rn"), t),
    )
    case(
        f"mul.rn.{t} d, a, b;",
        t,
        pair,
        lambda a, b, t=t: half_bits(exact_product(half(a, t), half(b, t), t, "rn"), t),
    )
    case(
        f"fma.rn.{t} d, a, b, c;",
        t,
        f"{pair} {t}",
        lambda a, b, c, t=t: half_bits(exact_fma(half(a, t), half(b, t), half(c, t), t, "rn"), t),
    )
    case(
        f"min.{t} d, a, b;",
        t,
        pair,
        lambda a, b, t=t: half_bits(smaller(half(a, t), half(b, t)), t),
    )
    case(
        f"max.NaN.{t} d, a, b;",
        t,
        pair,
        lambda a, b, t=t: half_bits(
            math.nan
            if math.isnan(half(a, t)) or math.isnan(half(b, t))
            else smaller(half(a, t), half(b, t), -1),
            t,
        ),
    )
    case(f"neg.{t} d, a;", t, t, lambda a: a ^ 0x8000)
    case(f"abs.{t} d, a;", t, t, lambda a: a & 0x7FFF)
    case(
        f"fma.rn.{t}x2 d, a, b, c;",
        "b32",
        "b32 b32 b32",
        lambda a, b, c, t=t: sum(
            half_bits(
                exact_fma(
                    half(a >> s & 65535, t),
                    half(b >> s & 65535, t),
                    half(c >> s & 65535, t),
                    t,
                    "rn",
                ),
                t,
            )
            << s
            for s in (0, 16)
        ),
    )
for t, one in (("f16", 0x3C00), ("bf16", 0x3F80)):
    case(
        f"set.lt.{t}.{t} d, a, b;",
        t,
        f"{t} {t}",
        lambda a, b, t=t, o=one: o * (half(a, t) < half(b, t)),
    )
    case(
        f"setp.geu.{t} d, a, b;",
        "pred",
        f"{t} {t}",
        lambda a, b, t=t: int(not half(a, t) < half(b, t)),
    )
    case(
        f"{{ .reg .b32 w, v; mov.b32 w, {{a, b}}; mov.b32 v, {{b, b}}; "
        f"set.equ.u32.{t}x2 d, w, v; }}",
        "b32",
        f"{t} {t}",
        lambda a, b, t=t: (
            0xFFFF0000
            | 0xFFFF
            * (half(a, t) == half(b, t) or half(a, t) != half(a, t) or half(b, t) != half(b, t))
        ),
    )
case("cvt.rz.bf16.f32 d, a;", "bf16", "f32", lambda a: half_bits(a, "bf16", "rz"))
case("cvt.rn.f16.f64 d, a;", "f16", "f64", lambda a: half_bits(a, "f16"))
case("cvt.rn.f16.s32 d, a;", "f16", "s32", lambda a: half_bits(float(a), "f16"))
case(
    "cvt.rni.s32.f16 d, a;",
    "s32",
    "f16",
    lambda a: (
        0
        if math.isnan(half(a, "f16"))
        else clamp(round_integer(Fraction(half(a, "f16")), "rn"), -(2**31), 2**31 - 1)
        if math.isfinite(half(a, "f16"))
        else int(math.copysign(2**31, half(a, "f16"))) - (half(a, "f16") > 0)
    ),
)


def tf32(a: float) -> float:
    if not math.isfinite(a) or a == 0:
        return a
    step = Fraction(2) ** (max(math.frexp(a)[1] - 1, -126) - 10)
    value = math.copysign(float(round_integer(abs(Fraction(a)) / step, "rna") * step), a)
    return value if abs(value) < 2.0**128 else math.copysign(math.inf, a)


case("cvt.rna.tf32.f32 d, a;", "f32", "f32", tf32)

# ---- running -------------------------------------------------------------------------------------


PLAIN = {"pred": "u32", "f16": "b16", "bf16": "b16"}  # how memory holds what it has no type for


class Suite:
    """Test cases that are compiled several to a kernel, run once, and compared one by one."""

    def __init__(self, cases: list[tuple]) -> None:
        self.cases = cases
        found: dict[tuple, list[int]] = {}
        for number, (code, result, sources, _, _) in enumerate(cases):  # of one signature
            found.setdefault((result, sources, ".ftz" in code), []).append(number)
        self.groups = [
            numbers[k : k + 12] for numbers in found.values() for k in range(0, len(numbers), 12)
        ]
        self.places = {
            n: (name, k) for name, numbers in enumerate(self.groups) for k, n in enumerate(numbers)
        }
        self.modules: dict[tuple, object] = {}
        self.found: dict[int, list[np.ndarray]] = {}

    def check(self, number: int) -> None:
        """Compare the simulator's results for one case with its definition, over all its rows."""
        code, result, sources, meaning, tolerance = self.cases[number]
        name, place = self.places[number]
        rows, _ = inputs(sources)
        expected = np.array([stored(meaning(*row), result) for row in rows])
        for got in self.outputs(name):
            compare(code, rows, got[place], expected, result, tolerance)

    def outputs(self, name: int) -> list[np.ndarray]:
        """Results of a group, a row for each case: one array, or two where cases flush."""
        if name not in self.found:
            numbers = self.groups[name]
            code, result, sources, _, _ = self.cases[numbers[0]]
            rows, columns = inputs(sources)
            self.found[name] = []
            for in_software in (False, True) if ".ftz" in code else (False,):
                got = sim.empty((len(numbers), len(rows)), NUMPY[result])
                module = self.module(name // 16, in_software)
                module.launch(f"k{name}", -(-len(rows) // 128), 128, (got, *columns, len(rows)))
                self.found[name].append(sim.asnumpy(got))
        return self.found[name]

    def module(self, part: int, in_software: bool):
        """16 groups in one module; in_software: only those that flush, flushed in software."""
        if (part, in_software) not in self.modules:
            text = [".version 8.0", ".target sm_90", ".address_size 64"]
            for name, numbers in list(enumerate(self.groups))[16 * part : 16 * part + 16]:
                cases = [self.cases[n] for n in numbers]
                if not in_software or ".ftz" in cases[0][0]:
                    text.append(entry(name, cases, in_software))
            self.modules[part, in_software] = sim.Module.from_ptx("\n".join(text))
        return self.modules[part, in_software]


def entry(name: int, cases: list[tuple], in_software: bool) -> str:
    """A kernel that applies every case of a group to element `thread`; a row of results for each.

    in_software: with an f64 instruction, which keeps the processor's flush mode from being used.
    """
    _, result, sources, _, _ = cases[0]
    lines = [
        f".visible .entry k{name}(.param .u64 o, .param .u64 pa, .param .u64 pb, .param .u64 pc,",
        ".param .u32 n) {",
        ".reg .pred skip; .reg .b32 t0, t1, t2, n0, word; .reg .b64 i, po, row; .reg .f64 x0;",
        f".reg .{'pred' if result == 'pred' else _register(result)} d;",
        "mov.u32 t0, %ctaid.x; mov.u32 t1, %ntid.x; mov.u32 t2, %tid.x;",
        "mad.lo.u32 t0, t0, t1, t2;",
        "ld.param.u32 n0, [n]; setp.ge.u32 skip, t0, n0; @skip bra DONE;",
        f"mul.wide.u32 i, t0, {BITS[result] // 8}; mul.wide.u32 row, n0, {BITS[result] // 8};",
        "ld.param.u64 po, [o]; add.u64 po, po, i;",
        "mov.f64 x0, 0d3FF0000000000000; add.f64 x0, x0, x0;" if in_software else "",
    ]
    for letter, source in zip("abc", sources, strict=False):
        register = letter if source != "pred" else letter + "0"
        lines += [
            f".reg .b64 q{letter}; .reg .{_register(source)} {register};",
            f"ld.param.u64 q{letter}, [p{letter}]; mul.wide.u32 i, t0, {BITS[source] // 8};",
            f"add.u64 q{letter}, q{letter}, i;",
            f"ld.global.{PLAIN.get(source, source)} {register}, [q{letter}];",
        ]
        if source == "pred":
            lines.append(f".reg .pred {letter}; setp.ne.u32 {letter}, {letter}0, 0;")
    for case in cases:
        lines += [
            case[0],
            "selp.u32 word, 1, 0, d;" if result == "pred" else "",
            f"st.global.{PLAIN.get(result, result)} [po], {'word' if result == 'pred' else 'd'};",
            "add.u64 po, po, row;",
        ]
    return "\n".join([*lines, "DONE: ret;", "}"])


def _register(type_: str) -> str:
    if type_ in ("f32", "f64"):
        return type_
    return "b32" if type_ == "pred" else REGISTER[BITS[type_]]


@cache
def inputs(sources: tuple[str, ...]) -> tuple[list, list]:
    """Rows of operands, and the same as device columns."""
    rows = operands(sources)
    columns = []
    for k, source in enumerate(sources):
        if source in ("f32", "f64"):
            column = np.array([row[k] for row in rows], NUMPY[source])
        else:
            mask = (1 << BITS[source]) - 1
            column = np.array([row[k] & mask for row in rows], f"u{BITS[source] // 8}")
        columns.append(sim.asarray(column))
    return rows, columns + [sim.zeros(1)] * (3 - len(columns))


def stored(value, type_: str):
    """The result of a definition as the bits that the kernel stores."""
    if type_ in ("f32", "f64"):
        with np.errstate(over="ignore"):
            return NUMPY[type_](value)
    bits = BITS[type_]
    return (
        np.uint64(int(value) & (1 << bits) - 1).astype(NUMPY[type_])
        if bits < 64
        else np.array(int(value) & (1 << 64) - 1, np.uint64).astype(NUMPY[type_])
    )


SUITE = Suite(CASES)


@pytest.mark.parametrize("number", range(len(CASES)), ids=[c[0] for c in CASES])
def test_instruction(number):
    SUITE.check(number)


def compare(
    code: str, rows: list, got: np.ndarray, expected: np.ndarray, result: str, tolerance: float
) -> None:
    if result in ("f32", "f64"):
        if ".ftz" in code:  # just under the smallest normal either rounding may come first
            expected = np.where((np.abs(expected) == 2.0**-126) & (got == 0), got, expected)
        same = (got == expected) & (np.signbit(got) == np.signbit(expected)) | np.isnan(
            got
        ) & np.isnan(expected)
        if tolerance:
            with np.errstate(invalid="ignore", over="ignore"):
                error = np.abs(got.astype(np.float64) - expected)
            scale = (
                1.0 if code[:3] in ("sin", "cos", "lg2") else np.abs(expected.astype(np.float64))
            )
            same |= error <= tolerance * np.maximum(scale, 2.0**-126)
    elif result in ("f16", "bf16"):
        same = (got == expected) | (_nan16(got, result) & _nan16(expected, result))
        if tolerance:
            mine, right = (np.array([half(int(v), result) for v in a]) for a in (got, expected))
            with np.errstate(invalid="ignore"):
                same |= np.abs(mine - right) <= tolerance * np.maximum(np.abs(right), 2.0**-14)
    elif "x2" in code:
        t = "bf16" if "bf16" in code else "f16"
        same = np.ones(len(got), bool)
        for shift in (0, 16):
            g, e = (got >> shift).astype(np.uint16), (expected >> shift).astype(np.uint16)
            near = np.zeros(len(got), bool)
            if tolerance:
                mine, right = (np.array([half(int(v), t) for v in a]) for a in (g, e))
                with np.errstate(invalid="ignore"):
                    near = np.abs(mine - right) <= tolerance * np.maximum(np.abs(right), 2.0**-14)
            same &= (g == e) | _nan16(g, t) & _nan16(e, t) | near
    else:
        same = got == expected
    wrong = np.flatnonzero(~same)
    assert not len(wrong), (
        f"{code}: {len(wrong)} of {len(rows)} differ, first {rows[wrong[0]]}: "
        f"got {got[wrong[0]]!r}, expected {expected[wrong[0]]!r}"
    )


def _nan16(bits: np.ndarray, t: str) -> np.ndarray:
    return (bits & 0x7FFF) > (0x7C00 if t == "f16" else 0x7F80)
