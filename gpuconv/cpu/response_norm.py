"""Local response normalisation: a strip of pixels through all channels at a time.

The strip stays in the cache, and the inner loops run along its pixels, so that they vectorise.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from gpuconv.cpu.compiled import compiled, inner
from gpuconv.cpu.elementwise import GRAIN, contiguous
from gpuconv.threads import parallel, shards

STRIP = 128  # pixels; with half of it AlexNet's layers take 1.1 times as long, with twice the same


def forward(x: np.ndarray, size: int, alpha: float, beta: float, k: float) -> np.ndarray:
    """y = x / (k + alpha * sum over `size` channels of x**2)**beta, x and y (N, C, H, W)."""
    return _over_strips(x, x, size, (alpha, beta, k), False)


def backward(
    dy: np.ndarray, x: np.ndarray, size: int, alpha: float, beta: float, k: float
) -> np.ndarray:
    """dx of dy and x, all (N, C, H, W)."""
    return _over_strips(dy, x, size, (alpha, beta, k), True)


def _over_strips(
    a: np.ndarray, x: np.ndarray, size: int, constants: tuple[float, ...], gradient: bool
) -> np.ndarray:
    out = np.empty(x.shape, x.dtype)
    planes = [array.reshape(*x.shape[:2], -1) for array in (contiguous(a), contiguous(x), out)]
    N, C, pixels = planes[0].shape
    run = partial(_strips, *planes, size, tuple(map(x.dtype.type, constants)), gradient)
    parallel(run, shards(N * -(-pixels // STRIP), GRAIN / (C * STRIP)))
    return out


@inner
def _sum_around(values, c, below, above, total):
    """total = the sum of values (C, pixels) over the channels from c - below to c + above."""
    total[:] = 0
    for j in range(max(0, c - below), min(len(values), c + above + 1)):
        for i in range(len(total)):
            total[i] += values[j, i]


@inner
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
def _strips(a, x, out, size, constants, gradient, first, end):
    """out = a / d**beta, d = k + alpha * sum of x**2; less the part of d's own gradient."""
    alpha, beta, k = constants
    C, pixels = x.shape[1:]
    strips, below, above = -(-pixels // STRIP), size // 2, (size - 1) // 2
    slope = x.dtype.type(2) * alpha * beta
    squares, products = np.empty((C, STRIP), x.dtype), np.empty((C, STRIP), x.dtype)
    sums, powers = np.empty(STRIP, x.dtype), np.empty(STRIP, x.dtype)
    for strip in range(first, end):
        n, begin = strip // strips, strip % strips * STRIP
        length = min(STRIP, pixels - begin)
        d, share = sums[:length], powers[:length]
        for c in range(C):
            for i in range(length):
                squares[c, i] = x[n, c, begin + i] * x[n, c, begin + i]
        for c in range(C):
            _sum_around(squares, c, below, above, d)
            for i in range(length):
                d[i] = k + alpha * d[i]
            _powers(d, beta, share)
            for i in range(length):
                out[n, c, begin + i] = a[n, c, begin + i] * share[i]
            for i in range(length if gradient else 0):
                products[c, i] = out[n, c, begin + i] * x[n, c, begin + i] / d[i]
        for c in range(C if gradient else 0):
            _sum_around(products, c, above, below, d)
            for i in range(length):
                out[n, c, begin + i] -= slope * x[n, c, begin + i] * d[i]
