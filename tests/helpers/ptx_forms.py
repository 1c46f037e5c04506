"""The forms of PTX instructions that compute in registers.

`FORMS[op]` are the modifiers after the opcode, as in the syntax tables of the PTX ISA (8.x).
"""

from itertools import product

INTS = ("u16", "s16", "u32", "s32", "u64", "s64")
WIDE = ("u32", "s32", "u64", "s64")
BITS = ("b16", "b32", "b64")
ROUND = ("rn", "rz", "rm", "rp")
HALF = ("f16", "f16x2", "bf16", "bf16x2")
CMP = ("eq", "ne", "lt", "le", "gt", "ge")
CMP_FLOAT = (*CMP, *(c + "u" for c in CMP), "num", "nan")
CMP_UNSIGNED = (*CMP, "lo", "ls", "hi", "hs")
JOIN = ("", "and", "or", "xor")


def forms(*parts: str | tuple[str, ...]) -> list[str]:
    """All combinations of one word from each part, joined by dots, without empty words."""
    choices = [(part,) if isinstance(part, str) else part for part in parts]
    return [".".join(filter(None, words)) for words in product(*choices)]


def optional(*words: str) -> tuple[str, ...]:
    return ("", *words)


F32 = forms(optional(*ROUND), optional("ftz"), optional("sat"), "f32")
F64 = forms(optional(*ROUND), "f64")
F16 = forms(optional("rn"), optional("ftz"), optional("sat"), ("f16", "f16x2"))
BF16 = forms(optional("rn"), ("bf16", "bf16x2"))
EXTREME = [
    *INTS,
    "relu.s32",
    *forms(optional("relu"), ("u16x2", "s16x2")),
    *forms(optional("ftz"), optional("NaN"), optional("xorsign.abs"), ("f32", "f16", "f16x2")),
    *forms(optional("NaN"), optional("xorsign.abs"), ("bf16", "bf16x2")),
    "f64",
]
SIGN = [
    *("s16", "s32", "s64", "f64", "bf16", "bf16x2"),
    *forms(optional("ftz"), ("f32", "f16", "f16x2")),
]


def compared(result: tuple[str, ...]) -> list[str]:
    """The forms of setp, or with result types those of set."""
    found = []
    for words, types in (
        (("eq", "ne"), BITS),
        (CMP, ("s16", "s32", "s64")),
        (CMP_UNSIGNED, ("u16", "u32", "u64")),
        (CMP_FLOAT, ("f64",)),
    ):
        found += forms(words, JOIN, result, types)
    found += forms(CMP_FLOAT, JOIN, optional("ftz"), result, ("f32", "f16"))
    return found + forms(CMP_FLOAT, JOIN, result, "bf16")


def conversions() -> list[str]:
    ints = ("u8", "s8", *INTS)
    whole = ("rni", "rzi", "rmi", "rpi")
    found = [f for f in forms(optional("sat"), ints, ints) if f.split(".")[-1] != f.split(".")[-2]]
    found += forms(whole, optional("ftz"), optional("sat"), ints, "f32")
    found += forms(whole, optional("sat"), ints, ("f64", "f16", "bf16"))
    found += forms(ROUND, optional("sat"), ("f32", "f64"), ints)
    found += forms("rn", ("f16", "bf16"), ints)
    found += forms(ROUND, optional("ftz"), optional("sat"), "f32.f64")
    found += forms(optional("ftz"), optional("sat"), ("f64.f32", "f32.f32", "f32.f16"))
    found += forms(optional("sat"), ("f64.f64", "f64.f16", "f16.f16", "f32.bf16", "f64.bf16"))
    found += forms(whole, optional("ftz"), optional("sat"), "f32.f32")
    found += forms(whole, optional("sat"), ("f64.f64", "f16.f16", "bf16.bf16"))
    found += forms(ROUND, optional("ftz"), optional("sat"), "f16.f32")
    found += forms(("rn", "rz"), optional("relu"), ("f16.f32", "bf16.f32"))
    found += forms(ROUND, ("f16.f64", "bf16.f64", "bf16.f32", "bf16.f16", "f16.bf16"))
    found += forms(("rn", "rz"), optional("relu"), ("f16x2.f32", "bf16x2.f32"))
    return found + forms(("rna", "rn", "rz"), optional("relu"), "tf32.f32")


