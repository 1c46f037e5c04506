"""Batch normalisation, one channel at a time: each thread has channels of its own.

A channel's planes are read from memory once; later passes over them find them in the cache. Sums
are in float64, in an order that does not depend on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from gpuconv.cpu.compiled import compiled, inner
from gpuconv.cpu.elementwise import GRAIN, REORDER, contiguous, total_of
from gpuconv.threads import parallel, shards

PIECE = 2048  # elements, in the L1 cache; a quarter and four times of it take the same time

Images = tuple[np.ndarray, int]  # the elements in a row, how many from one image to the next


def forward(
    x: np.ndarray,
    w: np.ndarray | None,
    b: np.ndarray | None,
    mean: np.ndarray | None,
    var: np.ndarray | None,
    eps: float,
    relu: bool,
    other: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(y, mean, var) of x (N, C, H, W); w, b, mean and var are (C,) or None.

    Without mean the statistics are those of x. other: added to y before the ReLU. x may be channels
    cut from a wider array, whose images lie further apart than they are long.
    """
    y, of_batch = np.empty(x.shape, x.dtype), mean is None
    mean, var = (np.empty(x.shape[1], x.dtype) if a is None else np.array(a) for a in (mean, var))
    vectors = _vector(w, 1, x), _vector(b, 0, x), mean, var
    arrays = map(images, (x, y[:0] if other is None else other, y))
    _over_channels(x.shape, _forward, *arrays, vectors, eps, relu, of_batch)
    return y, mean, var


def backward(
    dy: np.ndarray,
    x: np.ndarray,
    w: np.ndarray | None,
    b: np.ndarray | None,
    mean: np.ndarray,
    var: np.ndarray,
    eps: float,
    relu: bool,
    of_batch: bool,
    need_dx: bool,
    in_place: bool = False,
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """(dx, dw, db), as the reference implementation; dy and x may be cut from wider arrays.

    in_place: dx takes dy's memory, which must be in C order.
    """
    dx = dy if in_place else np.empty(x.shape if need_dx else (0, *x.shape[1:]), x.dtype)
    dw, db = np.empty(x.shape[1], x.dtype), np.empty(x.shape[1], x.dtype)
    vectors = _vector(w, 1, x), _vector(b, 0, x), np.array(mean), np.array(var), dw, db
    arrays = map(images, (dy, x, dx))
    _over_channels(x.shape, _backward, *arrays, vectors, eps, relu, of_batch)
    return dx if need_dx else None, None if w is None else dw, None if b is None else db


def images(a: np.ndarray) -> Images:
    """`a` (N, C, H, W). Channels cut from a wider array are used where they are; any other layout
    than C order is copied.
    """
    size = math.prod(a.shape[1:])
    step, rest = divmod(a.strides[0], a.itemsize)
    if a.flags.carray or not a[0].flags.carray or step < size or rest:
        return contiguous(a).reshape(-1), size
    count = (len(a) - 1) * step + size
    return np.lib.stride_tricks.as_strided(a, (count,), (a.itemsize,)), step


def _over_channels(shape: tuple[int, ...], function: Callable[..., None], *arguments: Any) -> None:
    """function(*arguments, N, H*W, first, end) for shards of the channels."""
    N, C, H, W = shape
    parallel(partial(function, *arguments, N, H * W), shards(C, GRAIN / (N * H * W)))


def _vector(values: np.ndarray | None, default: int, x: np.ndarray) -> np.ndarray:
    return np.full(x.shape[1], default, x.dtype) if values is None else np.ascontiguousarray(values)


# The loops go over views: an index into the whole array may be negative for all that the compiler
# knows, which keeps it from using vectors (8x256x56x56 forward: 9.4 ms, with views 1.9).
@inner
def _view(images, n, first, count):
    """`count` elements of image n from `first` on."""
    elements, step = images
    begin = n * step + first
    return elements[begin : begin + count]


@inner(fastmath=REORDER)
def _squares(x, mean):
    total = 0.0
    for i in range(len(x)):
        d = np.float64(x[i]) - mean
        total += d * d
    return total


@inner
def _normalise(x, mean, factor, shift, other, least, y):
    kind = x.dtype.type
    for i in range(len(x)):
        value = (x[i] - mean) * factor + shift
        if other is not None:
            value = kind(value) + other[i]
        y[i] = least if value < least else value


@compiled
def _forward(x, other, y, vectors, eps, relu, of_batch, N, size, first, end):
    w, b, means, variances = vectors
    least = w.dtype.type(0 if relu else -np.inf)
    for c in range(first, end):
        at = c * size
        if of_batch:
            total, squares = 0.0, 0.0
            for n in range(N):
                total += total_of(_view(x, n, at, size))
            for n in range(N):
                squares += _squares(_view(x, n, at, size), total / (N * size))
            means[c], variances[c] = total / (N * size), squares / (N * size)
        factor = w[c] / np.sqrt(variances[c] + eps)
        mean, shift = np.float64(means[c]), np.float64(b[c])
        for n in range(N):
            values, made = _view(x, n, at, size), _view(y, n, at, size)
            if len(other[0]):
                _normalise(values, mean, factor, shift, _view(other, n, at, size), least, made)
            else:
                _normalise(values, mean, factor, shift, None, least, made)


@inner
def _through_relu(dy, away, factor, shift, relu):
    """dy in float64; with `relu` 0 where _forward's y is not above 0. away: x - mean.

    Not compiled with REORDER: fused multiply-adds could decide otherwise than _forward.
    """
    return np.float64(0.0) if relu & (away * factor + shift <= 0) else np.float64(dy)


@inner(fastmath=REORDER)
def _products(dy, x, mean, factor, shift, relu):
    """The sums over a plane of dy through the ReLU, and of that times x - mean."""
    total, products = 0.0, 0.0
    for i in range(len(x)):
        away = x[i] - mean
        d = _through_relu(dy[i], away, factor, shift, relu)
        total += d
        products += d * away
    return total, products


@inner
def _input_gradient(dy, x, mean, factor, shift, relu, base, slope, dx):
    for i in range(len(x)):
        away = x[i] - mean
        d = _through_relu(dy[i], away, factor, shift, relu)
        dx[i] = factor * (d - base - away * slope)


@compiled
def _backward(dy, x, dx, vectors, eps, relu, of_batch, N, size, first, end):
    w, b, means, variances, dw, db = vectors
    piece = np.empty(min(size, PIECE), w.dtype)
    for c in range(first, end):
        deviation = np.sqrt(variances[c] + eps)
        mean, factor, shift = np.float64(means[c]), w[c] / deviation, np.float64(b[c])
        total, products = 0.0, 0.0
        for n in range(N):
            values, given = _view(x, n, c * size, size), _view(dy, n, c * size, size)
            sums = _products(given, values, mean, factor, shift, relu)
            total, products = total + sums[0], products + sums[1]
        dw[c], db[c] = products / deviation, total
        base, slope = 0.0, 0.0
        if of_batch:
            base = total / (N * size)
            slope = products / (N * size) / (deviation * deviation)
        for n in range(N if len(dx[0]) else 0):
            for i in range(0, size, PIECE):
                at, count = c * size + i, min(PIECE, size - i)
                # dx may be dy itself: a copy cannot overlap it, so that _input_gradient vectorises
                given = _view(dy, n, at, count)
                for j in range(count):  # Numba takes 2 seconds for an assignment of slices
                    piece[j] = given[j]
                values, made = _view(x, n, at, count), _view(dx, n, at, count)
                _input_gradient(piece, values, mean, factor, shift, relu, base, slope, made)
