"""Every form of an instruction that the simulator models is tested.

The simulator gets all forms that the PTX ISA allows (ptx_forms.py), and those that it accepts must
be those that are tested. The forms that test_sim_instructions.py does not test are tested here,
against semantics derived from their modifiers: a sample by default, the rest under `slow`.
"""

import math
import re
from fractions import Fraction
from pathlib import Path

import ptx_forms
import pytest
import test_sim_instructions as base
from ptx_forms import FORMS
from test_sim_instructions import BITS, clamp, half, half_bits, rounded, saturated, signed

from gpuconv.sim import body, ptx
from gpuconv.sim.errors import UnsupportedError
from gpuconv.sim.lower import lower

WIDTHS = {"pred": 1, "f16": 16, "bf16": 16, "tf32": 32}
EXACT = {
    "add": base.exact_sum,
    "sub": lambda a, b, t, mode: base.exact_sum(a, -b, t, mode),
    "mul": base.exact_product,
    "fma": base.exact_fma,
    "mad": base.exact_fma,
}
COUNT = {"fma": 3, "mad": 3}
TYPE = re.compile(r"[busf]\d+(?:x2)?|bf16(?:x2)?|tf32|pred")


def width(type_):
    return 32 if type_.endswith("x2") else WIDTHS.get(type_) or int(type_[1:])


def types_of(words):
    return [w for w in words if TYPE.fullmatch(w)]


# ---- meanings: (code, result, sources, function, tolerance) --------------------------------------


def spelled(op, form, count):
    return f"{op}.{form} d, {', '.join('abc'[:count])};"


def floats(op, form, words):
    """add, sub, mul, fma and mad of f32 and f64."""
    t, mode = words[-1], next((w for w in words if w in ptx_forms.ROUND), "rn")
    n = COUNT.get(op, 2)

    def meaning(*v):
        found = EXACT[op](*v, t, mode)
        return saturated(found) if "sat" in words else found

    return spelled(op, form, n), t, [t] * n, base.with_ftz(meaning, "ftz" in words)


def small(a, t):
    """A value of a 16-bit format with subnormals flushed to zero."""
    return math.copysign(0.0, a) if abs(a) < (2.0**-14 if t == "f16" else 2.0**-126) else a


def lanes(function, type_):
    """A function of 16-bit values, applied to both lanes of a word where the type is packed."""
    if not type_.endswith("x2"):
        return function
    return lambda *v: sum(function(*(a >> s & 0xFFFF for a in v)) << s for s in (0, 16))


def halves(op, form, words):
    """Arithmetic of the 16-bit formats: computed exactly and rounded once."""
    type_ = words[-1]
    t, ftz = type_.removesuffix("x2"), "ftz" in words
    n = COUNT.get(op, 1 if op in ("abs", "neg", "ex2", "tanh") else 2)

    def lane(*bits):
        v = [half(b, t) for b in bits]
        v = [small(a, t) for a in v] if ftz else v
        if op in ("abs", "neg"):
            if math.isnan(v[0]):
                return 0x7FFF
            return half_bits(abs(v[0]) if op == "abs" else -v[0], t)
        if op in ("min", "max"):
            nan = "NaN" in words and any(map(math.isnan, v))
            found = math.nan if nan else base.smaller(*v, 1 if op == "min" else -1)
        elif op == "ex2":
            found = rounded_power(v[0])
        elif op == "tanh":
            found = math.tanh(v[0])
        else:
            found = EXACT[op](*v, t, "rn")
        found = saturated(found) if "sat" in words else found
        if "relu" in words and (found < 0 or _below_zero(v)):
            found = 0.0
        bits = half_bits(found, t)
        return half_bits(small(half(bits, t), t), t) if ftz else bits

    tolerance = {("ex2", "f16"): 2.0**-9.9, ("ex2", "bf16"): 2.0**-7}.get((op, t), 0.0)
    tolerance = {"f16": 2.0**-10.9, "bf16": 2.0**-8}[t] if op == "tanh" else tolerance
    kind = "b32" if type_.endswith("x2") else t
    return spelled(op, form, n), kind, [kind] * n, lanes(lane, type_), tolerance


def _below_zero(v):
    """Whether a * b + c is negative, even where it is too small for the format."""
    return all(map(math.isfinite, v)) and Fraction(v[0]) * Fraction(v[1]) + Fraction(v[2]) < 0


def rounded_power(a):
    try:
        return 2.0**a
    except OverflowError:
        return math.inf


