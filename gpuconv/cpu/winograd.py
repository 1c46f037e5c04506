"""Winograd's convolution F(4x4, 3x3), for 3x3 filters at stride 1: 36 products in place of 144.

Each 4x4 tile of outputs is y = A' [(G w G') * (B' x B)] A, with the 6x6 tile x of its inputs; ' is
the transpose and * multiplies entry by entry. Summed over the input channels that is one matrix
product for each of the 36 entries. dx is the same with the filters rotated by 180 degrees and input
and output channels exchanged; dw is the transposed algorithm, G' [sum over tiles of
(A dy A') * (B' x B)] G.

Its root-mean-square error is 11 to 18 times that of the direct algorithm (`no_winograd` chooses the
latter), and within a tile it is relative to the tile's largest value. Source: Lavin and Gray, Fast
Algorithms for Convolutional Neural Networks, 2015.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from gpuconv.cpu import winograd_loops as loops
from gpuconv.cpu.elementwise import GRAIN
from gpuconv.cpu.moves import NO_IMAGE, Image, Place, add_rows, planar, rows_of_tiles
from gpuconv.cpu.precision import winograd_allowed
from gpuconv.cpu.simd import LANES, PAIR
from gpuconv.cpu.workspace import aligned, scratch
from gpuconv.shapes import Window
from gpuconv.threads import parallel, shards, thread_count

# Winograd tiles in a block: more of them reuse the transformed filters more often, fewer stay in
# the cache with their 36 products, and share out more evenly. With 28 and 80 layers of ResNet-50
# at batch 8 take the same time within 8%, but 256 channels of 14x14 take 4.2 ms in blocks of two
# images, and 5.8 in blocks of three (56 tiles).
TILES_PER_BLOCK = 40
# With 32 channels of 56x56 it takes half of the direct time; with 16 0.8, too little for its error.
MIN_CHANNELS = 32
# (tiles, C x K): with fewer tiles in the batch, transforming the filters (for dw, the sums) costs
# more than is saved; above C x K, reading the transformed filters (36 numbers in place of 9) from
# memory does; for dw, reading and writing the sums for every block.
LIMITS, LIMITS_OF_DW = (16, 512 * 512), (32, 256 * 256)
# Tiles times the fewer channels: 16 tiles of 32 channels (DenseNet's 14x14 on one image) take 1.0
# to 1.6 times the direct time, for there is a lot to transform and little to multiply.
LEAST_WORK = 1024
# Outputs that the last tiles of rows and columns compute and drop, for each one needed: at 1.8 the
# time is still 0.4 to 0.8 of the direct convolution's.
MAX_COVER = 1.8


def suits(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    window: Window,
    groups: int,
    dw: bool = False,
) -> bool:
    """Whether Winograd's algorithm can compute y and dx (with `dw`: dw), expectedly faster."""
    (N, C, H, W), (K, _, R, S) = x_shape, w_shape
    if (R, S) != (3, 3) or groups != 1 or window.stride != (1, 1) or window.dilation != (1, 1):
        return False
    P, Q = window.output_size(H, W)
    tiles = -(-P // 4) * -(-Q // 4)
    min_tiles, max_weights = LIMITS_OF_DW if dw else LIMITS
    return (
        winograd_allowed()
        and max(max(pads) for pads in window.pads(H, W)) <= 2
        and min(C, K) >= MIN_CHANNELS
        and max_weights >= C * K
        and N * tiles >= min_tiles
        and N * tiles * min(C, K) >= LEAST_WORK
        and tiles * 16 <= MAX_COVER * P * Q
    )


class Plan(NamedTuple):
    """How the tiles of an output are cut into blocks. All integers, for Numba."""

    image: Image
    to: Image
    pads: tuple[int, int]  # rows and columns from a tile's first input to its first output
    tile_rows: int  # of an image
    tile_columns: int
    images: int  # of a block
    rows: int  # of tiles, of a block
    blocks: int
    tiles: int  # of a block, with the unused rows of its last register tile
    line: int  # floats from a tile's transformed inputs to the next tile's
    channels: int  # of the output, in whole pairs of vectors


@lru_cache(maxsize=1024)
def plan_of(image: Image, to: Image, pads: tuple[int, int], threads: int) -> Plan:
    """For the convolution of `image` with such rows above it and columns before it of padding."""
    tile_rows, tile_columns = -(-to.H // 4), -(-to.W // 4)
    rows, images = min(tile_rows, max(1, TILES_PER_BLOCK // tile_columns)), 1
    if rows == tile_rows:
        images = max(1, min(TILES_PER_BLOCK // (tile_rows * tile_columns), to.N // threads))
    if threads > to.N:
        rows = min(rows, -(-tile_rows // threads))
    blocks, tiles = -(-to.N // images) * -(-tile_rows // rows), images * rows * tile_columns
    # lines and planes are odd numbers of cache lines, so that they do not compete for cache sets
    line, channels = (-(-image.C // LANES) | 1) * LANES, -(-to.C // PAIR) * PAIR
    cut = tile_rows, tile_columns, images, rows, blocks
    return Plan(image, to, pads, *cut, rows_of_tiles(tiles), line, channels)


def forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None, window: Window, groups: int, relu: bool
) -> np.ndarray | None:
    """y (N, K, P, Q), or None if a value of x or w is too large, infinite or NaN.

    The transforms would spread such a value over its tile, so the direct algorithm must compute it.
    """
    (N, _, H, W), K = x.shape, w.shape[0]
    (top, _), (left, _) = window.pads(H, W)
    y = np.empty((N, K, *window.output_size(H, W)), np.float32)
    return _convolve(x, w, False, b, (top, left), relu, y)


def input_gradient(
    dy: np.ndarray, w: np.ndarray, x_shape: tuple[int, ...], window: Window, groups: int
) -> np.ndarray | None:
    """dx (N, C, H, W), or None as in `forward`."""
    (top, _), (left, _) = window.pads(*x_shape[2:])
    dx = np.empty(x_shape, np.float32)
    return _convolve(dy, w, True, None, (2 - top, 2 - left), False, dx)


def _convolve(x, w, rotated, b, pads, relu, y):
    filters = transformed(w, rotated)
    if filters is None:
        return None
    plan = plan_of(planar(x), planar(y), pads, thread_count())
    return y if bound(plan, x, y, filters, b, relu)() else None


def transformed(w: np.ndarray, rotated: bool, kept: bool = False) -> np.ndarray | None:
    """The transformed filters, or with `rotated` those of dx; None if a weight is out of range.

    They are in the calling thread's scratch, or if `kept` in memory of their own.
    """
    (K, C), flat = w.shape[1::-1] if rotated else w.shape[:2], w.reshape(*w.shape[:2], 9)
    pairs = -(-K // PAIR)
    count = 36 * (pairs * PAIR * C | LANES)
    out = aligned(count) if kept else scratch("filters", count)
    out = out.reshape(36, -1)
    transform = partial(loops.transform_filters, flat, rotated, out)
    return out if all(parallel(transform, shards(pairs, GRAIN / (C * PAIR)))) else None


def bound(
    plan: Plan,
    x: np.ndarray,
    y: np.ndarray,
    filters: np.ndarray,
    b: np.ndarray | None,
    relu: bool,
    rest: Place | None = None,
) -> Callable[[], bool]:
    """What computes y, an array of the plan's images; it returns False if a value of x is out of
    range. rest: channels-last images that are added.
    """
    zeros = np.zeros(plan.to.C, np.float32)
    bias = (zeros if relu else zeros[:0]) if b is None else b
    others, added = rest or (zeros, NO_IMAGE)
    fixed = plan, x.reshape(-1), filters, bias, others[added.offset :], added.step, int(relu)

    def convolve(begin: int, end: int) -> object:
        return loops.convolve_blocks(*fixed, y.reshape(-1), *memory_of(plan), begin, end)

    pieces = shards(plan.blocks)
    return lambda: all(parallel(convolve, pieces))


def memory_of(plan: Plan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(pixels, inputs, products) of a block, this thread's own; the last two in 36 planes."""
    pixels = plan.images * (4 * plan.rows + 2) * (4 * plan.tile_columns + 2) * LANES
    inputs, products = plan.tiles * plan.line | LANES, plan.tiles * plan.channels | LANES
    return (
        scratch("pixels", pixels),
        scratch("inputs", 36 * inputs).reshape(36, -1),
        scratch("products", 36 * products).reshape(36, -1),
    )


def weight_gradient(
    dy: np.ndarray, x: np.ndarray, w_shape: tuple[int, ...], window: Window, groups: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """(dw (K, C, 3, 3), db (K,)), or None as in `forward`."""
    (top, _), (left, _), (K, C, _, _) = *window.pads(*x.shape[2:]), w_shape
    plan, lines = plan_of(planar(x), planar(dy), (top, left), thread_count()), rows_of_tiles(C)
    pieces = shards(plan.blocks)
    # the calling thread's scratch: a worker's could be overwritten once it has done its piece
    shape = len(pieces), 36, plan.channels * lines | LANES
    sums = scratch("weight gradient", math.prod(shape)).reshape(shape)
    db = np.zeros((len(pieces), K))  # in float64: there are many tiles
    fixed = plan, x.reshape(-1), dy.reshape(-1), lines

    def accumulate(piece: tuple[int, int], *to: np.ndarray) -> object:
        return loops.accumulate_blocks(*fixed, *memory_of(plan), *to, *piece)

    if not all(parallel(accumulate, list(zip(pieces, sums, db, strict=True)))):
        return None
    dw = np.empty(w_shape, np.float32)

    def finish(begin: int, end: int) -> None:
        span = slice(begin * PAIR * lines, end * PAIR * lines)
        for part in sums[1:]:
            add_rows(sums[0][:, span], part[:, span])
        loops.store_filter_gradient(sums[0], lines, dw.reshape(K, C, 9), begin, end)

    parallel(finish, shards(plan.channels // PAIR))
    return dw, db.sum(0).astype(np.float32)
