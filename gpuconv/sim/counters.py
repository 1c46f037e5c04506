"""Counters: what the launches of a counted kernel did, added up for each instruction.

They are exact counts of the PTX program, with a warp's lanes taken together as counting.py says.
They are no times. Global memory counts the 32-byte sectors that a request of a warp touches. Shared
memory counts wavefronts: of a request, the most different 4-byte words in one of the 32 banks;
accesses of 8 and of 16 bytes take half and a quarter of the warp at a time.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from gpuconv.sim import jit, layout
from gpuconv.sim.counting import ACCESS
from gpuconv.sim.errors import LaunchError
from gpuconv.sim.info import Info

SECTOR, BANKS = 32, 32
NAMES = (
    *("instructions", "thread_instructions", "flop", "fma", "mma", "barriers"),
    *("load_requests", "load_sectors", "load_bytes"),
    *("store_requests", "store_sectors", "store_bytes"),
    *("atomic_requests", "atomic_sectors", "atomic_bytes", "atomic_collisions"),
    *("shared_requests", "shared_wavefronts", "shared_conflicts", "shared_bytes"),
    *("local_requests", "local_bytes", "const_requests", "const_bytes"),
)
_VERBS = {"read": "load", "write": "store", "both": "atomic"}
_NOTES = 1 << 18  # in the log
_MOST = 1 << 25  # notes of blocks that have not ended


class Counters:
    """The counts of all counted launches of one kernel."""

    def __init__(self, kernel: str, info: Info) -> None:
        self.kernel, self.launches = kernel, 0
        self._info = info
        self._warps, self._threads = np.zeros((2, len(info.executed)), np.int64)
        accesses = len(info.accesses)
        self._requests = np.zeros((2, accesses), np.int64)  # [0] in shared memory, [1] elsewhere
        self._lanes = np.zeros((2, accesses), np.int64)
        self._sectors, self._wavefronts, self._ideal, self._collisions = np.zeros(
            (4, accesses), np.int64
        )
        self._sizes = np.array([a.size for a in info.accesses], np.int64)
        self._in_shared = np.array([a.space == "shared" for a in info.accesses], bool)
        self._generic = np.array([a.space == "generic" for a in info.accesses], bool)
        self._on_card = np.array([a.space in ("global", "generic") for a in info.accesses], bool)
        self._atomic = np.array([a.kind == "both" for a in info.accesses], bool)

    # ---- what there is to read ----

    def total(self) -> dict[str, int]:
        """The counts of the kernel, by the names in NAMES."""
        return _sum(self.instructions())

    def by_line(self) -> dict[tuple[str, int], dict[str, int]]:
        """The counts of each (file, line) of the source, in order."""
        lines: dict[tuple[str, int], list[dict[str, int]]] = {}
        for one, counts in zip(self._info.executed, self.instructions(), strict=True):
            if counts["instructions"]:
                lines.setdefault((one.file, one.line), []).append(counts)
        return {place: _sum(lines[place]) for place in sorted(lines)}

    def classes(self) -> dict[str, int]:
        """How many instructions of warps there were of each class, the most frequent first."""
        found: Counter[str] = Counter()
        for one, warps in zip(self._info.executed, self._warps, strict=True):
            found[one.kind] += int(warps)
        return {kind: count for kind, count in found.most_common() if count}

    def instructions(self) -> list[dict[str, int]]:
        """The counts of each PTX instruction of the module; those of other kernels are 0."""
        rows = []
        for number, one in enumerate(self._info.executed):
            warps, threads = int(self._warps[number]), int(self._threads[number])
            row = dict.fromkeys(NAMES, 0)
            row |= {"instructions": warps, "thread_instructions": threads}
            row["flop"] = one.flop * (warps if one.kind == "tensor" else threads)
            row["mma"] = warps if one.kind == "tensor" else 0
            row["fma"] = threads if one.flop and one.text.startswith("fma") else 0
            row["barriers"] = warps if one.kind == "barrier" else 0
            rows.append(row)
        for number, access in enumerate(self._info.accesses):
            self._add_access(rows[access.number], number)
        return rows

    def _add_access(self, row: dict[str, int], number: int) -> None:
        access = self._info.accesses[number]
        verb = _VERBS[access.kind]
        shared, elsewhere = (int(n) for n in self._requests[:, number])
        bytes_ = [int(n) * access.size for n in self._lanes[:, number]]
        wavefronts, ideal = int(self._wavefronts[number]), int(self._ideal[number])
        row["shared_requests"] += shared
        row["shared_bytes"] += bytes_[0]
        row["shared_wavefronts"] += wavefronts
        row["shared_conflicts"] += wavefronts - ideal
        if access.space in ("local", "const"):
            row[f"{access.space}_requests"] += elsewhere
            row[f"{access.space}_bytes"] += bytes_[1]
        else:
            row[f"{verb}_requests"] += elsewhere
            row[f"{verb}_bytes"] += bytes_[1]
            row[f"{verb}_sectors"] += int(self._sectors[number])
        row["atomic_collisions"] += int(self._collisions[number])

    # ---- what adds them up ----

    def _add(self, notes: np.ndarray, shared: list[int], shared_bytes: int) -> None:
        """Add notes of whole blocks. shared: where their shared memory may begin."""
        mixed = notes["key"] * np.uint64(0xD6E8FEB86659FD93)
        warp = (notes["block"].astype(np.uint64) << np.uint64(5)) + (notes["thread"] >> 5)
        mixed ^= (warp << np.uint64(32) ^ notes["place"]) * np.uint64(0x9E3779B97F4A7C15)
        access = notes["place"] >= ACCESS
        if not access.all():
            self._add_segments(notes["place"][~access], mixed[~access])
        if access.any():
            self._add_accesses(notes[access], mixed[access], shared, shared_bytes)

    def _add_segments(self, place: np.ndarray, mixed: np.ndarray) -> None:
        segments = self._info.segments
        threads = np.bincount(place, minlength=len(segments))
        _, first = np.unique(mixed, return_index=True)
        warps = np.bincount(place[first], minlength=len(segments))
        for number in np.flatnonzero(threads):
            self._threads[segments[number]] += threads[number]
            self._warps[segments[number]] += warps[number]

    def _add_accesses(
        self, notes: np.ndarray, mixed: np.ndarray, shared: list[int], shared_bytes: int
    ) -> None:
        number, address = (notes["place"] - ACCESS).astype(np.int64), notes["address"].copy()
        _, first, group = np.unique(mixed, return_index=True, return_inverse=True)
        in_shared = self._in_shared[number]
        for begin in shared:
            inside = self._generic[number] & (address - np.uint64(begin) < shared_bytes)
            address[inside] -= np.uint64(begin)
            in_shared |= inside
        owner, count = number[first], len(self._sizes)
        for row, chosen in enumerate((in_shared, ~in_shared)):
            self._lanes[row] += np.bincount(number[chosen], minlength=count)
            self._requests[row] += np.bincount(owner[np.unique(group[chosen])], minlength=count)
        chosen = ~in_shared & self._on_card[number]
        pairs, _ = _pairs(group[chosen], address[chosen] // SECTOR)
        self._sectors += np.bincount(owner[pairs], minlength=count)
        chosen = self._atomic[number]
        pairs, same = _pairs(group[chosen], address[chosen])
        busiest, most = _most(pairs, same)
        self._collisions += _weighed(owner[busiest], most - 1, count)
        for size in np.unique(self._sizes[number[in_shared]]):
            chosen = in_shared & (self._sizes[number] == size)
            lane = notes["thread"][chosen].astype(np.int64) % 32
            self._add_shared(group[chosen], address[chosen], lane, int(size), owner)

    def _add_shared(
        self, group: np.ndarray, address: np.ndarray, lane: np.ndarray, size: int, owner: np.ndarray
    ) -> None:
        words = max(size // 4, 1)  # of one access
        part = group * 8 + lane * words // 32  # the lanes that are served at a time
        word = (address.astype(np.int64)[:, None] + 4 * np.arange(words)) // 4
        part, word = np.repeat(part, words), word.ravel()
        pairs = np.unique(part << 20 | word)
        banks, same = np.unique((pairs >> 20) * BANKS + pairs % BANKS, return_counts=True)
        parts, most = _most(banks // BANKS, same)
        count = len(self._sizes)
        self._wavefronts += _weighed(owner[parts // 8], most, count)
        self._ideal += np.bincount(owner[parts // 8], minlength=count)


def _pairs(group: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The group of each different (group, value), sorted, and how many there are of each."""
    _, rank = np.unique(value, return_inverse=True)
    length = max(len(rank), 1)
    pairs, same = np.unique(group * length + rank, return_counts=True)
    return pairs // length, same


