"""2 x 2 max-pooling at stride 2 without padding, float32: a row of squares at a time, in vector
registers.
"""

from __future__ import annotations

import numpy as np

from gpuconv.cpu.blocks import address
from gpuconv.cpu.compiled import compiled
from gpuconv.cpu.vector import LANES
from gpuconv.cpu.vector_squares import max_pairs, spread_pairs
from gpuconv.shapes import Window


def suits(dtype: np.dtype, window: Window, H: int, W: int) -> bool:
    """Whether this is that pool; a last row or column that fills no window may be left over."""
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
    winners = np.empty(
        -(-Q // LANES) * LANES, np.uint8
    )  # whole vectors, which argmax has no room for
    for plane in range(planes):
        for p in range(P):
            upper, lower = address(x[plane, 2 * p]), address(x[plane, 2 * p + 1])
            for q in range(0, Q, LANES):
                bits = _bits(2 * (Q - q))
                out = address(y[plane, p]) + 4 * q
                max_pairs(upper + 8 * q, lower + 8 * q, bits, out, address(winners) + q)
            argmax[plane, p] = winners[:Q]


@compiled
def spread_planes(dy, argmax, dx):
    """dx (planes, H, W) of dy and argmax (planes, H//2, W//2)."""
    planes, P, Q = dy.shape
    _, H, W = dx.shape
    winners = np.empty(-(-Q // LANES) * LANES, np.uint8)
    for plane in range(planes):
        if H > 2 * P or W > 2 * Q:
            dx[plane] = 0
        for p in range(P):
            winners[:Q] = argmax[plane, p]
            upper, lower = address(dx[plane, 2 * p]), address(dx[plane, 2 * p + 1])
            for q in range(0, Q, LANES):
                bits = _bits(2 * (Q - q))
                source, at = address(dy[plane, p]) + 4 * q, address(winners) + q
                spread_pairs(source, at, bits, upper + 8 * q, lower + 8 * q)
