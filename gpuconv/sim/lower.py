"""PTX to LLVM IR text: modules, functions, control flow and calls. What each instruction does is in isa_*.py.

A kernel without a collective instruction becomes a plain loop over its threads. One with a collective becomes a
coroutine, one instance a thread, that suspends at every collective; the scheduler (runtime.cu) resumes it.
"""

from __future__ import annotations

import platform
import re
from dataclasses import asdict, dataclass, field

from gpuconv.sim import isa_convert, isa_float, isa_int, isa_memory, isa_move, isa_sync, layout, prelude
from gpuconv.sim.emit import TYPES, Emitter, Frame, Options
from gpuconv.sim.errors import UnsupportedError
from gpuconv.sim.ptx import SIZES, Function, Group, Imm, Instruction, Label, Not, Program, Reg, Sym, Variable

TABLE = {**isa_int.TABLE, **isa_float.TABLE, **isa_convert.TABLE, **isa_memory.TABLE, **isa_move.TABLE,
         **isa_sync.TABLE}
COLLECTIVE = {"bar", "barrier", "shfl", "vote", "match", "redux", "activemask", "nanosleep", "elect"}


@dataclass
class Parameter:
    """One kernel parameter as PTX declares it; `pointer`: True, False, or None where the code does not tell."""

    name: str
    type: str
    offset: int
    size: int
    array: bool
    pointer: bool | None


@dataclass
class Kernel:
    """What a launch must know about a lowered kernel."""

    name: str
    parameters: list[Parameter]
    parameter_bytes: int
    static_shared: int
    dynamic_shared: bool
    coroutine: bool
    serial: bool
    flush: bool
    max_threads: int
    local_bytes: int
    shared_names: list[tuple[str, int, int]]


@dataclass
class Info:
    """Everything but the machine code: kept beside it in the cache."""

    kernels: dict[str, Kernel] = field(default_factory=dict)
    sites: list[tuple[str, int, str]] = field(default_factory=list)
    variables: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict:
        return asdict(self)

    @staticmethod
    def from_json(data: dict) -> Info:
        kernels = {}
        for name, kernel in data["kernels"].items():
            parameters = [Parameter(**p) for p in kernel.pop("parameters")]
            kernels[name] = Kernel(parameters=parameters, **kernel)
        return Info(kernels, [tuple(site) for site in data["sites"]], data["variables"])


def lower(program: Program, check: bool = False, host: bool = False, flush: bool = False) -> tuple[str, Info]:
    """LLVM IR of every entry of `program` (of every function, for `host`), and what a launch must know.

    flush: the processor can flush subnormals by itself. Raises UnsupportedError, naming the line, on what is not
    modelled.
    """
    module = Module(program, check, host, flush)
    return module.run(), module.info


def reachable(program: Program, function: Function, seen: tuple[str, ...] = ()) -> list[Function]:
    """`function` and all it calls. Raises UnsupportedError on recursion."""
    found = {function.name: function}
    for item in function.body:
        if isinstance(item, Instruction) and item.op == "call":
            for operand in item.operands:
                callee = program.functions.get(operand.name) if isinstance(operand, Sym) else None
                if callee is not None:
                    if callee.name in (*seen, function.name):
                        raise UnsupportedError(f"recursion through {callee.name} is not modelled by the simulator")
                    for inner in reachable(program, callee, (*seen, function.name)):
                        found[inner.name] = inner
    return list(found.values())


