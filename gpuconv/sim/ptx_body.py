"""PTX declarations, constants, and the bodies of functions: scopes, labels, instructions."""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from collections.abc import Set

from gpuconv.sim.errors import UnsupportedError
from gpuconv.sim.program import (
    SIZES,
    Address,
    Function,
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
_PART = re.compile(r"(?:\([^)]*\)|\[[^]]*\]|\{[^}]*\}|[^,])+")
_LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)\s+(\d+)(?:.*inlined_at (\d+) (\d+) (\d+))?")
_TEXTURES = {"tex", "tld4", "txq", "suld", "sust", "sured", "suq"}  # not modelled
_DECLARED = (".reg", ".local", ".param", ".shared", ".const", ".global")


def unreadable(what: str, line: int) -> UnsupportedError:
    return UnsupportedError(f"PTX line {line}: cannot read {what}")


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
        raise unreadable(f"the declaration {text.strip()[:80]!r}", line)
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
        raise unreadable(f"the constant {text!r}", line) from None


def split(text: str) -> list[str]:
    """Split a list at its commas outside brackets."""
    return [part.strip() for part in _PART.findall(text) if part.strip()]


def read_body(
    text: str, position: int, lines: Lines, function: Function, foreign: Set[int] = frozenset()
) -> int:
    """Read the body that begins at `position` into `function`; returns the position after it.

    foreign: the numbers of files whose lines give way to those that they are inlined at.

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
            raise unreadable(repr(rest[:60]), lines.at(len(text) - len(rest)))
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
    _Reader(function, parents, foreign).read(items)
    return position


class _Reader:
    """Reads the statements of one function body."""

    def __init__(self, function: Function, parents: list[int], foreign: Set[int]) -> None:
        self.function = function
        self.parents, self.foreign = parents, foreign
        self.inlined: dict[tuple[int, ...], tuple[int, ...]] = {}  # place, by what is inlined there
        self.names: list[dict[str, str]] = [{} for _ in parents]
        self.loc = (0, 0)
        # of the statement that is being read
        self.scope = self.line = 0

    def read(self, items: list[tuple[str, str, int, int]]) -> None:
        for kind, text, self.scope, self.line in items:
            if kind == "label":
                self._declare(text)
            elif kind == "statement" and text.startswith(_DECLARED):
                self._declaration(text)
        for kind, text, self.scope, self.line in items:
            if kind == "label":
                if text not in self.function.tables:
                    self.function.body.append(Label(self._resolve(text)))
            elif kind == "loc":
                self._location(text)
            elif text.startswith("."):
                self._directive(text)
            else:
                self._statement(text)

    def _declare(self, name: str) -> str:
        unique = f"{name}@{self.scope}" if self.scope else name
        self.names[self.scope][name] = unique
        return unique

    def _resolve(self, name: str) -> str:
        scope = self.scope
        while scope >= 0:
            if name in self.names[scope]:
                return self.names[scope][name]
            scope = self.parents[scope]
        return name

    def _declaration(self, text: str) -> None:
        if not text.startswith(".reg"):
            variable = read_variable(text, self.line)
            variable.name = self._declare(variable.name)
            self.function.variables.append(variable)
            return
        match = re.match(r"\.reg\s*\.(?!v[24])(\w+)\s+(.*)", text, re.S)
        if match is None:
            raise unreadable(f"the registers {text!r}", self.line)
        type_, names = match.groups()
        for name in split(names):
            if many := re.fullmatch(r"(.*)<(\d+)>", name):
                unique = [f"{many[1]}{number}" for number in range(int(many[2]))]
            else:
                unique = [name]
            self.function.registers |= {self._declare(each): type_ for each in unique}

    def _location(self, text: str) -> None:
        """.loc file line column{, function_name label, inlined_at file line column}"""
        if match := _LOC.match(text):
            place, at = (tuple(int(n or 0) for n in match.groups()[k : k + 3]) for k in (0, 3))
            self.inlined[place] = at
            while place[0] in self.foreign and self.inlined.get(place, (0, 0, 0))[0]:
                place = self.inlined[place]
            if place[1]:  # line 0 is the compiler's "nowhere": keep the last real one
                self.loc = place[0], place[1]

    def _statement(self, text: str) -> None:
        match = re.match(r"(?:@(!?)\s*([\w$%.]+)\s+)?([a-z][\w.:]*)\s*(.*)", text, re.S)
        if match is None:
            raise unreadable(repr(text[:60]), self.line)
        negated, guard_name, name, rest = match.groups()
        guard: Reg | Not | None = None
        if guard_name:
            register = Reg(self._resolve(guard_name))
            guard = Not(register) if negated else register
        op, *mods = name.replace("::", "__").split(".")
        operands = [self._operand(part) for part in split(rest) if op not in _TEXTURES]
        text = " ".join(text.split())
        self.function.body.append(
            Instruction(op, tuple(mods), operands, guard, self.loc, self.line, text)
        )

    def _directive(self, text: str) -> None:
        if match := re.match(r"\.branchtargets\s+(.*)", text, re.S):
            # the label before the directive names the table, it is no branch target
            last = self.function.body.pop()
            assert isinstance(last, Label)
            self.function.tables[last.name] = list(map(self._resolve, split(match[1])))
        elif not text.startswith((*_DECLARED, ".pragma", ".callprototype")):
            what = f"the directive {text[:60]!r} is not modelled"
            raise UnsupportedError(f"PTX line {self.line}: {what}")

    def _operand(self, text: str) -> Operand:
        head = text[0]
        if head in "{(":
            return Vector(tuple(map(self._operand, split(text[1:-1]))))
        if head == "[":
            return self._address(text[1:-1].strip())
        if head == "!":
            return Not(Reg(self._resolve(text[1:].strip())))
        if "|" in text:
            first, second = text.split("|")
            return Pair(self._operand(first.strip()), self._operand(second.strip()))
        if head.isdigit() or head == "-":
            return read_constant(text, self.line)
        return self._name(text)

    def _name(self, text: str) -> Reg | Sym | Special:
        name = self._resolve(text)
        if name == "_" or name in self.function.registers:
            return Reg(name)
        if match := re.fullmatch(r"([A-Za-z_$%][\w$]*)\s*\+\s*(-?\d+)", text):
            return Sym(self._resolve(match.group(1)), int(match.group(2)))
        if text.startswith("%") or text == "WARP_SZ":
            return Special(text)
        if not re.fullmatch(r"[A-Za-z_$][\w$]*(@\d+)?", name):
            raise unreadable(f"the operand {text!r}", self.line)
        return Sym(name)

    def _address(self, text: str) -> Operand:
        match = re.fullmatch(r"([\w$%]+)\s*(?:([+-])\s*(-?\w+))?", text)
        if match is not None:
            name, sign, digits = match.groups()
            offset = int(digits or "0", 0) * (-1 if sign == "-" else 1)
            if name[0].isdigit():
                return Address(None, int(name, 0) + offset)
            base = self._name(name)
            if not isinstance(base, Special):
                return Address(base, offset)
        raise unreadable(f"the address [{text}]", self.line)
