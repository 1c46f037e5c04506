"""Convolution by filters as large as the image: one matrix product, as in a linear layer.

The last convolution of LeNet-5 is one.
"""

from __future__ import annotations

import numpy as np

from gpuconv.cpu.matmul import matmul
from gpuconv.shapes import Window


def suits(x_shape: tuple[int, ...], w_shape: tuple[int, ...], window: Window, groups: int) -> bool:
    """Whether each filter covers the whole image, without padding: one output pixel."""
    return (
        groups == 1
        and window.kernel_size == tuple(x_shape[2:])
        and window.output_size(*x_shape[2:]) == (1, 1)
        and window.pads(*x_shape[2:]) == ((0, 0), (0, 0))
        and min(x_shape) > 0
    )


def forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None, window: Window, groups: int, relu: bool
) -> np.ndarray:
    """y (N, K, 1, 1) of x (N, C, H, W), w (K, C, H, W) and b (K,) or None."""
    y = matmul(x.reshape(len(x), -1), w.reshape(len(w), -1).T)
    if b is not None:
        y += b
    if relu:
        np.maximum(y, 0, out=y)
    return y[..., None, None]


def input_gradient(
    dy: np.ndarray, w: np.ndarray, x_shape: tuple[int, ...], window: Window, groups: int
) -> np.ndarray:
    """dx (N, C, H, W) of dy (N, K, 1, 1) and w (K, C, H, W)."""
    return matmul(dy.reshape(len(dy), -1), w.reshape(len(w), -1)).reshape(x_shape)


def weight_gradient(
    dy: np.ndarray, x: np.ndarray, w_shape: tuple[int, ...], window: Window, groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """(dw (K, C, H, W), db (K,)) of dy (N, K, 1, 1) and x (N, C, H, W)."""
    rows = dy.reshape(len(dy), -1)
    return matmul(rows.T, x.reshape(len(x), -1)).reshape(w_shape), rows.sum(0)
