"""cp.async: copies from global to shared memory that a thread waits for later (copies.cu).

A copy takes place when its thread waits for its group, no earlier. In checked mode its place in
shared memory may not be touched before.
"""

from __future__ import annotations

from gpuconv.sim import counting
from gpuconv.sim.emit import Emitter, lowers
from gpuconv.sim.isa_memory import BLIND, READ, SPACES, WRITE, meta
from gpuconv.sim.program import Address, Imm, Instruction, Operand

_SIZES = {"ca": (4, 8, 16), "cg": (16,)}


@lowers("cp")
def _cp(b: Emitter, i: Instruction) -> None:
    """cp.async{.commit_group, .wait_group, .wait_all} and cp.async.{ca,cg}.shared.global"""
    b.need(i.mods[:1] == ("async",))
    words = i.mods[1:]
    if words == ("commit_group",):
        b.call("void", "sim_commit", "ptr %thr")
    elif words == ("wait_group",):
        b.need(len(i.operands) == 1 and isinstance(i.operands[0], Imm))
        _wait(b, b.read(i.operands[0], "u32"))
    elif words == ("wait_all",):
        b.call("void", "sim_commit", "ptr %thr")
        _wait(b, "0")
    else:
        _copy(b, i, words)


def _copy(b: Emitter, i: Instruction, words: tuple[str, ...]) -> None:
    """cp.async.{ca,cg}.shared.global [to], [from], size{, how many of them to read | ignore}"""
    kind, *spaces = (word for word in words if not word.startswith("L2__"))
    b.need(kind in _SIZES and [SPACES.get(word) for word in spaces] == ["shared", "global"])
    to, source, size, *more = i.operands
    b.need(isinstance(size, Imm) and size.bits in _SIZES[kind] and len(more) <= 1)
    b.need(isinstance(to, Address) and isinstance(source, Address))
    assert isinstance(to, Address)
    assert isinstance(source, Address)
    assert isinstance(size, Imm)
    read = _bytes_read(b, size.bits, more)
    ends = b.base(to), b.base(source)
    if b.module.count:
        _count(b, ends, size.bits, read)
    metas = (
        meta(b, to, "shared", size.bits, WRITE | BLIND),
        meta(b, source, "global", size.bits, READ),
    )
    places = (f"i64 {value}" for value in (*ends, *metas))
    b.call("void", "sim_copy", *_thread(b), *places, f"i32 {read}")


def _bytes_read(b: Emitter, size: int, more: list[Operand]) -> str:
    """The fourth operand: bytes to read, the rest become zeros; or a predicate to read none."""
    if not more:
        return str(size)
    name = getattr(more[0], "name", "")
    if b.frame.function.registers.get(name) == "pred":
        return b.op(f"select i1 {b.read(more[0], 'pred')}, i32 0, i32 {size}")
    return b.read(more[0], "u32")


def _count(b: Emitter, ends: tuple[str, str], size: int, read: str) -> None:
    """Both accesses of a copy; one that reads nothing touches no global memory."""
    counting.touch(b, ends[0], "shared", "write", size)
    some, after = b.fresh("some"), b.fresh("after")
    b.end(f"br i1 {b.op(f'icmp ne i32 {read}, 0')}, label %{some}, label %{after}")
    b.label(some)
    counting.touch(b, ends[1], "global", "read", size)
    b.label(after)


def _wait(b: Emitter, groups: str) -> None:
    b.call("void", "sim_wait", *_thread(b), f"i32 {groups}")


def _thread(b: Emitter) -> tuple[str, str]:
    return "ptr %blk", f"i32 {b.linear_thread()}"
