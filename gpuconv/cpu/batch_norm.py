"""Batch normalisation, one channel at a time: each thread has channels of its own.

A channel's planes are read from memory once; later passes over them find them in the cache. Sums
are in float64, in an order that does not depend on the number of threads.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from gpuconv.cpu.compiled import compiled
from gpuconv.cpu.elementwise import GRAIN
from gpuconv.threads import Pieces, parallel, shards

# Lets the compiler sum in vector lanes; the order is fixed when the code is compiled, so results
# repeat. NaN and inf keep their meaning, unlike with fastmath=True.
REORDER = {"reassoc", "contract"}


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
    C = x.shape[1]
    y = np.empty(x.shape, x.dtype)
    flat, step = images(x)
    of_batch = mean is None
    mean = np.empty(C, x.dtype) if mean is None else np.array(mean)
    var = np.empty(C, x.dtype) if var is None else np.array(var)
    scale, shift = _vector(w, 1, x), _vector(b, 0, x)
    sizes = (len(x), C, math.prod(x.shape[2:]), step)
    out = y.reshape(-1)
    more, more_step = (flat[:0], 0) if other is None else images(other)
    fixed = flat, more, out, scale, shift, mean, var, eps, relu, of_batch, (*sizes, more_step)
    run = partial(_forward, *fixed)
    parallel(run, _shards(x))
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
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """(dx or None, dw, db), as the reference implementation; dy and x may be cut from wider arrays.

    in_place: dx takes dy's memory, which must be in C order.
    """
    C = x.shape[1]
    gradient, gradient_step = images(dy)
    flat, step = images(x)
    dx = None
    if need_dx:
        dx = dy if in_place else np.empty(x.shape, x.dtype)
    out = np.empty(0, x.dtype) if dx is None else dx.reshape(-1)
    dw, db = np.empty(C, x.dtype), np.empty(C, x.dtype)
    scale, shift = _vector(w, 1, x), _vector(b, 0, x)
    mean, var = np.array(mean), np.array(var)
    sizes = (len(x), C, math.prod(x.shape[2:]), gradient_step, step)
    arrays, flags = (scale, shift, mean, var), (relu, of_batch, need_dx)
    parallel(
        partial(_backward, gradient, flat, *arrays, eps, flags, out, dw, db, sizes), _shards(x)
    )
    return dx, dw, db


def images(a: np.ndarray) -> tuple[np.ndarray, int]:
    """(elements, step): `a` (N, C, H, W) as one row, and the elements from one image to the next.

    Channels cut from a wider array are used where they are; any other layout is copied.
    """
    size = math.prod(a.shape[1:])
    apart = a.strides[0] // a.itemsize
    whole = a[0].flags.c_contiguous and a.flags.aligned and a.strides[0] % a.itemsize == 0
    if not whole or (len(a) > 1 and apart < size):
        return np.ascontiguousarray(a).reshape(-1), size
    apart = apart if len(a) > 1 else size
    count = (len(a) - 1) * apart + size
    row = np.lib.stride_tricks.as_strided(a, (count,), (a.itemsize,), writeable=False)
    return row, apart


def _shards(x: np.ndarray) -> Pieces:
    return shards(x.shape[1], -(-GRAIN * x.shape[1] // x.size))


def _vector(values: np.ndarray | None, default: int, x: np.ndarray) -> np.ndarray:
    return np.full(x.shape[1], default, x.dtype) if values is None else np.ascontiguousarray(values)


PIECE = 2048  # elements, in the L1 cache; a quarter and four times of it take the same time


# The loops go over views: an index into the whole array may be negative for all that the compiler
# knows, which keeps it from using vectors (8x256x56x56 forward: 9.4 ms, with views 1.9).
@compiled(fastmath=REORDER)
def _sum(x):
    total = 0.0
    for i in range(len(x)):
        total += np.float64(x[i])
    return total


@compiled(fastmath=REORDER)
def _squares(x, mean):
    total = 0.0
    for i in range(len(x)):
        d = np.float64(x[i]) - mean
        total += d * d
    return total


@compiled
def _normalise(x, mean, factor, shift, least, y):
    for i in range(len(x)):
        value = (x[i] - mean) * factor + shift
        y[i] = least if value < least else value


@compiled
def _normalise_and_add(x, mean, factor, shift, other, least, y):
    kind = x.dtype.type
    for i in range(len(x)):
        value = kind((x[i] - mean) * factor + shift) + other[i]
        y[i] = least if value < least else value


@compiled
def _forward(x, other, y, w, b, means, variances, eps, relu, of_batch, sizes, first, end):
    N, C, size, step, other_step = sizes
    least = x.dtype.type(0 if relu else -np.inf)
    for c in range(first, end):
        if of_batch:
            total, squares = 0.0, 0.0
            for n in range(N):
                begin = n * step + c * size
                total += _sum(x[begin : begin + size])
            exact = total / (N * size)
            for n in range(N):
                begin = n * step + c * size
                squares += _squares(x[begin : begin + size], exact)
            means[c], variances[c] = exact, squares / (N * size)
        factor = w[c] / np.sqrt(variances[c] + eps)
        mean, shift = np.float64(means[c]), np.float64(b[c])
        for n in range(N):
            begin, to = n * step + c * size, (n * C + c) * size
            values, made = x[begin : begin + size], y[to : to + size]
            if len(other):
                at = n * other_step + c * size
                added = other[at : at + size]
                _normalise_and_add(values, mean, factor, shift, added, least, made)
            else:
                _normalise(values, mean, factor, shift, least, made)


@compiled(fastmath={"reassoc"})
def _products(dy, x, mean, factor, shift, relu):
    """The sums over a plane of dy, and of dy times x - mean; with `relu`, dy through the ReLU.

    Without "contract": where y is near 0, a fused multiply-add could decide otherwise than
    _forward.
    """
    total, products = 0.0, 0.0
    for i in range(len(x)):
        away = x[i] - mean
        negative = relu & (away * factor + shift <= 0)
        d = np.float64(0.0) if negative else np.float64(dy[i])
        total += d
        products += d * away
    return total, products


@compiled
def _input_gradient(dy, x, dx, constants, relu):
    mean, factor, shift, base, slope = constants
    for i in range(len(x)):
        away = x[i] - mean
        negative = relu & (away * factor + shift <= 0)
        d = np.float64(0.0) if negative else np.float64(dy[i])
        dx[i] = factor * (d - base - away * slope)


@compiled
def _copy(source, target):
    """A loop, because Numba takes 2 seconds to compile the error of an assignment of slices."""
    for i in range(len(source)):
        target[i] = source[i]


@compiled
def _backward(dy, x, w, b, means, variances, eps, flags, dx, dw, db, sizes, first, end):
    N, C, size, dy_step, step = sizes
    relu, of_batch, need_dx = flags
    piece = np.empty(min(size, PIECE), dx.dtype)
    for c in range(first, end):
        deviation = np.sqrt(variances[c] + eps)
        mean, factor, shift = np.float64(means[c]), w[c] / deviation, np.float64(b[c])
        total, products = 0.0, 0.0
        for n in range(N):
            at, begin = n * dy_step + c * size, n * step + c * size
            given = dy[at : at + size]
            sums = _products(given, x[begin : begin + size], mean, factor, shift, relu)
            total, products = total + sums[0], products + sums[1]
        dw[c], db[c] = products / deviation, total
        if not need_dx:
            continue
        base, slope = 0.0, 0.0
        if of_batch:
            base = total / (N * size)
            slope = products / (N * size) / (deviation * deviation)
        constants = (mean, factor, shift, base, slope)
        for n in range(N):
            for i in range(0, size, PIECE):
                count, place = min(PIECE, size - i), c * size + i
                # dx may be dy itself: a copy cannot overlap it, so the loop vectorises
                _copy(dy[n * dy_step + place : n * dy_step + place + count], piece)
                begin, to = n * step + place, n * C * size + place
                _input_gradient(
                    piece[:count], x[begin : begin + count], dx[to : to + count], constants, relu
                )
