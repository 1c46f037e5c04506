"""Cache blocking of a convolution: how its output is cut into blocks. Pure functions of shapes.

A block is a range of output rows of one image, or several whole images. The part of the input that
a block reads is first copied into scratch memory, the padded input tile: one plane for each
channel, with explicit zeros for the padding, in rows of `width` floats. There the value that output
pixel i = p*width + q needs for filter tap (r, s) lies at i + offset, with one offset for each tap.
So a run of output pixels is a contiguous vector load for every tap, whatever the padding and
dilation. The positions q >= Q of each row are computed too, and dropped.

With a stride the tile holds stride_h x stride_w planes for each channel, one for each stride phase
(the remainder of row and column by the stride); within a phase every tap again has one offset.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from gpuconv.cpu.simd import LANES, TILE_HEIGHTS
from gpuconv.shapes import Window

# The padded input tile takes at most 640 KB: larger tiles copy fewer rows twice (those that two
# blocks share), smaller ones leave more of a 1 to 2 MB L2 cache to the weights and the results.
BLOCK_FLOATS = 160 * 1024
LINE = 16  # floats in a cache line of 64 bytes


class PaddedTile(NamedTuple):
    """Where a block's input comes from and how its tile is laid out; all integers, for Numba."""

    N: int
    C: int  # channels of one group
    H: int
    W: int
    stride_h: int
    stride_w: int
    top: int  # the plane's row that holds the image's row 0; negative where rows are cut off
    left: int  # the same for columns
    P: int  # output rows of an image, before it is cut into blocks
    Q: int
    rows: int  # output rows of a block
    images: int  # images of a block; more than one only where rows == P
    extra: int  # rows of the tile beyond the block's output rows (the filter's reach)
    width: int  # floats in a row of the tile
    plane: int  # floats from one plane of the tile to the next
    blocks: int  # blocks of the whole batch


class Blocking(NamedTuple):
    """A tile, its stride phases (row and column remainders), and each (channel, tap)'s offset."""

    tile_shape: PaddedTile
    phases: np.ndarray  # (phases, 2)
    offsets: np.ndarray  # (C*T,), in bytes
    scratch: int  # floats of scratch memory for one tile


class RegisterTiles(NamedTuple):
    """Rows (output channels) cut into register tiles: the first row and the height of each."""

    first: np.ndarray
    height: np.ndarray
    rows: int  # of all tiles, with the unused rows of the last


@lru_cache(maxsize=1024)
def register_tiles(count: int) -> RegisterTiles:
    """`count` rows as full tiles, then the lowest tile that holds the rest."""
    full, rest = divmod(count, TILE_HEIGHTS[0])
    heights = [TILE_HEIGHTS[0]] * full + [min(h for h in TILE_HEIGHTS if h >= rest)] * bool(rest)
    edges = np.cumsum([0, *heights])
    return RegisterTiles(edges[:-1].astype(np.int64), np.array(heights, np.int64), int(edges[-1]))


