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

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from gpuconv.cpu.blocking import register_tiles
from gpuconv.cpu.compiled import compiled
from gpuconv.cpu.inner_loops import TILE_WIDTH
from gpuconv.cpu.precision import winograd_allowed
from gpuconv.cpu.simd import LANES
from gpuconv.cpu.winograd_loops import (
    multiply,
    multiply_gradient,
    store_filter_gradient,
    store_output_tiles,
    transform_filters,
    transform_gradient_tiles,
    transform_input_tiles,
)
from gpuconv.cpu.workspace import scratch
from gpuconv.shapes import Window
from gpuconv.threads import parallel, shards, thread_count

# Winograd tiles in a block: more of them reuse the transformed filters more often, fewer stay in
# the cache with their 36 products.
TILES_PER_BLOCK = 56
MIN_CHANNELS = 32  # with fewer, the transforms cost more than the products save
# Above these, reading the transformed filters (36 numbers in place of 9) from memory costs more
# than is saved; for dw, reading and writing the sums for every block does.
MAX_WEIGHTS = 512 * 512
MAX_WEIGHT_SUMS = 256 * 256


def suits_weight_gradient(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], window: Window, groups: int
) -> bool:
    """Like `suits`, for dw."""
    return w_shape[0] * w_shape[1] <= MAX_WEIGHT_SUMS and suits(x_shape, w_shape, window, groups)