FORMS: dict[str, list[str]] = {
    "add": [*INTS, "sat.s32", *forms("cc", WIDE), "u16x2", "s16x2", *F32, *F64, *F16, *BF16],
    "sub": [*INTS, "sat.s32", *forms("cc", WIDE), *F32, *F64, *F16, *BF16],
    "addc": forms(optional("cc"), WIDE),
    "subc": forms(optional("cc"), WIDE),
    "mul": [*forms(("lo", "hi"), INTS), *forms("wide", INTS[:4]), *F32, *F64, *F16, *BF16],
    "mad": [
        *forms(("lo", "hi"), INTS),
        *forms("wide", INTS[:4]),
        "hi.sat.s32",
        *forms(("lo", "hi"), "cc", WIDE),
        *forms(ROUND, optional("ftz"), optional("sat"), "f32"),
        *forms(ROUND, "f64"),
    ],
    "madc": forms(("lo", "hi"), optional("cc"), WIDE),
    "mul24": forms(("lo", "hi"), ("u32", "s32")),
    "mad24": [*forms(("lo", "hi"), ("u32", "s32")), "hi.sat.s32"],
    "sad": list(INTS),
    "div": [
        *INTS,
        *forms(("approx", "full", *ROUND), optional("ftz"), "f32"),
        *forms(ROUND, "f64"),
    ],
    "rem": list(INTS),
    "abs": SIGN,
    "neg": SIGN,
    "min": EXTREME,
    "max": EXTREME,
    "popc": ["b32", "b64"],
    "clz": ["b32", "b64"],
    "brev": ["b32", "b64"],
    "bfind": forms(optional("shiftamt"), WIDE),
    "bfe": list(WIDE),
    "bfi": ["b32", "b64"],
    "szext": forms(("clamp", "wrap"), ("u32", "s32")),
    "bmsk": forms(("clamp", "wrap"), "b32"),
    "dp4a": forms(("u32", "s32"), ("u32", "s32")),
    "dp2a": forms(("lo", "hi"), ("u32", "s32"), ("u32", "s32")),
    "vabsdiff4": [
        f"{t}.{a}.{b}{add}"
        for t, a, b in product(("u32", "s32"), repeat=3)
        for add in ("", ".sat", ".add")
    ],
    "and": ["pred", *BITS],
    "or": ["pred", *BITS],
    "xor": ["pred", *BITS],
    "not": ["pred", *BITS],
    "cnot": list(BITS),
    "lop3": ["b32", "and.b32", "or.b32"],
    "shf": forms(("l", "r"), ("clamp", "wrap"), "b32"),
    "shl": list(BITS),
    "shr": [*BITS, *INTS],
    "prmt": ["b32", *forms("b32", ("f4e", "b4e", "rc8", "ecl", "ecr", "rc16"))],
    "testp": forms(
        ("finite", "infinite", "number", "notanumber", "normal", "subnormal"), ("f32", "f64")
    ),
    "copysign": ["f32", "f64"],
    "fma": [
        *forms(ROUND, optional("ftz"), optional("sat"), "f32"),
        *forms(ROUND, "f64"),
        *forms("rn", optional("ftz"), optional("sat", "relu"), ("f16", "f16x2")),
        *forms("rn", optional("relu"), ("bf16", "bf16x2")),
    ],
    "rcp": [
        *forms(("approx", *ROUND), optional("ftz"), "f32"),
        *forms(ROUND, "f64"),
        "approx.ftz.f64",
    ],
    "sqrt": [*forms(("approx", *ROUND), optional("ftz"), "f32"), *forms(ROUND, "f64")],
    "rsqrt": forms("approx", optional("ftz"), ("f32", "f64")),
    "sin": forms("approx", optional("ftz"), "f32"),
    "cos": forms("approx", optional("ftz"), "f32"),
    "lg2": forms("approx", optional("ftz"), "f32"),
    "ex2": [
        *forms("approx", optional("ftz"), "f32"),
        *forms("approx", ("f16", "f16x2")),
        *forms("approx.ftz", ("bf16", "bf16x2")),
    ],
    "tanh": forms("approx", ("f32", *HALF)),
    "setp": compared(("",)),
    "set": [
        *compared(("u32", "s32", "f32")),
        *forms(CMP_FLOAT, optional("ftz"), ("f16", "u16", "s16"), "f16"),
        *forms(CMP_FLOAT, ("bf16", "u16", "s16"), "bf16"),
        *forms(CMP_FLOAT, optional("ftz"), ("f16x2", "u32", "s32"), "f16x2"),
        *forms(CMP_FLOAT, ("bf16x2", "u32", "s32"), "bf16x2"),
    ],
    "selp": [*BITS, *INTS, "f32", "f64"],
    "slct": [
        *forms((*BITS, *INTS, "f32", "f64"), "s32"),
        *forms(optional("ftz"), (*BITS, *INTS, "f32", "f64"), "f32"),
    ],
    "mov": ["pred", *BITS, *INTS, "f32", "f64", "b128"],
    "cvt": conversions(),
}