def extremes(op, form, words):
    """min.xorsign.abs of f32: the smaller magnitude, with the sign of the product."""
    sign = 1 if op == "min" else -1

    def meaning(a, b):
        if "NaN" in words and (math.isnan(a) or math.isnan(b)):
            return math.nan
        found = base.smaller(abs(a), abs(b), sign)
        return math.copysign(found, math.copysign(1, a) * math.copysign(1, b))

    return spelled(op, form, 2), "f32", ["f32"] * 2, base.with_ftz(meaning, "ftz" in words)


def carries(op, form, words):
    """The instruction's result, xor a word that depends on the carry flag that it sets."""
    t = words[-1]
    n, reads, sub = width(t), op in ("addc", "subc", "madc"), op.startswith("sub")
    u, last = f"u{n}", "subc" if sub else "addc"
    three = op in ("mad", "madc")
    code = f"{{ .reg .b{n} h; "
    code += f"{'sub' if sub else 'add'}.cc.{u} h, a, b; " if reads else ""
    code += f"{op}.{form} d, {'a, b, c' if three else 'b, c' if reads else 'a, b'}; "
    code += f"{last}.{u} h, {'a' if three or reads else 'c'}, 0; xor.b{n} d, d, h; }}" * (
        "cc" in words
    )
    code += "}" * ("cc" not in words)

    def meaning(a, b, c):
        mask = (1 << n) - 1
        carry = (int(a < b) if sub else (a + b) >> n) if reads else 0
        if three:
            x, y = (signed(v, n) for v in (a, b)) if t[0] == "s" else (a, b)
            product = x * y
            total = ((product if "lo" in words else product >> n) & mask) + c + carry
        else:
            x, y = (b, c) if reads else (a, b)
            total = x - y - carry if sub else x + y + carry
        if "cc" not in words:
            return total
        out = int(total < 0) if sub else total >> n
        left = a if three or reads else c
        return (total & mask) ^ ((left - out if sub else left + out) & mask)

    return code, u, [u] * 3, meaning


def products(op, form, words):
    """mul24 and mad24; mad.hi.sat."""

    def meaning(a, b, c=0):
        if op == "mad":
            return clamp((a * b >> 32) + c, -(2**31), 2**31 - 1)
        x, y = (signed(v, 24) if words[-1] == "s32" else v & 0xFFFFFF for v in (a, b))
        return (x * y >> (16 if words[0] == "hi" else 0)) + c

    n = 3 if op.startswith("mad") else 2
    return spelled(op, form, n), words[-1], [words[-1]] * n, meaning


def dots(op, form, words):
    """dp2a, and the sum of vabsdiff4."""

    def half_of(v, t, k):
        return signed(v >> 16 * k, 16) if t == "s32" else v >> 16 * k & 0xFFFF

    def byte_of(v, t, k):
        return signed(v >> 8 * k, 8) if t == "s32" else v >> 8 * k & 0xFF

    def meaning(a, b, c):
        if op == "vabsdiff4":
            return c + sum(abs(byte_of(a, "s32", k) - byte_of(b, "s32", k)) for k in range(4))
        start = 2 if words[0] == "hi" else 0
        return c + sum(half_of(a, words[1], k) * byte_of(b, words[2], k + start) for k in (0, 1))

    return spelled(op, form, 3), "b32", ["b32"] * 3, meaning


def approximate(op, form, words):
    """rcp and rsqrt of f64: the high 32 bits of the result."""

    def meaning(a):
        if op == "rcp":
            return base.exact_quotient(1.0, a, "f64", "rn")
        if math.isnan(a) or a < 0:
            return math.nan
        return math.copysign(math.inf, a) if a == 0 else 1 / math.sqrt(a)

    return spelled(op, form, 1), "f64", ["f64"], meaning, 2.0**-20


ORDERED = {**base.ORDER, "lo": base.ORDER["lt"], "ls": base.ORDER["le"], "hi": base.ORDER["gt"],
           "hs": base.ORDER["ge"]}  # fmt: skip
JOINS = {"and": lambda a, b: a & b, "or": lambda a, b: a | b, "xor": lambda a, b: a ^ b}


def related(word, t, ftz):
    """The comparison `word` of two values of a type."""
    if t[0] in "bus" and t != "bf16":
        return lambda a, b: int(ORDERED[word](a, b))

    def real(a):
        a = half(a, t) if t in ("f16", "bf16") else a
        return (base.flushed(a) if t == "f32" else small(a, t)) if ftz else a

    def test(a, b):
        a, b = real(a), real(b)
        unordered = math.isnan(a) or math.isnan(b)
        if word in ("num", "nan"):
            return int(unordered == (word == "nan"))
        if unordered:
            return int(word.endswith("u"))
        return int(ORDERED[word.removesuffix("u")](a, b))

    return test


