"""Local response normalisation: a strip of pixels through all channels at a time.

The strip stays in the cache, and the inner loops run along its pixels, so that they vectorise.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from gpuconv.cpu.compiled import compiled
from gpuconv.cpu.elementwise import GRAIN, contiguous
from gpuconv.threads import parallel, shards

STRIP = 128  # pixels; with half of it AlexNet's layers take 1.1 times as long, with twice the same


def forward(x: np.ndarray, size: int, alpha: float, beta: float, k: float) -> np.ndarray:
    """y = x / (k + alpha * sum over `size` channels of x**2)**beta, x and y (N, C, H, W)."""
    y = np.empty(x.shape, x.dtype)
    _over_strips(_forward, (contiguous(x), y), size, alpha, beta, k)
    return y


def backward(
    dy: np.ndarray, x: np.ndarray, size: int, alpha: float, beta: float, k: float
) -> np.ndarray:
    """dx of dy and x, all (N, C, H, W)."""
    dx = np.empty(x.shape, x.dtype)
    _over_strips(_backward, (contiguous(dy), contiguous(x), dx), size, alpha, beta, k)
    return dx


def _over_strips(
    function: Any, arrays: tuple[np.ndarray, ...], size: int, *constants: float
) -> None:
    """function(*arrays (N, C, pixels), constants, first, end) for shards of the strips."""
    planes = [a.reshape(*a.shape[:2], -1) for a in arrays]
    N, C, pixels = planes[0].shape
    typed = size, *map(arrays[0].dtype.type, constants)
    pieces = shards(N * -(-pixels // STRIP), -(-GRAIN // (C * STRIP)))
    parallel(partial(function, *planes, typed), pieces)


@compiled
def _denominators(x, constants, d):
    """d[c] = k + alpha * sum of x**2 over the channels around c; x and d are (C, strip)."""
    size, alpha, _, k = constants
    C, length = x.shape
    for c in range(C):
        row = d[c]
        row[:] = 0
        for j in range(max(0, c - size // 2), min(C, c + (size - 1) // 2 + 1)):
            for i in range(length):
                row[i] += x[j, i] * x[j, i]
        for i in range(length):
            row[i] = k + alpha * row[i]


@compiled
def _powers(d, beta, share):
    """share = d**-beta; for the usual beta of 3/4 by square roots, which vectorise."""
    one = d.dtype.type(1)
    if beta == d.dtype.type(0.75):
        for i in range(len(d)):
            root = np.sqrt(d[i])
            share[i] = one / (root * np.sqrt(root))
    else:
        for i in range(len(d)):
            share[i] = d[i] ** -beta


@compiled
def _forward(x, y, constants, first, end):
    C, pixels = x.shape[1:]
    strips = -(-pixels // STRIP)
    d, share = np.empty((C, STRIP), x.dtype), np.empty(STRIP, x.dtype)
    for strip in range(first, end):
        n, begin = strip // strips, strip % strips * STRIP
        length = min(STRIP, pixels - begin)
        _denominators(x[n, :, begin : begin + length], constants, d[:, :length])
        for c in range(C):
            _powers(d[c, :length], constants[2], share)
            for i in range(length):
                y[n, c, begin + i] = x[n, c, begin + i] * share[i]


@compiled
def _backward(dy, x, dx, constants, first, end):
    size, alpha, beta, _ = constants
    C, pixels = x.shape[1:]
    strips = -(-pixels // STRIP)
    d, share = np.empty((C, STRIP), x.dtype), np.empty(STRIP, x.dtype)
    around = np.empty(STRIP, x.dtype)
    slope = x.dtype.type(2) * alpha * beta
    for strip in range(first, end):
        n, begin = strip // strips, strip % strips * STRIP
        length = min(STRIP, pixels - begin)
        _denominators(x[n, :, begin : begin + length], constants, d[:, :length])
        for c in range(C):  # d becomes dy * y / d, dx the direct part
            _powers(d[c, :length], beta, share)
            for i in range(length):
                direct = dy[n, c, begin + i] * share[i]
                dx[n, c, begin + i] = direct
                d[c, i] = direct * x[n, c, begin + i] / d[c, i]
        for c in range(C):
            around[:] = 0
            for j in range(max(0, c - (size - 1) // 2), min(C, c + size // 2 + 1)):
                for i in range(length):
                    around[i] += d[j, i]
            for i in range(length):
                dx[n, c, begin + i] -= slope * x[n, c, begin + i] * around[i]
