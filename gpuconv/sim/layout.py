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
    ],
    # one for each worker: the block that it is running
    "Block": [
        ("params", "u8"),
        ("shared", "u8"),
        ("threads", "u8"),
        ("frames", "u8"),
        ("frame_stride", "u8"),
        ("launch", "u8"),
        ("index", "u8"),  # linear block index
        ("shared_template", "u8"),  # the shadow when a block begins
        ("shared_shadow", "u8"),  # one byte per shared byte, checked mode
        ("table", "u8"),  # live allocations, checked mode
        ("table_length", "u8"),
        ("cache", "u8"),  # index of the allocation last accessed
        ("error_address", "u8"),
        ("error_value", "u8"),
        ("error_block", "u8"),
        ("ctaid", "u4", 3),
        ("ntid", "u4", 3),
        ("nctaid", "u4", 3),
        ("nthreads", "u4"),
        ("shared_bytes", "u4"),
        ("dynamic_bytes", "u4"),
        ("reverse", "u4"),
        ("error", "u4"),  # ERRORS; 0 while there is none
        ("error_site", "u4"),
        ("error_tid", "u4", 3),
        ("other_tid", "u4"),  # in a race: the other access, and which of the two wrote
        ("other_site", "u4"),
        ("other_block", "u4"),
        ("other_wrote", "u4"),
        ("granule", "u4"),  # bytes that one Trace stands for
        # vector clocks of race detection, checked mode (races.cu)
        ("clock", "u8"),  # logical time of this worker
        ("began", "u8"),  # the clock when this block began
        ("epoch", "u8"),  # the clock at its last barrier of all threads
        ("acquired", "u8"),  # accesses of other blocks up to this time are ordered before it
        ("times", "u8"),  # u8 per thread: its own time
        ("seen", "u8"),  # u8 per pair of threads: the vector clock of each thread
        ("sync_clocks", "u8"),  # a vector clock for each barrier, one for flags, one scratch
        ("shared_trace", "u8"),  # a Trace for every granule of shared memory
        ("copies", "u8"),  # COPIES of each thread, of a kernel with cp.async
        ("log", "u8"),  # a Log, counted mode
    ],
    # one for each launch, shared by its workers
    "Launch": [
        ("next", "u8"),
        ("blocks", "u8"),
        ("order", "u8"),  # u4 permutation of the blocks, or 0
        ("thread_order", "u8"),  # u4 permutation of the threads, or 0
        ("entry", "u8"),
        ("coroutine", "u4"),
        ("stop", "u4"),
        ("check", "u4"),
        ("flush", "u4"),  # run in the processor's flush-to-zero mode
        ("began", "u8"),  # the clock when this launch began
        ("released", "u8"),  # the clock when one of its blocks last wrote a flag
    ],
    # one copy on its way from global to shared memory (copies.cu)
    "Copy": [
        ("from", "u8"),
        ("to", "u4"),
        ("size", "u4"),
        ("read", "u4"),  # bytes of it; the others become zeros
        ("group", "u4"),
        ("site", "u4"),
    ],
    # one live allocation, checked mode
    "Allocation": [
        ("begin", "u8"),
        ("end", "u8"),
        ("shadow", "u8"),  # one byte per byte, nonzero once written; 0 where not tracked
        ("trace", "u8"),  # a Trace for every granule, or 0
    ],
    # one access; stamp: time << 11 | thread << 1 | (1 if atomic or volatile), 0 for none
    "Mark": [("stamp", "u8"), ("site", "u4"), ("block", "u4")],
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
    # three Marks: the last write and two of the last reads
    "Trace": [("marks", "u8", 6)],
}

_STATES = "RUN ARRIVE DONE BARRIER COUNTED WARP SHUFFLE VOTE MATCH MATRIX REDUX ACTIVE YIELD"
_ERRORS = """
NONE TRAP ASSERT DEADLOCK DIVERGENT EARLY_EXIT MASK BARRIER_COUNT DISAGREE DIVISION
BOUNDS_GLOBAL BOUNDS_SHARED BOUNDS_LOCAL MISALIGNED UNINITIALISED RACE_SHARED RACE_GLOBAL
IN_FLIGHT MATRIX
"""
STATES, ERRORS = _STATES.split(), _ERRORS.split()
_MATRIX = "LOAD LOAD_TRANS STORE STORE_TRANS MMA_TF32 MMA_F16 MMA_BF16"  # matrices.cu
MATRIX = _MATRIX.split()
COPIES = 128  # that a thread may have on their way
SYNC_CLOCKS = 16 + 2  # vector clocks in Block.sync_clocks: barriers, flags, one scratch

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
    lines.append("enum State : unsigned int { " + ", ".join(f"S_{name}" for name in STATES) + " };")
    lines.append("enum Error : unsigned int { " + ", ".join(f"E_{name}" for name in ERRORS) + " };")
    lines.append("enum Matrix : unsigned int { M_" + ", M_".join(MATRIX) + " };")
    lines.append(f"constexpr unsigned int COPIES = {COPIES};")
    return "\n".join(lines) + "\n"