def comparisons(op, form, words):
    """setp, and set with each value that stands for true."""
    t, (join,) = words[-1], [w for w in words if w in JOINS] or [""]
    test = related(words[0], t.removesuffix("x2"), "ftz" in words)
    joined = (lambda a, b, c: JOINS[join](test(a, b), c)) if join else test
    sources = [t, t, "pred"] if join else [t, t]
    if op == "setp":
        return spelled(op, form, len(sources)), "pred", sources, joined
    result = words[-2]
    if t.endswith("x2"):
        true = {"f16x2": 0x3C00, "bf16x2": 0x3F80}.get(result, 0xFFFF)
        return spelled(op, form, 2), "b32", ["b32"] * 2, lanes(lambda a, b: true * test(a, b), t)
    true = {"f32": 1.0, "f16": 0x3C00, "bf16": 0x3F80}.get(result, -1)
    return spelled(op, form, len(sources)), result, sources, lambda *v: true * joined(*v)


def choices(op, form, words):
    """selp and slct."""
    if op == "selp":
        return (
            spelled(op, form, 3),
            words[-1],
            [words[-1]] * 2 + ["pred"],
            (lambda a, b, c: a if c else b),
        )
    t, third = types_of(words)
    real = base.flushed if "ftz" in words else (lambda c: c)
    return spelled(op, form, 3), t, [t, t, third], lambda a, b, c: a if real(c) >= 0 else b


def moves(op, form, words):
    if form == "b128":
        code = "{ .reg .b128 w; .reg .b64 h; mov.b128 w, {a, b}; mov.b128 {d, h}, w; "
        return code + "sub.u64 d, d, h; }", "u64", ["u64"] * 2, lambda a, b: a - b
    return spelled(op, form, 1), form, [form], lambda a: a


def logic(op, form, words):
    function = {"not": lambda a: 1 - a, **JOINS}[op]
    n = 1 if op == "not" else 2
    return spelled(op, form, n), "pred", ["pred"] * n, function


def conversions(op, form, words):
    to, source = words[-2:]
    integers = base.INTEGERS
    whole = next((w for w in words if w in ("rni", "rzi", "rmi", "rpi")), "")
    mode = next((w for w in words if w in ptx_forms.ROUND), "rn")
    sat, ftz, relu = ("sat" in words), ("ftz" in words), ("relu" in words)

    def real(a):
        a = half(a, source) if source in ("f16", "bf16") else a
        return base.flushed(a) if ftz and source == "f32" else a

    def to_integer(a):
        a, (low, high) = real(a), base.limits(to)
        if math.isnan(a):
            return 1 << BITS[to] - 1 if source == "f64" or BITS[to] == 64 else 0
        if math.isinf(a):
            return high if a > 0 else low
        return clamp(base.round_integer(Fraction(a), whole[:2]), low, high)

    def to_float(a):
        if source in integers:
            found = rounded(Fraction(a), to, mode) if a else 0.0
        else:
            found = real(a)
            found = 0.0 if relu and found < 0 else found
            if whole and math.isfinite(found):
                found = math.copysign(float(base.round_integer(Fraction(found), whole[:2])), found)
            elif not whole:
                found = base.narrowed(found, to.removesuffix("x2"), mode)
        found = base.flushed(found) if ftz and to == "f32" else found
        return saturated(found) if sat else found

    if to in integers:
        return spelled(op, form, 1), to, [source], to_integer
    if to.endswith("x2"):
        t = to[:-2]
        pack = lambda a, b: half_bits(to_float(a), t, mode) << 16 | half_bits(to_float(b), t, mode)  # noqa: E731
        return spelled(op, form, 2), "b32", [source] * 2, pack
    if to in ("f16", "bf16"):
        return spelled(op, form, 1), to, [source], lambda a: half_bits(to_float(a), to, mode)
    return spelled(op, form, 1), to, [source], to_float


def meaning_of(op, form):
    """The test case of a form, derived from its modifiers."""
    words = form.split(".")
    if op == "cvt":
        maker = conversions
    elif op in ("setp", "set"):
        maker = comparisons
    elif op in ("selp", "slct"):
        maker = choices
    elif op == "mov":
        maker = moves
    elif words[-1] == "pred":
        maker = logic
    elif words[-1] in ptx_forms.HALF:
        maker = halves
    elif op in ("min", "max"):
        maker = extremes
    elif op in ("addc", "subc", "madc") or "cc" in words:
        maker = carries
    elif op in ("mul24", "mad24") or form == "hi.sat.s32":
        maker = products
    elif op in ("dp2a", "vabsdiff4"):
        maker = dots
    elif op in ("rcp", "rsqrt"):
        maker = approximate
    else:
        maker = floats
    code, result, sources, function, *tolerance = maker(op, form, words)
    return code, result, tuple(sources), function, *(tolerance or [0.0])


