"""Lowers PTX to LLVM IR text: a module, its variables and its kernels.

A kernel without collectives becomes a plain loop over the threads of a block. A kernel with
collectives becomes a coroutine with one instance for each thread, which suspends at every
collective and is resumed by the scheduler (runtime.cu).
"""

from __future__ import annotations

import platform

from gpuconv.sim import prelude
from gpuconv.sim.entry import HostFunction, KernelFunction
from gpuconv.sim.errors import UnsupportedError
from gpuconv.sim.info import Info
from gpuconv.sim.program import SIZES, Instruction, Program, Sym

MAX_SITES = 1 << 17  # for which a mark of races.cu has room


def lower(
    program: Program, check: bool = False, host: bool = False, count: bool = False
) -> tuple[str, Info]:
    """LLVM IR of every kernel of `program`, and what a launch needs to know about them.

    check, count: as in machine.Module. host: lower the functions that are not kernels instead (the
    scheduler's). Raises UnsupportedError, naming the line, for what is not modelled.
    """
    module = Module(program, check, host, count)
    return module.run(), module.info


class Module:
    """A PTX program that is being lowered."""

    def __init__(self, program: Program, check: bool, host: bool, count: bool) -> None:
        self.program = program
        self.check, self.count = check, count
        self.host = host
        self.info = Info()
        self.declared: dict[str, str] = {}
        self.used: set[str] = set()
        # it has a flush-to-zero mode
        self.x86 = platform.machine().lower() in ("x86_64", "amd64")

    def run(self) -> str:
        kind = HostFunction if self.host else KernelFunction
        functions = [
            kind(self, function).run()
            for function in self.program.functions.values()
            if function.entry != self.host
        ]
        variables: dict[str, str] = {}
        while new := sorted(self.used - variables.keys()):  # an initialiser may use others
            variables |= {name: self._variable(name) for name in new}
        declares = self.declared.values()
        return "\n".join((*variables.values(), *declares, *functions, prelude.EPILOGUE))

    def declare(self, type_: str, name: str, arguments: list[str]) -> None:
        """Declare an LLVM intrinsic or external function, once."""
        self.declared.setdefault(name, f"declare {type_} @{name}({', '.join(arguments)})")

    def where(self, instruction: Instruction) -> str:
        """Source file and line of an instruction, or its line in the PTX."""
        name, line = self.program.place(instruction)
        return f"{name}:{line}" if name != "PTX" else f"PTX line {line}"

    def site(self, instruction: Instruction, argument: int = -1) -> int:
        """Number of an instruction, by which errors of running kernels refer to it.

        argument: the one that the instruction accesses, where that is known.
        """
        self.info.sites.append((*self.program.place(instruction), instruction.text))
        self.info.arguments.append(argument)
        if self.check and len(self.info.sites) > MAX_SITES:
            raise UnsupportedError(f"checks of more than {MAX_SITES} instructions in one module")
        return len(self.info.sites) - 1

    def global_name(self, name: str) -> str:
        """LLVM name of a module variable, which is thereby used."""
        self.used.add(name)
        return f'@"v.{name}"'

    def _variable(self, name: str) -> str:
        variable = self.program.variables[name]
        if variable.extern:
            raise UnsupportedError(f"the external variable {name} is not modelled by the simulator")
        self.info.variables[name] = variable.size
        if variable.space == "const":
            self.info.constants.add(name)
        width, fields = SIZES[variable.type] * 8, []
        for value in variable.init:
            if isinstance(value, Sym):
                base = self.global_name(value.name)
                fields.append(("ptr", f"getelementptr (i8, ptr {base}, i64 {value.offset})"))
            else:
                fields.append((f"i{width}", str(value.bits & ((1 << width) - 1))))
        if rest := variable.size - len(fields) * SIZES[variable.type]:
            fields.append((f"[{rest} x i8]", "zeroinitializer"))
        type_ = ", ".join(kind for kind, _ in fields)
        value = ", ".join(f"{kind} {value}" for kind, value in fields)
        return (
            f'@"v.{name}" = global <{{ {type_} }}> <{{ {value} }}>, align {max(variable.align, 16)}'
        )