@lru_cache(maxsize=1024)
def forward_blocking(
    x_shape: tuple[int, ...], window: Window, groups: int, threads: int
) -> Blocking:
    """How `x` (of `x_shape`) is read by the forward pass and by the weight gradient."""
    N, C, H, W = x_shape
    P, Q = window.output_size(H, W)
    (top, _), (left, right) = window.pads(H, W)
    (R, S), (dil_h, dil_w) = window.kernel_size, window.dilation
    stride_h, stride_w = window.stride
    reach = [(r * dil_h, s * dil_w) for r in range(R) for s in range(S)]
    phases = sorted({(y % stride_h, x % stride_w) for y, x in reach})
    shifts = [
        (phases.index((y % stride_h, x % stride_w)), y // stride_h, x // stride_w) for y, x in reach
    ]
    if stride_w == 1:  # a row's right padding is the next row's left padding: both are zeros
        width = max(W + max(left, right), Q)
    else:
        width = Q + max(x for _, _, x in shifts)
    image = (N, C // groups, H, W, stride_h, stride_w, top, left, P, Q)
    return _blocking(image, phases, shifts, width, threads)


class StridePhase(NamedTuple):
    """Pixels (first_h + i*stride_h, first_w + j*stride_w) of dx, and the taps that reach them."""

    first: tuple[int, int]
    P: int  # rows of such pixels
    Q: int  # columns
    taps: np.ndarray  # numbers r*S + s
    offsets: np.ndarray  # as in Blocking


@lru_cache(maxsize=1024)
def input_gradient_blocking(
    x_shape: tuple[int, ...], channels: int, window: Window, groups: int, threads: int
) -> tuple[Blocking, tuple[StridePhase, ...]]:
    """How `dy` (of `channels` channels) is read for dx: a stride-1 convolution a stride phase.

    Pixel h of dx receives dy[p] * w[r] where p*stride = h + pad - r*dilation, so the pixels of one
    phase (h modulo the stride) are reached by the same taps, at whole shifts of dy.
    """
    N, _, H, W = x_shape
    P, Q = window.output_size(H, W)
    (top, _), (left, _) = window.pads(H, W)
    (stride_h, stride_w), S = window.stride, window.kernel_size[1]
    rows = [
        taps_reaching(a, top, stride_h, window.dilation[0], window.kernel_size[0])
        for a in range(stride_h)
    ]
    columns = [taps_reaching(b, left, stride_w, window.dilation[1], S) for b in range(stride_w)]
    low_y, high_y = _shift_range(rows)
    low_x, high_x = _shift_range(columns)
    out_h, out_w = -(-H // stride_h), -(-W // stride_w)
    pad_right = out_w + high_x - Q
    if low_x <= 0 <= pad_right:
        width = max(Q + max(-low_x, pad_right), out_w)
    else:
        width = out_w + high_x - low_x
    image = (N, channels // groups, P, Q, 1, 1, -low_y, -low_x, out_h, out_w)
    blocking = _blocking(image, [(0, 0)], [(0, high_y - low_y, high_x - low_x)], width, threads)
    phases = []
    for a, row in enumerate(rows):
        for b, column in enumerate(columns):
            count = -(-(H - a) // stride_h), -(-(W - b) // stride_w)
            taps = [(r * S + s, (y - low_y) * width + x - low_x) for r, y in row for s, x in column]
            if taps and min(count) > 0:
                numbers = np.array([tap for tap, _ in taps], np.int64)
                offsets = _offsets(blocking.tile_shape, 1, [(0, offset) for _, offset in taps])
                phases.append(StridePhase((a, b), *count, numbers, offsets))
    return blocking, tuple(phases)


def taps_reaching(
    first: int, pad: int, stride: int, dilation: int, size: int
) -> list[tuple[int, int]]:
    """(tap, shift) for the taps through which output i + shift reaches pixel i*stride + first."""
    distances = [(tap, first + pad - tap * dilation) for tap in range(size)]
    return [(tap, distance // stride) for tap, distance in distances if distance % stride == 0]


def _shift_range(reaching: list[list[tuple[int, int]]]) -> tuple[int, int]:
    shifts = [shift for taps in reaching for _, shift in taps]
    return min(shifts), max(shifts)


def _blocking(
    image: tuple[int, int, int, int, int, int, int, int, int, int],
    phases: list[tuple[int, int]],
    shifts: list[tuple[int, int, int]],
    width: int,
    threads: int,
) -> Blocking:
    N, C, P, Q = image[0], image[1], image[8], image[9]
    extra = max(y for _, y, _ in shifts)
    depth = C * len(phases)
    rows = min(P, max(1, BLOCK_FLOATS // (depth * width) - extra))
    if N % threads and 4 * threads > N:  # too few images to share out evenly
        rows = min(rows, -(-P // threads))
    images = 1
    if rows == P and extra == 0 and width == Q:
        # planes without gaps: several images make longer runs of pixels
        images = max(1, min(BLOCK_FLOATS // (depth * P * width), N // threads))
    lines = (images * (rows + extra) * width + abs(image[7]) + LINE) // LINE
    plane = (lines | 1) * LINE  # an odd number of lines: planes do not compete for cache sets
    blocks = -(-N // images) * -(-P // rows)
    tile_shape = PaddedTile(*image, rows, images, extra, width, plane, blocks)
    offsets = _offsets(tile_shape, len(phases), [(phase, y * width + x) for phase, y, x in shifts])
    slack = 2 * LANES + extra * width + max(x for _, _, x in shifts) + LINE
    return Blocking(tile_shape, np.array(phases, np.int64), offsets, depth * plane + slack)


def _offsets(tile_shape: PaddedTile, phases: int, taps: list[tuple[int, int]]) -> np.ndarray:
    phase, offset = np.array(taps, np.int64).T
    planes = np.arange(tile_shape.C, dtype=np.int64)[:, None] * phases + phase
    return 4 * (planes * tile_shape.plane + offset).ravel()