# ---- which forms the simulator takes -------------------------------------------------------------

ONE = (
    *("popc", "clz", "brev", "bfind", "abs", "neg", "not", "cnot", "testp", "rcp", "sqrt", "rsqrt"),
    *("sin", "cos", "lg2", "ex2", "tanh", "mov", "cvt"),
)
THREE = (
    *("mad", "madc", "mad24", "sad", "dp4a", "dp2a", "vabsdiff4", "shf", "prmt", "fma", "lop3"),
    *("selp", "slct"),
)
SOURCES = {**dict.fromkeys(ONE, 1), **dict.fromkeys(THREE, 3)}  # two where not named
BIT_FIELDS = {"bfe": "a, i, i", "bfi": "a, b, i, i", "shl": "a, i", "shr": "a, i", "szext": "a, i"}


def declared(type_):
    bits = width(type_)
    return "pred" if bits == 1 else f"b{max(bits, 16)}"


def kernel(op, form):
    """A kernel that contains this instruction alone."""
    words = form.split(".")
    types = types_of(words)
    source = types[0] if op in ("slct", *BIT_FIELDS) else types[-1]
    a = declared(source)
    d = "b32" if op in ("popc", "clz", "bfind") else declared(types[0])
    d = "pred" if op in ("setp", "testp") else d
    d = f"b{2 * width(source)}" if "wide" in words else d
    c = {"selp": "pred", "slct": "b32"}.get(op, d if "wide" in words else a)
    count = 2 if op == "cvt" and types[0].endswith("x2") else SOURCES.get(op, 2)
    operands = BIT_FIELDS.get(op, ", ".join("abc"[:count]))
    operands += ", q" if op in ("set", "setp") and set(words) & set(JOINS) else ""
    operands += ", 0x96" if op == "lop3" else ""
    to = "d"
    if op == "lop3" and form != "b32":
        to, operands = "d|p", operands + ", q"
    return (
        ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k(.param .u64 o) {\n"
        f".reg .{d} d; .reg .{a} a, b; .reg .{c} c; .reg .b32 i; .reg .pred p, q;\n"
        f"{op}.{form} {to}, {operands};\nret;\n}}"
    )


def taken(op, form):
    try:
        lower(ptx.parse(kernel(op, form)))
    except UnsupportedError as error:
        if f"{op}.{form}" not in str(error) or "not modelled" not in str(error):
            raise
        return False
    return True


def spelled_out():
    """The forms that test_sim_instructions.py tests."""
    words = (part.split() for code, *_ in base.CASES for part in re.split(r"[;{}]", code))
    return {w[0] for w in words if w and "." in w[0] and w[0][0] != "."}


MODELLED = {f"{op}.{form}" for op, forms in FORMS.items() for form in forms if taken(op, form)}
REST = sorted(MODELLED - spelled_out())
SUITE = base.Suite([meaning_of(*name.split(".", 1)) for name in REST])
FEW, MANY = 24, 3  # of so many groups, a kernel each, one is in the default run


def _chosen():
    groups = {n: name for name, numbers in enumerate(SUITE.groups) for n in numbers}
    for n, name in enumerate(REST):
        every = FEW if name.startswith(("set", "cvt")) else MANY
        marks = () if groups[n] % every == 0 else (pytest.mark.slow,)
        yield pytest.param(n, id=name, marks=marks)


@pytest.mark.parametrize("number", list(_chosen()))
def test_a_form(number):
    SUITE.check(number)


def test_every_modelled_form_is_tested_and_every_tested_form_is_modelled():
    assert spelled_out() | set(REST) == MODELLED
    assert len(MODELLED) > 3000


def test_every_opcode_is_tested():
    """Opcodes that compute in registers by their forms, all others in hand-written PTX."""
    control = {name.strip("_") for name in vars(body.Body) if re.fullmatch(r"_[a-z]+_", name)}
    files = ("memory_instructions", "sync_instructions", "async", "matrices")
    text = "".join((Path(__file__).parent / f"test_sim_{name}.py").read_text() for name in files)
    missing = {
        op
        for op in ((set(body.TABLE) | set(body.FLOAT_TABLE)) | control) - set(FORMS)
        if not re.search(rf"(?<![\w.]){op}[. ;]", text)
    }
    assert not missing
    assert set(FORMS) <= (set(body.TABLE) | set(body.FLOAT_TABLE))
