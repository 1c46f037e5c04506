"""PTX declarations, constants, and the bodies of functions: scopes, labels, instructions."""

from __future__ import annotations

import re
import struct
from bisect import bisect_right

from gpuconv.sim.errors import UnsupportedError
from gpuconv.sim.program import (
    SIZES,
    Address,
    Function,
    Group,
    Imm,
    Instruction,
    Label,
    Not,
    Operand,
    Pair,
    Reg,
    Special,
    Sym,
    Variable,
    Vector,
)

_VARIABLE = re.compile(
    r"(?P<link>(?:\.(?:visible|extern|weak|common)\s+)*)\.(?P<space>global|const|shared|local|param)\s+"
    r"(?P<attrs>(?:\.(?:align\s+\d+|ptr|global|const|shared|local|volatile|v[24]|attribute\([^)]*\))\s+)*)"
    r"\.(?P<type>\w+)\s+(?P<attrs2>(?:\.(?:align\s+\d+|ptr|global|const|shared|local)\s+)*)"
    r"(?P<name>[A-Za-z_$%][\w$]*)\s*(?P<dims>(?:\[\s*\d*\s*\]\s*)*)(?:=\s*(?P<init>.*))?$",
    re.S,
)
_SCAN = re.compile(
    r"\s*(?:(?P<loc>\.(?:loc|file)\b[^\n]*)|(?P<label>[A-Za-z_$%][\w$]*)\s*:(?!:)|(?P<open>\{)|(?P<close>\})"
    r"|(?P<statement>[^;{}\s][^;]*);)"
)


_DECLARED = (".reg", ".local", ".param", ".shared", ".const", ".global")


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


def read_body(text: str, position: int, lines: Lines, function: Function) -> int:
    """Read the body that begins at `position` into `function`; returns the position after it.

    The first pass collects what each scope declares, the second reads the statements with those
    names made unique.
    """
    items: list[tuple[str, str, int, int]] = []  # kind, text, scope, line
    parents: list[int] = []
    stack: list[int] = []
    while True:
        match = _SCAN.match(text, position)
        if match is None:
            rest = text[position:].lstrip()
            raise UnsupportedError(
                f"PTX line {lines.at(len(text) - len(rest))}: cannot read {rest[:60]!r}"
            )
        position = match.end()
        kind = match.lastgroup or ""
        if kind == "open":
            parents.append(stack[-1] if stack else -1)
            stack.append(len(parents) - 1)
        elif kind == "close":
            stack.pop()
            if not stack:
                break
        else:
            items.append((kind, match[kind].strip(), stack[-1], lines.at(match.start(kind))))
    _Reader(function, parents, items).read()
    return position


