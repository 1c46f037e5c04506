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
COLLECTIVE = set(_COLLECTIVE.split())


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


def narrowest(functions: list[Function]) -> int:
    """Bytes of the narrowest access that other threads may see, at most 4."""
    widths = {
        bits_of(i.mods[-1]) // 8
        for f in functions
        for i in f.instructions
        if i.op in ("ld", "ldu", "st", "atom", "red")
        and not set(i.mods) & {"param", "local", "const"}
        and i.mods[-1] in TYPES
    }
    return min(widths | {4})


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
    found: dict[str, tuple[str, int]] = {}
    for name, (i, *more) in writers.items():  # in the order of the code
        if more or i.guard is not None or i.mods[-1:] == ("pred",) or len(i.operands) != 2:
            continue
        source = i.operands[1]
        if i.op == "ld" and i.mods[0] == "param" and len(i.mods) == 2:
            same = bits_of(i.mods[1]) == bits_of(function.registers[name])
            if same and isinstance(source, Address) and isinstance(source.base, Sym):
                found[name] = source.base.name, source.base.offset + source.offset
        elif i.op == "cvta" and "global" in i.mods and getattr(source, "name", "") in found:
            found[name] = found[source.name]  # type: ignore[union-attr]
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
