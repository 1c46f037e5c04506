"""Analyses of PTX functions that run before they are lowered."""

from __future__ import annotations

from gpuconv.sim.errors import UnsupportedError
from gpuconv.sim.program import (
    TYPES,
    Address,
    Function,
    Instruction,
    Label,
    Program,
    Reg,
    Sym,
    Variable,
    bits_of,
)
from gpuconv.sim.signature import plain_name

_COLLECTIVE = "bar barrier shfl vote match redux activemask nanosleep elect"
_COLLECTIVE += " mma ldmatrix stmatrix cp"  # cp.async: its copies are kept in the thread's record
COLLECTIVE = set(_COLLECTIVE.split())
STRONG, UPDATE, DATA = 16, 128, 256  # Code of races.cu


def reachable(program: Program, function: Function, seen: tuple[str, ...] = ()) -> list[Function]:
    """`function` and all it calls. Raises UnsupportedError on recursion."""
    found = {function.name: function}
    seen += (function.name,)
    calls = {name: i for i in function.instructions if i.op == "call" for name in names(i)}
    for name in sorted(calls.keys() & program.functions.keys()):
        if name in seen:
            file, line = program.place(calls[name])
            raise UnsupportedError(
                f"{file}:{line}: recursion ({plain_name(name)}) is not modelled by the simulator"
            )
        found |= {inner.name: inner for inner in reachable(program, program.functions[name], seen)}
    return list(found.values())


def polling(function: Function) -> list[Instruction]:
    """Loads and exchanges inside a loop, by which a thread may wait for another thread.

    After each of them the thread yields, so that the others can run.
    """
    places = {item.name: n for n, item in enumerate(function.body) if isinstance(item, Label)}
    found = []
    for end, item in enumerate(function.body):
        target = item.operands[0] if isinstance(item, Instruction) and item.op == "bra" else None
        if isinstance(target, Sym) and places.get(target.name, end) < end:
            found += [
                i
                for i in function.body[places[target.name] : end]
                if isinstance(i, Instruction)
                and (
                    (i.op == "ld" and set(i.mods) & {"volatile", "relaxed", "acquire"})
                    or (i.op == "atom" and set(i.mods) & {"cas", "exch"})
                )
            ]
    return found


def in_shared(i: Instruction) -> bool:
    """Whether this instruction accesses shared memory for certain."""
    return any(m.startswith("shared") for m in i.mods)


def talks(i: Instruction) -> bool:
    """Whether by this instruction a block may learn what another block has done."""
    strong = i.op == "ld" and set(i.mods) & {"volatile", "relaxed", "acquire"} and not in_shared(i)
    return bool(strong) or (i.op in ("membar", "fence") and "cta" not in i.mods)


def names(i: Instruction) -> list[str]:
    """Names of the variables, functions and labels among the operands of an instruction."""
    bases = [getattr(operand, "base", operand) for operand in i.operands]
    return [base.name for base in bases if isinstance(base, Sym)]


def is_pointer(function: Function, param: Variable) -> bool | None:
    """Whether a 64-bit parameter is used as an address: True, or None where that is unknown."""
    holders: set[str] = set()
    for i in function.instructions:
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
            addresses = [o.base for o in i.operands if isinstance(o, Address)]
            if any(isinstance(a, Reg) and a.name in holders for a in addresses):
                return True
    return None


def parameter_registers(function: Function) -> dict[str, tuple[str, int]]:
    """The registers that hold a parameter and nothing else: its name, and the offset in it."""
    writers: dict[str, list[Instruction]] = {}
    for i in function.instructions:
        first = i.operands[0] if i.operands else None
        parts = getattr(first, "items", None) or (getattr(first, "first", first),)
        for part in (*parts, getattr(first, "second", None)):
            if isinstance(part, Reg):
                writers.setdefault(part.name, []).append(i)
    own = {p.name for p in function.params}
    found: dict[str, tuple[str, int]] = {}
    for name, (i, *more) in writers.items():  # in the order of the code
        if more or i.guard is not None or i.mods[-1:] == ("pred",) or len(i.operands) != 2:
            continue
        source = i.operands[1]
        if i.op == "ld" and i.mods[0] == "param" and len(i.mods) == 2:
            same = bits_of(i.mods[1]) == bits_of(function.registers[name])
            if not (same and isinstance(source, Address) and isinstance(source.base, Sym)):
                continue
            if source.base.name in own:  # else it is the result of a call
                found[name] = source.base.name, source.base.offset + source.offset
        elif i.op == "cvta" and "global" in i.mods and getattr(source, "name", "") in found:
            found[name] = found[source.name]  # type: ignore[union-attr]
    return found


