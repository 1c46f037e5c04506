"""Convolution, bias, ReLU and 2x2 max-pool in one pass: the convolution's output is never stored.

A block of the direct convolution is pooled while it is in the cache. Only the pooled values and the
index of each maximum are kept: a quarter of the convolution's output, and one byte each. The
backward pass visits only those maxima (conv_pool_backward.py). Other pools, and layers for which
this does not pay, run the two operations one after the other.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from gpuconv.cpu import conv, conv_direct, pool
from gpuconv.cpu.conv_pool_backward import backward_of_maxima
from gpuconv.cpu.direct_plan import abreast
from gpuconv.cpu.elementwise import contiguous, elementwise, relu_backward
from gpuconv.cpu.precision import modes
from gpuconv.shapes import Window

# Floats of one image's convolution output, and of its padded input, which are to fit the L2 cache.
# Forward and backward take 0.3 to 0.9 of the separate passes' time up to there; with 3 channels
# larger images gain as much; with 16 and more the backward pass at 112x112 and up is 1.1 to 1.3
# times as long.
MAX_IMAGE_FLOATS, MAX_INPUT_FLOATS = 96 * 1024, 160 * 1024


@lru_cache(maxsize=1024)
def is_fused(
    x_shape: tuple[int, ...],
    dtype: np.dtype,
    w_shape: tuple[int, ...],
    window: Window,
    groups: int,
    pool_window: Window,
    modes: tuple[bool, bool],
) -> bool:
    """Whether both operations run in one pass. modes: precision.modes()."""
    H, W = x_shape[2:]
    (P, Q), (rows, columns) = window.output_size(H, W), window.pads(H, W)
    float64_sums, _ = modes
    return (
        not float64_sums
        and window.stride == (1, 1)
        and _is_2x2(pool_window, P, Q)
        and w_shape[0] * P * Q <= MAX_IMAGE_FLOATS
        and x_shape[1] // groups * (H + sum(rows)) * (W + sum(columns)) <= MAX_INPUT_FLOATS
        and (groups == 1 or not abreast(x_shape[0], w_shape[1], w_shape[0] // groups, groups))
        and conv.algorithms(dtype, x_shape, w_shape, window, groups, modes)[0] is conv_direct
    )


def _is_2x2(window: Window, H: int, W: int) -> bool:
    """Whether windows are 2x2 and lie side by side; a last row or column may be left over."""
    return (
        window.kernel_size == window.stride == (2, 2)
        and window.dilation == (1, 1)
        and window.pads(H, W) == ((0, 0), (0, 0))
        and window.output_size(H, W) == (H // 2, W // 2)
    )


def forward(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None,
    window: Window,
    groups: int,
    pool_window: Window,
) -> tuple[np.ndarray, np.ndarray]:
    """(y, argmax) of conv.forward with its ReLU and pool.max_forward."""
    if is_fused(x.shape, x.dtype, w.shape, window, groups, pool_window, modes()):
        x, w, b = contiguous(x), contiguous(w), None if b is None else contiguous(b)
        return conv_direct.pooled_forward(x, w, b, window, groups)
    return pool.max_forward(conv.forward(x, w, b, window, groups, "relu"), pool_window)


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
    """(dx or None, dw, db) of dy, the gradient of `forward`'s y; y and argmax are `forward`'s."""
    if is_fused(x.shape, x.dtype, w.shape, window, groups, pool_window, modes()):
        dy, x = contiguous(dy), contiguous(x)
        return backward_of_maxima(dy, y, argmax, x, w, window, groups, need_dx)
    shape = len(x), len(w), *window.output_size(*x.shape[2:])
    unpooled = pool.max_backward(elementwise(relu_backward, dy, y), argmax, shape, pool_window)
    return conv.backward(unpooled, x, w, window, groups, need_dx)
