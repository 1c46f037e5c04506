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
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from gpuconv.cpu.compiled import compiled
from gpuconv.cpu.elementwise import GRAIN
from gpuconv.cpu.moves import Image, add_rows, planar, rows_of_tiles
from gpuconv.cpu.precision import winograd_allowed
from gpuconv.cpu.simd import LANES, TILE_WIDTH
from gpuconv.cpu.winograd_loops import (
    multiply,
    store_channels,
    store_filter_gradient,
    store_planes,
    transform_filters,
    transform_gradient_tiles,
    transform_input_tiles,
)
from gpuconv.cpu.workspace import scratch
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
        and tiles * 16 <= MAX_COVER * P * Q
    )


class Plan(NamedTuple):
    """How the Winograd tiles of a batch are cut into blocks, and a block's arrays, in floats:
    inputs[36][tile][channel] has strides plane, line, 1. All integers, for Numba.
    """

    N: int
    tile_rows: int  # of an image
    tile_columns: int
    images: int  # of a block
    rows: int  # of tiles, of a block
    total: int  # blocks
    max_tiles: int  # tiles of a block, with the unused rows of its last register tile
    channels: int  # output channels, in whole pairs of vectors
    line: int
    plane: int
    product_plane: int  # of products[36][pair][tile][..], and of the transformed gradients
    pixels: int

    def filters(self, C: int) -> int:
        """Floats of all transformed filters of C channels."""
        return 36 * (self.channels * C + LANES)


