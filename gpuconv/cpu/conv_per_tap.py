"""Convolution as a sum of matrix products, one for each filter tap: for float64.

float64 is for checks and for `float64_sums`; simple code matters more there than speed.
"""

from __future__ import annotations

import numpy as np

from gpuconv.shapes import Window


def forward(x: np.ndarray, w: np.ndarray, window: Window, groups: int) -> np.ndarray:
    """y (N, K, P, Q) of x (N, C, H, W) and w (K, C/groups, R, S)."""
    (N, _, H, W), (K, D, R, S) = x.shape, w.shape
    y = np.zeros((groups, K // groups, N, *window.output_size(H, W)), x.dtype)
    channels, filters = _by_group(x, groups), w.reshape(groups, K // groups, D, R, S)
    for r, s, out, pixels in window.taps(H, W):
        part = channels[pixels]
        y[out] += (filters[..., r, s] @ part.reshape(groups, D, -1)).reshape(y[out].shape)
    return _by_image(y)


def backward(
    dy: np.ndarray, x: np.ndarray, w: np.ndarray, window: Window, groups: int, need_dx: bool
) -> tuple[np.ndarray | None, np.ndarray]:
    """(dx or None, dw) of dy (N, K, P, Q), x (N, C, H, W) and w (K, C/groups, R, S)."""
    (_, _, H, W), (K, D, R, S) = x.shape, w.shape
    channels, gradient = _by_group(x, groups), _by_group(dy, groups)
    filters = w.reshape(groups, K // groups, D, R, S)
    dx, dw = np.zeros(channels.shape, x.dtype), np.zeros(filters.shape, w.dtype)
    for r, s, out, pixels in window.taps(H, W):
        rows = gradient[out].reshape(groups, K // groups, -1)
        part = channels[pixels].reshape(groups, D, -1)
        dw[..., r, s] = rows @ part.swapaxes(1, 2)
        if need_dx:
            dx[pixels] += (filters[..., r, s].swapaxes(1, 2) @ rows).reshape(dx[pixels].shape)
    return _by_image(dx) if need_dx else None, dw.reshape(w.shape)


def _by_group(a: np.ndarray, groups: int) -> np.ndarray:
    """(groups, channels in each, N, H, W) from (N, channels, H, W)."""
    N, C, H, W = a.shape
    return a.reshape(N, groups, C // groups, H, W).transpose(1, 2, 0, 3, 4)


def _by_image(a: np.ndarray) -> np.ndarray:
    """(N, channels, H, W) from (groups, channels in each, N, H, W)."""
    groups, C, N, H, W = a.shape
    return np.ascontiguousarray(a.reshape(groups * C, N, H, W).swapaxes(0, 1))
