"""Split-K: many blocks make partial sums of a long sum, one kernel adds those in ascending order.

It takes the place of atomic additions, whose order nobody fixes. Kernel: kernels/sum_partials.cu.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gpuconv.cuda.launch_config import (
    MAX_GRID_YZ,
    THREADS,
    Launch,
    LaunchConfig,
    ceil_div,
    loop_grid,
)

MAX_SPLIT = 16384  # terms of one partial sum: bounds its rounding error
MIN_SPLIT = 256  # terms that make a partial sum worth its place in the workspace
TARGET_BLOCKS = 512  # fills every card in LIMITS with two blocks a processor or more
MAX_TERMS = 16  # that a thread adds: two loads in a row, as eight are in flight
MAX_PARTS = 32  # threads of an element


def split_length(terms: int, blocks: int) -> int:
    """Terms of each partial sum, a multiple of 16: enough of them for TARGET_BLOCKS blocks in all,
    none longer than MAX_SPLIT if the grid allows it, none shorter than MIN_SPLIT but the last.
    """
    splits = min(ceil_div(TARGET_BLOCKS, blocks), max(1, terms // MIN_SPLIT))
    length = min(ceil_div(max(terms, 1), splits), MAX_SPLIT)
    length = max(length, ceil_div(terms, MAX_GRID_YZ))
    return ceil_div(length, 16) * 16


def split_k(launch: Launch, result: str, count: int, splits: int) -> LaunchConfig:
    """A launch whose pointer "partials" takes `splits` partial results of `count` elements, and
    the launch that adds them. With one split the partial result is the result itself.
    """
    sizes: Mapping[str, int | None] = {**launch.sizes, "partials": splits * count}
    if splits == 1:
        return LaunchConfig((replace(launch, sizes=sizes, arrays={"partials": result}),))
    first = replace(launch, sizes=sizes, arrays={"partials": "workspace"})
    parts = 1
    while parts < MAX_PARTS and splits > parts * MAX_TERMS:
        parts *= 2
    scalars = {"count": count, "splits": splits, "parts": parts}
    second = Launch(
        "sum_partials.cu",
        "sum_partials",
        loop_grid(count * parts),
        THREADS,
        (),
        {**scalars, "length": ceil_div(splits, parts)},
        {"out": count, "partials": splits * count},
        {"out": result, "partials": "workspace"},
    )
    return LaunchConfig((first, second), splits * count)
