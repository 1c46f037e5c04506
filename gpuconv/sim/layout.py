"""The records that compiled kernels, the scheduler (runtime.cu) and Python share.

They are declared here alone. A kernel reads the record of its block and writes that of its thread,
the scheduler reads and writes both, and Python fills in the records of the launch and the blocks.
"""

from __future__ import annotations

import numpy as np

_C = {4: "unsigned int", 8: "unsigned long long"}

RECORDS: dict[str, list[tuple]] = {
    # one for each CUDA thread of the running block
    "Thread": [
        ("handle", "u8"),  # coroutine frame
        ("value", "u8"),  # operand of a collective
        ("result", "u8"),  # result of the collective
        ("frame_size", "u8"),
        # the scheduler compares these six as three words of 8 bytes
        ("state", "u4"),  # STATES
        ("site", "u4"),  # the instruction at which it waits
        ("mask", "u4"),
        ("a", "u4"),
        ("b", "u4"),
        ("c", "u4"),
        ("pred", "u4"),
        ("tid", "u4", 3),
        # cp.async: copies that were begun, and that took place; groups that were committed
        ("issued", "u4"),
        ("delivered", "u4"),
        ("group", "u4"),
        ("doubt", "u4"),  # of a shuffle's value, and of its result: a word of doubt.py
    ],
    # a block that is running
    "Block": [
        ("params", "u8"),
        ("shared", "u8"),
        ("threads", "u8"),
        ("frames", "u8"),
        ("frame_stride", "u8"),
        ("launch", "u8"),
        ("worker", "u8"),
        ("index", "u8"),  # linear block index
        ("workspace", "u8"),  # of the launch, for a barrier of the grid
        ("cache", "u8"),  # index of the allocation last accessed
        ("ctaid", "u4", 3),
        ("ntid", "u4", 3),
        ("nctaid", "u4", 3),
        ("nthreads", "u4"),
        ("shared_bytes", "u4"),
        ("dynamic_bytes", "u4"),
        ("reverse", "u4"),
        ("error", "u4"),  # of ERRORS: why the block cannot go on; 0 while it can
        ("phase", "u4"),  # 0 not begun, 1 running, 2 done
        ("prepared", "u4"),  # its shared memory has been filled
        ("all_run", "u4"),  # all threads can run, whatever their records say
        ("barriers", "u4", 64),  # struct Barriers of runtime.cu
        # checked mode (races.cu)
        ("shift", "u4"),  # of the bytes of shared memory that one Trace stands for
        ("shared_used", "u4"),  # threads have used flags, fences or barriers of some threads only
        ("clock", "u8"),  # logical time of this block
        ("born", "u8"),  # the time before this launch began
        ("began", "u8"),  # the time before this block began
        ("epoch", "u8"),  # the clock at its last barrier of all threads
        ("usual", "u8"),  # the worker's arguments
        ("sync", "u8"),  # a Sync for each thread
        ("lanes", "u8"),  # 32 u8 for each thread: what it knows of its warp's lanes
        ("arrivals", "u8"),  # what a barrier of some threads orders: a Sync's rows for each of 16
        ("shared_trace", "u8"),  # a Trace for every granule of shared memory
        ("copies", "u8"),  # COPIES of each thread, of a kernel with cp.async
        ("scratch", "u8", 4),  # where an access goes that must not happen
        ("log", "u8"),  # a Log, counted mode
    ],
    # one for each worker: the blocks that it runs, in turn
    "Worker": [
        ("launch", "u8"),
        ("queue", "u8"),  # the Queue of the blocks that it takes
        ("slots", "u8"),  # its Blocks
        ("nslots", "u4"),
        ("nfound", "u4"),
        ("blank", "u8"),  # the Traces of shared memory before the first block, checked mode
        ("blank_words", "u8"),
        ("found", "u8"),  # Found records
        ("reported", "u8"),  # u4 for each site: the kinds of errors found there, as bits
        ("table", "u8"),  # live allocations, checked mode
        ("table_length", "u8"),
        ("arguments", "u8"),  # an Argument for no parameter, and one for each
        ("chunk", "u8"),  # the next chunk of times
        ("first", "u8"),  # the first chunk of this launch
        ("owners", "u8"),  # u4 for each chunk: the block that it belongs to
        ("owners_size", "u8"),
        ("flags", "u8"),  # Flag records: words that atomic or volatile accesses have used
        ("nflags", "u8"),
        ("flags_size", "u8"),
    ],
    "Queue": [("next", "u8"), ("end", "u8")],
    # one for each launch, shared by its workers
    "Launch": [
        ("order", "u8"),  # u4 permutation of the blocks, or 0
        ("thread_order", "u8"),  # u4 permutation of the threads, or 0
        ("entry", "u8"),
        ("coroutine", "u4"),
        ("stop", "u4"),  # 1: leave at once; 2: so, and say where
        ("check", "u4"),
        ("flush", "u4"),  # run in the processor's flush-to-zero mode
        ("began", "u8"),  # the time before this launch began
    ],
    # one copy on its way from global to shared memory (copies.cu)
    "Copy": [
        ("from", "u8"),
        ("to", "u8"),
        ("meta_to", "u8"),  # of both accesses, as sim_access takes it
        ("meta_from", "u8"),
        ("read", "u4"),  # bytes of it; the others become zeros
        ("group", "u4"),
    ],
    # one live allocation, checked mode
    "Allocation": [
        ("begin", "u8"),
        ("end", "u8"),
        ("shadow", "u8"),  # one byte per byte, nonzero once written; 0 where not tracked
        ("trace", "u8"),  # a Trace for every granule, or 0
        ("touched", "u8"),  # a byte for every PAGE granules, 1 if the worker has accessed one
        ("constant", "u4"),  # kernels may not write it
        ("shift", "u4"),  # of the bytes that one Trace stands for
    ],
    # what a pointer argument may be used for; size 0 where that is unknown. trace: of its first
    # granule, or 0 where its accesses need more than the usual checks
    "Argument": [
        ("begin", "u8"),
        ("size", "u8"),
        ("trace", "u8"),
        ("offset", "u8"),  # in its allocation
        ("touched", "u8"),
        ("row", "u4"),  # its Allocation
        ("shift", "u4"),  # of that
    ],
    # the last accesses to a granule; a mark is time << 28 | thread << 18 | site, 0 for none
    "Trace": [
        ("write", "u8"),
        ("reads", "u8", 2),
        ("value", "u4"),  # what was last written
        ("flag", "u4"),  # 1 + number of its Flag, if there is one
    ],
    # one finding
    "Found": [
        ("kind", "u4"),  # ERRORS
        ("site", "u4"),
        ("thread", "u4"),
        ("other_site", "u4"),
        ("other_thread", "u4"),
        ("wrote", "u4"),  # in a race: 1 if the other access wrote, 2 if this one did
        ("block", "u8"),
        ("other_block", "u8"),
        ("address", "u8"),
        ("value", "u8"),
    ],
    # counted mode: a thread came to a segment or an access (counting.py)
    "Note": [
        ("address", "u8"),
        ("key", "u8"),
        ("block", "u4"),
        ("place", "u4"),
        ("thread", "u4"),
        ("unused", "u4"),
    ],
    "Log": [("notes", "u8"), ("used", "u8"), ("size", "u8")],
}

