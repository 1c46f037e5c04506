"""1x1 convolution at stride 1: one matrix product for each image, by BLAS, without any copy.

Measured against the direct convolution, which copies its input first: forward and dx took 0.6 to 1
of its time for 64 to 2048 channels on 7x7 to 56x56 images; dw was no faster and stays with
conv_wgrad.py.
"""

from __future__ import annotations

import numpy as np

from gpuconv.shapes import Window
from gpuconv.threads import blas_threads, parallel, shards, thread_count

# Below these sizes the product of one image is too small for BLAS: its start-up cost shows.
MIN_CHANNELS, MIN_PIXELS = 16, 49


def suits(x_shape: tuple[int, ...], w_shape: tuple[int, ...], window: Window, groups: int) -> bool:
    """Whether it is a 1x1 convolution that is expected to be faster here than elsewhere."""
    (_, C, H, W), K = x_shape, w_shape[0]
    return (
        groups == 1
        and window.kernel_size == window.stride == (1, 1)
        and window.output_size(H, W) == (H, W)
        and min(C, K) >= MIN_CHANNELS
        and H * W >= MIN_PIXELS
    )


def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, relu: bool) -> np.ndarray:
    """y (N, K, H, W) of x (N, C, H, W), w (K, C, 1, 1) and b (K,) or None."""
    return _products(w.reshape(w.shape[:2]), x, b, relu)


def input_gradient(dy: np.ndarray, w: np.ndarray) -> np.ndarray:
    """dx (N, C, H, W) of dy (N, K, H, W) and w (K, C, 1, 1)."""
    return _products(w.reshape(w.shape[:2]).T, dy, None, False)


def _products(matrix: np.ndarray, x: np.ndarray, b: np.ndarray | None, relu: bool) -> np.ndarray:
    """matrix @ each image of x; bias and ReLU are applied while the image is in the cache.

    The threads share the images, or the rows of the matrix where the images do not share out
    evenly.
    """
    N, C, H, W = x.shape
    rows = len(matrix)
    images, y = x.reshape(N, C, H * W), np.empty((N, rows, H * W), x.dtype)
    by_image = N % thread_count() == 0 or 4 * thread_count() <= N

    def product(begin: int, end: int) -> None:
        k = slice(0, rows) if by_image else slice(begin, end)
        for n in range(begin, end) if by_image else range(N):
            out = np.matmul(matrix[k], images[n], out=y[n, k])
            if b is not None:
                out += b[k, None]
            if relu:
                np.maximum(out, 0, out=out)

    with blas_threads(1):
        parallel(product, shards(N if by_image else rows))
    return y.reshape(N, rows, H, W)
