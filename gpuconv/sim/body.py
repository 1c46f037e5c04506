"""Lowers the statements of a function to LLVM IR: labels, predication, branches, calls, suspension.

Calls are inlined.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

# the modules isa_* put their functions into TABLE and FLOAT_TABLE
from gpuconv.sim import (
    counting,
    doubt,
    isa_async,
    isa_atomic,
    isa_convert,
    isa_int,
    isa_memory,
    isa_mma,
    isa_move,
    isa_sync,
)
from gpuconv.sim.analysis import register_types
from gpuconv.sim.emit import FLOAT_TABLE, TABLE, Emitter, Frame
from gpuconv.sim.isa_float import FLOATS, float_arithmetic
from gpuconv.sim.program import Function, Instruction, Label, Reg, Sym, Vector
from gpuconv.sim.signature import plain_name

if TYPE_CHECKING:
    from gpuconv.sim.lower import Module

__all__ = ["Body", "isa_async", "isa_atomic", "isa_convert", "isa_int", "isa_memory", "isa_mma"]
__all__ += ["isa_move"]


class Body(Emitter):
    """Lowers the statements of a function, with the functions that it calls inlined."""

    def __init__(self, module: Module, function: Function) -> None:
        super().__init__(module)
        self.function = function
        self.program = module.program
        self.polls: set[int] = set()
        self.seen: set[str] = set()
        self.segment: list[int] | None = None  # counted mode

    # ---- frames ----

    def enter(self, function: Function, variables: dict[str, str], leave: str) -> None:
        """Begin the frame of a function, whose `ret` branches to the label `leave`."""
        prefix = f"{len(self.frames)}.{next(self.names)}." if self.frames else "r."
        frame = Frame(function, prefix, dict(variables), leave=leave)
        frame.types = register_types(function)
        self.frames.append(frame)
        for name, type_ in frame.types.items():
            self.allocas.append(f'%"{prefix}{name}" = alloca {type_}')
        for variable in function.variables:
            if variable.space in ("local", "param"):
                frame.variables[variable.name] = self.local(variable)
            if variable.space == "local" and self.module.check:
                frame.written[variable.name] = self.shadow(variable)
        self.allocas.append(f'%"{prefix}cc" = alloca i1')  # the carry flag, CC.CF
        if self.module.check:
            doubt.enter(self, function)
        if self.module.count:
            counting.enter(self)

    def statements(self, function: Function) -> None:
        """Lower the whole body of a function."""
        for item in function.body:
            if isinstance(item, Label):
                self.seen.add(self.place(item.name))
                self.label(self.place(item.name))
                if self.module.count:
                    counting.at_label(self, item.name)
            elif self.open:
                self.statement(item)
        if self.open:
            self.end(f"br label %{self.frame.leave}")

    def place(self, label: str) -> str:
        """LLVM label of a PTX label in the current frame."""
        return f'"{self.frame.prefix}{label}"'

    def statement(self, instruction: Instruction) -> None:
        """Lower one instruction, under its guard predicate if it has one."""
        self.instruction = instruction
        after, follows = "", bool(self.frame.doubts)
        if follows:
            doubt.at_guard(self, instruction)
        if instruction.guard is not None and instruction.op != "bra":
            condition = self.read(instruction.guard, "pred")
            then, after = self.fresh("do"), self.fresh("then")
            self.end(f"br i1 {condition}, label %{then}, label %{after}")
            self.label(then)
            self.segment = None
        if self.module.count:
            counting.executed(self, instruction)
        word = doubt.before(self, instruction) if follows else ""
        if (control := getattr(self, f"_{instruction.op}_", None)) is not None:
            control(instruction)
        elif instruction.op in FLOAT_TABLE and instruction.mods[-1] in FLOATS:
            float_arithmetic(self, instruction)
        elif (handler := TABLE.get(instruction.op)) is not None:
            handler(self, instruction)
        else:
            raise self.unsupported()
        if follows and self.open:
            doubt.after(self, instruction, word)
        if id(instruction) in self.polls and self.open:
            isa_sync.yields(self, instruction)
        if after or instruction.op in ("bra", "brx", "call"):
            self.segment = None
        if after:
            self.label(after)
        elif not self.open and instruction.op not in ("bra", "brx", "ret", "exit", "trap"):
            self.label(self.fresh("dead"))

    # ---- control flow ----

    def _bra_(self, i: Instruction) -> None:
        target = i.operands[0]
        self.need(isinstance(target, Sym) and len(i.operands) == 1)
        assert isinstance(target, Sym)
        if self.module.check and self.place(target.name) in self.seen:
            self._leave_if_stopped()
        if i.guard is None:
            self.end(f"br label %{self.place(target.name)}")
            return
        after = self.fresh("next")
        condition = self.read(i.guard, "pred")
        self.end(f"br i1 {condition}, label %{self.place(target.name)}, label %{after}")
        self.label(after)

    def _leave_if_stopped(self) -> None:
        """On a backward branch: leave the kernel if the launch was stopped.

        Ctrl-C stops it, and so does an error in another block.
        """
        pointer = self.field("Block", "%blk", "launch")
        launch = self.op(f"load ptr, ptr {pointer}, !invariant.load !0")
        stop = self.op(f"load volatile i32, ptr {self.field('Launch', launch, 'stop')}")
        on = self.fresh("on")
        off = self.fresh("off")
        self.end(f"br i1 {self.op(f'icmp eq i32 {stop}, 0')}, label %{on}, label %{off}")
        self.label(off)
        where = f"i32 {self.linear_thread()}", f"i32 {self.module.site(self.instruction)}"
        self.call("void", "sim_stopped", "ptr %blk", *where)
        self.end("br label %exit")
        self.label(on)

    def _brx_(self, i: Instruction) -> None:
        index, table = i.operands
        assert isinstance(table, Sym)
        targets = self.frame.function.tables.get(table.name)
        self.need(targets is not None and i.mods[:1] == ("idx",))
        assert targets
        cases = " ".join(f"i32 {n}, label %{self.place(t)}" for n, t in enumerate(targets))
        outside = self.fresh("outside")
        self.end(f"switch i32 {self.read(index, 'u32')}, label %{outside} [{cases}]")
        self.label(outside)
        self.fail("TRAP")

    def _ret_(self, i: Instruction) -> None:
        self.end(f"br label %{self.frame.leave}")

    def _exit_(self, i: Instruction) -> None:
        self.end("br label %exit")

    def _trap_(self, i: Instruction) -> None:
        self.fail("TRAP")

    _brkpt_ = _trap_

    def fail(self, kind: str, address: str = "0", value: str = "0") -> None:
        """Record an error of this thread, of ERRORS, and leave the kernel."""
        self.report(kind, address, value, "sim_fail")
        self.end("br label %exit")

    def _call_(self, i: Instruction) -> None:
        pointer = any(isinstance(o, Reg) for o in i.operands)
        self.need(not pointer, "a call through a pointer (or of a virtual function)")
        name = next(o.name for o in i.operands if isinstance(o, Sym))
        first, last = i.operands[0], i.operands[-1]
        results = first.items if isinstance(first, Vector) else ()
        arguments = last.items if isinstance(last, Vector) and last is not first else ()
        if self.module.host and name in self.program.functions:
            self._host_function(self.program.functions[name], results, arguments)
        elif name in self.program.functions:
            self._inline(self.program.functions[name], results, arguments)
        elif name == "vprintf":
            what = (f"i64 {self._argument(a)}" for a in arguments)
            printed = self.call("i32", "sim_print", *what)
            (result,) = results
            assert isinstance(result, Sym)
            self.emit(f"store i32 {printed}, ptr {self.frame.variables[result.name]}")
        elif name == "__assertfail":
            self.fail("ASSERT", self._argument(arguments[0]), self._argument(arguments[1]))
        elif self.module.host:
            value = isa_sync.host_call(self, name, [self._argument(a) for a in arguments])
            if value:
                self.emit(f"store i64 {value}, ptr {self._place(results[0])}")
        else:
            raise self.unsupported(f"the function {plain_name(name)}, which has no body here,")

    def _argument(self, operand: object) -> str:
        assert isinstance(operand, Sym)
        return self.op(f"load i64, ptr {self.frame.variables[operand.name]}")

    def _host_function(self, callee: Function, results: tuple, arguments: tuple) -> None:
        """Call a function of the scheduler."""
        values = []
        for variable, argument in zip(callee.params, arguments, strict=True):
            type_ = f"i{8 * variable.size}"
            values.append(f"{type_} {self.op(f'load {type_}, ptr {self._place(argument)}')}")
        if not results:
            self.emit(f'call void @"{callee.name}"({", ".join(values)})')
            return
        type_ = f"i{8 * callee.results[0].size}"
        value = self.op(f'call {type_} @"{callee.name}"({", ".join(values)})')
        self.emit(f"store {type_} {value}, ptr {self._place(results[0])}")

    def _place(self, operand: object) -> str:
        assert isinstance(operand, Sym)
        return self.frame.variables[operand.name]

    def _inline(self, callee: Function, results: tuple, arguments: tuple) -> None:
        variables = {}
        declared = [*callee.results, *callee.params]
        for variable, argument in zip(declared, [*results, *arguments], strict=True):
            variables[variable.name] = self.frame.variables[argument.name]
        after = self.fresh("back")
        caller = self.instruction
        self.enter(callee, variables, after)
        self.statements(callee)
        self.frames.pop()
        self.instruction = caller
        self.label(after)

    # ---- suspension ----

    def suspend(self) -> None:
        """Suspend the coroutine until the scheduler resumes it."""
        on = self.fresh("on")
        result = self.op("call i8 @llvm.coro.suspend(token none, i1 false)")
        never = self.fresh("never")
        cases = f"i8 0, label %{on} i8 1, label %cleanup i8 2, label %{never}"
        self.end(f"switch i8 {result}, label %suspended [{cases}]")
        # A second way to `on`, which is never taken, keeps LLVM from moving arithmetic from before
        # the suspension to after it, where its operands would have to be kept for each thread.
        self.label(never)
        self.emit('call void asm sideeffect "", ""()')
        self.label(on)
