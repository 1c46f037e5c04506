"""Direct convolution: register tiles over padded input tiles, without an im2col matrix; float32.

It takes any window and any number of groups. Forward and dx are the same loop over other tiles and
weights; dw is in conv_wgrad.py. Every block of output belongs to one thread and sums run in a fixed
order, so that the result does not depend on the number of threads.
"""

from __future__ import annotations

from functools import partial

import numpy as np

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
    blocking = forward_blocking(x.shape, window, groups, thread_count())
    P, Q = window.output_size(*x.shape[2:])
    whole = StridePhase((0, 0), P, Q, np.arange(w[0, 0].size), blocking.offsets)
    return _convolve(x, w, b, relu, (len(x), len(w), P, Q), blocking, (whole,), (1, 1), groups)


def input_gradient(
    dy: np.ndarray, w: np.ndarray, x_shape: tuple[int, ...], window: Window, groups: int
) -> np.ndarray:
    """dx (N, C, H, W) of dy (N, K, P, Q): one stride-1 convolution of dy for each stride phase."""
    K, stride = dy.shape[1], window.stride
    blocking, phases = input_gradient_blocking(x_shape, K, window, groups, thread_count())
    return _convolve(dy, w, None, False, x_shape, blocking, phases, stride, groups, transposed=True)


def _convolve(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None,
    relu: bool,
    y_shape: tuple[int, ...],
    blocking: Blocking,
    phases: tuple[StridePhase, ...],
    stride: tuple[int, int],
    groups: int,
    transposed: bool = False,
) -> np.ndarray:
    """y of `y_shape`, whose phases' pixels lie `stride` apart; zero where no phase reaches."""
    _, K, H, W = y_shape
    all_reached = sum(phase.P * phase.Q for phase in phases) == H * W
    y = np.empty(y_shape, np.float32) if all_reached else np.zeros(y_shape, np.float32)
    if not phases:
        return y
    first, height, rows = register_tiles(K // groups)
    depth = sum(len(phase.offsets) for phase in phases)
    weights = np.empty(groups * rows * depth, np.float32)
    passes, start, flat = np.zeros((len(phases), 6), np.int64), 0, w.reshape(*w.shape[:2], -1)
    for number, phase in enumerate(phases):
        base = phase.first[0] * W + phase.first[1]
        passes[number] = start * rows, start, len(phase.offsets), base, phase.P, phase.Q
        tiles = first, height, weights, start * rows
        pack = partial(_pack, flat, groups, transposed, phase.taps, *tiles)
        parallel(pack, shards(len(first), -(-PACK_GRAIN * len(first) // len(weights))))
        start += len(phase.offsets)
    offsets = np.concatenate([phase.offsets for phase in phases])
    bias = np.zeros(K, np.float32) if b is None else b
    steps = np.array([K * H * W, stride[0] * W, stride[1], H * W])

    def convolve(begin: int, end: int) -> None:
        padded = scratch("padded", blocking.scratch)
        padded[:] = 0
        convolve_blocks(
            x, blocking.tile_shape, blocking.phases, offsets, weights, bias, int(relu), passes,
            first, height, K // groups, groups, begin, end, padded, y.reshape(-1), steps,
        )  # fmt: skip

    parallel(convolve, shards(blocking.tile_shape.blocks))
    return y


@compiled
def _pack(flat, groups, transposed, taps, first, height, out, start, begin, end):
    """Register tiles [begin, end) of w, each (depth, height), from `start` on in a group's part.

    The rows of a tile are output channels and its depth runs over (input channel, tap); with
    `transposed` input and output channels are exchanged. Rows beyond the last are zero.
    """
    K, C = flat.shape[0] // groups, flat.shape[1]
    rows, outer = (C, K) if transposed else (K, C)
    group_size = len(out) // groups
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
