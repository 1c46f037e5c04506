"""Weight and bias gradient of a convolution, from padded input tiles (blocking.py).

dw is a sum of outer products over all output pixels: the gradients of up to 2 * LANES filters at
one pixel, times the value that a tap reads there, broadcast to all lanes.
"""

from __future__ import annotations

import numpy as np

from gpuconv.cpu.blocking import forward_blocking, register_tiles
from gpuconv.cpu.compiled import compiled
from gpuconv.cpu.inner_loops import (
    accumulate_weights,
    add_rows,
    address,
    block_range,
    load_padded_tile,
    tile_width,
    transpose_gradient,
    transpose_matrix,
)
from gpuconv.cpu.simd import LANES, TILE_WIDTH
from gpuconv.cpu.workspace import scratch
from gpuconv.shapes import Window
from gpuconv.threads import parallel, shards, thread_count

GRAIN = 1 << 16  # with fewer floats to add and unpack, a second thread costs more than it saves


def weight_gradient(
    dy: np.ndarray, x: np.ndarray, w_shape: tuple[int, ...], window: Window, groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """(dw (K, C/groups, R, S), db (K,)) of dy (N, K, P, Q), x (N, C, H, W); float32 in C order."""
    blocking = forward_blocking(x.shape, window, groups, thread_count())
    tile_shape, K, columns = blocking.tile_shape, w_shape[0] // groups, len(blocking.offsets)
    # db is the gradient of one more weight, whose input is always 1: a plane after the tile's
    first, height, padded_columns = register_tiles(columns + 1)
    offsets = np.zeros(padded_columns, np.int64)
    offsets[:columns], offsets[columns] = blocking.offsets, 4 * blocking.scratch
    channels = -(-K // LANES) * LANES
    pieces = shards(tile_shape.blocks)
    # the calling thread's scratch: a worker's could be overwritten once it has done its piece
    memory = scratch("weight gradient", len(pieces) * groups * channels * padded_columns)
    memory = memory.reshape(len(pieces), groups * channels, padded_columns)
    parts = dict(zip([begin for begin, _ in pieces], memory, strict=True))

    def accumulate(begin: int, end: int) -> None:
        padded = scratch("padded for weights", blocking.scratch + tile_shape.plane)
        padded[: blocking.scratch], padded[blocking.scratch :] = 0, 1
        pixels = tile_shape.images * tile_shape.rows * tile_shape.Q
        accumulate_blocks(
            x, dy, tile_shape, blocking.phases, offsets, first, height, K, groups, begin, end,
            padded, scratch("transposed", channels * pixels), parts[begin].reshape(-1),
        )  # fmt: skip

    parallel(accumulate, pieces)
    return _sum_of(list(parts.values()), w_shape, groups)


def _sum_of(
    parts: list[np.ndarray], w_shape: tuple[int, ...], groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """dw and db: the sum of all parts, in their order."""
    dw, db = np.empty(w_shape, np.float32), np.empty(w_shape[0], np.float32)
    flat = dw.reshape(groups, w_shape[0] // groups, -1)
    total, lines = parts[0], len(parts[0])
    # whole register tiles: a thread unpacks only what it has added itself
    unit = TILE_WIDTH if groups == 1 else lines // groups

    def add(begin: int, end: int) -> None:
        first, last = begin * unit, min(end * unit, lines)
        for part in parts[1:]:
            add_rows(total[first:last], part[first:last])
        _unpack(total, first, last, flat, db)

    units = -(-lines // unit)
    parallel(add, shards(units, -(-GRAIN * units // total.size)))
    return dw, db


@compiled
def accumulate_blocks(
    x, dy, tile_shape, phases, offsets, first, height, K, groups, begin, end, padded, gradient, sums
):
    """sums = the part of blocks [begin, end) in dw and db."""
    size = len(sums) // groups
    sums[:] = 0
    for block in range(begin, end):
        n, images, p, rows = block_range(tile_shape, block)
        for group in range(groups):
            load_padded_tile(x, tile_shape, phases, group, n, images, p, rows, padded)
            transpose_gradient(dy, group, K, n, images, p, rows, tile_shape.Q, gradient)
            accumulate_weights(
                address(padded), tile_shape, images, rows, gradient, offsets, first, height, K,
                sums[group * size : group * size + size],
            )  # fmt: skip


@compiled
def _unpack(sums, begin, end, dw, db):
    """Transpose lines [begin, end) of sums (channels, padded columns) into dw (groups, K, columns)
    and db, which the column after the last weight holds. Within a tile of channels the sums are in
    the order of accumulate_weights.
    """
    K, columns = dw.shape[1:]
    channels, flat = -(-K // LANES) * LANES, sums.reshape(-1)
    for line in range(begin, end, LANES):
        group, channel = line // channels, line % channels
        tile = channel // TILE_WIDTH * TILE_WIDTH
        width, inside = tile_width(K - tile), min(K - channel, LANES)
        source = address(sums[group * channels + tile]) + 4 * (channel - tile)
        target = address(dw[group, channel])
        transpose_matrix(source, 4 * width, columns, inside, target, 4 * columns, columns)
        for lane in range(inside):
            place = columns * width + channel - tile + lane
            db[group * K + channel + lane] = flat[(group * channels + tile) * sums.shape[1] + place]
