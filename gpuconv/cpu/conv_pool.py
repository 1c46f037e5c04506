"""Convolution, bias, ReLU and 2 x 2 max-pool in one pass: the convolution's output is never stored.

A register tile holds the sums of whole squares and pools them before it writes. Only the pooled
values and their places are kept, a quarter of the convolution's output and a byte each. Backward
visits only those places (conv_pool_gradient.py). Other pools, and layers for which this does not
pay, are the two operations one after the other.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from gpuconv.cpu import conv, pool, pool_pairs, winograd
from gpuconv.cpu.blocks import ALL, address, stage_input
from gpuconv.cpu.compiled import compiled
from gpuconv.cpu.conv_pool_gradient import gradient
from gpuconv.cpu.elementwise import plain
from gpuconv.cpu.plan import Plan, forward_plan
from gpuconv.cpu.precision import modes, sums_in_float64
from gpuconv.cpu.vector import LANES, VECTOR_BYTES
from gpuconv.cpu.vector_lanes import transpose
from gpuconv.cpu.vector_pooled import FEW, PAIRS, PIXELS, pooled_filters, pooled_pixels
from gpuconv.cpu.workspace import scratch
from gpuconv.shapes import Window
from gpuconv.threads import parallel, shards

MOST_FLOATS = 96 * 1024  # of one image's convolution: for more, the separate passes are as good


class _Fused(NamedTuple):
    """How the fused loops run for one set of shapes."""

    plan: Plan
    tile: int  # LANES or FEW
    P: int  # of the pooled output
    Q: int
    pixels: int  # of one filter's pooled output, with the last tile's unused ones


@lru_cache(maxsize=1024)
def _fused(
    x_shape: tuple[int, ...],
    dtype: np.dtype,
    w_shape: tuple[int, ...],
    window: Window,
    groups: int,
    pool_window: Window,
    modes: tuple[bool, bool],
) -> _Fused | None:
    """None where the two operations run one after the other. modes: precision.modes()."""
    P, Q = window.output_size(*x_shape[2:])
    if (
        sums_in_float64(dtype)
        or not pool_pairs.suits(dtype, pool_window, P, Q)
        or w_shape[0] * P * Q > MOST_FLOATS
        or winograd.suits(x_shape, w_shape, window, groups)
    ):
        return None
    plan = forward_plan((1, *x_shape[1:]), window, groups, 1)
    if plan.stage.blocks > 1:
        return None
    P, Q = P // 2, Q // 2
    tile = _tile(w_shape[0] // groups, P, Q)
    return _Fused(plan, tile, P, Q, -(-P * Q // LANES) * LANES + PAIRS)


def forward(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None,
    window: Window,
    groups: int,
    pool_window: Window,
) -> tuple[np.ndarray, np.ndarray]:
    """(y, argmax) as pool.max_forward(conv.forward(x, w, b, window, groups, "relu"), pool_window)
    gives them.
    """
    fused = _fused(x.shape, x.dtype, w.shape, window, groups, pool_window, modes())
    if fused is None:
        return pool.max_forward(conv.forward(x, w, b, window, groups, "relu"), pool_window)
    x, w = plain(x), plain(w)
    plan, tile, P, Q, pixels = fused
    N, K = len(x), len(w)
    weights, bias = _pack(w.reshape(groups, K // groups, -1), tile), _pack_bias(b, K, groups, tile)
    y, argmax = np.empty((N, K, P, Q), np.float32), np.empty((N, K, P, Q), np.uint8)

    def run(begin: int, end: int) -> None:
        staged = scratch("staged", plan.scratch + 2 * PIXELS)
        staged[:] = 0
        values, winners = (
            scratch("pooled", pixels * LANES),
            scratch("won", pixels * LANES, np.uint8),
        )
        images = x[begin:end], y[begin:end], argmax[begin:end]
        geometry = plan.stage, plan.phases, plan.offsets
        if tile == LANES:
            _forward_filters(*images, *geometry, weights, bias, staged, values, winners)
        else:
            _forward_pixels(*images, *geometry, weights, bias, staged, winners)

    parallel(run, shards(N), blas=False)
    return y, argmax


def _tile(filters: int, P: int, Q: int) -> int:
    """LANES where a vector of filters wastes fewer products, FEW where one of pixels does."""
    by_filters = -(-filters // LANES) * -(-Q // PAIRS) * PAIRS
    by_pixels = -(-filters // FEW) * -(-Q // LANES) * FEW
    return LANES if by_filters <= by_pixels else FEW


def _pack(w: np.ndarray, tile: int) -> np.ndarray:
    """(groups, K, depth) as (groups, tiles, depth, tile), zeros beyond K."""
    groups, K, depth = w.shape
    packed = np.zeros((groups, -(-K // tile) * tile, depth), np.float32)
    packed[:, :K] = w
    return np.ascontiguousarray(packed.reshape(groups, -1, tile, depth).swapaxes(2, 3))


def _pack_bias(b: np.ndarray | None, K: int, groups: int, tile: int) -> np.ndarray:
    b = np.zeros(K, np.float32) if b is None else plain(b)
    return _pack(b.reshape(groups, K // groups, 1), tile).reshape(groups, -1)


@compiled
def _forward_filters(x, y, argmax, stage, phases, offsets, weights, bias, staged, values, winners):
    """A vector holds LANES filters of one pixel."""
    groups, tiles, depth, _ = weights.shape
    N, K, P, Q = y.shape
    K //= groups
    row_bytes = 4 * stage.width
    last = max(Q - PAIRS, 0)  # the last tile begins here, whatever the one before it has done
    for n in range(N):
        for group in range(groups):
            stage_input(x, stage, phases, group, n, 1, 0, stage.P, staged)
            for tile in range(tiles):
                for p in range(P):
                    for column in range(0, Q, PAIRS):
                        q = min(column, last)
                        pooled_filters(
                            address(weights[group, tile]),
                            address(staged) + 2 * p * row_bytes + 8 * q,
                            row_bytes,
                            address(offsets),
                            depth,
                            address(bias[group]) + tile * VECTOR_BYTES,
                            address(values) + (p * Q + q) * VECTOR_BYTES,
                            address(winners) + (p * Q + q) * LANES,
                        )
                first = group * K + tile * LANES
                count = min(LANES, K - tile * LANES)
                _unpack(values, winners, y[n], argmax[n], first, count, P * Q)


@compiled
def _unpack(values, winners, y, argmax, first, count, pixels):
    """y[first + lane] and argmax of values (pixels, LANES) and winners, for `count` lanes."""
    to = argmax.reshape(-1)
    for pixel in range(0, pixels, LANES):
        inside = min(LANES, pixels - pixel)
        source = address(values) + pixel * VECTOR_BYTES
        target = address(y) + 4 * (first * pixels + pixel)
        bits = (1 << count) - 1
        transpose(source, VECTOR_BYTES, inside, bits, target, 4 * pixels, (1 << inside) - 1)
    for lane in range(count):
        for pixel in range(pixels):
            to[(first + lane) * pixels + pixel] = winners[pixel * LANES + lane]


@compiled
def _forward_pixels(x, y, argmax, stage, phases, offsets, weights, bias, staged, winners):
    """A vector holds LANES pixels of one filter."""
    groups, tiles, depth, _ = weights.shape
    N, K, P, Q = y.shape
    K //= groups
    row_bytes = 4 * stage.width
    for n in range(N):
        for group in range(groups):
            stage_input(x, stage, phases, group, n, 1, 0, stage.P, staged)
            for tile in range(tiles):
                first, count = group * K + tile * FEW, min(FEW, K - tile * FEW)
                for p in range(P):
                    for q in range(0, Q, LANES):
                        inside = min(LANES, Q - q)
                        pooled_pixels(
                            address(weights[group, tile]),
                            address(staged) + 2 * p * row_bytes + 8 * q,
                            row_bytes,
                            address(offsets),
                            depth,
                            address(bias[group]) + 4 * tile * FEW,
                            count,
                            address(y[n, first, p]) + 4 * q,
                            4 * P * Q,
                            ALL if inside == LANES else (1 << inside) - 1,
                            address(winners),
                        )
                        for m in range(count):
                            for lane in range(inside):
                                argmax[n, first + m, p, q + lane] = winners[m * LANES + lane]


def backward(
    dy: np.ndarray,
    y: np.ndarray,
    argmax: np.ndarray,
    x: np.ndarray,
    w: np.ndarray,
    window: Window,
    groups: int,
    pool_window: Window,
    need_dx: bool = True,
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """(dx or None, dw, db) of dy, the gradient of `forward`'s y; y and argmax as `forward` returned
    them.
    """
    if _fused(x.shape, x.dtype, w.shape, window, groups, pool_window, modes()) is not None:
        dy, y, argmax, x, w = map(plain, (dy, y, argmax, x, w))
        return gradient(dy, y, argmax, x, w, window, groups, need_dx)
    size = window.output_size(*x.shape[2:])
    masked = np.where(y <= 0, np.zeros((), dy.dtype), dy)
    spread = pool.max_backward(masked, argmax, (len(x), w.shape[0], *size), pool_window)
    del masked
    return conv.backward(spread, x, w, window, groups, need_dx)