class _Reader:
    """Reads the statements of one function body."""

    def __init__(
        self, function: Function, parents: list[int], items: list[tuple[str, str, int, int]]
    ) -> None:
        self.function = function
        self.parents = parents
        self.items = items
        self.names: list[dict[str, str]] = [{} for _ in parents]
        self.loc = (0, 0)

    def read(self) -> None:
        for kind, text, scope, line in self.items:
            if kind == "label":
                self._declare(text, scope)
            elif kind == "statement" and text.startswith(_DECLARED):
                self._declaration(text, scope, line)
        for kind, text, scope, line in self.items:
            if kind == "label":
                if text not in self.function.tables:
                    self.function.body.append(Label(self._resolve(text, scope)))
            elif kind == "loc":
                self._location(text)
            elif kind == "statement":
                self._statement(text, scope, line)

    def _declare(self, name: str, scope: int) -> str:
        unique = name if scope == 0 else f"{name}@{scope}"
        self.names[scope][name] = unique
        return unique

    def _resolve(self, name: str, scope: int) -> str:
        while scope >= 0:
            if name in self.names[scope]:
                return self.names[scope][name]
            scope = self.parents[scope]
        return name

    def _declaration(self, text: str, scope: int, line: int) -> None:
        if not text.startswith(".reg"):
            variable = read_variable(text, line)
            variable.name = self._declare(variable.name, scope)
            self.function.variables.append(variable)
            return
        match = re.match(r"\.reg\s*(?:\.v[24]\s+)?\.(\w+)\s+(.*)", text, re.S)
        if match is None or ".v2" in text or ".v4" in text:
            raise UnsupportedError(f"PTX line {line}: cannot read the registers {text!r}")
        for name in match.group(2).split(","):
            name = name.strip()
            if many := re.fullmatch(r"(.*)<(\d+)>", name):
                for number in range(int(many.group(2))):
                    unique = self._declare(f"{many.group(1)}{number}", scope)
                    self.function.registers[unique] = match.group(1)
            else:
                self.function.registers[self._declare(name, scope)] = match.group(1)

    def _location(self, text: str) -> None:
        if match := re.match(r"\.loc\s+(\d+)\s+(\d+)", text):
            place = (int(match.group(1)), int(match.group(2)))
            if place[1]:  # line 0 is the compiler's "nowhere": keep the last real one
                self.loc = place

    def _statement(self, text: str, scope: int, line: int) -> None:
        if text.startswith("."):
            self._directive(text, scope, line)
            return
        match = re.match(r"(?:@(!?)\s*([\w$%.]+)\s+)?([a-z][\w.:]*)\s*(.*)", text, re.S)
        if match is None:
            raise UnsupportedError(f"PTX line {line}: cannot read {text[:60]!r}")
        negated, guard_name, name, rest = match.groups()
        guard: Reg | Not | None = None
        if guard_name:
            register = Reg(self._resolve(guard_name, scope))
            guard = Not(register) if negated else register
        op, *mods = name.replace("::", "__").split(".")
        operands = [self._operand(part, scope, line) for part in split(rest)]
        self.function.body.append(
            Instruction(op, tuple(mods), operands, guard, self.loc, line, " ".join(text.split()))
        )

    def _directive(self, text: str, scope: int, line: int) -> None:
        if match := re.match(r"\.branchtargets\s+(.*)", text, re.S):
            # the label before the directive names the table, it is no branch target
            last = self.function.body.pop()
            assert isinstance(last, Label)
            self.function.tables[last.name] = [
                self._resolve(t.strip(), scope) for t in match.group(1).split(",")
            ]
        elif not text.startswith((*_DECLARED, ".pragma")):
            raise UnsupportedError(f"PTX line {line}: the directive {text[:60]!r} is not modelled")

    def _operand(self, text: str, scope: int, line: int) -> Operand:
        text = text.strip()
        head = text[0]
        if head == "{":
            return Vector(tuple(self._operand(p, scope, line) for p in split(text[1:-1])))
        if head == "(":
            return Group(tuple(self._operand(p, scope, line) for p in split(text[1:-1])))
        if head == "[":
            return self._address(text[1:-1].strip(), scope, line)
        if head == "!":
            return Not(Reg(self._resolve(text[1:].strip(), scope)))
        if "|" in text:
            first, second = text.split("|")
            return Pair(self._operand(first, scope, line), self._operand(second, scope, line))
        if head.isdigit() or head == "-":
            return read_constant(text, line)
        return self._name(text, scope, line)

    def _name(self, text: str, scope: int, line: int) -> Operand:
        name = self._resolve(text, scope)
        if name == "_" or name in self.function.registers:
            return Reg(name)
        if match := re.fullmatch(r"([A-Za-z_$%][\w$]*)\s*\+\s*(-?\d+)", text):
            return Sym(self._resolve(match.group(1), scope), int(match.group(2)))
        if text.startswith("%") or text == "WARP_SZ":
            return Special(text)
        if not re.fullmatch(r"[A-Za-z_$][\w$]*(@\d+)?", name):
            raise UnsupportedError(f"PTX line {line}: cannot read the operand {text!r}")
        return Sym(name)

    def _address(self, text: str, scope: int, line: int) -> Operand:
        match = re.fullmatch(r"([\w$%]+)\s*(?:([+-])\s*(-?\w+))?", text)
        if match is None:
            raise UnsupportedError(f"PTX line {line}: cannot read the address [{text}]")
        offset = int(match.group(3), 0) if match.group(3) else 0
        if match.group(2) == "-":
            offset = -offset
        if match.group(1)[0].isdigit():
            return Address(None, int(match.group(1), 0) + offset)
        base = self._name(match.group(1), scope, line)
        if not isinstance(base, Reg | Sym):
            raise UnsupportedError(f"PTX line {line}: cannot read the address [{text}]")
        return Address(base, offset)
