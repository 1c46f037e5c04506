"""The parts that PTX declarations and statements have in common: variables, constants, lists."""

from __future__ import annotations

import re
import struct
from bisect import bisect_right

from gpuconv.sim.errors import UnsupportedError
from gpuconv.sim.program import SIZES, Imm, Sym, Variable

_VARIABLE = re.compile(
    r"(?P<link>(?:\.(?:visible|extern|weak|common)\s+)*)\.(?P<space>global|const|shared|local|param)\s+"
    r"(?P<attrs>(?:\.(?:align\s+\d+|ptr|global|const|shared|local|volatile|v[24]|attribute\([^)]*\))\s+)*)"
    r"\.(?P<type>\w+)\s+(?P<attrs2>(?:\.(?:align\s+\d+|ptr|global|const|shared|local)\s+)*)"
    r"(?P<name>[A-Za-z_$%][\w$]*)\s*(?P<dims>(?:\[\s*\d*\s*\]\s*)*)(?:=\s*(?P<init>.*))?$",
    re.S,
)


class Lines:
    """Line numbers of positions in a text."""

    def __init__(self, text: str) -> None:
        self.starts = [0] + [m.end() for m in re.finditer("\n", text)]

    def at(self, position: int) -> int:
        return bisect_right(self.starts, position)


def read_variable(text: str, line: int) -> Variable:
    """Read a variable's declaration, without its semicolon."""
    match = _VARIABLE.match(text.strip())
    if match is None or match["type"] not in SIZES:
        raise UnsupportedError(
            f"PTX line {line}: cannot read the declaration {text.strip()[:80]!r}"
        )
    attrs = match["attrs"] + match["attrs2"]
    element = SIZES[match["type"]]
    if vector := re.search(r"\.v([24])\s", attrs):
        element *= int(vector.group(1))
    aligned = re.search(r"\.align\s+(\d+)", attrs) if ".ptr" not in attrs else None
    dims = re.findall(r"\[\s*(\d*)\s*\]", match["dims"])
    count: int | None = 1
    for dim in dims:
        count = None if dim == "" or count is None else count * int(dim)
    init = _initial(match["init"], line) if match["init"] else []
    if count is None and init:
        count = len(init)
    return Variable(
        match["space"],
        match["type"],
        match["name"],
        int(aligned.group(1)) if aligned else element,
        count,
        element * (count or 0),
        init,
        "extern" in match["link"],
        bool(dims),
        ".ptr" in attrs,
    )


def _initial(text: str, line: int) -> list:
    """The flat list of constants in an initialiser; a symbol's address is a Sym."""
    values: list = []
    for item in re.sub(r"[{}]", " ", text).split(","):
        item = item.strip()
        if not item:
            continue
        if match := re.fullmatch(r"(?:generic\()?([A-Za-z_$][\w$]*)\)?\s*(?:\+\s*(\d+))?", item):
            values.append(Sym(match.group(1), int(match.group(2) or 0)))
        elif "(" in item:
            raise UnsupportedError(f"PTX line {line}: the initialiser {item!r} is not modelled")
        else:
            values.append(read_constant(item, line))
    return values


def read_constant(text: str, line: int) -> Imm:
    """Read an integer, a hexadecimal float (0f..., 0d...) or a decimal fraction."""
    if match := re.fullmatch(r"0([fFdD])([0-9a-fA-F]+)", text):
        return Imm(int(match.group(2), 16), "f32" if match.group(1) in "fF" else "f64")
    try:
        digits = text.rstrip("U")
        if re.fullmatch(r"-?0[0-7]+", digits):
            return Imm(int(digits, 8))
        return Imm(int(digits, 0))
    except ValueError:
        pass
    try:
        return Imm(struct.unpack("<Q", struct.pack("<d", float(text)))[0], "f64")
    except ValueError:
        raise UnsupportedError(f"PTX line {line}: cannot read the constant {text!r}") from None


def split(text: str) -> list[str]:
    """Split a list at its commas outside brackets."""
    if not text.strip():
        return []
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        if c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif c == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    parts.append(text[start:].strip())
    return parts