def written(i: Instruction) -> list[str]:
    """Registers that an instruction writes."""
    if i.op in ("st", "red", "bra", "bar", "barrier", "membar", "fence") or not i.operands:
        return []
    parts = getattr(i.operands[0], "items", None) or (i.operands[0],)
    both = [r for p in parts for r in (getattr(p, "first", p), getattr(p, "second", None))]
    return [r.name for r in both if isinstance(r, Reg)]


def read(i: Instruction) -> list[str]:
    """Registers that an instruction reads, but for those in addresses and its guard."""
    sources = i.operands if i.op in ("st", "red") else i.operands[1:]
    flat = [p for o in sources for p in (getattr(o, "items", None) or (o,))]
    return [r.name for r in (getattr(o, "operand", o) for o in flat) if isinstance(r, Reg)]


def registers_read(function: Function) -> set[str]:
    """Names of the registers whose value matters: sources, addresses and guards."""
    found: set[str] = set()
    for i in function.instructions:
        bases = [getattr(o, "base", None) for o in i.operands]
        guard = getattr(i.guard, "operand", i.guard)
        found |= {r.name for r in (*bases, guard) if isinstance(r, Reg)}
        found.update(read(i))
    return found


_NO_ARGUMENT, _SEVERAL = -1, -2


def argument_registers(function: Function) -> dict[str, int]:
    """The registers that hold an address within one argument, whatever path leads there: which."""
    numbers = {p.name: n for n, p in enumerate(function.params) if p.pointer}
    found: dict[str, int] = {}

    def of(operand: object) -> int | None:
        return found.get(operand.name) if isinstance(operand, Reg) else _NO_ARGUMENT

    def value(i: Instruction) -> int | None:
        sources = i.operands[1:]
        if i.op == "ld" and i.mods[0] == "param":
            base = getattr(sources[0], "base", None)
            return numbers.get(base.name, _NO_ARGUMENT) if isinstance(base, Sym) else _NO_ARGUMENT
        if i.op in ("cvta", "mov") and isinstance(sources[0], Reg):
            return of(sources[0])
        if i.op in ("add", "sub", "mad", "selp"):
            terms = [of(o) for o in (sources[2:3] if i.op == "mad" else sources[:2])]
            if None in terms:
                return None
            if i.op == "selp" and terms[0] != terms[1]:
                return _SEVERAL
            real = {t for t in terms if t != _NO_ARGUMENT}
            return real.pop() if len(real) == 1 else _SEVERAL if real else _NO_ARGUMENT
        return _NO_ARGUMENT

    before: dict[str, int] | None = None
    while found != before:
        before = dict(found)
        for i in function.instructions:
            if (new := value(i)) is None:
                continue
            for name in written(i):
                found[name] = new if found.get(name, new) == new else _SEVERAL
    return {name: number for name, number in found.items() if number >= 0}


SHARED = -2  # in granules(), beside the numbers of arguments and -1


