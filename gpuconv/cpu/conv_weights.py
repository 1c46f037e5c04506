"""The gradient of a convolution's weights and bias, straight from padded planes (see plan.py).

For 32 filters at once: a pixel's 32 gradients, times the value that a tap reads for it, spread to
all 32.
"""

from __future__ import annotations

import numpy as np

from gpuconv.cpu.blocks import (
    ALL,
    SLIM,
    WIDE,
    accumulate_weights,
    address,
    extent,
    stage_input,
    transpose_gradient,
)
from gpuconv.cpu.compiled import compiled
from gpuconv.cpu.plan import forward_plan, tiles
from gpuconv.cpu.vector import LANES
from gpuconv.cpu.vector_lanes import transpose
from gpuconv.cpu.workspace import scratch
from gpuconv.shapes import Window
from gpuconv.threads import Pieces, parallel, shards

GRAIN = 1 << 16  # floats a thread should have to add and rearrange, to be worth its start


def weight_gradient(
    dy: np.ndarray,
    x: np.ndarray,
    w_shape: tuple[int, ...],
    window: Window,
    groups: int,
    threads: int,
) -> tuple[np.ndarray, np.ndarray]:
    """dw (K, C/groups, R, S) and db (K,) of dy (N, K, P, Q) and x (N, C, H, W); C-contiguous
    float32.
    """
    stage = forward_plan(x.shape, window, groups, threads).stage
    pieces = shards(stage.blocks)
    sums = WeightSums(x.shape, w_shape, window, groups, threads, pieces)

    def accumulate(begin: int, end: int) -> None:
        total, staged, turned = sums.workspace(begin)
        accumulate_blocks(
            x,
            dy,
            stage,
            sums.plan.phases,
            *sums.cut,
            sums.K,
            groups,
            begin,
            end,
            staged,
            turned,
            total,
        )

    parallel(accumulate, pieces, blas=False)
    return sums.finish()


class WeightSums:
    """dw and db while they are summed: a part for each piece of the work, and what the loops need.

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
        self.plan = forward_plan(x_shape, window, groups, threads)
        self.w_shape, self.groups, self.K, self.columns = (
            w_shape,
            groups,
            w_shape[0] // groups,
            len(self.plan.offsets),
        )
        first, height, self.padded = tiles(self.columns + 1)
        offsets = np.zeros(self.padded, np.int64)
        offsets[: self.columns] = self.plan.offsets
        offsets[self.columns] = 4 * self.plan.scratch  # where the ones are
        self.cut = offsets, first, height
        self.channels = -(-self.K // LANES) * LANES
        # of the calling thread: a worker's own may be overwritten once it has done its piece
        memory = scratch("weight gradient", len(pieces) * groups * self.channels * self.padded)
        self.parts = memory.reshape(len(pieces), -1)
        self.numbers = {begin: number for number, (begin, _) in enumerate(pieces)}

    def workspace(self, begin: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The sums of the piece that starts at `begin`, all zero; planes for x; a place for dy,
        channels-last.
        """
        stage = self.plan.stage
        staged = scratch("staged for weights", self.plan.scratch + stage.plane)
        staged[: self.plan.scratch] = 0
        staged[self.plan.scratch :] = 1
        sums = self.parts[self.numbers[begin]]
        sums[:] = 0
        return (
            sums,
            staged,
            scratch("transposed", self.channels * stage.images * stage.rows * stage.Q),
        )

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """dw and db, from all parts, added in their order."""
        dw, db = np.empty(self.w_shape, np.float32), np.empty(self.w_shape[0], np.float32)
        total, lines = self.parts[0], self.groups * self.channels
        unit = (
            WIDE if self.groups == 1 else self.channels
        )  # whole tiles: a thread reads only what it added

        def add(begin: int, end: int) -> None:
            first, last = begin * unit, min(end * unit, lines)
            for part in self.parts[1:]:
                _add(
                    total[first * self.padded : last * self.padded],
                    part[first * self.padded : last * self.padded],
                )
            _unpack(
                total,
                self.K,
                self.groups,
                self.columns,
                self.padded,
                first,
                last,
                dw.reshape(-1),
                db,
            )

        units = -(-lines // unit)
        parallel(add, shards(units, -(-GRAIN * units // len(total))), blas=False)
        return dw, db


@compiled
def accumulate_blocks(
    x, dy, stage, phases, offsets, first, height, K, groups, begin, end, staged, gradient, sums
):
    """sums += the share of blocks [begin, end) in dw and db."""
    columns = len(offsets)
    size = len(sums) // groups
    for block in range(begin, end):
        n, images, p, rows = extent(stage, block)
        for group in range(groups):
            stage_input(x, stage, phases, group, n, images, p, rows, staged)
            transpose_gradient(dy, group, K, n, images, p, rows, stage.Q, gradient)
            accumulate_weights(
                address(staged),
                stage,
                images,
                rows,
                gradient,
                offsets,
                first,
                height,
                K,
                columns,
                sums[group * size : group * size + size],
            )


@compiled
def _add(total, part):
    for i in range(len(total)):
        total[i] += part[i]


@compiled
def _unpack(sums, K, groups, columns, padded, begin, end, dw, db):
    """dw (K*groups, columns) and db from sums [begin, end) times `padded`, which lie as
    accumulate_weights leaves them.
    """
    corner = np.empty((LANES, LANES), np.float32)
    channels = -(-K // LANES) * LANES
    for line in range(begin, end, LANES):
        group, channel = line // channels, line % channels
        tile = channel // WIDE * WIDE
        width = WIDE if K - tile > SLIM else SLIM
        source = address(sums) + 4 * ((group * channels + tile) * padded + channel - tile)
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
                    ALL,
                )
                continue
            transpose(begin_column, 4 * width, rows + 1, bits, address(corner), 4 * LANES, ALL)
            for m in range(inside):
                for j in range(rows):
                    dw[(k + m) * columns + column + j] = corner[m, j]
                db[k + m] = corner[m, rows]