class Module:
    """One PTX program being lowered."""

    def __init__(self, program: Program, check: bool, host: bool, flush: bool) -> None:
        self.program = program
        self.check = check
        self.host = host
        self.flush = flush
        self.info = Info()
        self.declared: dict[str, str] = {}
        self.used: set[str] = set()
        self.text: list[str] = []
        self.x86 = platform.machine().lower() in ("x86_64", "amd64")

    def run(self) -> str:
        for function in self.program.functions.values():
            if self.host and not function.entry:
                self.text.append(_HostFunction(self, function).run())
            elif function.entry and not self.host:
                self.text.append(_KernelFunction(self, function).run())
        variables = "\n".join(self._variable(name) for name in self._closure())
        body = "\n".join(self.text)
        helpers = prelude.text(body)
        declares = "\n".join(text for name, text in self.declared.items() if not name.startswith("sim."))
        return "\n".join((variables, declares, helpers, body, prelude.METADATA))

    def _closure(self) -> list[str]:
        """The variables used, and those whose address an initialiser of one holds."""
        todo, done = sorted(self.used), []
        while todo:
            name = todo.pop(0)
            if name not in done:
                done.append(name)
                todo += [v.name for v in self.program.variables[name].init if isinstance(v, Sym)]
        return done

    def declare(self, type_: str, name: str, arguments: list[str]) -> None:
        clean = ", ".join(re.sub(r"^(i\d+|ptr|metadata|float|double|half|bfloat|token|<[^>]*>).*", r"\1", a)
                          for a in arguments)
        self.declared.setdefault(name, f"declare {type_} @{name}({clean})")

    def where(self, instruction: Instruction | None) -> str:
        if instruction is None:
            return "PTX"
        name = self.program.files.get(instruction.loc[0])
        return f"{name}:{instruction.loc[1]}" if name else f"PTX line {instruction.line}"

    def site(self, instruction: Instruction) -> int:
        """Number of an instruction, for messages from running kernels."""
        name = self.program.files.get(instruction.loc[0], "PTX")
        line = instruction.loc[1] if name != "PTX" else instruction.line
        self.info.sites.append((name, line, instruction.text))
        return len(self.info.sites) - 1

    def global_name(self, name: str) -> str:
        self.used.add(name)
        return f'@"v.{name}"'

    def _variable(self, name: str) -> str:
        variable = self.program.variables[name]
        if variable.extern:
            raise UnsupportedError(f"the external variable {name} is not modelled by the simulator")
        self.info.variables[name] = variable.size
        parts, kinds = [], []
        for value in variable.init:
            if isinstance(value, Sym):
                parts.append(f'ptr getelementptr (i8, ptr @"v.{value.name}", i64 {value.offset})')
                kinds.append("ptr")
            else:
                width = SIZES[variable.type] * 8
                parts.append(f"i{width} {value.bits & ((1 << width) - 1)}")
                kinds.append(f"i{width}")
        rest = variable.size - len(parts) * SIZES[variable.type]
        if rest:
            parts.append(f"[{rest} x i8] zeroinitializer")
            kinds.append(f"[{rest} x i8]")
        type_ = f"<{{ {', '.join(kinds)} }}>"
        return f'@"v.{name}" = global {type_} <{{ {", ".join(parts)} }}>, align {max(variable.align, 16)}'