def granules(functions: list[Function], arguments: dict[str, int]) -> dict[int, int]:
    """Bytes of the narrowest access, at most 4: the units of race detection.

    By argument of the kernel, the first function, for what is known to access one; SHARED; -1 for
    all else. arguments: the registers that point into one.
    """
    found = {SHARED: 4, _NO_ARGUMENT: 4}
    for f in functions:
        for i in f.instructions:
            if i.op not in ("ld", "ldu", "st", "atom", "red") or i.mods[-1] not in TYPES:
                continue
            words = {m.partition("__")[0] for m in i.mods}
            if words & {"param", "local", "const"}:
                continue
            base = next((o.base for o in i.operands if isinstance(o, Address)), None)
            known = f is functions[0] and isinstance(base, Reg)
            place = arguments.get(base.name, _NO_ARGUMENT) if known else _NO_ARGUMENT  # type: ignore[union-attr]
            places = [SHARED] if "shared" in words else [place]
            if "global" not in words:  # generic: either
                places = [SHARED, place]
            for each in places:
                found[each] = min(found.get(each, 4), bits_of(i.mods[-1]) // 8)
    return found


def _makers(function: Function) -> dict[str, list[Instruction]]:
    """The instructions that write each register."""
    makers: dict[str, list[Instruction]] = {}
    for i in function.instructions:
        for name in written(i):
            makers.setdefault(name, []).append(i)
    return makers


def guess_bits(function: Function) -> dict[int, int]:
    """STRONG of races.cu for plain loads whose value an atomicCAS at the same address tests.

    Such a first guess, as in atomic operations that the CUDA programming guide builds from
    atomicCAS, may be out of date: then the exchange fails.
    """
    makers = _makers(function)
    found = {}
    for swap in function.instructions:
        if swap.op != "atom" or "cas" not in swap.mods:
            continue
        _, address, guess, _ = swap.operands
        todo, seen = [guess], set()
        while todo:
            name = getattr(todo.pop(), "name", "")
            if name in seen:
                continue
            seen.add(name)
            for maker in makers.get(name, ()):
                if maker.op == "mov":
                    todo += maker.operands[1:]
                elif maker.op == "ld" and maker.operands[1] == address:
                    found[id(maker)] = STRONG
    return found


def volatile_bits(function: Function) -> dict[int, int]:
    """UPDATE and DATA of races.cu for the volatile accesses of a function, by the ids of these."""
    makers = _makers(function)

    def origins(names: list[str]) -> tuple[set[str], set[int]]:
        """The registers from which values are computed, and the ids of the loads among these."""
        seen, loads, todo = set(), set(), list(names)
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            for maker in makers.get(name, ()):
                if maker.op in ("ld", "atom"):
                    loads.add(id(maker))
                else:
                    todo += read(maker)
        return seen, loads

    volatile = [i for i in function.instructions if i.op in ("ld", "st") and "volatile" in i.mods]
    if not volatile:
        return {}
    guards = [getattr(i.guard, "operand", i.guard) for i in function.instructions if i.guard]
    deciding = origins([g.name for g in guards if isinstance(g, Reg)])[1]
    same = {id(i): (i.operands[1] if i.op == "ld" else i.operands[0]) for i in volatile}
    found = {}
    for i in volatile:
        found[id(i)] = 0 if id(i) in deciding else DATA
        if i.op == "st":
            sources = origins(read(i))[1]
            if any(same.get(load) == same[id(i)] for load in sources):
                found[id(i)] |= UPDATE
    return found


def register_types(function: Function) -> dict[str, str]:
    """LLVM type of each register.

    It has the declared width, and is a float type where only float instructions use the register.
    """
    votes: dict[str, set[str]] = {}
    for i in function.instructions:
        if i.op in ("mov", "ld", "st", "selp", "shfl"):
            continue
        kind = "f" if i.mods and i.mods[-1] in ("f32", "f64") and i.op != "cvt" else "i"
        for operand in i.operands:
            if isinstance(operand, Reg):
                votes.setdefault(operand.name, set()).add(kind)
    floats = TYPES | {"b32": "float", "b64": "double"}
    return {
        name: (floats if votes.get(name) == {"f"} else TYPES)[declared]
        for name, declared in function.registers.items()
    }


_EXEMPT = {"ld", "st", "mov", "selp", "abs", "neg", "shfl", "atom", "red", "testp", "copysign"}
_EXEMPT |= {"mma"}  # the scheduler multiplies


def all_flush(functions: list[Function]) -> bool:
    """Whether all float instructions are correct under the processor's own flush-to-zero mode."""
    for function in functions:
        for i in function.instructions:
            if i.op in ("atom", "red") and i.mods[-1] == "f32" and "global" not in i.mods:
                return False  # in shared memory such an atomic keeps subnormals
            if i.op in _EXEMPT:
                continue
            if any(m.startswith("bf16") for m in i.mods):
                return False  # its subnormals are subnormal floats
            if "f64" in i.mods and not (i.op == "cvt" and "ftz" in i.mods):
                return False
            if "f32" in i.mods and "ftz" not in i.mods and not _indifferent(i):
                return False
    return True


def _indifferent(i: Instruction) -> bool:
    """Whether a float instruction neither reads nor produces a subnormal float."""
    if i.op != "cvt":
        return False
    types = [m for m in i.mods if m in TYPES]
    if types == ["f16", "f32"]:
        return "rn" in i.mods and "relu" not in i.mods
    return len(types) == 2 and types[0] == "f32" and types[1] not in ("f32", "f64")
