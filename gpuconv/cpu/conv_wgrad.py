"""Weight and bias gradient of a convolution, from padded input tiles (blocking.py).

dw is a sum of outer products over all output pixels: the gradients of up to 2 * LANES filters at
one pixel, times the value that a tap reads there, broadcast to all lanes.
"""

from __future__ import annotations

import numpy as np

from gpuconv.cpu.blocking import forward_blocking, register_tiles
from gpuconv.cpu.compiled import compiled
from gpuconv.cpu.inner_loops import (
    ALL_LANES,
    accumulate_weights,
    address,
    block_range,
    load_padded_tile,
    transpose_gradient,
)
from gpuconv.cpu.simd import LANES, TILE_WIDTH
from gpuconv.cpu.simd_moves import transpose
from gpuconv.cpu.workspace import scratch
from gpuconv.shapes import Window
from gpuconv.threads import Pieces, parallel, shards

GRAIN = 1 << 16  # with fewer floats to add and unpack, a second thread costs more than it saves


def weight_gradient(
    dy: np.ndarray,
    x: np.ndarray,
    w_shape: tuple[int, ...],
    window: Window,
    groups: int,
    threads: int,
) -> tuple[np.ndarray, np.ndarray]:
    """(dw (K, C/groups, R, S), db (K,)) of dy (N, K, P, Q), x (N, C, H, W); float32 in C order."""
    tile_shape = forward_blocking(x.shape, window, groups, threads).tile_shape
    pieces = shards(tile_shape.blocks)
    sums = WeightSums(x.shape, w_shape, window, groups, threads, pieces)

    def accumulate(begin: int, end: int) -> None:
        total, padded, transposed = sums.workspace(begin)
        accumulate_blocks(
            x, dy, tile_shape, sums.blocking.phases, *sums.tiling, sums.K, groups, begin, end,
            padded, transposed, total,
        )  # fmt: skip

    parallel(accumulate, pieces, blas=False)
    return sums.finish()


class WeightSums:
    """The sums for dw and db: a part for each piece of the work, added in a fixed order at the end.

    db is the gradient of one more weight, whose input is always 1.
    """

    def __init__(
        self,
        x_shape: tuple[int, ...],
        w_shape: tuple[int, ...],
        window: Window,
        groups: int,
        threads: int,
        pieces: Pieces,
    ) -> None:
        self.blocking = forward_blocking(x_shape, window, groups, threads)
        self.w_shape, self.groups, self.K = w_shape, groups, w_shape[0] // groups
        self.columns = len(self.blocking.offsets)
        first, height, self.padded_columns = register_tiles(self.columns + 1)
        offsets = np.zeros(self.padded_columns, np.int64)
        offsets[: self.columns] = self.blocking.offsets
        offsets[self.columns] = 4 * self.blocking.scratch  # where the ones are
        self.tiling = offsets, first, height
        self.channels = -(-self.K // LANES) * LANES
        # the calling thread's scratch: a worker's could be overwritten once it has done its piece
        memory = scratch(
            "weight gradient", len(pieces) * groups * self.channels * self.padded_columns
        )
        self.parts = memory.reshape(len(pieces), -1)
        self.numbers = {begin: number for number, (begin, _) in enumerate(pieces)}

    def workspace(self, begin: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(sums, padded input tile, transposed gradients) of the piece that starts at `begin`.

        The sums are zero, as is the tile but for one more plane of ones, the input of db.
        """
        tile_shape = self.blocking.tile_shape
        padded = scratch("padded for weights", self.blocking.scratch + tile_shape.plane)
        padded[: self.blocking.scratch] = 0
        padded[self.blocking.scratch :] = 1
        sums = self.parts[self.numbers[begin]]
        sums[:] = 0
        return (
            sums,
            padded,
            scratch(
                "transposed", self.channels * tile_shape.images * tile_shape.rows * tile_shape.Q
            ),
        )

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """dw and db: the sum of all parts, in their order."""
        dw, db = np.empty(self.w_shape, np.float32), np.empty(self.w_shape[0], np.float32)
        total, lines = self.parts[0], self.groups * self.channels
        # whole register tiles: a thread unpacks only what it has added itself
        unit = TILE_WIDTH if self.groups == 1 else self.channels

        def add(begin: int, end: int) -> None:
            first, last = begin * unit, min(end * unit, lines)
            for part in self.parts[1:]:
                _add(
                    total[first * self.padded_columns : last * self.padded_columns],
                    part[first * self.padded_columns : last * self.padded_columns],
                )
            _unpack(
                total, self.K, self.groups, self.columns, self.padded_columns, first, last,
                dw.reshape(-1), db,
            )  # fmt: skip

        units = -(-lines // unit)
        parallel(add, shards(units, -(-GRAIN * units // len(total))), blas=False)
        return dw, db


@compiled
def accumulate_blocks(
    x, dy, tile_shape, phases, offsets, first, height, K, groups, begin, end, padded, gradient, sums
):
    """sums += the part of blocks [begin, end) in dw and db."""
    columns = len(offsets)
    size = len(sums) // groups
    for block in range(begin, end):
        n, images, p, rows = block_range(tile_shape, block)
        for group in range(groups):
            load_padded_tile(x, tile_shape, phases, group, n, images, p, rows, padded)
            transpose_gradient(dy, group, K, n, images, p, rows, tile_shape.Q, gradient)
            accumulate_weights(
                address(padded), tile_shape, images, rows, gradient, offsets, first, height, K,
                columns, sums[group * size : group * size + size],
            )  # fmt: skip


@compiled
def _add(total, part):
    for i in range(len(total)):
        total[i] += part[i]


@compiled
def _unpack(sums, K, groups, columns, padded_columns, begin, end, dw, db):
    """Transpose lines [begin, end) of `sums` into dw (K*groups, columns) and db.

    A line is a channel's `padded_columns` sums, in the order of accumulate_weights; the column
    after the last weight holds db.
    """
    edge = np.empty((LANES, LANES), np.float32)
    channels = -(-K // LANES) * LANES
    for line in range(begin, end, LANES):
        group, channel = line // channels, line % channels
        tile = channel // TILE_WIDTH * TILE_WIDTH
        width = TILE_WIDTH if K - tile > LANES else LANES
        source = address(sums) + 4 * ((group * channels + tile) * padded_columns + channel - tile)
        inside = min(K - channel, LANES)
        bits, k = (1 << inside) - 1, group * K + channel
        for column in range(0, columns + 1, LANES):
            rows = min(LANES, columns - column)
            begin_column = source + 4 * column * width
            if rows == LANES:
                transpose(
                    begin_column,
                    4 * width,
                    LANES,
                    bits,
                    address(dw) + 4 * (k * columns + column),
                    4 * columns,
                    ALL_LANES,
                )
                continue
            transpose(begin_column, 4 * width, rows + 1, bits, address(edge), 4 * LANES, ALL_LANES)
            for m in range(inside):
                for j in range(rows):
                    dw[(k + m) * columns + column + j] = edge[m, j]
                db[k + m] = edge[m, rows]