def suits(x_shape: tuple[int, ...], w_shape: tuple[int, ...], window: Window, groups: int) -> bool:
    """Whether Winograd's algorithm can compute y and dx and is expected to be the faster one."""
    (N, C, H, W), (K, _, R, S) = x_shape, w_shape
    if not winograd_allowed():
        return False
    if (R, S) != (3, 3) or groups != 1 or window.stride != (1, 1) or window.dilation != (1, 1):
        return False
    if (
        max(max(pads) for pads in window.pads(H, W)) > 2
        or min(C, K) < MIN_CHANNELS
        or C * K > MAX_WEIGHTS
    ):
        return False
    P, Q = window.output_size(H, W)
    tiles = -(-P // 4) * -(-Q // 4)
    # at most half as many outputs again, that the last tiles compute and drop; one block at least
    return tiles * 16 <= 1.5 * P * Q and N * tiles >= TILES_PER_BLOCK


class _Blocks(NamedTuple):
    """How the Winograd tiles of a batch are cut into blocks; all integers, for Numba."""

    N: int
    tile_rows: int  # of an image
    tile_columns: int
    images: int  # of a block
    rows: int  # of tiles, of a block
    total: int  # blocks
    max_tiles: int  # tiles of a block, with the unused rows of its last register tile


@lru_cache(maxsize=1024)
def _blocks(N: int, P: int, Q: int, threads: int) -> _Blocks:
    tile_rows, tile_columns = -(-P // 4), -(-Q // 4)
    rows, images = min(tile_rows, max(1, TILES_PER_BLOCK // tile_columns)), 1
    if rows == tile_rows:
        images = max(1, min(TILES_PER_BLOCK // (tile_rows * tile_columns), N // threads))
    if threads > N:
        rows = min(rows, -(-tile_rows // threads))
    count = -(-N // images) * -(-tile_rows // rows)
    return _Blocks(
        N,
        tile_rows,
        tile_columns,
        images,
        rows,
        count,
        register_tiles(images * rows * tile_columns).rows,
    )


def forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None, window: Window, relu: bool
) -> np.ndarray | None:
    """y (N, K, P, Q), or None if a value of x or w is too large, infinite or NaN.

    The transforms would spread such a value over its tile, so the direct algorithm must compute it.
    """
    (N, _, H, W), K = x.shape, w.shape[0]
    (top, _), (left, _) = window.pads(H, W)
    y = np.empty((N, K, *window.output_size(H, W)), np.float32)
    return y if _convolve(x, w, False, b, (top, left), relu, y) else None


def input_gradient(
    dy: np.ndarray, w: np.ndarray, x_shape: tuple[int, ...], window: Window
) -> np.ndarray | None:
    """dx (N, C, H, W), or None as in `forward`."""
    (top, _), (left, _) = window.pads(*x_shape[2:])
    dx = np.empty(x_shape, np.float32)
    return dx if _convolve(dy, w, True, None, (2 - top, 2 - left), False, dx) else None


def _convolve(x, w, rotated, b, pads, relu, y):
    (N, C, _, _), (_, K, P, Q) = x.shape, y.shape
    blocks = _blocks(N, P, Q, thread_count())
    channels, line, plane = _sizes(C, K, blocks.max_tiles)
    filter_plane, product_plane = channels * C + LANES, channels * blocks.max_tiles + LANES
    filters = scratch("filters", 36 * filter_plane)
    flat = w.reshape(*w.shape[:2], 9)
    in_range = parallel(
        lambda begin, end: transform_filters(flat, rotated, begin, end, filter_plane, filters),
        shards(channels // TILE_WIDTH, -(-4096 // C)),
        blas=False,
    )
    bias = np.zeros(channels, np.float32)
    if b is not None:
        bias[:K] = b

    def convolve(begin: int, end: int) -> object:
        inputs, products = scratch("inputs", 36 * plane), scratch("products", 36 * product_plane)
        pixels = scratch(
            "pixels",
            blocks.images * (4 * blocks.rows + 2) * (4 * blocks.tile_columns + 2) * LANES + 256,
        )
        return _convolve_blocks(
            x, begin, end, blocks, *pads, line, plane, filters, filter_plane, product_plane, bias,
            int(relu), pixels, inputs, products, y,
        )  # fmt: skip

    return all(in_range) and all(parallel(convolve, shards(blocks.total), blas=False))


def weight_gradient(
    dy: np.ndarray, x: np.ndarray, w_shape: tuple[int, ...], window: Window
) -> tuple[np.ndarray, np.ndarray] | None:
    """(dw (K, C, 3, 3), db (K,)), or None as in `forward`."""
    (N, C, H, W), (_, K, P, Q) = x.shape, dy.shape
    (top, _), (left, _) = window.pads(H, W)
    blocks = _blocks(N, P, Q, thread_count())
    channels, line, plane = _sizes(C, K, blocks.max_tiles)
    lines = register_tiles(C).rows
    gradient_plane, sum_plane = channels * blocks.max_tiles + LANES, channels * lines + LANES

    pieces = shards(blocks.total)
    # the calling thread's scratch: a worker's could be overwritten once it has done its piece
    memory = scratch("weight gradient", len(pieces) * 36 * sum_plane).reshape(len(pieces), -1)
    parts = {
        begin: (part, np.zeros(K, np.float32))
        for (begin, _), part in zip(pieces, memory, strict=True)
    }

    def accumulate(begin: int, end: int) -> object:
        inputs, gradient = scratch("inputs", 36 * plane), scratch("products", 36 * gradient_plane)
        pixels = scratch(
            "pixels",
            blocks.images * (4 * blocks.rows + 2) * (4 * blocks.tile_columns + 2) * LANES + 256,
        )
        return _accumulate_blocks(
            x, dy, begin, end, blocks, top, left, line, plane, lines, gradient_plane, sum_plane,
            pixels, inputs, gradient, *parts[begin],
        )  # fmt: skip

    if not all(parallel(accumulate, pieces, blas=False)):
        return None
    (total, db), *rest = parts.values()
    dw = np.empty(w_shape, np.float32)

    def finish(begin: int, end: int) -> None:
        for part, _ in rest:
            _add_sums(total, part, sum_plane, begin * TILE_WIDTH * lines, end * TILE_WIDTH * lines)
        store_filter_gradient(total, sum_plane, lines, begin, end, dw.reshape(K, C, 9))

    parallel(finish, shards(channels // TILE_WIDTH), blas=False)
    for _, part in rest:
        db += part
    return dw, db


def _sizes(C: int, K: int, tiles: int) -> tuple[int, int, int]:
    """(K in whole TILE_WIDTHs, line, plane); inputs[36][tile][channel] has strides plane, line, 1.

    Both strides are odd numbers of cache lines, so that entries do not compete for cache sets.
    """
    line = (-(-C // LANES) | 1) * LANES
    return -(-K // TILE_WIDTH) * TILE_WIDTH, line, tiles * line + (LANES if tiles % 2 == 0 else 0)


@compiled
def _span(blocks, block):
    columns = -(-blocks.tile_rows // blocks.rows)
    n, row = block // columns * blocks.images, block % columns * blocks.rows
    return (
        n,
        min(blocks.images, blocks.N - n),
        row,
        min(blocks.rows, blocks.tile_rows - row),
        blocks.tile_columns,
    )


@compiled
def _convolve_blocks(
    x, begin, end, blocks, top, left, line, plane, filters, filter_plane, product_plane, bias, relu,
    pixels, inputs, products, y,
):  # fmt: skip
    offsets = np.arange(blocks.max_tiles) * line * 4
    for block in range(begin, end):
        span = _span(blocks, block)
        tiles = span[1] * span[3] * span[4]
        if transform_input_tiles(x, span, top, left, line, plane, pixels, inputs) == 0:
            return False
        multiply(
            inputs, plane, filters, filter_plane, x.shape[1], offsets, tiles, products,
            product_plane, y.shape[1],
        )  # fmt: skip
        store_output_tiles(products, product_plane, blocks.max_tiles, span, bias, relu, pixels, y)
    return True


@compiled
def _accumulate_blocks(
    x, dy, begin, end, blocks, top, left, line, plane, lines, gradient_plane, sum_plane, pixels,
    inputs, gradient, sums, db,
):  # fmt: skip
    offsets = np.arange(lines) * 4
    sums[:] = 0
    for block in range(begin, end):
        span = _span(blocks, block)
        tiles = span[1] * span[3] * span[4]
        in_range = transform_input_tiles(x, span, top, left, line, plane, pixels, inputs)
        if (
            in_range & transform_gradient_tiles(dy, span, gradient_plane, pixels, gradient, db)
        ) == 0:
            return False
        multiply_gradient(
            inputs, line, plane, gradient, gradient_plane, tiles, offsets, sums, sum_plane,
            dy.shape[1],
        )  # fmt: skip
    return True


@compiled
def _add_sums(total, part, plane, begin, end):
    for entry in range(36):
        for i in range(entry * plane + begin, entry * plane + end):
            total[i] += part[i]
