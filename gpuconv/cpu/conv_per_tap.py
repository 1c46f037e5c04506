"""Convolution as a sum of matrix products, one for each filter tap: for float64.

float64 is for checks and for `float64_sums`; simple code matters more there than speed. Taps that
read only padding are passed over.
"""

from __future__ import annotations

import numpy as np

from gpuconv.shapes import Window
from gpuconv.threads import blas_threads, thread_count


def forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None, window: Window, groups: int, relu: bool
) -> np.ndarray:
    """y (N, K, P, Q) of x (N, C, H, W), w (K, C/groups, R, S) and b (K,) or None."""
    (N, _, H, W), (K, D, R, S) = x.shape, w.shape
    y = np.zeros((groups, K // groups, N, *window.output_size(H, W)), x.dtype)
    channels, filters = _by_group(x, groups), w.reshape(groups, K // groups, D, R, S)
    with blas_threads(thread_count()):
        for r, s, out, pixels in window.taps(H, W):
            part = channels[pixels].reshape(groups, D, -1)
            y[out] += (filters[..., r, s] @ part).reshape(y[out].shape)
    y = _by_image(y)
    if b is not None:
        y += b[:, None, None]
    return np.maximum(y, 0, out=y) if relu else y


def input_gradient(
    dy: np.ndarray, w: np.ndarray, x_shape: tuple[int, ...], window: Window, groups: int
) -> np.ndarray:
    """dx (N, C, H, W) of dy (N, K, P, Q) and w (K, C/groups, R, S)."""
    (N, C, H, W), K = x_shape, len(w)
    gradient, filters = _by_group(dy, groups), w.reshape(groups, K // groups, *w.shape[1:])
    dx = np.zeros((groups, C // groups, N, H, W), dy.dtype)
    with blas_threads(thread_count()):
        for r, s, out, pixels in window.taps(H, W):
            rows = gradient[out].reshape(groups, K // groups, -1)
            dx[pixels] += (filters[..., r, s].swapaxes(1, 2) @ rows).reshape(dx[pixels].shape)
    return _by_image(dx)


def weight_gradient(
    dy: np.ndarray, x: np.ndarray, w_shape: tuple[int, ...], window: Window, groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """(dw (K, C/groups, R, S), db (K,)) of dy (N, K, P, Q) and x (N, C, H, W)."""
    (K, D, R, S), (H, W) = w_shape, x.shape[2:]
    channels, gradient = _by_group(x, groups), _by_group(dy, groups)
    dw = np.zeros((groups, K // groups, D, R, S), x.dtype)
    with blas_threads(thread_count()):
        for r, s, out, pixels in window.taps(H, W):
            rows = gradient[out].reshape(groups, K // groups, -1)
            dw[..., r, s] = rows @ channels[pixels].reshape(groups, D, -1).swapaxes(1, 2)
    return dw.reshape(w_shape), dy.sum((0, 2, 3))


def _by_group(a: np.ndarray, groups: int) -> np.ndarray:
    """(groups, channels in each, N, H, W) from (N, channels, H, W)."""
    N, C, H, W = a.shape
    return a.reshape(N, groups, C // groups, H, W).transpose(1, 2, 0, 3, 4)


def _by_image(a: np.ndarray) -> np.ndarray:
    """(N, channels, H, W) from (groups, channels in each, N, H, W)."""
    groups, C, N, H, W = a.shape
    return np.ascontiguousarray(a.reshape(groups * C, N, H, W).swapaxes(0, 1))
