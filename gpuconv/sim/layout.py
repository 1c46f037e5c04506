"""The records that compiled kernels, the scheduler (runtime.cu) and Python share: written once,
here.

A kernel reads its block's record and writes its thread's; the scheduler reads both; Python fills
the launch's.
"""

from __future__ import annotations

import numpy as np

_C = {"u4": "unsigned int", "u8": "unsigned long long", "i4": "int"}

RECORDS: dict[str, tuple[tuple[str, str, int], ...]] = {
    # one per CUDA thread of the block that runs
    "Thread": (
        ("handle", "u8", 1),  # coroutine frame
        ("value", "u8", 1),  # what it brings to a collective
        ("result", "u8", 1),  # what the collective gives back
        ("frame_size", "u8", 1),
        ("tid", "u4", 3),
        ("state", "u4", 1),  # STATES
        ("site", "u4", 1),  # which instruction it waits at
        ("mask", "u4", 1),
        ("a", "u4", 1),
        ("b", "u4", 1),
        ("c", "u4", 1),
        ("pred", "u4", 1),
    ),
    # one per worker: the block it runs now
    "Block": (
        ("params", "u8", 1),
        ("shared", "u8", 1),
        ("threads", "u8", 1),
        ("frames", "u8", 1),
        ("frame_stride", "u8", 1),
        ("launch", "u8", 1),
        ("index", "u8", 1),  # linear block index
        ("shared_template", "u8", 1),  # what the shadow is when a block begins
        ("shared_shadow", "u8", 1),  # one byte per shared byte, check mode
        ("table", "u8", 1),  # live allocations, check mode
        ("table_length", "u8", 1),
        ("cache", "u8", 1),  # last allocation hit, by access site
        ("error_address", "u8", 1),
        ("error_value", "u8", 1),
        ("error_block", "u8", 1),
        ("ctaid", "u4", 3),
        ("ntid", "u4", 3),
        ("nctaid", "u4", 3),
        ("nthreads", "u4", 1),
        ("shared_bytes", "u4", 1),
        ("dynamic_bytes", "u4", 1),
        ("reverse", "u4", 1),
        ("error", "u4", 1),  # ERRORS; 0 while all is well
        ("error_site", "u4", 1),
        ("error_tid", "u4", 3),
        ("other_tid", "u4", 1),  # of a race: who else, where, and whether it wrote
        ("other_site", "u4", 1),
        ("other_block", "u4", 1),
        ("other_wrote", "u4", 1),
        ("granule", "u4", 1),  # bytes that a mark of an access stands for
        # who has seen what of whom, check mode (races.cu)
        ("clock", "u8", 1),
        ("began", "u8", 1),  # the clock when this block began
        ("epoch", "u8", 1),  # and at its last barrier of all threads
        ("acquired", "u8", 1),  # what other blocks did until then, this one has seen
        ("times", "u8", 1),  # u8 a thread: the clock when it last met another
        ("seen", "u8", 1),  # u8 a pair: the other's time that a thread has seen
        ("meetings", "u8", 1),  # u8 a thread for each barrier, for flags, and to work with
        ("shared_trace", "u8", 1),  # a Trace for every granule of shared memory
    ),
    # one per launch, shared by its workers
    "Launch": (
        ("next", "u8", 1),
        ("blocks", "u8", 1),
        ("order", "u8", 1),  # u4 permutation of the blocks, or 0
        ("thread_order", "u8", 1),  # u4 permutation of the threads, or 0
        ("entry", "u8", 1),
        ("coroutine", "u4", 1),
        ("stop", "u4", 1),
        ("check", "u4", 1),
        ("flush", "u4", 1),  # run with the processor's flush-to-zero
        ("began", "u8", 1),  # the clock when this launch began
        ("released", "u8", 1),  # and when one of its blocks last wrote a flag
    ),
    # one live allocation, check mode
    "Allocation": (
        ("begin", "u8", 1),
        ("end", "u8", 1),
        ("shadow", "u8", 1),  # one byte per byte, nonzero once written; 0 where not tracked
        ("trace", "u8", 1),  # a Trace for every granule, or 0
    ),
    # one access: its time << 11 | thread << 1 | (1 if atomic or volatile); 0 is none
    "Mark": (("stamp", "u8", 1), ("site", "u4", 1), ("block", "u4", 1)),
    # the last write, and two of the last reads
    "Trace": (("marks", "u8", 6),),
}

STATES = (
    "RUN",
    "DONE",
    "BARRIER",
    "ARRIVE",
    "WARP",
    "SHUFFLE",
    "VOTE",
    "MATCH",
    "REDUX",
    "ACTIVE",
    "YIELD",
)
ERRORS = (
    "NONE",
    "TRAP",
    "ASSERT",
    "DEADLOCK",
    "DIVERGENT",
    "EARLY_EXIT",
    "MASK",
    "BARRIER_COUNT",
    "BOUNDS_GLOBAL",
    "BOUNDS_SHARED",
    "BOUNDS_LOCAL",
    "MISALIGNED",
    "UNINITIALISED",
    "DIVISION",
    "DISAGREE",
    "STACK",
    "READ_ONLY",
    "RACE_SHARED",
    "RACE_GLOBAL",
)


def _place(fields: tuple[tuple[str, str, int], ...]) -> tuple[dict[str, int], int]:
    offsets, at = {}, 0
    for name, kind, count in fields:
        size = int(kind[1])
        at = -(-at // size) * size
        offsets[name] = at
        at += size * count
    return offsets, -(-at // 8) * 8


MEETINGS = 16 + 2  # rows of Block.meetings: barriers, flags, and one to work with

OFFSETS = {name: _place(fields)[0] for name, fields in RECORDS.items()}
BYTES = {name: _place(fields)[1] for name, fields in RECORDS.items()}


def dtype(record: str) -> np.dtype:
    """The NumPy structure of a record."""
    fields = RECORDS[record]
    return np.dtype(
        {
            "names": [name for name, _, _ in fields],
            "formats": [(kind, (count,)) if count > 1 else kind for _, kind, count in fields],
            "offsets": [OFFSETS[record][name] for name, _, _ in fields],
            "itemsize": BYTES[record],
        }
    )


def c_header() -> str:
    """The records and codes as C++, put before runtime.cu."""
    lines = []
    for record, fields in RECORDS.items():
        members = " ".join(
            f"{_C[kind]} {name}{f'[{count}]' if count > 1 else ''};" for name, kind, count in fields
        )
        lines.append(f"struct {record} {{ {members} }};")
        lines.append(
            f'static_assert(sizeof({record}) == {BYTES[record]}, "{record}: see layout.py");'
        )
    lines.append("enum State : unsigned int { " + ", ".join(f"S_{name}" for name in STATES) + " };")
    lines.append("enum Error : unsigned int { " + ", ".join(f"E_{name}" for name in ERRORS) + " };")
    return "\n".join(lines) + "\n"


def state(name: str) -> int:
    return STATES.index(name)


def error(name: str) -> int:
    return ERRORS.index(name)
