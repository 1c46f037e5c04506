"""LLVM IR text under construction: lines, blocks, calls, and conversions between LLVM types."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gpuconv.sim.errors import UnsupportedError
from gpuconv.sim.program import WIDTH, Function, Instruction

if TYPE_CHECKING:
    from gpuconv.sim.lower import Module


@dataclass(slots=True)
class Frame:
    """A function that is being lowered; a called (inlined) function has a frame of its own."""

    function: Function
    prefix: str
    # local and parameter space: name to LLVM pointer
    variables: dict[str, str] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)  # register to LLVM type
    leave: str = "exit"


class Text:
    """Text of one LLVM function under construction."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.flush_in_hardware = False  # rely on the processor's flush-to-zero mode
        self.allocas: list[str] = []
        self.code: list[str] = []
        self.open = True  # whether the current basic block still lacks its terminator
        self.frames: list[Frame] = []
        self.shared: dict[str, int] = {}
        self.names = itertools.count()
        self.instruction: Instruction | None = None
        self.suspends = False
        self.specials: dict[str, str] = {}

    # ---- lines ----

    @property
    def frame(self) -> Frame:
        return self.frames[-1]

    def fresh(self, stem: str = "t") -> str:
        """A new name for a value or a label."""
        return f"{stem}{next(self.names)}"

    def emit(self, line: str) -> None:
        """Append a line, unless the current block has ended."""
        if self.open:
            self.code.append("  " + line)

    def op(self, text: str) -> str:
        """Emit `%t = text` and return %t."""
        name = "%" + self.fresh()
        self.emit(f"{name} = {text}")
        return name

    def label(self, name: str) -> None:
        """Begin a basic block."""
        if self.open:
            self.code.append(f"  br label %{name}")
        self.code.append(f"{name}:")
        self.open = True

    def end(self, line: str) -> None:
        """Emit the terminator of the current block."""
        self.emit(line)
        self.open = False

    def unsupported(self, what: str = "") -> UnsupportedError:
        i = self.instruction
        text = what or (f"the instruction '{i.text}'" if i else "")
        return UnsupportedError(f"{self.module.where(i)}: {text} is not modelled by the simulator")

    def need(self, condition: bool, what: str = "") -> None:
        """Raise UnsupportedError, for `what` or the instruction, unless the condition holds."""
        if not condition:
            raise self.unsupported(what)

    def call(self, type_: str, name: str, *arguments: str) -> str:
        """Declare and call an LLVM intrinsic or a helper. An argument is "type value"."""
        types = [re.match(r"<[^>]*>|\S+", a)[0] for a in arguments]  # type: ignore[index]
        self.module.declare(type_, name, types)
        if type_ == "void":
            self.emit(f"call void @{name}({', '.join(arguments)})")
            return ""
        return self.op(f"call {type_} @{name}({', '.join(arguments)})")

    def intrinsic(self, name: str, type_: str, *values: str) -> str:
        """Call LLVM's intrinsic of this name, whose result and arguments have one type."""
        suffix = {"float": "f32", "double": "f64"}.get(type_, type_)
        if vector := re.fullmatch(r"<(\d+) x (\w+)>", type_):
            suffix = f"v{vector[1]}{vector[2]}"
        return self.call(type_, f"llvm.{name}.{suffix}", *(f"{type_} {v}" for v in values))

    # ---- conversions between LLVM types of registers and instructions ----

    def reshape(self, value: str, have: str, want: str, signed: bool = False) -> str:
        """`value` as another type: the same bits, extended (sign or zero) or truncated."""
        if have == want:
            return value
        if WIDTH[have] == WIDTH[want]:
            return self.op(f"bitcast {have} {value} to {want}")
        if not have.startswith("i"):
            value, have = self.op(f"bitcast {have} {value} to i{WIDTH[have]}"), f"i{WIDTH[have]}"
        middle = f"i{WIDTH[want]}"
        verb = "trunc" if WIDTH[have] > WIDTH[want] else "sext" if signed else "zext"
        value = self.op(f"{verb} {have} {value} to {middle}")
        return self.reshape(value, middle, want)
