"""A PTX program as data: operands, instructions, variables, functions."""

from __future__ import annotations

from dataclasses import dataclass, field

# ---- operands ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reg:
    """A virtual register, or `_`, the sink for results that are not used."""

    name: str


@dataclass(frozen=True, slots=True)
class Imm:
    """A constant: an integer, which may be negative, or the bits of a float (`kind` f32, f64)."""

    bits: int
    kind: str = "int"


@dataclass(frozen=True, slots=True)
class Sym:
    """A variable, parameter, function or label, plus a byte offset."""

    name: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Special:
    """A special register: %tid.x, %laneid, ..."""

    name: str


@dataclass(frozen=True, slots=True)
class Address:
    """[base + offset]; base is a register, a symbol, or None for an absolute address."""

    base: Reg | Sym | None
    offset: int


@dataclass(frozen=True, slots=True)
class Vector:
    """{a, b, ...}, or (a, b, ...), the arguments or results of a call."""

    items: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """a|b: two destinations."""

    first: Operand
    second: Operand


@dataclass(frozen=True, slots=True)
class Not:
    """!p"""

    operand: Reg


Operand = Reg | Imm | Sym | Special | Address | Vector | Pair | Not

# ---- program -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Instruction:
    """One PTX instruction; `op` is the first word of its name, `mods` the rest."""

    op: str
    mods: tuple[str, ...]
    operands: list[Operand]
    guard: Reg | Not | None
    loc: tuple[int, int]
    line: int
    text: str

    @property
    def name(self) -> str:
        return ".".join((self.op, *self.mods))


@dataclass(slots=True)
class Label:
    name: str


@dataclass(slots=True)
class Variable:
    """A .global, .const, .shared, .local or .param declaration.

    `count` is None for an array of unknown length (extern shared). Of a parameter, `pointer` says
    whether it is an address, None where that is unknown, and `offset` its place among all.
    """

    space: str
    type: str
    name: str
    align: int
    count: int | None
    size: int
    init: list = field(default_factory=list)
    extern: bool = False
    array: bool = False
    pointer: bool | None = False
    offset: int = 0


@dataclass(slots=True)
class Function:
    name: str
    entry: bool
    params: list[Variable]
    results: list[Variable]
    directives: dict[str, tuple[int, ...]]
    registers: dict[str, str] = field(default_factory=dict)
    variables: list[Variable] = field(default_factory=list)
    tables: dict[str, list[str]] = field(default_factory=dict)
    body: list[Instruction | Label] = field(default_factory=list)

    @property
    def instructions(self) -> list[Instruction]:
        return [item for item in self.body if isinstance(item, Instruction)]


@dataclass(slots=True)
class Program:
    functions: dict[str, Function]
    variables: dict[str, Variable]
    files: dict[int, str]

    def place(self, instruction: Instruction) -> tuple[str, int]:
        """Source file and line of an instruction, or "PTX" and its line there."""
        name = self.files.get(instruction.loc[0])
        return (name, instruction.loc[1]) if name else ("PTX", instruction.line)


# ---- types ---------------------------------------------------------------------------------------

_FLOATS = {"f16": "half", "bf16": "bfloat", "f32": "float", "f64": "double"}
# the LLVM type of each PTX type
TYPES = {f"{kind}{bits}": f"i{bits}" for kind in "bus" for bits in (8, 16, 32, 64)}
TYPES |= {"u16x2": "<2 x i16>", "s16x2": "<2 x i16>"}
TYPES |= {"pred": "i1", "b128": "i128", "f16x2": "<2 x half>", "bf16x2": "<2 x bfloat>"} | _FLOATS
# bits of an LLVM type
WIDTH = {f"i{bits}": bits for bits in (1, 8, 16, 32, 64, 128)}
WIDTH |= {"half": 16, "bfloat": 16, "float": 32, "double": 64}
WIDTH |= dict.fromkeys(("<2 x half>", "<2 x bfloat>", "<2 x i16>", "<4 x i8>"), 32)


def bits_of(type_: str) -> int:
    """Width of a PTX type in bits."""
    return WIDTH[TYPES[type_]]


# bytes of a PTX type in memory
SIZES = {name: bits_of(name) // 8 for name in TYPES if name != "pred"}
