"""Counted mode: what a kernel's code notes while it runs, for counters.py to add up.

Straight pieces of code (segments) note that a thread came by, and memory accesses note their
address. Each note carries a key made of the iteration numbers of the loops around it. The notes of
a warp's lanes with one place and one key are one instruction of the warp: lanes that diverge are
taken to meet again where their paths join.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuconv.sim.loops import loops
from gpuconv.sim.program import Instruction

if TYPE_CHECKING:
    from gpuconv.sim.body import Body
    from gpuconv.sim.emit import Emitter, Frame

ACCESS = 1 << 31  # added to the number of an access, which thereby differs from a segment's
_MIX = 0x9E3779B97F4A7C15  # an odd number that spreads those of iterations over 64 bits


@dataclass
class Executed:
    """An instruction of a counted kernel. flop: of one thread, or of a whole warp for mma."""

    file: str
    line: int
    text: str
    kind: str
    flop: int


@dataclass
class Access:
    """A memory access: the number of its instruction, and what it touches.

    kind: "read", "write" or "both"; size: bytes of one thread.
    """

    number: int
    space: str
    kind: str
    size: int


# ---- what is emitted -----------------------------------------------------------------------------


def enter(b: Body) -> None:
    """At the begin of a function: none of its loops has begun."""
    frame = b.frame
    frame.label, frame.loops = "", loops(frame.function)
    b.segment = None
    for name in frame.loops:
        if _begins_loop(frame, name):
            b.allocas.append(f"{_counter(frame, name)} = alloca i64")
            b.emit(f"store i64 0, ptr {_counter(frame, name)}")


def at_label(b: Body, name: str) -> None:
    """A label: the next iteration of its loop, and the first of the loops inside."""
    frame = b.frame
    frame.label, b.segment = name, None
    if not _begins_loop(frame, name):
        return
    now = b.op(f"load i64, ptr {_counter(frame, name)}")
    b.emit(f"store i64 {b.op(f'add i64 {now}, 1')}, ptr {_counter(frame, name)}")
    for inner, around in frame.loops.items():
        if inner != name and name in around and _begins_loop(frame, inner):
            b.emit(f"store i64 0, ptr {_counter(frame, inner)}")


def executed(b: Body, i: Instruction) -> None:
    """Note an instruction in the current segment, after beginning one where there is none."""
    info = b.module.info
    if b.segment is None:
        b.segment = []
        info.segments.append(b.segment)
        _log(b, len(info.segments) - 1, "0")
    b.segment.append(len(info.executed))
    info.executed.append(Executed(*b.module.program.place(i), i.text, kind_of(i), flop_of(i)))


def touch(b: Emitter, address: str, space: str, kind: str, size: int) -> None:
    """Note a memory access of the instruction that was noted last."""
    info = b.module.info
    info.accesses.append(Access(len(info.executed) - 1, space, kind, size))
    _log(b, ACCESS + len(info.accesses) - 1, address)


def _log(b: Emitter, place: int, address: str) -> None:
    key = "0"
    for frame in b.frames:
        for name in frame.loops[frame.label]:
            key = b.op(f"mul i64 {key}, {_MIX}")
            key = b.op(f"add i64 {key}, {b.op(f'load i64, ptr {_counter(frame, name)}')}")
    what = f"i32 {b.linear_thread()}", f"i32 {place}", f"i64 {key}", f"i64 {address}"
    b.call("void", "sim_log", "ptr %blk", *what)


def _begins_loop(frame: Frame, label: str) -> bool:
    return frame.loops[label][-1:] == [label]


def _counter(frame: Frame, label: str) -> str:
    return f'%"{frame.prefix}{label}.count"'


# ---- what an instruction is ----------------------------------------------------------------------

_SPACES = {"global", "shared", "local", "param", "const"}
_VERBS = {"ld": "load", "ldu": "load", "st": "store"}
_KINDS = {
    "warp": {"shfl", "vote", "match", "redux", "activemask", "elect"},
    "tensor": {"mma", "wmma", "wgmma"},
    "special": {"ex2", "lg2", "sin", "cos", "tanh", "rcp", "rsqrt", "sqrt"},
    "branch": {"bra", "brx", "call", "ret", "exit", "trap"},
    "copy": {"cp", "ldmatrix", "stmatrix"},
    "atomic": {"atom", "red"},
    "fence": {"membar", "fence"},
    "conversion": {"cvt"},
    "move": {"mov", "cvta"},
    "compare": {"setp", "selp", "set", "slct"},
}
_FLOATS = {"f16": "float16", "bf16": "float16", "f16x2": "float16", "bf16x2": "float16"}
_FLOATS |= {"f32": "float32", "f64": "float64"}
_FLOP = {"fma": 2, "mad": 2, "add": 1, "sub": 1, "mul": 1}


def kind_of(i: Instruction) -> str:
    """The class of an instruction: "float32", "integer", "global load", ..."""
    if i.op in _VERBS:
        spaces = [m.partition("__")[0] for m in i.mods]
        space = next((s for s in spaces if s in _SPACES), "generic")
        return space if space in ("param", "const") else f"{space} {_VERBS[i.op]}"
    if i.op in ("bar", "barrier"):
        return "warp" if "warp" in i.mods else "barrier"
    for kind, ops in _KINDS.items():
        if i.op in ops:
            return kind
    if i.op == "div" and "f32" in i.mods:
        return "special"
    return next((_FLOATS[m] for m in reversed(i.mods) if m in _FLOATS), "integer")


def flop_of(i: Instruction) -> int:
    """Floating-point operations: 2 for a fused multiply-add, twice that for a packed pair."""
    if i.op == "mma":
        for m in i.mods:
            if shape := re.fullmatch(r"m(\d+)n(\d+)k(\d+)", m):
                return 2 * int(shape[1]) * int(shape[2]) * int(shape[3])
    kind = next((m for m in reversed(i.mods) if m in _FLOATS), "")
    return _FLOP.get(i.op, 0) * (2 if kind.endswith("x2") else 1) if kind else 0