_STATES = "RUN ARRIVE DONE BARRIER COUNTED WARP SHUFFLE VOTE MATCH MATRIX REDUX ACTIVE YIELD"
_ERRORS = """
NONE TRAP ASSERT DEADLOCK DIVERGENT EARLY_EXIT MASK BARRIER_COUNT DISAGREE DIVISION
BOUNDS_GLOBAL BOUNDS_SHARED BOUNDS_LOCAL MISALIGNED UNINITIALISED RACE_SHARED RACE_GLOBAL
SAME_VALUE CONSTANT SHUFFLE READ_ONLY TIMEOUT IN_FLIGHT MATRIX
"""
_MATRIX = "LOAD LOAD_TRANS STORE STORE_TRANS MMA_TF32 MMA_F16 MMA_BF16"  # matrices.cu
STATES, ERRORS, MATRIX = _STATES.split(), _ERRORS.split(), _MATRIX.split()
COPIES = 128  # that a thread may have on their way
PAGE = 1024  # granules for which one byte of Allocation.touched stands
MAX_FOUND = 512  # findings that a worker keeps
CHUNK = 64  # times that a block takes at once

DTYPES = {name: np.dtype(fields, align=True) for name, fields in RECORDS.items()}


def offset(record: str, field: str, index: int = 0) -> int:
    """Bytes from the start of a record to a field, or to an element of it of 4 bytes."""
    return DTYPES[record].fields[field][1] + 4 * index  # type: ignore[index]


def c_header() -> str:
    """The records and codes as C++, to be put before runtime.cu."""
    lines = []
    for record, kind in DTYPES.items():
        members = ""
        for name in kind.names or ():
            extent = "".join(f"[{length}]" for length in kind[name].shape)
            members += f"{_C[kind[name].base.itemsize]} {name}{extent}; "
        lines.append(f"struct {record} {{ {members}}};")
        lines.append(
            f'static_assert(sizeof({record}) == {kind.itemsize}, "{record}: see layout.py");'
        )
    lines.append(f"constexpr unsigned int PAGE = {PAGE}, MAX_FOUND = {MAX_FOUND}, CHUNK = {CHUNK};")
    lines.append("enum State : unsigned int { " + ", ".join(f"S_{name}" for name in STATES) + " };")
    lines.append("enum Error : unsigned int { " + ", ".join(f"E_{name}" for name in ERRORS) + " };")
    lines.append("enum Matrix : unsigned int { M_" + ", M_".join(MATRIX) + " };")
    lines.append(f"constexpr unsigned int COPIES = {COPIES};")
    return "\n".join(lines) + "\n"
