"""The records that compiled kernels, the scheduler (runtime.cu) and Python share.

They are declared here alone. A kernel reads the record of its block and writes that of its thread,
the scheduler reads and writes both, and Python fills in the records of the launch and the blocks.
"""

from __future__ import annotations

import numpy as np

_C = {"u4": "unsigned int", "u8": "unsigned long long", "i4": "int"}

RECORDS: dict[str, tuple[tuple[str, str, int], ...]] = {
    # one for each CUDA thread of the running block
    "Thread": (
        ("handle", "u8", 1),  # coroutine frame
        ("value", "u8", 1),  # operand of a collective
        ("result", "u8", 1),  # result of the collective
        ("frame_size", "u8", 1),
        ("tid", "u4", 3),
        ("state", "u4", 1),  # STATES
        ("site", "u4", 1),  # the instruction at which it waits
        ("mask", "u4", 1),
        ("a", "u4", 1),
        ("b", "u4", 1),
        ("c", "u4", 1),
        ("pred", "u4", 1),
    ),
    # one for each worker: the block that it is running
    "Block": (
        ("params", "u8", 1),
        ("shared", "u8", 1),
        ("threads", "u8", 1),
        ("frames", "u8", 1),
        ("frame_stride", "u8", 1),
        ("launch", "u8", 1),
        ("index", "u8", 1),  # linear block index
        ("shared_template", "u8", 1),  # the shadow when a block begins
        ("shared_shadow", "u8", 1),  # one byte per shared byte, checked mode
        ("table", "u8", 1),  # live allocations, checked mode
        ("table_length", "u8", 1),
        ("cache", "u8", 1),  # index of the allocation last accessed
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
        ("error", "u4", 1),  # ERRORS; 0 while there is none
        ("error_site", "u4", 1),
        ("error_tid", "u4", 3),
        ("other_tid", "u4", 1),  # in a race: the other access, and which of the two wrote
        ("other_site", "u4", 1),
        ("other_block", "u4", 1),
        ("other_wrote", "u4", 1),
        ("granule", "u4", 1),  # bytes that one Trace stands for
        # vector clocks of race detection, checked mode (races.cu)
        ("clock", "u8", 1),  # logical time of this worker
        ("began", "u8", 1),  # the clock when this block began
        ("epoch", "u8", 1),  # the clock at its last barrier of all threads
        ("acquired", "u8", 1),  # accesses of other blocks up to this time are ordered before it
        ("times", "u8", 1),  # u8 per thread: its own time
        ("seen", "u8", 1),  # u8 per pair of threads: the vector clock of each thread
        ("sync_clocks", "u8", 1),  # a vector clock for each barrier, one for flags, one scratch
        ("shared_trace", "u8", 1),  # a Trace for every granule of shared memory
    ),
    # one for each launch, shared by its workers
    "Launch": (
        ("next", "u8", 1),
        ("blocks", "u8", 1),
        ("order", "u8", 1),  # u4 permutation of the blocks, or 0
        ("thread_order", "u8", 1),  # u4 permutation of the threads, or 0
        ("entry", "u8", 1),
        ("coroutine", "u4", 1),
        ("stop", "u4", 1),
        ("check", "u4", 1),
        ("flush", "u4", 1),  # run in the processor's flush-to-zero mode
        ("began", "u8", 1),  # the clock when this launch began
        ("released", "u8", 1),  # the clock when one of its blocks last wrote a flag
    ),
    # one live allocation, checked mode
    "Allocation": (
        ("begin", "u8", 1),
        ("end", "u8", 1),
        ("shadow", "u8", 1),  # one byte per byte, nonzero once written; 0 where not tracked
        ("trace", "u8", 1),  # a Trace for every granule, or 0
    ),
    # one access; stamp: time << 11 | thread << 1 | (1 if atomic or volatile), 0 for none
    "Mark": (("stamp", "u8", 1), ("site", "u4", 1), ("block", "u4", 1)),
    # three Marks: the last write and two of the last reads
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


SYNC_CLOCKS = 16 + 2  # vector clocks in Block.sync_clocks: barriers, flags, one scratch

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
    """The records and codes as C++, to be put before runtime.cu."""
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
