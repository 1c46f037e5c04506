"""Sums cut into slices: many blocks make partial sums, one kernel adds them in ascending order."""

from __future__ import annotations

from dataclasses import replace

from gpuconv.cuda.plan import GRID_YZ, THREADS, Launch, Plan, ceil_div, stride_loop

SLICE_MOST = 16384  # terms of one sum: bounds its rounding error
SLICE_LEAST = 256  # terms that make a slice worth its place in the workspace
BLOCKS_WANTED = 512  # fills every card in plan.LIMITS with two blocks a processor or more


def slice_length(terms: int, blocks: int) -> int:
    """Terms of each slice, a multiple of 16: enough slices for BLOCKS_WANTED blocks in all, none
    longer than SLICE_MOST if the grid allows it, none shorter than SLICE_LEAST but the last.
    """
    slices = min(ceil_div(BLOCKS_WANTED, blocks), max(1, terms // SLICE_LEAST))
    length = min(ceil_div(max(terms, 1), slices), SLICE_MOST)
    length = max(length, ceil_div(terms, GRID_YZ))
    return ceil_div(length, 16) * 16


def sliced(launch: Launch, result: str, count: int, slices: int) -> Plan:
    """A launch whose pointer "slices" takes `slices` partial results, and their sum.

    One slice is the result itself.
    """
    if slices == 1:
        return Plan((replace(launch, arrays={"slices": result}),))
    second = Launch(
        "sum_slices.cu",
        "sum_slices",
        stride_loop(count),
        THREADS,
        (),
        {"count": count, "number": slices},
        {"out": result, "slices": "workspace"},
    )
    return Plan((replace(launch, arrays={"slices": "workspace"}), second), slices * count)
