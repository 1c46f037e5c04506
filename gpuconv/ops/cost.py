"""`Cost`: the arithmetic and the memory traffic that no implementation of an operation can avoid.

An operation's cost is attached to it (`@conv2d.cost`) and asked for with its arguments, of which
only shapes and dtypes are read: `conv2d.work(x, w)`. `like(shape)` stands in for an array.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuconv.shapes import Window


@dataclass(frozen=True)
class Cost:
    """The least arithmetic and memory traffic of an operation.

    flops: two for each multiply-add of its sums of products. Taps that fall on padding do not
    count, as in oneDNN's benchdnn, so figures are a little lower than where they are counted.
    0 for an operation without such sums: memory bounds it.
    bytes: each array that is read, once, and each that is written, once; of an image only the
    pixels that some window reaches.

    >>> Cost(2_000, 500).seconds(flops=1e3, bytes=1e3)
    2.0
    """

    flops: int
    bytes: int

    def seconds(self, flops: float, bytes: float) -> float:
        """The least time on a machine of so many flops and bytes a second: the larger of two."""
        return max(self.flops / flops, self.bytes / bytes)

    def bound(self, flops: float, bytes: float) -> str:
        """Which of the two it is: "arithmetic" or "memory"."""
        return "arithmetic" if self.flops / flops > self.bytes / bytes else "memory"


def like(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """An array of that shape and dtype that takes no memory: read-only zeros."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def nbytes(*arrays: Any) -> int:
    """The bytes of all elements; None counts nothing."""
    return sum(a.size * a.dtype.itemsize for a in arrays if a is not None)


def moved(*arrays: Any) -> Cost:
    """The cost of reading or writing each array once, next to which the arithmetic is nothing."""
    return Cost(0, nbytes(*arrays))


def image(x: Any, window: Window) -> int:
    """The bytes of x (N, C, H, W) that some window reaches."""
    rows, columns = set(), set()
    for _, _, _, (_, row, column) in window.taps(*x.shape[2:]):
        rows.add((row.start, row.stop, row.step))
        columns.add((column.start, column.stop, column.step))
    return x.shape[0] * x.shape[1] * _union(rows) * _union(columns) * x.dtype.itemsize


def multiply_adds(x: Any, w: Any, window: Window) -> int:
    """Of a convolution of x (N, C, H, W) with w (K, C/groups, R, S): taps inside the image."""
    inside = 0
    for _, _, (_, rows, columns), _ in window.taps(*x.shape[2:]):
        inside += (rows.stop - rows.start) * (columns.stop - columns.start)
    return x.shape[0] * w.shape[0] * w.shape[1] * inside


def _union(slices: set[tuple[int, int, int]]) -> int:
    return len(set().union(*(range(*piece) for piece in slices)))
