"""Convolution straight from padded planes, without the im2col matrix: any window, any groups, float32.

Forward and dx are the same loop over different planes and weights; dw is its own. Every block of
output belongs to one thread, and sums run in a fixed order.
"""

from __future__ import annotations

import numba
import numpy as np

from gpuconv.cpu.blocks import (
    ALL,
    LANES,
    SLIM,
    WIDE,
    accumulate_weights,
    address,
    convolve_block,
    extent,
    find_segments,
    stage_input,
    transpose_gradient,
)
from gpuconv.cpu.plan import Plan, forward_plan, input_plan, tiles
from gpuconv.cpu.threads import parallel, shards, thread_count
from gpuconv.cpu.vector import transpose
from gpuconv.cpu.workspace import scratch
from gpuconv.shapes import Window

PACK_GRAIN = 1 << 16  # floats a thread should have to rearrange, to be worth its start

def forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None, window: Window, groups: int, relu: bool
) -> np.ndarray:
    """y (N, K, P, Q) of x (N, C, H, W) and w (K, C/groups, R, S); C-contiguous float32."""
    (N, _, H, W), K = x.shape, w.shape[0]
    P, Q = window.output_size(H, W)
    plan = forward_plan(x.shape, window, groups, thread_count())
    y = np.empty((N, K, P, Q), np.float32)
    bias = np.zeros(K, np.float32) if b is None else b
    taps = np.arange(window.taps_count)
    weights = np.empty(groups * tiles(K // groups).rows * len(plan.offsets), np.float32)
    _pack_weights(w, groups, False, taps, 0, weights)
    passes = np.array([[0, 0, len(plan.offsets), 0, P, Q]])
    steps = np.array([K * P * Q, Q, 1, P * Q])
    _run(x, plan, plan.offsets, weights, bias, relu, passes, K // groups, groups, y, steps)
    return y


def input_gradient(
    dy: np.ndarray, w: np.ndarray, x_shape: tuple[int, ...], window: Window, groups: int
) -> np.ndarray:
    """dx (N, C, H, W) of dy (N, K, P, Q): for each remainder of row and column by the stride, a convolution of dy."""
    (N, C, H, W), (stride_h, stride_w) = x_shape, window.stride
    plan, phases = input_plan(x_shape, dy.shape[1], window, groups, thread_count())
    if not phases:  # the windows fall between the pixels
        return np.zeros(x_shape, np.float32)
    reached = sum(phase.P * phase.Q for phase in phases) == H * W
    dx = np.empty(x_shape, np.float32) if reached else np.zeros(x_shape, np.float32)
    cut = tiles(C // groups)
    size = cut.rows * sum(len(phase.offsets) for phase in phases)
    weights = np.empty(groups * size, np.float32)
    passes, start, depths = [], 0, 0
    for phase in phases:
        _pack_weights(w, groups, True, phase.taps, start, weights)
        base = phase.first[0] * W + phase.first[1]
        passes.append([start, depths, len(phase.offsets), base, phase.P, phase.Q])
        start, depths = start + cut.rows * len(phase.offsets), depths + len(phase.offsets)
    offsets = np.concatenate([phase.offsets for phase in phases])
    steps = np.array([C * H * W, stride_h * W, stride_w, H * W])
    bias = np.zeros(C, np.float32)
    _run(dy, plan, offsets, weights, bias, False, np.array(passes), C // groups, groups, dx, steps)
    return dx


def weight_gradient(
    dy: np.ndarray, x: np.ndarray, w_shape: tuple[int, ...], window: Window, groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """dw (K, C/groups, R, S) and db (K,) of dy (N, K, P, Q) and x (N, C, H, W).

    Each thread sums its blocks, then the threads' sums are added. db is the gradient of one more
    weight, whose input is always 1.
    """
    plan = forward_plan(x.shape, window, groups, thread_count())
    K, columns = w_shape[0] // groups, len(plan.offsets)
    first, height, padded = tiles(columns + 1)
    offsets = np.zeros(padded, np.int64)
    offsets[:columns] = plan.offsets
    offsets[columns] = 4 * plan.scratch  # where the ones are
    channels = -(-K // LANES) * LANES
    stage = plan.stage
    pixels = stage.images * stage.rows * stage.Q

    def accumulate(begin: int, end: int) -> np.ndarray:
        sums = scratch("weight gradient", groups * channels * padded)
        staged = scratch("staged", plan.scratch + stage.plane)
        gradient = scratch("transposed", channels * pixels)
        _accumulate_blocks(
            x, dy, stage, plan.phases, offsets, first, height, K, groups, begin, end, staged, gradient, sums
        )
        return sums

    parts = parallel(accumulate, shards(stage.blocks), blas=False)
    total = parts[0]
    dw, db = np.empty(w_shape, np.float32), np.empty(w_shape[0], np.float32)

    def add(begin: int, end: int) -> None:
        lines = begin * unit, min(end * unit, groups * channels)
        for part in parts[1:]:
            _add(total[lines[0] * padded : lines[1] * padded], part[lines[0] * padded : lines[1] * padded])
        _unpack(total, K, groups, columns, padded, *lines, dw.reshape(-1), db)

    unit = WIDE if groups == 1 else channels  # whole tiles of channels: a thread reads only what it added
    units = -(-groups * channels // unit)
    parallel(add, shards(units, -(-PACK_GRAIN * units // len(total))), blas=False)
    return dw, db


def _run(x, plan: Plan, offsets, weights, bias, relu, passes, K, groups, y, steps):  # type: ignore[no-untyped-def]
    first, height, _ = tiles(K)

    def convolve(begin: int, end: int) -> None:
        _convolve_blocks(
            x, plan.stage, plan.phases, offsets, weights, bias, int(relu), passes, first, height, K, groups,
            begin, end, scratch("staged", plan.scratch), y.reshape(-1), steps,
        )  # fmt: skip

    parallel(convolve, shards(plan.stage.blocks), blas=False)


def _pack_weights(
    w: np.ndarray, groups: int, transposed: bool, taps: np.ndarray, start: int, out: np.ndarray
) -> None:
    first, height, rows = tiles(w.shape[1] if transposed else w.shape[0] // groups)
    flat, group_size = w.reshape(*w.shape[:2], -1), len(out) // groups
    parallel(
        lambda begin, end: _pack(flat, groups, transposed, taps, start, group_size, first, height, begin, end, out),
        shards(len(first), -(-PACK_GRAIN * len(first) // len(out))),
        blas=False,
    )


@numba.njit(nogil=True, cache=True)
def _pack(flat, groups, transposed, taps, start, group_size, first, height, begin, end, out):
    """Tiles [begin, end) of w as (depth, height), from out[group * group_size + start]; rows beyond the last are zero.

    Rows are output channels and depth is (input channel, tap), or with `transposed` the other way round.
    """
    K, C = flat.shape[0] // groups, flat.shape[1]
    rows, outer = (C, K) if transposed else (K, C)
    for group in range(groups):
        for tile in range(begin, end):
            place = start + group * group_size + first[tile] * outer * len(taps)
            inside = min(height[tile], rows - first[tile])
            for o in range(outer):
                for t in taps:
                    for m in range(inside):
                        k, c = (o, first[tile] + m) if transposed else (first[tile] + m, o)
                        out[place + m] = flat[group * K + k, c, t]
                    out[place + inside : place + height[tile]] = 0
                    place += height[tile]


@numba.njit(nogil=True, cache=True)
def _convolve_blocks(
    x, stage, phases, offsets, weights, bias, relu, passes, first, height, K, groups, begin, end, staged, y, steps
):
    """Blocks [begin, end). A pass is (start in weights, start in offsets, depth, first output, P, Q)."""
    staged[:] = 0
    positions = stage.images * (stage.rows + stage.extra) * stage.width
    starts = np.empty(positions // LANES + 4, np.int64)
    segments = np.empty((positions // LANES + stage.images * stage.rows * 2 + 4, 3), np.int64)
    group_size = len(weights) // groups
    for block in range(begin, end):
        n, images, p, all_rows = extent(stage, block)
        for group in range(groups):
            stage_input(x, stage, phases, group, n, images, p, all_rows, staged)
            for i in range(len(passes)):
                weight, depth_start, depth, base, P, Q = passes[i]
                rows = min(all_rows, P - p)
                if rows > 0:
                    height_staged = all_rows + stage.extra
                    vectors = find_segments(stage, images, height_staged, rows, Q, steps, starts, segments)
                    place = n * steps[0] + group * K * steps[3] + p * steps[1] + base
                    convolve_block(
                        address(staged), vectors, weights[group * group_size + weight :],
                        bias[group * K : group * K + K], relu, offsets[depth_start : depth_start + depth],
                        first, height, K, segments, starts, y, place, steps,
                    )  # fmt: skip


@numba.njit(nogil=True, cache=True)
def _accumulate_blocks(
    x, dy, stage, phases, offsets, first, height, K, groups, begin, end, staged, gradient, sums
):
    staged[: len(staged) - stage.plane] = 0
    staged[len(staged) - stage.plane :] = 1
    sums[:] = 0
    columns = len(offsets)
    size = len(sums) // groups
    for block in range(begin, end):
        n, images, p, rows = extent(stage, block)
        for group in range(groups):
            stage_input(x, stage, phases, group, n, images, p, rows, staged)
            transpose_gradient(dy, group, K, n, images, p, rows, stage.Q, gradient)
            accumulate_weights(
                address(staged), stage, images, rows, gradient, offsets, first, height, K, columns,
                sums[group * size : group * size + size],
            )  # fmt: skip


@numba.njit(nogil=True, cache=True)
def _add(total, part):
    for i in range(len(total)):
        total[i] += part[i]


@numba.njit(nogil=True, cache=True)
def _unpack(sums, K, groups, columns, padded, begin, end, dw, db):
    """dw (K*groups, columns) and db from sums [begin, end) times `padded`, which lie as accumulate_weights leaves them."""
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
                transpose(begin_column, 4 * width, LANES, bits, address(dw) + 4 * (k * columns + column), 4 * columns, ALL)
                continue
            transpose(begin_column, 4 * width, rows + 1, bits, address(corner), 4 * LANES, ALL)
            for m in range(inside):
                for j in range(rows):
                    dw[(k + m) * columns + column + j] = corner[m, j]
                db[k + m] = corner[m, rows]
