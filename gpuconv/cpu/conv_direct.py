"""Direct convolution: register tiles over padded input tiles, without an im2col matrix; float32.

It takes any window and any number of groups. Forward and dx are the same loop over other tiles and
weights; dw is in conv_wgrad.py. Every block of output belongs to one thread and sums run in a fixed
order, so that the result does not depend on the number of threads.
"""

from __future__ import annotations

import numpy as np

from gpuconv.cpu import conv_im2col
from gpuconv.cpu.blocking import (
    Blocking,
    StridePhase,
    forward_blocking,
    input_gradient_blocking,
    register_tiles,
)
from gpuconv.cpu.compiled import compiled
from gpuconv.cpu.inner_loops import (
    LANES,
    address,
    block_range,
    convolve_block,
    find_segments,
    load_padded_tile,
)
from gpuconv.cpu.workspace import scratch
from gpuconv.shapes import Window
from gpuconv.threads import parallel, shards, thread_count

PACK_GRAIN = 1 << 17  # with fewer floats to pack, a second thread costs more than it saves


def forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None, window: Window, groups: int, relu: bool
) -> np.ndarray:
    """y (N, K, P, Q) of x (N, C, H, W) and w (K, C/groups, R, S); C-contiguous float32."""
    (N, _, H, W), K = x.shape, w.shape[0]
    P, Q = window.output_size(H, W)
    blocking = forward_blocking(x.shape, window, groups, thread_count())
    y = np.empty((N, K, P, Q), np.float32)
    bias = np.zeros(K, np.float32) if b is None else b
    weights = forward_weights(w, groups)
    if conv_im2col.cheaper(blocking, K // groups):
        grid = conv_im2col.Grid(w.shape[1], H, W, P, Q, *window.stride)
        taps, filters = conv_im2col.forward_taps(window, H, W), weights.reshape(groups, -1)
        to = (K * P * Q, Q, 1, P * Q)
        conv_im2col.convolve(x, grid, taps, filters, bias, relu, y, 0, to)
        return y
    passes = np.array([[0, 0, len(blocking.offsets), 0, P, Q]])
    steps = np.array([K * P * Q, Q, 1, P * Q])
    _run(x, blocking, blocking.offsets, weights, bias, relu, passes, K // groups, groups, y, steps)
    return y


def forward_weights(w: np.ndarray, groups: int) -> np.ndarray:
    """w (K, C/groups, R, S) in the order in which the register tiles read it."""
    depth = w[0].size
    weights = np.empty(groups * register_tiles(w.shape[0] // groups).rows * depth, np.float32)
    _pack_weights(w, groups, False, np.arange(w.shape[2] * w.shape[3]), 0, weights)
    return weights


def input_gradient(
    dy: np.ndarray, w: np.ndarray, x_shape: tuple[int, ...], window: Window, groups: int
) -> np.ndarray:
    """dx (N, C, H, W) of dy (N, K, P, Q): one stride-1 convolution of dy for each stride phase."""
    blocking, phases = input_gradient_blocking(x_shape, dy.shape[1], window, groups, thread_count())
    if phases and conv_im2col.cheaper(blocking, x_shape[1] // groups):
        return _input_gradient_im2col(dy, w, x_shape, window, groups)
    dx, weights, passes, offsets, steps = input_passes(w, x_shape, window, groups, phases)
    if phases:
        C = x_shape[1]
        _run(
            dy, blocking, offsets, weights, np.zeros(C, np.float32), False, passes, C // groups,
            groups, dx, steps,
        )  # fmt: skip
    return dx


def _input_gradient_im2col(
    dy: np.ndarray, w: np.ndarray, x_shape: tuple[int, ...], window: Window, groups: int
) -> np.ndarray:
    _, C, H, W = x_shape
    _, K, P, Q = dy.shape
    phases = conv_im2col.input_phases(window, H, W)
    all_reached = sum(phase.P * phase.Q for phase in phases) == H * W
    dx = np.empty(x_shape, np.float32) if all_reached else np.zeros(x_shape, np.float32)
    rows, zeros = register_tiles(C // groups).rows, np.zeros(C, np.float32)
    stride_h, stride_w = window.stride
    for phase in phases:
        weights = np.empty(groups * rows * K // groups * len(phase.taps), np.float32)
        _pack_weights(w, groups, True, phase.numbers, 0, weights)
        grid = conv_im2col.Grid(K // groups, P, Q, phase.P, phase.Q, 1, 1)
        base = phase.first[0] * W + phase.first[1]
        steps = (C * H * W, stride_h * W, stride_w, H * W)
        conv_im2col.convolve(
            dy, grid, phase.taps, weights.reshape(groups, -1), zeros, False, dx, base, steps
        )
    return dx


def input_passes(
    w: np.ndarray,
    x_shape: tuple[int, ...],
    window: Window,
    groups: int,
    phases: tuple[StridePhase, ...],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(dx, weights, passes, offsets, steps) for convolve_blocks: one pass for each stride phase.

    dx (N, C, H, W) is not written yet, but zero where some pixels are reached by no tap.
    """
    (_, C, H, W), (stride_h, stride_w) = x_shape, window.stride
    all_reached = sum(phase.P * phase.Q for phase in phases) == H * W
    dx = np.empty(x_shape, np.float32) if all_reached else np.zeros(x_shape, np.float32)
    rows = register_tiles(C // groups).rows
    weights = np.empty(groups * rows * sum(len(phase.offsets) for phase in phases), np.float32)
    passes, start, depths = np.zeros((len(phases), 6), np.int64), 0, 0
    for number, phase in enumerate(phases):
        _pack_weights(w, groups, True, phase.taps, start, weights)
        base = phase.first[0] * W + phase.first[1]
        passes[number] = start, depths, len(phase.offsets), base, phase.P, phase.Q
        start, depths = start + rows * len(phase.offsets), depths + len(phase.offsets)
    offsets = np.concatenate([np.zeros(0, np.int64), *(phase.offsets for phase in phases)])
    return dx, weights, passes, offsets, np.array([C * H * W, stride_h * W, stride_w, H * W])


def _run(x, blocking: Blocking, offsets, weights, bias, relu, passes, K, groups, y, steps):
    first, height, _ = register_tiles(K)

    def convolve(begin: int, end: int) -> None:
        padded = scratch("padded", blocking.scratch)
        padded[:] = 0
        convolve_blocks(
            x, blocking.tile_shape, blocking.phases, offsets, weights, bias, int(relu), passes,
            first, height, K, groups, begin, end, padded, y.reshape(-1), steps,
        )  # fmt: skip

    parallel(convolve, shards(blocking.tile_shape.blocks), blas=False)


def _pack_weights(
    w: np.ndarray, groups: int, transposed: bool, taps: np.ndarray, start: int, out: np.ndarray
) -> None:
    first, height, _ = register_tiles(w.shape[1] if transposed else w.shape[0] // groups)
    flat, group_size = w.reshape(*w.shape[:2], -1), len(out) // groups
    parallel(
        lambda begin, end: _pack(
            flat, groups, transposed, taps, start, group_size, first, height, begin, end, out
        ),
        shards(len(first), -(-PACK_GRAIN * len(first) // len(out))),
        blas=False,
    )


@compiled
def _pack(flat, groups, transposed, taps, start, group_size, first, height, begin, end, out):
    """Register tiles [begin, end) of w, each (depth, height), from out[group*group_size + start].

    The rows of a tile are output channels and its depth runs over (input channel, tap); with
    `transposed` input and output channels are exchanged. Rows beyond the last are zero.
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


@compiled
def convolve_blocks(
    x, tile_shape, phases, offsets, weights, bias, relu, passes, first, height, K, groups, begin,
    end, padded, y, steps,
):  # fmt: skip
    """The output of blocks [begin, end); `padded` must be zero before the first.

    A pass is (start in weights, start in offsets, depth, first output element, P, Q).
    """
    positions = tile_shape.images * (tile_shape.rows + tile_shape.extra) * tile_shape.width
    starts = np.empty(positions // LANES + 4, np.int64)
    segments = np.empty(
        (positions // LANES + tile_shape.images * tile_shape.rows * 2 + 4, 3), np.int64
    )
    group_size = len(weights) // groups
    for block in range(begin, end):
        n, images, p, all_rows = block_range(tile_shape, block)
        for group in range(groups):
            load_padded_tile(x, tile_shape, phases, group, n, images, p, all_rows, padded)
            for i in range(len(passes)):
                weight, depth_start, depth, base, P, Q = passes[i]
                rows = min(all_rows, P - p)
                if rows > 0:
                    tile_rows = all_rows + tile_shape.extra
                    vectors = find_segments(
                        tile_shape, images, tile_rows, rows, Q, steps, starts, segments
                    )
                    place = n * steps[0] + group * K * steps[3] + p * steps[1] + base
                    convolve_block(
                        address(padded), vectors, weights[group * group_size + weight :],
                        bias[group * K : group * K + K], relu,
                        offsets[depth_start : depth_start + depth], first, height, K,
                        segments, starts, y, place, steps,
                    )  # fmt: skip