class _Body(Emitter):
    """Lowers the statements of a function, and of those it calls, in place."""

    def __init__(self, module: Module, function: Function, options: Options) -> None:
        super().__init__(options, module)
        self.function = function
        self.program = module.program
        self.polls: set[int] = set()
        self.seen: set[str] = set()

    # ---- frames ----

    def enter(self, function: Function, variables: dict[str, str], leave: str) -> None:
        prefix = f"{len(self.frames)}.{next(self.names)}." if self.frames else "r."
        frame = Frame(function, prefix, dict(variables), leave=leave)
        frame.types = _register_types(function)
        self.frames.append(frame)
        for name, type_ in frame.types.items():
            self.allocas.append(f'%"{prefix}{name}" = alloca {type_}')
        for variable in function.variables:
            if variable.space in ("local", "param"):
                frame.variables[variable.name] = self.local(variable)
        for name, carry in (("cc", "i1"),):
            self.allocas.append(f'%"{prefix}{name}" = alloca {carry}')

    def statements(self, function: Function) -> None:
        for item in function.body:
            if isinstance(item, Label):
                self.seen.add(self.place(item.name))
                self.label(self.place(item.name))
            elif self.open:
                self.statement(item)
        if self.open:
            self.end(f"br label %{self.frame.leave}")

    def place(self, label: str) -> str:
        """LLVM label of a PTX label in the current frame."""
        return f'"{self.frame.prefix}{label}"'

    def statement(self, instruction: Instruction) -> None:
        self.instruction = instruction
        after = ""
        if instruction.guard is not None and instruction.op != "bra":
            condition, then, after = self.read(instruction.guard, "pred"), self.fresh("do"), self.fresh("then")
            self.end(f"br i1 {condition}, label %{then}, label %{after}")
            self.label(then)
        if (control := getattr(self, f"_{instruction.op}_", None)) is not None:
            control(instruction)
        elif (handler := TABLE.get(instruction.op)) is not None:
            handler(self, instruction)
        else:
            raise self.unsupported()
        if id(instruction) in self.polls and self.open:
            isa_sync.TABLE["nanosleep"](self, instruction)
        if after:
            self.label(after)
        elif not self.open and instruction.op not in ("bra", "brx", "ret", "exit", "trap"):
            self.label(self.fresh("dead"))

    # ---- control flow ----

    def _bra_(self, i: Instruction) -> None:
        target = i.operands[0]
        self.need(isinstance(target, Sym) and len(i.operands) == 1)
        assert isinstance(target, Sym)
        if self.options.check and self.place(target.name) in self.seen:
            self._stop_if_told()
        if i.guard is None:
            self.end(f"br label %{self.place(target.name)}")
            return
        after = self.fresh("next")
        self.end(f"br i1 {self.read(i.guard, 'pred')}, label %{self.place(target.name)}, label %{after}")
        self.label(after)

    def _stop_if_told(self) -> None:
        """On the way back to the head of a loop: leave where the launch was stopped (Ctrl-C, another block's error)."""
        launch = self.op(f"load ptr, ptr {self.field('Block', '%blk', 'launch')}, !invariant.load !0")
        stop = self.op(f"load volatile i32, ptr {self.field('Launch', launch, 'stop')}")
        on = self.fresh("on")
        self.end(f"br i1 {self.op(f'icmp eq i32 {stop}, 0')}, label %{on}, label %exit")
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
        """Record an error of this thread and leave the kernel."""
        assert self.instruction
        self.call("void", "sim.fail", "ptr %blk", *(f"i32 {self.specials[f'%tid.{axis}']}" for axis in "xyz"),
                  f"i32 {layout.error(kind)}", f"i32 {self.module.site(self.instruction)}", f"i64 {address}",
                  f"i64 {value}")
        self.end("br label %exit")

    def _call_(self, i: Instruction) -> None:
        groups = [o.items for o in i.operands if isinstance(o, Group)]
        names = [o for o in i.operands if isinstance(o, Sym)]
        self.need(len(names) == 1, f"the call through a register '{i.text}'")
        name = names[0].name
        results = groups[0] if isinstance(i.operands[0], Group) else ()
        arguments = groups[-1] if isinstance(i.operands[-1], Group) and i.operands[-1] is not i.operands[0] else ()
        if name in self.program.functions:
            self._inline(self.program.functions[name], results, arguments)
        elif name == "__assertfail":
            self.fail("ASSERT", self._argument(arguments[0]), self._argument(arguments[1]))
        elif self.options.host:
            isa_sync.host_call(self, name, [self._argument(a) for a in arguments])
        else:
            hint = ": printf is not modelled, write to an array instead" if name == "vprintf" else ""
            raise UnsupportedError(f"{self.module.where(i)}: the function {name} has no body here{hint}")

    def _argument(self, operand: object) -> str:
        assert isinstance(operand, Sym)
        return self.op(f"load i64, ptr {self.frame.variables[operand.name]}")

    def _inline(self, callee: Function, results: tuple, arguments: tuple) -> None:
        variables = {}
        for declared, given in zip([*callee.results, *callee.params], [*results, *arguments], strict=True):
            variables[declared.name] = self.frame.variables[given.name]
        after = self.fresh("back")
        caller = self.instruction
        self.enter(callee, variables, after)
        self.statements(callee)
        self.frames.pop()
        self.instruction = caller
        self.label(after)

    # ---- suspension ----

    def suspend(self) -> None:
        """Hand the processor back until the scheduler has answered."""
        on = self.fresh("on")
        result = self.op("call i8 @llvm.coro.suspend(token none, i1 false)")
        self.end(f"switch i8 {result}, label %suspended [i8 0, label %{on} i8 1, label %cleanup]")
        self.label(on)


