"""The convolution for NumPy arrays: which algorithm computes which pass (README.md has a table)."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

import numpy as np

from gpuconv.cpu import conv_direct, conv_gemm, conv_per_tap, winograd
from gpuconv.cpu.elementwise import contiguous
from gpuconv.cpu.precision import modes, sums_in_float64
from gpuconv.shapes import Window

Shape = tuple[int, ...]


@lru_cache(maxsize=4096)
def algorithms(
    dtype: np.dtype,
    x_shape: Shape,
    w_shape: Shape,
    window: Window,
    groups: int,
    modes: tuple[bool, bool],
    dw: bool = False,
) -> tuple[ModuleType, ...]:
    """The algorithms whose condition holds for a pass, in the order of preference.

    The first one computes it; one that declines because of the values leaves it to the next. modes:
    precision.modes().
    """
    of_shapes = x_shape, w_shape, window, groups
    # most of what the fast loops copy or visit would be padding, or pixels of no window
    sparse = max(window.stride) > 64 or window.mostly_outside(*x_shape[2:])
    table = (
        (conv_per_tap, dtype != np.float32 or sparse),
        (conv_gemm, conv_gemm.suits(*of_shapes)),
        (winograd, winograd.suits(*of_shapes, dw=dw)),
        (conv_direct, True),
    )
    return tuple(algorithm for algorithm, holds in table if holds)


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
    if sums_in_float64(x.dtype):
        wide = x.astype(np.float64), w.astype(np.float64)
        return forward(*wide, b, window, groups, activation).astype(x.dtype)
    x, w, b = contiguous(x), contiguous(w), None if b is None else contiguous(b)
    for algorithm in algorithms(x.dtype, x.shape, w.shape, window, groups, modes()):
        y = algorithm.forward(x, w, b, window, groups, activation == "relu")
        if y is not None:
            break
    return y


def backward(
    dy: np.ndarray, x: np.ndarray, w: np.ndarray, window: Window, groups: int, need_dx: bool = True
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """(dx, dw, db) of the shapes of x, w and (K,); dx is None without `need_dx`.

    dy: (N, K, P, Q), the gradient before the activation. Arrays may have any strides.
    """
    if sums_in_float64(x.dtype):
        wide = dy.astype(np.float64), x.astype(np.float64), w.astype(np.float64)
        dx, dw, db = backward(*wide, window, groups, need_dx)
        return None if dx is None else dx.astype(x.dtype), dw.astype(w.dtype), db.astype(x.dtype)
    dy, x, w = contiguous(dy), contiguous(x), contiguous(w)
    for algorithm in algorithms(x.dtype, x.shape, w.shape, window, groups, modes(), dw=True):
        weights = algorithm.weight_gradient(dy, x, w.shape, window, groups)
        if weights is not None:
            break
    return input_gradient(dy, w, x.shape, window, groups) if need_dx else None, *weights


def input_gradient(
    dy: np.ndarray, w: np.ndarray, x_shape: Shape, window: Window, groups: int
) -> np.ndarray:
    """dx (of x_shape) alone, for arrays in C order."""
    for algorithm in algorithms(dy.dtype, x_shape, w.shape, window, groups, modes()):
        dx = algorithm.input_gradient(dy, w, x_shape, window, groups)
        if dx is not None:
            break
    return dx
