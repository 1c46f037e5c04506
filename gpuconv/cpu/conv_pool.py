"""Convolution, bias, ReLU and 2 x 2 max-pool in one pass: the convolution's output never leaves the
cache.

An image at a time is convolved into scratch memory and pooled from there. Only the pooled values
and
their places are kept, a quarter of the convolution's output and a byte each; backward rebuilds its
gradient from them.
Other pools, and layers for which this does not pay, are the two operations one after the other.
"""

from __future__ import annotations

import numpy as np

from gpuconv.cpu import conv, pool, pool_pairs, winograd
from gpuconv.cpu.conv_direct import convolve_blocks, forward_weights, input_passes
from gpuconv.cpu.conv_weights import WeightSums, accumulate_blocks
from gpuconv.cpu.elementwise import plain
from gpuconv.cpu.plan import forward_plan, input_plan, tiles
from gpuconv.cpu.pool_pairs import max_planes, spread_planes
from gpuconv.cpu.threads import parallel, shards
from gpuconv.cpu.vector import compiled
from gpuconv.cpu.workspace import scratch
from gpuconv.shapes import Window

MOST_FLOATS = 96 * 1024  # of one image's convolution: more would not stay in the cache


def _fuses(x: np.ndarray, w: np.ndarray, window: Window, groups: int, pool_window: Window) -> bool:
    P, Q = window.output_size(*x.shape[2:])
    return (
        pool_pairs.suits(x.dtype, pool_window, P, Q)
        and w.shape[0] * P * Q <= MOST_FLOATS
        and not winograd.suits(x.shape, w.shape, window, groups)
    )


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
    if not _fuses(x, w, window, groups, pool_window):
        return pool.max_forward(conv.forward(x, w, b, window, groups, "relu"), pool_window)
    x, w = plain(x), plain(w)
    (N, _, H, W), K = x.shape, w.shape[0]
    P, Q = window.output_size(H, W)
    plan = forward_plan((1, *x.shape[1:]), window, groups, 1)
    first, height, _ = tiles(K // groups)
    weights = forward_weights(w, groups)
    bias = np.zeros(K, np.float32) if b is None else plain(b)
    y, argmax = (
        np.empty((N, K, P // 2, Q // 2), np.float32),
        np.empty((N, K, P // 2, Q // 2), np.uint8),
    )

    def run(begin: int, end: int) -> None:
        staged, convolved = scratch("staged", plan.scratch), scratch("convolved", K * P * Q)
        staged[:] = 0
        _forward_images(
            x,
            begin,
            end,
            plan.stage,
            plan.phases,
            plan.offsets,
            weights,
            bias,
            first,
            height,
            groups,
            staged,
            convolved.reshape(1, K, P, Q),
            y,
            argmax,
        )

    parallel(run, shards(N), blas=False)
    return y, argmax


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
    size = window.output_size(*x.shape[2:])
    if not _fuses(x, w, window, groups, pool_window):
        masked = np.where(y <= 0, np.zeros((), dy.dtype), dy)
        spread = pool.max_backward(masked, argmax, (len(x), w.shape[0], *size), pool_window)
        return conv.backward(spread, x, w, window, groups, need_dx)
    dy, y, argmax, x, w = (plain(a) for a in (dy, y, argmax, x, w))
    image, pieces, K = (1, *x.shape[1:]), shards(len(x)), w.shape[0]
    sums = WeightSums(image, w.shape, window, groups, 1, pieces)
    plan, phases = input_plan(image, K, window, groups, 1)
    dx, weights, passes, offsets, steps = input_passes(
        w, x.shape if need_dx else image, window, groups, phases
    )
    first, height, _ = tiles(w.shape[1])

    def run(begin: int, end: int) -> None:
        total, staged, turned = sums.workspace(begin)
        gradient = scratch("convolved", K * size[0] * size[1]).reshape(1, K, *size)
        dx_staged = scratch("staged", plan.scratch)
        dx_staged[:] = 0
        _backward_images(
            dy,
            y,
            argmax,
            x,
            begin,
            end,
            groups,
            gradient,
            sums.plan.stage,
            sums.plan.phases,
            *sums.cut,
            staged,
            turned,
            total,
            need_dx,
            plan.stage,
            plan.phases,
            offsets,
            weights,
            passes,
            first,
            height,
            dx_staged,
            dx.reshape(len(dx), -1),
            steps,
        )

    parallel(run, pieces, blas=False)
    return dx if need_dx else None, *sums.finish()


@compiled
def _forward_images(
    x,
    begin,
    end,
    stage,
    phases,
    offsets,
    weights,
    bias,
    first,
    height,
    groups,
    staged,
    convolved,
    y,
    argmax,
):
    _, K, P, Q = convolved.shape
    steps = np.array([0, Q, 1, P * Q])
    passes = np.array([[0, 0, len(offsets), 0, P, Q]])
    out = convolved.reshape(-1)
    for n in range(begin, end):
        convolve_blocks(
            x[n : n + 1],
            stage,
            phases,
            offsets,
            weights,
            bias,
            1,
            passes,
            first,
            height,
            K // groups,
            groups,
            0,
            stage.blocks,
            staged,
            out,
            steps,
        )
        max_planes(convolved[0], y[n], argmax[n])


@compiled
def _backward_images(
    dy,
    y,
    argmax,
    x,
    begin,
    end,
    groups,
    gradient,
    stage,
    phases,
    offsets,
    first,
    height,
    staged,
    turned,
    sums,
    need_dx,
    dx_stage,
    dx_phases,
    dx_offsets,
    weights,
    passes,
    dx_first,
    dx_height,
    dx_staged,
    dx,
    steps,
):
    K = dy.shape[1] // groups
    bias = np.zeros(x.shape[1], np.float32)
    for n in range(begin, end):
        spread_planes(dy[n], argmax[n], y[n], True, gradient[0])
        accumulate_blocks(
            x[n : n + 1],
            gradient,
            stage,
            phases,
            offsets,
            first,
            height,
            K,
            groups,
            0,
            stage.blocks,
            staged,
            turned,
            sums,
        )
        if need_dx:
            convolve_blocks(
                gradient,
                dx_stage,
                dx_phases,
                dx_offsets,
                weights,
                bias,
                0,
                passes,
                dx_first,
                dx_height,
                x.shape[1] // groups,
                groups,
                0,
                dx_stage.blocks,
                dx_staged,
                dx[n],
                steps,
            )
