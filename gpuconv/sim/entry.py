"""Lowers whole functions: a kernel to a loop or a coroutine, the scheduler's to plain functions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gpuconv.sim import isa_atomic, prelude
from gpuconv.sim.analysis import (
    COLLECTIVE,
    all_flush,
    argument_registers,
    granules,
    guess_bits,
    in_shared,
    is_pointer,
    names,
    parameter_registers,
    polling,
    reachable,
    registers_read,
    talks,
    volatile_bits,
)
from gpuconv.sim.body import Body
from gpuconv.sim.info import Kernel
from gpuconv.sim.program import Function, Program, Special

if TYPE_CHECKING:
    from gpuconv.sim.lower import Module

MOST_TOGETHER = 1024  # blocks under way at once where they may wait for each other
SOME_TOGETHER = 4  # where they take work from a list
_WORKSPACE = Special("%envreg1"), Special("%envreg2")
_GAP = 32  # guard bytes between shared variables in checked mode


class HostFunction(Body):
    """A function of the scheduler, which is compiled in the same way and called from Python."""

    def run(self) -> str:
        variables, stores, arguments = {}, [], []
        for number, p in enumerate([*self.function.results, *self.function.params]):
            self.allocas.append(f"%p{number} = alloca [{p.size} x i8], align 8")
            variables[p.name] = f"%p{number}"
            if p in self.function.params:
                arguments.append(f"i{p.size * 8} %a{number}")
                stores.append(f"store i{p.size * 8} %a{number}, ptr %p{number}")
        self.enter(self.function, variables, "exit")
        self.statements(self.function)
        kind, returns = "void", "ret void"
        if self.function.results:
            kind = f"i{8 * self.function.results[0].size}"
            returns = f"%result = load {kind}, ptr %p0\n  ret {kind} %result"
        head = f'define {kind} @"{self.function.name}"({", ".join(arguments)}) nounwind {{'
        first = ["  " + line for line in (*self.allocas, *stores, "br label %start")]
        return "\n".join(
            [head, "entry:", *first, "start:", *self.code, "exit:", f"  {returns}", "}"]
        )


class KernelFunction(Body):
    """A kernel (.entry): a loop over the threads of a block, or a coroutine for each thread."""

    def __init__(self, module: Module, function: Function) -> None:
        super().__init__(module, function)
        self.functions = reachable(module.program, function)
        self.flush_in_hardware = module.x86 and all_flush(self.functions)
        instructions = [i for f in self.functions for i in f.instructions]
        read = set().union(*map(registers_read, self.functions))
        self.polls = {id(i) for f in self.functions for i in polling(f)}
        if module.check:  # a loop that takes work by an atomic must not give it all to one thread
            self.polls |= {id(i) for i in instructions if isa_atomic.result_used(i, read)}
            for f in self.functions:
                self.access_bits |= guess_bits(f) | volatile_bits(f)
                self.access_bits |= isa_atomic.reduction_bits(f, read)
        # a thread may have to wait for another
        collective = any(i.op in COLLECTIVE for i in instructions)
        waits = any(not in_shared(i) for f in self.functions for i in polling(f))
        takes = any(id(i) in self.polls and not in_shared(i) for i in instructions)
        self.together = MOST_TOGETHER if waits else SOME_TOGETHER if takes else 1
        self.serial = any(isa_atomic.order_matters(i, read) for i in instructions)
        self.talks = self.serial or self.together > 1 or any(map(talks, instructions))
        self.coroutine = bool(self.polls) or collective

    def run(self) -> str:
        kernel = self._describe()
        self.module.info.kernels[self.function.name] = kernel
        variables = {p.name: f'%"param.{p.name}"' for p in self.function.params}
        head = ["%params = load ptr, ptr %blk, !invariant.load !0"]  # the record's first field
        for q in kernel.parameters:
            head.append(f'%"param.{q.name}" = getelementptr i8, ptr %params, i64 {q.offset}')
        if not self.coroutine:
            self.specials |= {f"%tid.{axis}": f"%tid.{axis}" for axis in "xyz"}
        if self.module.check:
            self.arguments = argument_registers(self.function)
        self.enter(self.function, variables, "exit")
        for name, (parameter, offset) in parameter_registers(self.function).items():
            if self.coroutine:
                held = self.frame.held[name] = f'%"held.{name}"'
                head.append(f'{held} = getelementptr i8, ptr %"param.{parameter}", i64 {offset}')
        self.statements(self.function)
        return prelude.coroutine(self, head) if self.coroutine else prelude.loop(self, head)

    def _describe(self) -> Kernel:
        f, program = self.function, self.program
        at = 0
        for p in f.params:
            p.offset = -(-at // p.align) * p.align
            p.pointer = p.pointer or is_pointer(f, p) if p.size == 8 and not p.array else False
            at = p.offset + p.size
        shared, end, real, dynamic = self._place_shared(program)
        threads = math.prod(f.directives.get("maxntid", f.directives.get("reqntid", (1024,))))
        local = sum(v.size for g in self.functions for v in g.variables if v.space == "local")
        return Kernel(
            f.name,
            f.params,
            at,
            real,
            end,
            dynamic,
            self.coroutine,
            self.serial,
            self.talks,
            self.together,
            self.flush_in_hardware,
            threads,
            local,
            shared,
            any(i.op == "cp" for g in self.functions for i in g.instructions),
            granules(self.functions, argument_registers(f)),
            any(
                o in _WORKSPACE for g in self.functions for i in g.instructions for o in i.operands
            ),
        )

    def _place_shared(self, program: Program) -> tuple[list, int, int, bool]:
        """Lay out the shared variables.

        Returns their (name, address, size), where they end, their size without the guard bytes of
        checked mode, and whether dynamic shared memory follows.
        """
        variables = [v for g in self.functions for v in g.variables if v.space == "shared"]
        mentioned = {n for g in self.functions for i in g.instructions for n in names(i)}
        variables += [
            v for v in program.variables.values() if v.space == "shared" and v.name in mentioned
        ]
        real, at, placed, dynamic = 0, 0, [], []
        for v in variables:
            if v.count is None or v.extern:
                dynamic.append(v)
                continue
            real = -(-real // v.align) * v.align + v.size
            at = self._next_place(at, v.align)
            placed.append((v.name, at, v.size))
            self.shared[v.name] = at
            at += v.size
        if dynamic:
            align = max(v.align for v in dynamic)
            at = self._next_place(at, align) if placed else 0
            self.shared.update({v.name: at for v in dynamic})
        return placed, at, real, bool(dynamic)

    def _next_place(self, at: int, align: int) -> int:
        """The address of the next shared variable.

        In checked mode it lies behind a gap and is aligned no better than declared, so that
        misaligned accesses are found.
        """
        if self.module.check:
            at = -(-(at + _GAP) // align)
            return (at | 1) * align
        return -(-at // align) * align
