"""Pooling: forward a vector of outputs at a time, gradients a row and a tap at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gpuconv.cpu.compiled import compiled, inner
from gpuconv.cpu.elementwise import GRAIN, contiguous
from gpuconv.cpu.moves import address, first_lanes
from gpuconv.cpu.simd import LANES
from gpuconv.cpu.simd_moves import largest_taps, sum_taps
from gpuconv.shapes import Window
from gpuconv.threads import over_shards


def max_forward(x: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """(y, argmax), (N, C, P, Q), of x (N, C, H, W); argmax: the tap r*S + s of the maximum, of
    `window.tap_type`.

    A NaN counts as larger than every number; of several NaN the last is taken, of equal numbers the
    first in row order. Padding is never taken: for a window of padding alone y is -inf, argmax -1.
    """
    shape = (*x.shape[:2], *window.output_size(*x.shape[2:]))
    y, argmax = np.empty(shape, x.dtype), np.empty(shape, window.tap_type)
    _over_planes(_forward, window, contiguous(x), y, argmax)
    return y, argmax


def max_backward(
    dy: np.ndarray, argmax: np.ndarray, x_shape: tuple[int, ...], window: Window
) -> np.ndarray:
    """dx (of x_shape): each dy (N, C, P, Q) is added to the pixel that was its window's maximum."""
    dx = np.empty(x_shape, dy.dtype)
    _over_planes(_max_backward, window, dx, contiguous(dy), contiguous(argmax))
    return dx


def sum_forward(x: np.ndarray, window: Window) -> np.ndarray:
    """y (N, C, P, Q): the sum over the taps of each window that lie inside the image."""
    y = np.empty((*x.shape[:2], *window.output_size(*x.shape[2:])), x.dtype)
    _over_planes(_sum_forward, window, contiguous(x), y)
    return y


def sum_backward(dy: np.ndarray, x_shape: tuple[int, ...], window: Window) -> np.ndarray:
    """dx (of x_shape): for each pixel the sum of dy (N, C, P, Q) over the windows that cover it."""
    dx = np.empty(x_shape, dy.dtype)
    _over_planes(_sum_backward, window, dx, contiguous(dy))
    return dx


def _over_planes(function: Callable[..., None], window: Window, *arrays: np.ndarray) -> None:
    """function(*arrays, R, S, stride_h, stride_w, top, left, dil_h, dil_w) for shards of the planes
    (H, W) of the arrays; the first is the image.
    """
    H, W = arrays[0].shape[2:]
    (top, _), (left, _) = window.pads(H, W)
    planes = [a.reshape(-1, *a.shape[2:]) for a in arrays]
    geometry = (*window.kernel_size, *window.stride, top, left, *window.dilation)
    over_shards(function, planes, *geometry, grain=GRAIN / (H * W))


@inner
def _inside(offset, stride, outputs, size):
    """[first, end) of the outputs o with 0 <= o*stride + offset < size."""
    first = max(0, -(offset // stride))
    return first, max(first, min(outputs - 1, (size - 1 - offset) // stride) + 1)


@inner
def _places(R, S, dil_h, dil_w, W):
    """How many pixels after a window's first tap each of its taps lies, in an image of width W."""
    places = np.empty(R * S, np.int64)
    for tap in range(R * S):
        places[tap] = tap // S * dil_h * W + tap % S * dil_w
    return places


@compiled
def _forward(x, y, argmax, R, S, stride_h, stride_w, top, left, dil_h, dil_w):
    """The maxima of windows and their taps, or without argmax their sums; they stay in registers
    until they are complete.
    """
    (H, W), (P, Q), size = x.shape[1:], y.shape[1:], x.itemsize
    nothing = x.dtype.type(0 if argmax is None else -np.inf)  # y of a window of padding alone
    places, masks = _places(R, S, dil_h, dil_w, W), np.zeros((-(-Q // LANES), R * S), np.int64)
    for tap in range(R * S):
        first, end = _inside(tap % S * dil_w - left, stride_w, Q, W)
        for q in range(first, end):
            masks[q // LANES, tap] |= 1 << q % LANES
    for plane in range(len(x)):
        for p in range(P):
            corner = p * stride_h - top
            r, end = _inside(corner, dil_h, R, H)
            if r == end:
                y[plane, p] = nothing
                if argmax is not None:
                    argmax[plane, p] = argmax.dtype.type(-1)
                continue
            for q in range(0, Q, LANES):
                source = address(x) + size * ((plane * H + corner) * W + q * stride_w - left)
                tables = address(places), address(masks[q // LANES])
                window = source, stride_w, *tables, r * S, (end - r) * S
                out, lanes = (plane * P + p) * Q + q, first_lanes(Q - q)
                if argmax is None:
                    sum_taps(nothing, window, address(y) + size * out, lanes)
                else:
                    indices = address(argmax) + argmax.itemsize * out
                    largest_taps(
                        nothing, window, address(y) + size * out, indices, argmax.itemsize, lanes
                    )


@compiled
def _sum_forward(x, y, *geometry):
    _forward(x, y, None, *geometry)


@compiled
def _max_backward(dx, dy, argmax, R, S, stride_h, stride_w, top, left, dil_h, dil_w):
    (P, Q), W = dy.shape[1:], dx.shape[2]
    none, places = argmax.dtype.type(-1), _places(R, S, dil_h, dil_w, W)
    for plane in range(len(dy)):
        out = dx[plane].reshape(-1)
        out[:] = 0
        for p in range(P):
            corner = (p * stride_h - top) * W - left
            for q in range(Q):
                tap = argmax[plane, p, q]
                if tap != none:
                    out[corner + q * stride_w + places[tap]] += dy[plane, p, q]


@compiled
def _sum_backward(dx, dy, R, S, stride_h, stride_w, top, left, dil_h, dil_w):
    (H, W), (P, Q) = dx.shape[1:], dy.shape[1:]
    for plane in range(len(dx)):
        dx[plane] = 0
        for p in range(P):
            corner = p * stride_h - top
            for r in range(*_inside(corner, dil_h, R, H)):
                for s in range(S):
                    offset = s * dil_w - left
                    first, end = _inside(offset, stride_w, Q, W)
                    row = dx[plane, corner + r * dil_h, max(first * stride_w + offset, 0) :]
                    # the constant 1 is compiled with vectors, and takes a third of the time
                    if stride_w == 1:
                        _add(row, 1, dy[plane, p, first:end])
                    else:
                        _add(row, stride_w, dy[plane, p, first:end])


@inner
def _add(row, step, values):
    for q in range(len(values)):
        row[q * step] += values[q]