def _most(group: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different groups of sorted ones, and the highest count of each."""
    groups, start = np.unique(group, return_index=True)
    return groups, np.maximum.reduceat(count, start) if len(start) else count


def _weighed(place: np.ndarray, weight: np.ndarray, count: int) -> np.ndarray:
    return np.bincount(place, weights=weight, minlength=count).astype(np.int64)


def _sum(rows: list[dict[str, int]]) -> dict[str, int]:
    return {name: sum(row[name] for row in rows) for name in NAMES}


# ---- the log of a launch -------------------------------------------------------------------------


class _Log:
    """The notes of the running launch. One launch is counted at a time."""

    def __init__(self, counters: Counters, blocks: np.ndarray) -> None:
        self.counters = counters
        self.shared = [int(begin) for begin in blocks["shared"]]
        self.shared_bytes = int(blocks["shared_bytes"][0])
        self.notes = np.zeros(_NOTES, layout.DTYPES["Note"])
        self.record = np.zeros(1, layout.DTYPES["Log"])
        self.record["notes"], self.record["size"] = self.notes.ctypes.data, _NOTES
        self.kept: list[np.ndarray] = []
        self.too_long = False

    def take(self, final: bool = False) -> None:
        """Empty the log. What is not final may lack notes of the blocks that came last."""
        notes = self.notes[: int(self.record["used"][0])].copy()
        self.record["used"] = 0
        notes = np.concatenate([*self.kept, notes])
        newest, first = np.unique(notes["block"][::-1], return_index=True)
        newest = newest[np.argsort(first)[: 0 if final else len(self.shared)]]
        open_ = np.isin(notes["block"], newest)
        self.kept = [notes[open_]]
        self.too_long |= len(self.kept[0]) > _MOST
        if self.too_long:
            self.kept = []
        if not open_.all():
            self.counters._add(notes[~open_], self.shared, self.shared_bytes)


_log: _Log | None = None


def _full(block: int) -> None:
    if _log is not None:
        _log.take()


_FULL = ctypes.CFUNCTYPE(None, ctypes.c_uint64)(_full)
jit.add_symbol("sim_log_full", ctypes.cast(_FULL, ctypes.c_void_p).value or 0)


@contextmanager
def counted(counters: Counters, blocks: np.ndarray) -> Iterator[None]:
    """Count the launch inside, whose blocks run one after another in these Block records.

    Raises LaunchError where one block does more than the log can hold.
    """
    global _log
    _log = _Log(counters, blocks)
    blocks["log"] = _log.record.ctypes.data
    try:
        yield
        _log.take(final=True)
        if _log.too_long:
            raise LaunchError(
                f"{counters.kernel}: one block does more than {_MOST:,} countable steps: "
                f"count a launch with less work for each block"
            )
        counters.launches += 1
    finally:
        _log = None
