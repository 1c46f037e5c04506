"""What a kernel's declaration in the source says: names and types of its parameters.

PTX has neither. Types that the source defines itself stay unknown, and fit every array.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

_INTEGERS = {
    "char": 1,
    "short": 2,
    "int": 4,
    "long": 8,
    "long long": 8,
}
_FIXED = {"bool": "bool", "float": "f4", "double": "f8", "half": "f2", "size_t": "u8"}
_FIXED |= {"__half": "f2", "half2": "f2", "__half2": "f2", "ptrdiff_t": "i8", "uint": "u4"}
_FIXED |= {f"{u}int{n}_t": f"{u or 'i'}{n // 8}" for u in ("", "u") for n in (8, 16, 32, 64)}
_FIXED |= {f"float{n}": "f4" for n in (1, 2, 3, 4)} | {f"double{n}": "f8" for n in (1, 2)}
_FIXED |= {f"{u}int{n}": f"{u or 'i'}4" for u in ("", "u") for n in (1, 2, 3, 4)}
_WORDS = {
    "const",
    "volatile",
    "__restrict__",
    "__restrict",
    "restrict",
    "struct",
    "__grid_constant__",
}
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.S)
_KERNEL = re.compile(r"__global__\b")
_HEAD = re.compile(
    r"(?:\s|void\b|static\b|inline\b|(?:__launch_bounds__|__cluster_dims__|__maxnreg__)"
    r"\s*\((?:[^()]|\([^()]*\))*\)|__attribute__\s*\(\(.*?\)\))*(\w+)\s*\("
)


@dataclass(frozen=True)
class Parameter:
    """A parameter as declared.

    dtype: of its elements or its number, None where unknown. width: numbers in one element, 4 for
    float4.
    """

    name: str
    text: str
    dtype: np.dtype | None
    pointer: bool
    width: int


@dataclass(frozen=True)
class Signature:
    """A kernel's declaration, and the line of the file that has its name."""

    name: str
    line: int
    parameters: tuple[Parameter, ...]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(p.text for p in self.parameters)})"


def signatures(source: str) -> dict[str, Signature]:
    """The kernels that a CUDA C++ source declares, by name."""
    plain = _COMMENT.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), source)
    found: dict[str, Signature] = {}
    for start in _KERNEL.finditer(plain):
        head = _HEAD.match(plain, start.end())
        if head is None:
            continue
        inside = _until_closed(plain, head.end())
        pieces = [p for p in _split(inside) if p.strip() not in ("", "void")]
        line = plain.count("\n", 0, head.start(1)) + 1
        parameters = tuple(_parameter(p, n) for n, p in enumerate(pieces))
        found.setdefault(head[1], Signature(head[1], line, parameters))
    return found


def plain_name(symbol: str) -> str:
    """The name in the source of a kernel or variable whose name in the PTX may be mangled."""
    if symbol.startswith("_ZZ"):  # a variable of a function
        for local in reversed(list(re.finditer(r"E(\d+)", symbol))):
            rest, length = symbol[local.end() :], int(local[1])
            if re.fullmatch(r"(_\d+|_)?", rest[length:]) and len(rest) >= length:
                return rest[:length]
    mangled = re.match(r"_Z(?:N(?:\d+_GLOBAL__N_\w*?)?)?(\d+)", symbol)
    if mangled is None:
        return symbol
    rest, length = symbol[mangled.end() :], int(mangled[1])
    while symbol.startswith("_ZN") and (inner := re.match(r"(\d+)", rest[length:])):
        rest, length = rest[length + inner.end() :], int(inner[1])  # past a namespace
    return rest[:length]


def _until_closed(text: str, start: int) -> str:
    depth = 1
    for at in range(start, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if depth == 0:
            return text[start:at]
    return text[start:]


def _split(text: str) -> list[str]:
    """At commas outside of brackets."""
    pieces, depth, begin = [], 0, 0
    for at, sign in enumerate(text):
        depth += (sign in "(<[") - (sign in ")>]")
        if sign == "," and depth == 0:
            pieces.append(text[begin:at])
            begin = at + 1
    return [*pieces, text[begin:]]


def _parameter(declared: str, number: int) -> Parameter:
    text = " ".join(declared.partition("=")[0].split())
    named = re.fullmatch(r"(.*?[\s*&])(\w+)((?:\s*\[[^]]*\])*)", text)
    kind, name, array = (named[1], named[2], named[3]) if named else (text, f"#{number}", "")
    stars = kind.count("*") + bool(array)
    words = [w for w in kind.replace("*", " ").split() if w not in _WORDS]
    dtype = _dtype(words) if stars <= 1 else np.dtype("u8")
    vector = re.fullmatch(r"(?:float|double|u?int|half|__half)([234])", words[-1] if words else "")
    return Parameter(name, text, dtype, stars > 0, int(vector[1]) if vector else 1)


def _dtype(words: list[str]) -> np.dtype | None:
    name = " ".join(words)
    if name in _FIXED:
        return np.dtype(_FIXED[name])
    unsigned = "unsigned" in words
    name = " ".join(w for w in words if w not in ("unsigned", "signed")) or "int"
    name = {"long int": "long", "short int": "short", "long long int": "long long"}.get(name, name)
    return np.dtype(f"{'u' if unsigned else 'i'}{_INTEGERS[name]}") if name in _INTEGERS else None
