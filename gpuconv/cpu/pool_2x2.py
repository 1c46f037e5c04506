"""2x2 max-pooling at stride 2 without padding, float32: a vector of windows at a time."""

from __future__ import annotations

import numpy as np

from gpuconv.cpu.compiled import compiled
from gpuconv.cpu.inner_loops import address
from gpuconv.cpu.simd import LANES
from gpuconv.cpu.simd_pool import max_2x2, scatter_2x2
from gpuconv.shapes import Window


def suits(dtype: np.dtype, window: Window, H: int, W: int) -> bool:
    """Whether it is such a pool; a last row or column that fills no window may be left over."""
    return (
        dtype == np.float32
        and window.kernel_size == window.stride == (2, 2)
        and window.dilation == (1, 1)
        and window.pads(H, W) == ((0, 0), (0, 0))
        and window.output_size(H, W) == (H // 2, W // 2)
    )


@compiled
def _bits(columns):
    return (1 << min(columns, 2 * LANES)) - 1


@compiled
def max_planes(x, y, argmax):
    """y, argmax (planes, H//2, W//2) of x (planes, H, W)."""
    planes, P, Q = y.shape
    # whole vectors of indices are written, for which a row of argmax may have no room
    indices = np.empty(-(-Q // LANES) * LANES, np.uint8)
    for plane in range(planes):
        for p in range(P):
            upper, lower = address(x[plane, 2 * p]), address(x[plane, 2 * p + 1])
            for q in range(0, Q, LANES):
                bits = _bits(2 * (Q - q))
                out = address(y[plane, p]) + 4 * q
                max_2x2(upper + 8 * q, lower + 8 * q, bits, out, address(indices) + q)
            argmax[plane, p] = indices[:Q]


@compiled
def scatter_planes(dy, argmax, dx):
    """dx (planes, H, W) of dy and argmax (planes, H//2, W//2): dy at each maximum, else 0."""
    planes, P, Q = dy.shape
    _, H, W = dx.shape
    indices = np.empty(-(-Q // LANES) * LANES, np.uint8)
    for plane in range(planes):
        if H > 2 * P or W > 2 * Q:
            dx[plane] = 0
        for p in range(P):
            indices[:Q] = argmax[plane, p]
            upper, lower = address(dx[plane, 2 * p]), address(dx[plane, 2 * p + 1])
            for q in range(0, Q, LANES):
                bits = _bits(2 * (Q - q))
                source, at = address(dy[plane, p]) + 4 * q, address(indices) + q
                scatter_2x2(source, at, bits, upper + 8 * q, lower + 8 * q)
