"""The convolution for NumPy arrays: which algorithm computes which pass (README.md has a table)."""

from __future__ import annotations

import numpy as np

from gpuconv.cpu import conv_direct, conv_gemm, conv_per_tap, conv_pointwise, conv_wgrad, winograd
from gpuconv.cpu.elementwise import contiguous
from gpuconv.cpu.precision import sums_in_float64
from gpuconv.shapes import Window
from gpuconv.threads import blas_threads, thread_count


def forward(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None,
    window: Window,
    groups: int,
    activation: str | None = None,
) -> np.ndarray:
    """y (N, K, P, Q) of x (N, C, H, W), w (K, C/groups, R, S) and b (K,) or None.

    activation: None or "relu"; a NaN passes through it. Arrays may have any strides.
    """
    x, w, b = contiguous(x), contiguous(w), None if b is None else contiguous(b)
    dtype, relu = x.dtype, activation == "relu"
    if sums_in_float64(dtype):
        x, w = x.astype(np.float64), w.astype(np.float64)
    if x.dtype != np.float32 or is_sparse(x.shape, window):
        with blas_threads(thread_count()):
            y = conv_per_tap.forward(x, w, window, groups)
        if b is not None:
            y += b[:, None, None]
        y = np.maximum(y, 0, out=y) if relu else y
        return y.astype(dtype, copy=False)
    fast = None
    if conv_gemm.suits(x.shape, window, groups):
        fast = conv_gemm.forward(x, w, b, relu)
    elif conv_pointwise.suits(x.shape, w.shape, window, groups):
        fast = conv_pointwise.forward(x, w, b, relu)
    elif winograd.suits(x.shape, w.shape, window, groups):
        fast = winograd.forward(x, w, b, window, relu)
    return conv_direct.forward(x, w, b, window, groups, relu) if fast is None else fast


def is_sparse(x_shape: tuple[int, ...], window: Window) -> bool:
    """Whether most of what the fast loops copy or visit would be padding, or pixels of no window.

    `conv_per_tap` passes over it.
    """
    return max(window.stride) > 64 or window.mostly_outside(*x_shape[2:])


def backward(
    dy: np.ndarray, x: np.ndarray, w: np.ndarray, window: Window, groups: int, need_dx: bool = True
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """(dx, dw, db) of the shapes of x, w and (K,); dx is None without `need_dx`.

    dy: (N, K, P, Q), the gradient before the activation. Arrays may have any strides.
    """
    dy, x, w = contiguous(dy), contiguous(x), contiguous(w)
    if sums_in_float64(x.dtype):
        wide = dy.astype(np.float64), x.astype(np.float64), w.astype(np.float64)
        dx, dw, db = backward(*wide, window, groups, need_dx)
        return None if dx is None else dx.astype(x.dtype), dw.astype(w.dtype), db.astype(x.dtype)
    if x.dtype != np.float32 or is_sparse(x.shape, window):
        with blas_threads(thread_count()):
            dx, dw = conv_per_tap.backward(dy, x, w, window, groups, need_dx)
        return dx, dw, dy.sum((0, 2, 3))
    weights = None
    if conv_gemm.suits(x.shape, window, groups):
        weights = conv_gemm.weight_gradient(dy, x)
    elif winograd.suits(x.shape, w.shape, window, groups, dw=True):
        weights = winograd.weight_gradient(dy, x, w.shape, window)
    if weights is None:
        weights = conv_wgrad.weight_gradient(dy, x, w.shape, window, groups)
    return input_gradient(dy, w, x.shape, window, groups) if need_dx else None, *weights


def input_gradient(
    dy: np.ndarray, w: np.ndarray, x_shape: tuple[int, ...], window: Window, groups: int
) -> np.ndarray:
    """dx (of x_shape) alone, for float32 arrays in C order."""
    dx = None
    if conv_gemm.suits(x_shape, window, groups):
        dx = conv_gemm.input_gradient(dy, w)
    elif conv_pointwise.suits(x_shape, w.shape, window, groups):
        dx = conv_pointwise.input_gradient(dy, w)
    elif winograd.suits(x_shape, w.shape, window, groups):
        dx = winograd.input_gradient(dy, w, x_shape, window)
    return conv_direct.input_gradient(dy, w, x_shape, window, groups) if dx is None else dx