class _HostFunction(_Body):
    """A function of the scheduler: compiled by the same path, called from Python."""

    def __init__(self, module: Module, function: Function) -> None:
        super().__init__(module, function, Options(host=True))

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
        returns = "ret void"
        if self.function.results:
            returns = "%result = load i32, ptr %p0\n  ret i32 %result"
        kind = "i32" if self.function.results else "void"
        lines = [f"define {kind} @{self.function.name}({', '.join(arguments)}) nounwind {{", "entry:"]
        lines += ["  " + line for line in (*self.allocas, *stores)] + ["  br label %start", "start:", *self.code]
        return "\n".join([*lines, "exit:", f"  {returns}", "}"])


class _KernelFunction(_Body):
    """An entry: a loop over threads, or a coroutine."""

    def __init__(self, module: Module, function: Function) -> None:
        functions = reachable(module.program, function)
        flush = module.flush and not module.check and _all_flush(functions)
        super().__init__(module, function, Options(module.check, flush))
        self.functions = functions
        self.polls = {id(i) for f in functions for i in _polling(f)}
        self.coroutine = bool(self.polls) or any(
            isinstance(i, Instruction) and i.op in COLLECTIVE for f in functions for i in f.body)

    def run(self) -> str:
        kernel = self._describe()
        self.module.info.kernels[self.function.name] = kernel
        variables = {}
        for p in self.function.params:
            variables[p.name] = f'%"param.{p.name}"'
        head = ["%params = load ptr, ptr %blk, !invariant.load !0"]  # the record's first field
        for p in kernel.parameters:
            head.append(f'%"param.{p.name}" = getelementptr i8, ptr %params, i64 {p.offset}')
        for axis in "xyz":
            self.specials[f"%tid.{axis}"] = f"%tid.{axis}"
        self.enter(self.function, variables, "exit")
        self.statements(self.function)
        return prelude.coroutine(self, head) if self.coroutine else prelude.loop(self, head)

    def _describe(self) -> Kernel:
        f, program = self.function, self.program
        parameters, at = [], 0
        for p in f.params:
            at = -(-at // p.align) * p.align
            pointer = _is_pointer(f, p) if p.size == 8 and not p.array else False
            parameters.append(Parameter(p.name, p.type, at, p.size, p.array, pointer))
            at += p.size
        shared, end, dynamic = self._place_shared(program)
        threads = 1
        for n in f.directives.get("maxntid", f.directives.get("reqntid", (1024,))):
            threads *= n
        local = sum(v.size for g in self.functions for v in g.variables if v.space == "local")
        serial = any(isinstance(i, Instruction) and isa_memory.order_matters(i) for g in self.functions for i in g.body)
        return Kernel(f.name, parameters, at, end, dynamic, self.coroutine, serial,
                      self.options.flush_in_hardware, threads, local, shared)

    def _place_shared(self, program: Program) -> tuple[list[tuple[str, int, int]], int, bool]:
        """Shared variables one after another; with checks, apart and at exactly their declared alignment."""
        wanted = [v for g in self.functions for v in g.variables if v.space == "shared"]
        mentioned = {name for g in self.functions for i in g.body if isinstance(i, Instruction) for name in _names(i)}
        wanted += [v for v in program.variables.values() if v.space == "shared" and v.name in mentioned]
        placed, at, dynamic = [], 0, []
        for v in wanted:
            if v.count is None or v.extern:
                dynamic.append(v)
                continue
            at = -(-at // v.align) * v.align
            placed.append((v.name, at, v.size))
            self.shared[v.name] = at
            at += v.size
        if dynamic:
            align = max(v.align for v in dynamic)
            at = -(-at // align) * align
            self.shared.update({v.name: at for v in dynamic})
        return placed, at, bool(dynamic)


def _polling(function: Function) -> list[Instruction]:
    """Loads and exchanges inside a loop by which a thread may wait for another: after each it lets others run."""
    places = {item.name: n for n, item in enumerate(function.body) if isinstance(item, Label)}
    found = []
    for end, item in enumerate(function.body):
        target = item.operands[0] if isinstance(item, Instruction) and item.op == "bra" else None
        if isinstance(target, Sym) and places.get(target.name, end) < end:
            found += [i for i in function.body[places[target.name] : end] if isinstance(i, Instruction)
                      and (i.op == "ld" and set(i.mods) & {"volatile", "relaxed", "acquire"}
                           or i.op == "atom" and set(i.mods) & {"cas", "exch"})]
    return found


def _names(i: Instruction) -> list[str]:
    names = []
    for operand in i.operands:
        base = getattr(operand, "base", operand)
        if isinstance(base, Sym):
            names.append(base.name)
    return names


def _is_pointer(function: Function, param: Variable) -> bool | None:
    """Whether a 64-bit parameter is used as an address: True, or None where the code does not show it."""
    holders: set[str] = set()
    for i in function.body:
        if not isinstance(i, Instruction):
            continue
        first = i.operands[0] if i.operands else None
        sources = [getattr(o, "base", o) for o in i.operands[1:]]
        if i.op == "ld" and "param" in i.mods and isinstance(first, Reg):
            if any(isinstance(s, Sym) and s.name == param.name for s in sources):
                holders.add(first.name)
        elif i.op == "cvta" and any(isinstance(s, Reg) and s.name in holders for s in sources):
            return True
        elif i.op in ("mov", "add") and isinstance(first, Reg) and isinstance(sources[0], Reg):
            if sources[0].name in holders:
                holders.add(first.name)
        elif i.op in ("ld", "st", "atom", "red"):
            addresses = [o.base for o in i.operands if type(o).__name__ == "Address"]
            if any(isinstance(a, Reg) and a.name in holders for a in addresses):
                return True
    return None


def _register_types(function: Function) -> dict[str, str]:
    """LLVM type of each register: its declared width, as float where only float instructions touch it."""
    votes: dict[str, set[str]] = {}
    for i in function.body:
        if not isinstance(i, Instruction) or i.op in ("mov", "ld", "st", "selp", "shfl"):
            continue
        kind = "f" if i.mods and i.mods[-1] in ("f32", "f64") and i.op != "cvt" else "i"
        for operand in i.operands:
            if isinstance(operand, Reg):
                votes.setdefault(operand.name, set()).add(kind)
    types = {}
    for name, declared in function.registers.items():
        type_ = TYPES[declared]
        if votes.get(name) == {"f"} and declared in ("b32", "b64"):
            type_ = "float" if declared == "b32" else "double"
        types[name] = type_
    return types


_EXEMPT = {"ld", "st", "mov", "selp", "abs", "neg", "shfl", "atom", "red", "testp", "copysign"}


def _all_flush(functions: list[Function]) -> bool:
    """Whether the processor's own flush-to-zero gives every float instruction its meaning."""
    for function in functions:
        for i in function.body:
            if not isinstance(i, Instruction) or i.op in _EXEMPT:
                continue
            if any(m.startswith("bf16") for m in i.mods):
                return False  # its subnormals are subnormal floats
            if "f64" in i.mods and not (i.op == "cvt" and "ftz" in i.mods):
                return False
            if "f32" in i.mods and "ftz" not in i.mods and not _indifferent(i):
                return False
    return True


def _indifferent(i: Instruction) -> bool:
    """A float instruction that neither reads nor makes a subnormal float."""
    if i.op != "cvt":
        return False
    types = [m for m in i.mods if m in TYPES]
    if types == ["f16", "f32"]:
        return "rn" in i.mods and "relu" not in i.mods
    return len(types) == 2 and types[0] == "f32" and types[1] not in ("f32", "f64")


__all__ = ["Info", "Kernel", "Module", "Not", "Imm", "Parameter", "lower"]
