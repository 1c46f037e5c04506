"""Where an image lies in memory, and the moves that all convolutions make: transposes and tiles.

The loops pass addresses, not array views: a view costs instructions that the innermost loops feel.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gpuconv.cpu.compiled import compiled, inner
from gpuconv.cpu.simd import LANES, LOWEST, TILE_HEIGHTS
from gpuconv.cpu.simd_moves import copy_lanes, transpose


class Image(NamedTuple):
    """Where images lie in a flat array of floats. All integers, for Numba.

    With a step of 0 they are planar, (N, C, H, W). Else they are channels-last: a channel of a
    pixel at offset + pixel * step + channel, pixels in the order (n, h, w); the step is C, or more
    where the channels are part of a wider image.
    """

    offset: int
    step: int
    N: int
    H: int
    W: int
    C: int


def planar(a: np.ndarray) -> Image:
    """`a` (N, C, H, W), in C order."""
    N, C, H, W = a.shape
    return Image(0, 0, N, H, W, C)


Place = tuple[np.ndarray, Image]  # the array, of one dimension, and where in it images lie
NO_IMAGE = Image(0, 0, 1, 1, 1, 1)  # of one pixel, which stands for all


def rows_of_tiles(count: int) -> int:
    """The rows of the register tiles that hold `count`, of any width, with the unused ones."""
    return -(-count // LOWEST) * LOWEST


@inner
def tile_height(rest, width):
    """The height of the next register tile of this width, with `rest` rows to go: low ones where
    they end sooner than a full one.
    """
    high, low = TILE_HEIGHTS[width // LANES - 1]
    return high if rest > high - low else low


@inner
def tile_width(rest, widest):
    """The width of the next tile of channels, with `rest` to go: `widest`, or whole vectors."""
    return min(widest, -(-rest // LANES) * LANES)


@inner
def address(a):
    """An array's address; signed, because Numba adds signed and unsigned numbers as floats.

    Numba frees an array right after its last use, and sees none in reads and writes through the
    address. So an array made in the same function is made before a loop, and its address is taken
    within the loop and used nowhere else: until the loop ends, another use may follow.
    """
    return np.intp(a.ctypes.data)


@inner
def place_of(image, pixel, channel):
    """The element of a pixel's channel in a channels-last image; of step 0: that of one pixel."""
    return image.offset + pixel * image.step + channel


@inner
def first_lanes(count):
    """Bits for the first `count` lanes of a vector, or for all where there are fewer lanes."""
    return (1 << min(count, LANES)) - 1


@inner
def copy_floats(source, target, count):
    """Copy `count` floats from an address to another. Numba compiles it faster than an assignment
    of slices, which takes it 2 seconds.
    """
    for i in range(0, count, LANES):
        copy_lanes(source + 4 * i, target + 4 * i, first_lanes(count - i))


@inner
def transpose_matrix(source, stride, rows, columns, target, step, length):
    """target[j * step + i] = source[i * stride + j] for all i < rows and j < columns; in bytes.

    Of each column `length` bytes are written: zeros from `rows` on.
    """
    height = length // 4
    if rows == height == 1 and step == 4:
        copy_floats(source, target, columns)
        return
    for i in range(0, height, LANES):
        written = first_lanes(height - i)
        for j in range(0, columns, LANES):
            at, to = source + i * stride + 4 * j, target + j * step + 4 * i
            transpose(at, stride, rows - i, first_lanes(columns - j), to, step, written)


@inner
def transpose_filters(w, exchanged, k, count, target):
    """target[c][tap][lane] = w[k + lane][c][tap], or with filters and channels exchanged
    w[c][k + lane][tap], for all c and lane < count.
    """
    channels, taps = w.shape[1:]
    if not exchanged:
        size = channels * taps
        transpose_matrix(address(w[k]), 4 * size, count, size, target, 4 * LANES, 4 * LANES)
    for c in range(len(w) if exchanged else 0):
        source, to = address(w[c, k]), target + 4 * LANES * taps * c
        if taps == 1:  # a copy takes a tenth of the time of a transpose of one column
            copy_lanes(source, to, first_lanes(count))
        else:
            transpose_matrix(source, 4 * taps, count, taps, to, 4 * LANES, 4 * LANES)


@compiled
def add_rows(total, part):
    """total += part, of two dimensions; unlike NumPy's, without a warning for what is unused."""
    for i in range(len(total)):
        for j in range(total.shape[1]):
            total[i, j] += part[i, j]
