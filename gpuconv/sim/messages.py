"""What a launch did wrong, in words: the messages of findings."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpuconv.sim import layout, memory
from gpuconv.sim.findings import Coordinates, Party
from gpuconv.sim.info import Info, Kernel
from gpuconv.sim.signature import plain_name
from gpuconv.sim.worker import Worker

RACES = ("RACE_SHARED", "RACE_GLOBAL", "SAME_VALUE", "READ_ONLY")
WAITING = ("DEADLOCK", "TIMEOUT")
_OF_ARGUMENTS = (*RACES, "BOUNDS_GLOBAL", "MISALIGNED", "UNINITIALISED", "CONSTANT")
_USED = 4  # in Found.wrote: USED of checks.cu
_NULL = 1 << 16  # addresses below it come from a null pointer


@dataclass
class Case:
    """One Found record and what explains it."""

    record: Any
    info: Info
    kernel: Kernel
    worker: Worker
    args: Sequence[Any]
    variables: Sequence[tuple[str, int, int]]
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

    def name(self) -> str:
        """The kind's name; an access outside all memory is called what it is.

        One that starts from an argument leaves this, wherever it lands.
        """
        if self.kind != "BOUNDS_GLOBAL" or self.info.arguments[int(self.record["site"])] >= 0:
            return self.kind.lower()
        if self.address < _NULL:
            return "null"
        return "freed" if memory.was_freed(self.address) else "bounds_global"

    def place(self, site: str = "site") -> tuple[str, int, str]:
        """File, line and PTX instruction."""
        return self.info.sites[int(self.record[site])]

    def line(self, site: str = "site") -> str:
        """The place in the source; in PTX without lines, with the instruction."""
        file, line, text = self.place(site)
        return f"{file}:{line} ({text})" if file == "PTX" else f"{file}:{line}"

    def block(self, name: str = "block") -> Coordinates:
        return coordinates(int(self.record[name]), self.worker.blocks["nctaid"][0])

    def thread(self, name: str = "thread") -> Coordinates:
        return coordinates(int(self.record[name]), self.worker.blocks["ntid"][0])

    def other(self) -> Party:
        """The other access of a race."""
        file, line, _ = self.place("other_site")
        return Party(self.block("other_block"), self.thread("other_thread"), f"{file}:{line}")

    def space(self) -> str:
        """The memory that an error is about: shared, global or local."""
        last = self.kind.rpartition("_")[2].lower()
        if last in ("shared", "global", "local"):
            return last
        return "shared" if "shared" in self.place()[2].split()[0] else "global"

    def argument(self) -> tuple[int | None, int | None]:
        """Which argument an access to global memory belongs to, and which element of it."""
        if self.kind not in _OF_ARGUMENTS or "shared" in self.place()[2].split()[0]:
            return None, None
        number, array = self._array()
        if array is None:
            return None, None
        return number, (self.address - array.ptr) // max(array.itemsize, 1)

    def _array(self) -> tuple[int, memory.Array | None]:
        """The argument that the address comes from, or else whose array, or member, holds it."""
        number = self.info.arguments[int(self.record["site"])]
        if number >= 0:
            value = self.args[number]
            return number, value if isinstance(value, memory.Array) else None
        for number, value in enumerate(self.args):
            for array in value if isinstance(value, tuple | list) else (value,):
                if isinstance(array, memory.Array) and 0 <= self.address - array.ptr < array.nbytes:
                    return number, array
        return -1, None

    def length(self) -> int:
        """Elements of that array."""
        array = self._array()[1]
        return array.size if array is not None else 0


def message(case: Case) -> str:
    """One line: what happened, to which thread, and where."""
    what = f"{plain_name(case.kernel.name)}: {_TEXT[case.kind](case)}"
    if case.kind in WAITING:
        return what
    return f"{what}, thread {case.thread()} of block {case.block()} at {case.line()}"


def coordinates(linear: int, extent: Any) -> Coordinates:
    x, y = int(extent[0]), int(extent[1])
    return linear % x, linear // x % y, linear // (x * y)


# ---- accesses ------------------------------------------------------------------------------------

_VERBS = {
    "ld": ("read", "read"),
    "ldu": ("read", "read"),
    "st": ("write", "wrote"),
    "atom": ("atomic operation", "changed"),
    "red": ("atomic operation", "changed"),
}


def _verb(case: Case, site: str = "site", past: bool = False) -> str:
    op = case.place(site)[2].split(".")[0].split()[-1]  # behind a guard
    wrote = int(case.record["wrote"]) & (1 if site == "other_site" else 2)
    usual = _VERBS["st" if wrote else "ld"] if case.kind in RACES else ("access", "accessed")
    return _VERBS.get(op, usual)[past]


def _access(case: Case) -> str:
    """What kind of access, of how many bytes, to what."""
    return f"{_verb(case)} of {case.value} bytes at {_target(case)}"


def _target(case: Case) -> str:
    """What an address means in the source: an element, a byte of a variable."""
    at, space = case.address, case.space()
    if space == "shared":
        return _near_shared(case)
    if space == "local":
        return f"local address {at:#x}"
    number, index = case.argument()
    if number is not None:
        inside = "an array of " * isinstance(case.args[number], tuple | list)
        length = _length(case.length(), "element", index)
        return f"element {index} of {inside}argument {number}{length}"
    near = [v for v in case.variables if -_CLOSE <= at - v[1] < v[2] + _CLOSE]
    for name, begin, size in sorted(near, key=lambda v: _distance(at, v[1], v[2]))[:1]:
        return _within(at - begin, size, plain_name(name))
    return f"global address {at:#x}{_near(at)}"


_CLOSE = 1 << 12  # bytes from a variable within which an address is told by it


def _distance(at: int, begin: int, size: int) -> int:
    return max(begin - at, at - begin - size + 1, 0)


def _within(offset: int, size: int, name: str) -> str:
    return f"byte {offset} of {name}{_length(size, 'byte', offset)}"


def _length(size: int, unit: str, index: int | None) -> str:
    """How long the thing is, where an index is outside."""
    if index is not None and 0 <= index < size:
        return ""
    return f", which has {size} {unit}{'s' * (size != 1)}"


def _near_shared(case: Case) -> str:
    """A shared address, relative to the closest variable."""
    at, dynamic = case.address, int(case.worker.blocks["dynamic_bytes"][0])
    at -= 1 << 32 if 1 << 31 <= at < 1 << 32 else 0
    places = [
        *case.kernel.shared_names,
        ("dynamic shared memory", case.kernel.placed_shared, dynamic),
    ]
    if not case.kernel.dynamic_shared:
        places.pop()
    if not places:
        return f"{at} of shared memory, of which this kernel has none"
    name, begin, size = min(places, key=lambda p: _distance(at, p[1], p[2]))
    return _within(at - begin, size, plain_name(name))


def _near(address: int) -> str:
    """Where an address lies relative to the closest allocation."""
    best = min(memory.live(), key=lambda m: _distance(address, m.begin, m.nbytes), default=None)
    if best is None:
        return ""
    past, before = address - best.begin - best.nbytes, best.begin - address
    where = f"{before} before" if before > 0 else f"{past} past the end of" if past >= 0 else "in"
    return f" ({where} an array of {best.nbytes} bytes)"


def _bounds(case: Case) -> str:
    kind = case.name()
    if kind == "null":
        return f"{_verb(case)} of {case.value} bytes through a null pointer, at {case.address:#x}"
    if kind == "freed":
        return f"{_verb(case)} of {case.value} bytes at {case.address:#x}, which has been freed"
    if case.space() == "local":
        return f"{_access(case)}, outside every local array"
    number, index = case.argument()
    if number is not None and index is not None and 0 <= index < case.length():
        return f"{_access(case)} and past the last of its {case.length()}"
    return _access(case)


def _race(case: Case) -> str:
    """The other access to the same bytes: which thread, where, and what it did."""
    other = case.other()
    return (
        f"race on {case.value} bytes at {_target(case)}: thread {other.thread} of block "
        f"{other.block} {_verb(case, 'other_site', True)} them at {case.line('other_site')}, and "
        f"no barrier, fence or atomic orders that before this {_verb(case)}"
    )


def _same_value(case: Case) -> str:
    return f"{_race(case)}; both write the same value"


def _read_only(case: Case) -> str:
    other = case.other()
    return (
        f"{case.value} bytes at {_target(case)} are read as constant data (__ldg or const "
        f"__restrict__) and written in the same launch, by thread {other.thread} of block "
        f"{other.block} at {case.line('other_site')}"
    )


# ---- waiting -------------------------------------------------------------------------------------

_FOR = {
    "BARRIER": "a barrier",
    "COUNTED": "a barrier",
    "WARP": "__syncwarp",
    "SHUFFLE": "a shuffle",
    "VOTE": "a vote",
    "MATCH": "a match",
    "MATRIX": "a matrix instruction",
    "REDUX": "a reduction",
    "ACTIVE": "__activemask",
    "YIELD": "a change of memory",
}


def _waiting(case: Case) -> str:
    """Which threads wait at which line, in all blocks that are under way."""
    running = [n for n, phase in enumerate(case.worker.blocks["phase"]) if phase == 1]
    told = []
    for slot in running[:4]:
        block = case.worker.blocks[slot]
        index = coordinates(int(block["index"]), block["nctaid"])
        which = f"block {index}: " if len(running) > 1 else ""
        told.append(which + _places(case, slot))
    return "; ".join(told) + (f"; and {len(running) - 4} more blocks" if len(running) > 4 else "")


def _places(case: Case, slot: int) -> str:
    places: dict[str, list[int]] = {}
    threads = case.worker.thread_records(slot)[: int(case.worker.blocks["nthreads"][0])]
    for number, thread in enumerate(threads):
        state = layout.STATES[int(thread["state"])]
        file, line, _ = case.info.sites[int(thread["site"])]
        if state == "DONE":
            where = "done"
        elif state in _FOR:
            where = f"at {file}:{line} for {_FOR[state]}"
        else:
            where = "under way"
        if state not in ("DONE", "RUN", "BARRIER", "COUNTED", "YIELD"):
            where += f" with mask {int(thread['mask']):#010x}"
        places.setdefault(where, []).append(number)
    return "; ".join(f"{_threads(ns, where)}" for where, ns in places.items())


def _threads(numbers: list[int], where: str) -> str:
    one = len(numbers) == 1
    verb = ("waits" if one else "wait") if where.startswith("at ") else "is" if one else "are"
    return f"{'thread' if one else 'threads'} {_ranges(numbers)} {verb} {where}"


def _deadlock(case: Case) -> str:
    return f"deadlock: {_waiting(case)}"


def _timeout(case: Case) -> str:
    others = f"; {_waiting(case)}" if case.kernel.coroutine else ""
    return (
        f"not done after {case.timeout:g} seconds of processor time, an endless loop perhaps: "
        f"thread {case.thread()} of block {case.block()} is at {case.line()}{others}"
    )


def _ranges(numbers: list[int]) -> str:
    parts, start = [], numbers[0]
    for before, after in zip(numbers, [*numbers[1:], -1], strict=True):
        if after != before + 1:
            parts.append(str(start) if start == before else f"{start}-{before}")
            start = after
    return ",".join(parts[:8]) + (",..." if len(parts) > 8 else "")


# ---- everything else -----------------------------------------------------------------------------


def _assertion(case: Case) -> str:
    text = ctypes.string_at(case.address)
    return f"assertion failed: {text.decode(errors='replace')}"


def _shuffle(case: Case) -> str:
    lane, source = case.address, case.value
    if source >= 1000:
        return f"a shuffle of width {source - 1000}, which must be 1, 2, 4, 8, 16 or 32"
    return (
        f"lane {lane} reads lane {source} by a shuffle in which that lane takes no part{_use(case)}"
    )


def _division(case: Case) -> str:
    return f"integer division by zero{_use(case)}"


def _use(case: Case) -> str:
    """Where a value is used that PTX leaves open, if that was on the way."""
    used = int(case.record["wrote"]) & _USED
    return f"; the result is used at {case.line('other_site')}" if used else ""


def _plain(text: str) -> Any:
    return lambda case: text.format(a=case.address, v=case.value)


def _of_access(text: str) -> Any:
    return lambda case: text.format(access=_access(case), v=case.value)


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
    "CONSTANT": _of_access("{access}, in constant memory"),
    "MISALIGNED": _of_access("{access}, at an address that is not a multiple of {v}"),
    "UNINITIALISED": _of_access("{access}, which was never written"),
    "IN_FLIGHT": _of_access(
        "{access}, to which a copy is on its way (cp.async): wait for its group first, then at a "
        "barrier for other threads' copies"
    ),
    "MATRIX": _plain(
        "a matrix instruction by the lanes {a:#010x}: all 32 of a warp must come to it together"
    ),
    "RACE_SHARED": _race,
    "RACE_GLOBAL": _race,
    "SAME_VALUE": _same_value,
    "READ_ONLY": _read_only,
    "SHUFFLE": _shuffle,
    "DIVISION": _division,
}
