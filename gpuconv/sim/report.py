"""Turns the records of a launch's findings into messages: what happened, to whom and where."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpuconv.sim import layout, memory
from gpuconv.sim.findings import Coordinates, Finding, Party
from gpuconv.sim.info import Info, Kernel
from gpuconv.sim.worker import Worker

_NULL = 1 << 16  # addresses below it come from a null pointer
_WARNINGS = ("same_value",)
_FOLLOWS_RACE = ("same_value", "uninitialised")  # in a line that races they say nothing new
# the most severe first; a kind that is not listed comes after those
_ORDER = """
trap assert deadlock timeout bounds_global bounds_shared bounds_local null freed constant misaligned
divergent early_exit mask barrier_count disagree shuffle matrix in_flight race_shared race_global
uninitialised
"""
_SEVERITY = _ORDER.split()


@dataclass
class _Case:
    """One Found record and what explains it."""

    record: Any
    info: Info
    kernel: Kernel
    worker: Worker
    args: Sequence[Any]
    timeout: float

    @property
    def kind(self) -> str:
        return layout.ERRORS[int(self.record["kind"])]

    @property
    def address(self) -> int:
        return int(self.record["address"])

    @property
    def value(self) -> int:
        return int(self.record["value"])

    def place(self, site: str = "site") -> tuple[str, int, str]:
        """File, line and PTX instruction."""
        return self.info.sites[int(self.record[site])]

    def block(self, name: str = "block") -> Coordinates:
        return _coordinates(int(self.record[name]), self.worker.blocks["nctaid"][0])

    def thread(self, name: str = "thread") -> Coordinates:
        return _coordinates(int(self.record[name]), self.worker.blocks["ntid"][0])


def findings(
    info: Info, kernel: Kernel, workers: list[Worker], args: Sequence[Any], timeout: float
) -> list[Finding]:
    """What the workers of a launch have found, once for each line, in order of severity.

    args: those of the launch. timeout: the seconds after which it would have been stopped.
    """
    found: dict[tuple[str, str, int], Finding] = {}
    for worker in workers:
        for record in worker.findings():
            one = _finding(_Case(record, info, kernel, worker, args, timeout))
            found.setdefault((one.kind, one.file, one.line), one)
    races = [one for one in found.values() if one.kind.startswith("race")]
    racing = {f"{one.file}:{one.line}" for one in races}
    racing |= {one.other.line for one in races if one.other}
    kept = [
        one
        for one in found.values()
        if one.kind not in _FOLLOWS_RACE or f"{one.file}:{one.line}" not in racing
    ]
    return sorted(kept, key=_rank)


def _rank(finding: Finding) -> tuple[bool, int, str, int]:
    kinds = [*_SEVERITY, finding.kind]
    warning = finding.severity == "warning"
    return warning, kinds.index(finding.kind), finding.file, finding.line


def _finding(case: _Case) -> Finding:
    kind, (file, line, text) = case.kind, case.place()
    waiting = kind in ("DEADLOCK", "TIMEOUT")
    where = "" if waiting else f"thread {case.thread()} of "
    at = "" if kind == "DEADLOCK" else f" at {file}:{line} ({text})"
    message = f"{case.kernel.name}: {_TEXT[kind](case)}, {where}block {case.block()}{at}"
    argument, index = (None, None) if waiting else _argument(case)
    name = _refined(case)
    severity = "warning" if name in _WARNINGS else "error"
    other = _other(case) if kind in _RACES else None
    return Finding(
        name, severity, case.kernel.name, file, line, case.block(), case.thread(), argument, index,
        other, message,
    )  # fmt: skip


def _refined(case: _Case) -> str:
    """The kind's name; an access outside all memory is called what it is.

    One that starts from an argument leaves this, wherever it lands.
    """
    if case.kind != "BOUNDS_GLOBAL" or case.info.arguments[int(case.record["site"])] >= 0:
        return case.kind.lower()
    if case.address < _NULL:
        return "null"
    return "freed" if memory.was_freed(case.address) else "bounds_global"


def _argument(case: _Case) -> tuple[int | None, int | None]:
    """Which argument an access to global memory belongs to, and which element of it."""
    if case.kind not in _GLOBAL or "shared" in case.place()[2].split()[0]:
        return None, None
    number = case.info.arguments[int(case.record["site"])]
    if number < 0:
        holds = (
            n
            for n, a in enumerate(case.args)
            if isinstance(a, memory.Array) and 0 <= case.address - a.ptr < a.nbytes
        )
        number = next(holds, -1)
    array = case.args[number] if number >= 0 else None
    if not isinstance(array, memory.Array):
        return None, None
    return number, (case.address - array.ptr) // max(array.itemsize, 1)


def _other(case: _Case) -> Party:
    """The other access of a race."""
    file, line, _ = case.place("other_site")
    return Party(case.block("other_block"), case.thread("other_thread"), f"{file}:{line}")


def _coordinates(linear: int, extent: Any) -> Coordinates:
    x, y = int(extent[0]), int(extent[1])
    return linear % x, linear // x % y, linear // (x * y)


# ---- what happened -------------------------------------------------------------------------------


def _bounds(case: _Case) -> str:
    at, size, space = case.address, case.value, _space(case)
    if space == "shared":
        return _near_shared(case)
    if space == "local":
        return f"{size} bytes at local address {at:#x}, outside every local array"
    kind = _refined(case)
    if kind == "null":
        return f"{size} bytes through a null pointer, at address {at:#x}"
    if kind == "freed":
        return f"{size} bytes at global address {at:#x}, which has been freed"
    number, index = _argument(case)
    if number is not None:
        length = case.args[number].size
        return (
            f"{size} bytes at global address {at:#x}, element {index} of argument {number}, which "
            f"has {length} elements: outside every live allocation{_near(at)}"
        )
    return f"{size} bytes at global address {at:#x}, outside every live allocation{_near(at)}"


def _space(case: _Case) -> str:
    """The memory that an error is about: shared, global or local."""
    last = case.kind.rpartition("_")[2].lower()
    if last in ("shared", "global", "local"):
        return last
    return "shared" if "shared" in case.place()[2].split()[0] else "global"


def _near_shared(case: _Case) -> str:
    """Describe a shared access outside every variable, relative to the closest variable."""
    at, dynamic = case.address, int(case.worker.blocks["dynamic_bytes"][0])
    places = [
        *case.kernel.shared_names,
        ("dynamic shared memory", case.kernel.placed_shared, dynamic),
    ]
    if not case.kernel.dynamic_shared:
        places.pop()
    if not places:
        return f"{case.value} bytes at {at} of shared memory, of which this kernel has none"
    name, begin, length = min(places, key=lambda p: min(abs(at - p[1]), abs(at - p[1] - p[2])))
    where = f"{begin - at} before" if at < begin else f"{at - begin} into"
    return f"{case.value} bytes at {where} the {length} bytes of {name}"


def _near(address: int) -> str:
    """Describe where an address lies relative to the closest allocation."""
    best = min(
        memory.live(),
        key=lambda m: min(abs(address - m.begin), abs(address - m.begin - m.nbytes)),
        default=None,
    )
    if best is None:
        return ""
    past = address - best.begin - best.nbytes
    before = best.begin - address
    where = f"{before} before" if before > 0 else f"{past} past the end of"
    return f" ({where} one of {best.nbytes} bytes)"


def _assertion(case: _Case) -> str:
    text = ctypes.string_at(case.address)
    return f"assertion failed: {text.decode(errors='replace')}"


def _waiting(case: _Case) -> str:
    """Which threads wait at which instruction, in all blocks that are under way."""
    running = [n for n, phase in enumerate(case.worker.blocks["phase"]) if phase == 1]
    told = []
    for slot in running[:4]:
        block = case.worker.blocks[slot]
        index = _coordinates(int(block["index"]), block["nctaid"])
        which = f"block {index}: " if len(running) > 1 else ""
        told.append(which + _places(case, slot))
    return "; ".join(told) + (f"; and {len(running) - 4} more blocks" if len(running) > 4 else "")


def _places(case: _Case, slot: int) -> str:
    places: dict[str, list[int]] = {}
    threads = case.worker.thread_records(slot)[: int(case.worker.blocks["nthreads"][0])]
    for number, thread in enumerate(threads):
        state = layout.STATES[int(thread["state"])]
        file, line, text = case.info.sites[int(thread["site"])]
        if state == "DONE":
            where = "are done"
        elif state == "RUN":
            where = "have not waited yet"
        else:
            where = f"wait at {file}:{line} ({text})"
        if state not in ("DONE", "RUN", "BARRIER", "COUNTED", "YIELD"):
            where += f" with mask {int(thread['mask']):#010x}"
        places.setdefault(where, []).append(number)
    return "; ".join(f"threads {_ranges(ns)} {where}" for where, ns in places.items())


def _deadlock(case: _Case) -> str:
    return f"deadlock: {_waiting(case)}"


def _timeout(case: _Case) -> str:
    others = f" ({_waiting(case)})" if case.kernel.coroutine else ""
    return (
        f"not done after {case.timeout:g} seconds, an endless loop perhaps{others}: thread "
        f"{case.thread()} runs in"
    )


def _ranges(numbers: list[int]) -> str:
    parts, start = [], numbers[0]
    for before, after in zip(numbers, [*numbers[1:], -1], strict=True):
        if after != before + 1:
            parts.append(str(start) if start == before else f"{start}-{before}")
            start = after
    return ",".join(parts[:8]) + (",..." if len(parts) > 8 else "")


def _race(case: _Case) -> str:
    """The other access to the same bytes: which thread, where, and whether it wrote."""
    wrote, writes = int(case.record["wrote"]) & 1, int(case.record["wrote"]) & 2
    other, text = _other(case), case.place("other_site")[2]
    return (
        f"race on {case.value} bytes at {_space(case)} address {case.address:#x}: thread "
        f"{other.thread} of block {other.block} {'wrote' if wrote else 'read'} them at "
        f"{other.line} ({text}), and no barrier or atomic orders that before this "
        f"{'write' if writes else 'read'}"
    )


def _same_value(case: _Case) -> str:
    return f"{_race(case)}; both write the same value"


def _read_only(case: _Case) -> str:
    other, text = _other(case), case.place("other_site")[2]
    return (
        f"{case.value} bytes at address {case.address:#x} are read as constant data (ld.global.nc, "
        f"from __ldg or const __restrict__) and written in the same launch, by thread "
        f"{other.thread} of block {other.block} at {other.line} ({text})"
    )


def _shuffle(case: _Case) -> str:
    lane, source = case.address, case.value
    if source >= 1000:
        return f"a shuffle of width {source - 1000}, which must be 1, 2, 4, 8, 16 or 32"
    return f"lane {lane} reads lane {source} by a shuffle in which that lane takes no part"


def _plain(text: str) -> Any:
    return lambda case: text.format(a=case.address, v=case.value)


_RACES = ("RACE_SHARED", "RACE_GLOBAL", "SAME_VALUE", "READ_ONLY")
_GLOBAL = (*_RACES, "BOUNDS_GLOBAL", "MISALIGNED", "UNINITIALISED", "CONSTANT")
_TEXT = {
    "TRAP": _plain("the kernel executed a trap"),
    "ASSERT": _assertion,
    "DEADLOCK": _deadlock,
    "TIMEOUT": _timeout,
    "DIVERGENT": _plain("lanes of one warp wait at different instructions for barrier {a}"),
    "EARLY_EXIT": _plain(
        "a barrier of all threads completed without {v} threads that had already exited"
    ),
    "MASK": _plain("lane {v} called a warp collective with mask {a:#010x}, which does not name it"),
    "BARRIER_COUNT": _plain(
        "barrier {a} with count {v}: a barrier is 0 to 15, a count a multiple of 32"
    ),
    "DISAGREE": _plain("threads pass different counts to barrier {a}, here {v}"),
    **dict.fromkeys(("BOUNDS_GLOBAL", "BOUNDS_SHARED", "BOUNDS_LOCAL"), _bounds),
    "CONSTANT": _plain("write of {v} bytes at address {a:#x}, in constant memory"),
    "MISALIGNED": _plain("access of {v} bytes at address {a:#x}, which is not a multiple of {v}"),
    "UNINITIALISED": _plain("read of {v} bytes at address {a:#x} that were never written"),
    "IN_FLIGHT": _plain(
        "access of {v} bytes at shared address {a:#x}, to which a copy is on its way (cp.async): "
        "wait for its group first, then at a barrier for other threads' copies"
    ),
    "MATRIX": _plain(
        "a matrix instruction by the lanes {a:#010x}: all 32 of a warp must come to it together"
    ),
    "RACE_SHARED": _race,
    "RACE_GLOBAL": _race,
    "SAME_VALUE": _same_value,
    "READ_ONLY": _read_only,
    "SHUFFLE": _shuffle,
    "DIVISION": _plain("integer division by zero"),
}