@lru_cache(maxsize=1024)
def plan_of(N: int, C: int, K: int, P: int, Q: int, threads: int) -> Plan:
    """Strides are odd numbers of cache lines, so that entries do not compete for cache sets."""
    tile_rows, tile_columns = -(-P // 4), -(-Q // 4)
    rows, images = min(tile_rows, max(1, TILES_PER_BLOCK // tile_columns)), 1
    if rows == tile_rows:
        images = max(1, min(TILES_PER_BLOCK // (tile_rows * tile_columns), N // threads))
    if threads > N:
        rows = min(rows, -(-tile_rows // threads))
    count = -(-N // images) * -(-tile_rows // rows)
    tiles = rows_of_tiles(images * rows * tile_columns)
    channels, line = -(-K // TILE_WIDTH) * TILE_WIDTH, (-(-C // LANES) | 1) * LANES
    plane = tiles * line + (LANES if tiles % 2 == 0 else 0)
    pixels = images * (4 * rows + 2) * (4 * tile_columns + 2) * LANES
    cut = (N, tile_rows, tile_columns, images, rows, count, tiles)
    return Plan(*cut, channels, line, plane, channels * tiles + LANES, pixels)


def forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None, window: Window, groups: int, relu: bool
) -> np.ndarray | None:
    """y (N, K, P, Q), or None if a value of x or w is too large, infinite or NaN.

    The transforms would spread such a value over its tile, so the direct algorithm must compute it.
    """
    (N, _, H, W), K = x.shape, w.shape[0]
    (top, _), (left, _) = window.pads(H, W)
    return _convolve(x, w, False, b, (top, left), relu, (N, K, *window.output_size(H, W)))


def input_gradient(
    dy: np.ndarray, w: np.ndarray, x_shape: tuple[int, ...], window: Window, groups: int
) -> np.ndarray | None:
    """dx (N, C, H, W), or None as in `forward`."""
    (top, _), (left, _) = window.pads(*x_shape[2:])
    return _convolve(dy, w, True, None, (2 - top, 2 - left), False, x_shape)


def _convolve(x, w, rotated, b, pads, relu, y_shape):
    C, (N, K, P, Q) = x.shape[1], y_shape
    y = np.empty(y_shape, np.float32)
    plan, zeros = plan_of(N, C, K, P, Q, thread_count()), np.zeros(K, np.float32)
    in_range, filters = transformed(w, rotated, plan, scratch("filters", plan.filters(C)))
    bias = np.zeros(plan.channels, np.float32)
    if b is not None:
        bias[:K] = b
    fixed = x.reshape(-1), planar(x), *pads, plan, filters, bias
    rest = zeros, Image(0, 0, 1, 1, 1, K), int(relu), y.reshape(-1), planar(y)

    def convolve(begin: int, end: int) -> object:
        return convolve_blocks(*fixed, *rest, *memory_of(plan), begin, end)

    return y if in_range and all(parallel(convolve, shards(plan.total))) else None


def transformed(
    w: np.ndarray, rotated: bool, plan: Plan, out: np.ndarray
) -> tuple[bool, np.ndarray]:
    """(whether all weights are in range, `out`): the filters, or with `rotated` those of dx."""
    C = w.shape[0] if rotated else w.shape[1]
    flat, pairs = w.reshape(*w.shape[:2], 9), plan.channels // TILE_WIDTH
    transform = partial(transform_filters, flat, rotated, len(out) // 36, out)
    return all(parallel(transform, shards(pairs, -(-GRAIN // (C * TILE_WIDTH))))), out


def memory_of(plan: Plan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(pixels, inputs, products), this thread's own."""
    return (
        scratch("pixels", plan.pixels),
        scratch("inputs", 36 * plan.plane),
        scratch("products", 36 * plan.product_plane),
    )


def weight_gradient(
    dy: np.ndarray, x: np.ndarray, w_shape: tuple[int, ...], window: Window, groups: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """(dw (K, C, 3, 3), db (K,)), or None as in `forward`."""
    (N, C, H, W), (_, K, P, Q) = x.shape, dy.shape
    (top, _), (left, _) = window.pads(H, W)
    plan, lines = plan_of(N, C, K, P, Q, thread_count()), rows_of_tiles(C)
    pieces, shape = shards(plan.total), (36, plan.channels * lines + LANES)
    # the calling thread's scratch: a worker's could be overwritten once it has done its piece
    memory = scratch("weight gradient", len(pieces) * math.prod(shape))
    parts = dict(zip([b for b, _ in pieces], memory.reshape(len(pieces), *shape), strict=True))
    db = {begin: np.zeros(K, np.float32) for begin in parts}
    fixed = x.reshape(-1), planar(x), dy.reshape(-1), planar(dy)

    def accumulate(begin: int, end: int) -> object:
        return _accumulate_blocks(
            *fixed, begin, end, plan, top, left, lines, *memory_of(plan), parts[begin], db[begin],
        )  # fmt: skip

    if not all(parallel(accumulate, pieces)):
        return None
    total, *rest = parts.values()
    dw = np.empty(w_shape, np.float32)

    def finish(begin: int, end: int) -> None:
        span = slice(begin * TILE_WIDTH * lines, end * TILE_WIDTH * lines)
        for part in rest:
            add_rows(total[:, span], part[:, span])
        store_filter_gradient(total, shape[1], lines, begin, end, dw.reshape(K, C, 9))

    parallel(finish, shards(plan.channels // TILE_WIDTH))
    return dw, np.sum(list(db.values()), 0)


@compiled
def _span(plan, block):
    columns = -(-plan.tile_rows // plan.rows)
    n, row = block // columns * plan.images, block % columns * plan.rows
    images, rows = min(plan.images, plan.N - n), min(plan.rows, plan.tile_rows - row)
    return n, images, row, rows, plan.tile_columns


@compiled
def convolve_blocks(
    x, image, top, left, plan, filters, bias, rest, rest_image, relu, y, to, pixels, inputs,
    products, begin, end,
):  # fmt: skip
    """y = the convolution of x, + bias + rest, or its ReLU: blocks [begin, end) of the plan.

    x and y: planar or channels-last; rest: a channels-last image, for a channels-last y alone.
    Returns whether all values were in range; else y is not whole.
    """
    lines, plane = plan.max_tiles, plan.product_plane
    for block in range(begin, end):
        span = _span(plan, block)
        tiles = span[1] * span[3] * span[4]
        if not transform_input_tiles(
            x, image, span, top, left, plan.line, plan.plane, pixels, inputs
        ):
            return False
        multiply(
            inputs, plan.plane, plan.line, 1, tiles, image.C, filters, len(filters) // 36, to.C,
            products, plane, lines, 0,
        )  # fmt: skip
        if to.step:
            store_channels(products, plane, lines, span, bias, rest, rest_image, relu, y, to)
        else:
            store_planes(products, plane, lines, span, bias, relu, pixels, y, to)
    return True


@compiled
def _accumulate_blocks(
    x, image, dy, to, begin, end, plan, top, left, lines, pixels, inputs, gradient, sums, db
):
    sums[:] = 0
    for block in range(begin, end):
        span = _span(plan, block)
        tiles = span[1] * span[3] * span[4]
        if not (
            transform_input_tiles(x, image, span, top, left, plan.line, plan.plane, pixels, inputs)
            and transform_gradient_tiles(dy, to, span, plan.product_plane, pixels, gradient, db)
        ):
            return False
        multiply(
            inputs, plan.plane, 1, plan.line, lines, tiles, gradient, plan.product_plane, to.C,
            sums, sums.shape[1], lines, 1,
        )  # fmt: skip
    return True
