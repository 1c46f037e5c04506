"""Values that PTX leaves open: a quotient by zero, a shuffle from a lane that takes no part.

A kernel may compute such a value as long as it does not use it, so checked mode follows it. Each
register that may hold one has a word beside it: 0, or who got the value where,

    1 << 31 | site << 11 | shuffle << 10 | source lane << 5 | lane

Arithmetic passes the word on, a selection that of the value it chooses, a shuffle that of the lane
it reads (runtime.cu); every other instruction that reads the register reports it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gpuconv.sim.analysis import read, written
from gpuconv.sim.emit import FLOAT_TABLE, TABLE, Emitter
from gpuconv.sim.program import Function, Imm, Instruction, Label, Reg, Sym

if TYPE_CHECKING:
    from gpuconv.sim.body import Body

_ARITHMETIC = {f"gpuconv.sim.isa_{part}" for part in ("int", "float", "convert", "move")}
_MOST_STEPS = 200  # of the search for a use that is certain
_BARE = {"bra", "brx", "ret", "exit", "trap", "call"}


def is_arithmetic(i: Instruction) -> bool:
    """Whether an instruction only computes registers from registers."""
    handler: Callable[..., None] | None = TABLE.get(i.op)
    return i.op in FLOAT_TABLE or (handler is not None and handler.__module__ in _ARITHMETIC)


def _divides(i: Instruction) -> bool:
    return i.op in ("div", "rem") and i.mods[-1][0] in "us" and not isinstance(i.operands[2], Imm)


def doubtful(function: Function) -> tuple[set[str], set[int]]:
    """Registers that may hold such a value; ids of the divisions whose result is used for certain.

    These are reported where they happen, and need not be followed.
    """
    divisions = [i for i in function.instructions if _divides(i)]
    certain = {id(i) for i in divisions if _is_used(function, i)}
    found = {n for i in divisions if id(i) not in certain for n in written(i)}
    found |= {n for i in function.instructions if i.op == "shfl" for n in written(i)[:1]}
    before = None
    while found and found != before:
        before = set(found)
        for i in function.instructions:
            if is_arithmetic(i) and found & set(read(i)):
                found |= set(written(i))
    return found, certain


def _is_used(function: Function, division: Instruction) -> bool:
    """Whether what follows without a branch uses the result of a division."""
    body = function.body
    places = {item.name: n for n, item in enumerate(body) if isinstance(item, Label)}
    at = next(n for n, item in enumerate(body) if item is division) + 1
    holds = set(written(division))
    for _ in range(_MOST_STEPS):
        item = body[at] if at < len(body) else None
        at += 1
        if item is None or isinstance(item, Label):
            if item is None:
                return False
            continue
        if _name(item.guard) in holds:
            return True
        if item.guard is not None:
            if item.op in _BARE:
                return False
            continue
        if item.op in _BARE:
            target = item.operands[0] if item.operands else None
            if item.op != "bra" or not isinstance(target, Sym):
                return False
            at = places[target.name]
        elif is_arithmetic(item):
            taken = holds & set(read(item))
            chosen = item.op in ("selp", "slct") or (item.op in ("and", "or") and _of_bits(item))
            holds -= set(written(item))
            holds |= set(written(item)) if taken and not chosen else set()
        elif holds & _mentioned(item):
            return item.op != "shfl"
        else:
            holds -= set(written(item))
    return False


def _of_bits(i: Instruction) -> bool:
    return i.mods[-1] == "pred"


def _mentioned(i: Instruction) -> set[str]:
    """Registers that an instruction reads, those of addresses too."""
    bases = (getattr(o, "base", None) for o in i.operands)
    return set(read(i)) | {r.name for r in bases if isinstance(r, Reg)}


# ---- lowering ------------------------------------------------------------------------------------


def enter(b: Body, function: Function) -> None:
    """Begin a frame: give each such register its word."""
    names, b.frame.certain = doubtful(function)
    for name in sorted(names):
        place = b.frame.doubts[name] = f'%"{b.frame.prefix}{name}.doubt"'
        b.allocas += [f"{place} = alloca i32", f"store i32 0, ptr {place}"]


def at_guard(b: Emitter, i: Instruction) -> None:
    """Report a guard that such a value decides."""
    guard = getattr(i.guard, "operand", i.guard)
    if isinstance(guard, Reg):
        _use(b, guard.name)


def before(b: Emitter, i: Instruction) -> str:
    """Report what an instruction uses; the word of what it will write."""
    doubts = b.frame.doubts
    if i.op == "shfl":
        value = getattr(i.operands[1], "name", "")
        b.set_thread("doubt", "i32", _word(b, value) if value in doubts else "0")
        for name in sorted({_name(o) for o in i.operands[2:]} & doubts.keys()):
            _use(b, name)
        return "0"
    if not is_arithmetic(i):
        for name in sorted(_mentioned(i) & doubts.keys()):
            _use(b, name)
        return "0"
    if i.op == "selp":
        first, second, condition = (
            _word(b, n) if (n := _name(o)) in doubts else "0" for o in i.operands[1:]
        )
        chosen = f"select i1 {b.read(i.operands[3], 'pred')}, i32 {first}, i32 {second}"
        return _either(b, b.op(chosen), condition)
    if i.op in ("and", "or") and _of_bits(i):
        return _decided(b, i)
    word = "0"
    for name in sorted(set(read(i)) & doubts.keys()):
        word = _either(b, word, _word(b, name))
    return word


def after(b: Emitter, i: Instruction, word: str) -> None:
    """Note the word of what an instruction has written."""
    names = [name for name in written(i) if name in b.frame.doubts]
    if not names:
        return
    if _divides(i) and id(i) not in b.frame.certain:
        word = _either(b, word, b.frame.quotient)
    for name in names:
        if i.op == "shfl":  # whether there was a value is known
            word = b.get_thread("doubt", "i32") if name == written(i)[0] else "0"
        b.emit(f"store i32 {word}, ptr {b.frame.doubts[name]}")


def divided(b: Emitter, i: Instruction, zero: str) -> None:
    """Note a division whose divisor may be zero, or report it at once if its result is used."""
    if id(i) not in b.frame.certain:
        lane = b.op(f"and i32 {b.linear_thread()}, 31")
        word = b.op(f"or i32 {lane}, {1 << 31 | b.module.site(i) << 11}")
        b.frame.quotient = b.op(f"select i1 {zero}, i32 {word}, i32 0")
        return
    good, bad = b.fresh("good"), b.fresh("bad")
    b.end(f"br i1 {zero}, label %{bad}, label %{good}")
    b.label(bad)
    b.report("DIVISION")
    b.label(good)


def _name(operand: object) -> str:
    return getattr(getattr(operand, "operand", operand), "name", "")


def _word(b: Emitter, name: str) -> str:
    return b.op(f"load i32, ptr {b.frame.doubts[name]}")


def _either(b: Emitter, first: str, second: str) -> str:
    if "0" in (first, second):
        return second if first == "0" else first
    return b.op(f"select i1 {b.op(f'icmp ne i32 {first}, 0')}, i32 {first}, i32 {second}")


def _decided(b: Emitter, i: Instruction) -> str:
    """The word of a logical and, or: of an operand that matters, given the other."""
    words = [_word(b, n) if (n := _name(o)) in b.frame.doubts else "0" for o in i.operands[1:]]
    total = "0"
    for word, other, doubt in ((0, 2, 1), (1, 1, 0)):
        if words[word] == "0":
            continue
        matters = b.read(i.operands[other], "pred")
        if i.op == "or":
            matters = b.op(f"xor i1 {matters}, true")
        if words[doubt] != "0":
            matters = b.op(f"or i1 {matters}, {b.op(f'icmp ne i32 {words[doubt]}, 0')}")
        total = _either(b, total, b.op(f"select i1 {matters}, i32 {words[word]}, i32 0"))
    return total


def _use(b: Emitter, name: str) -> None:
    """Report the value of a register if it is one that PTX leaves open."""
    if name not in b.frame.doubts:
        return
    word, good, bad = _word(b, name), b.fresh("good"), b.fresh("bad")
    b.end(f"br i1 {b.op(f'icmp eq i32 {word}, 0')}, label %{good}, label %{bad}")
    b.label(bad)
    where = f"i32 {b.linear_thread()}", f"i32 {word}", f"i32 {b.module.site(b.instruction)}"
    b.call("void", "sim_used", "ptr %blk", *where)
    b.label(good)
