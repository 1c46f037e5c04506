"""Pooling: one row and one tap at a time, so that the inner loops vectorise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv.cpu.compiled import compiled
from gpuconv.cpu.elementwise import GRAIN, contiguous
from gpuconv.cpu.moves import address, first_lanes
from gpuconv.cpu.simd import LANES
from gpuconv.cpu.simd_moves import largest_taps
from gpuconv.shapes import Window
from gpuconv.threads import over_shards


def max_forward(x: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """(y, argmax), (N, C, P, Q), of x (N, C, H, W); argmax: the tap r*S + s of the maximum, of
    `window.tap_type`.

    A NaN counts as larger than every number; of several NaN the last is taken, of equal numbers the
    first in row order. Padding is never taken: for a window of padding alone y is -inf, argmax -1.
    """
    x = contiguous(x)
    N, C, H, W = x.shape
    P, Q = window.output_size(H, W)
    y, argmax = np.empty((N, C, P, Q), x.dtype), np.empty((N, C, P, Q), window.tap_type)
    if x.dtype == np.float32 and argmax.dtype == np.uint8 and window.stride[1] <= 2:
        _over_planes(_max_forward_vectors, x, y, argmax, *_geometry(window, H, W))
    else:
        _over_planes(_max_forward, x, y, argmax, *_geometry(window, H, W))
    return y, argmax


def max_backward(
    dy: np.ndarray, argmax: np.ndarray, x_shape: tuple[int, ...], window: Window
) -> np.ndarray:
    """dx (of x_shape): each dy (N, C, P, Q) is added to the pixel that was its window's maximum."""
    dx = np.empty(x_shape, dy.dtype)
    geometry = _geometry(window, *x_shape[2:])
    _over_planes(_max_backward, dx, contiguous(dy), contiguous(argmax), *geometry)
    return dx


def sum_forward(x: np.ndarray, window: Window) -> np.ndarray:
    """y (N, C, P, Q): the sum over the taps of each window that lie inside the image."""
    N, C, H, W = x.shape
    y = np.empty((N, C, *window.output_size(H, W)), x.dtype)
    _over_planes(_sum, contiguous(x), y, False, *_geometry(window, H, W))
    return y


def sum_backward(dy: np.ndarray, x_shape: tuple[int, ...], window: Window) -> np.ndarray:
    """dx (of x_shape): for each pixel the sum of dy (N, C, P, Q) over the windows that cover it."""
    dx = np.empty(x_shape, dy.dtype)
    _over_planes(_sum, dx, contiguous(dy), True, *_geometry(window, *x_shape[2:]))
    return dx


def _geometry(window: Window, H: int, W: int) -> tuple[int, ...]:
    """(R, S, stride_h, stride_w, top, left, dil_h, dil_w), as the compiled loops take them."""
    (top, _), (left, _) = window.pads(H, W)
    return (*window.kernel_size, *window.stride, top, left, *window.dilation)


def _over_planes(function: Callable[..., None], image: np.ndarray, *arguments: Any) -> None:
    """function(image, *arguments), in shards of the planes (H, W) of the arrays among them."""
    arrays = [a for a in arguments if isinstance(a, np.ndarray)]
    planes = [a.reshape(-1, *a.shape[2:]) for a in (image, *arrays)]
    grain = -(-GRAIN // math.prod(image.shape[2:]))
    over_shards(function, planes, *arguments[len(arrays) :], grain=grain)


@compiled
def _inside(offset, stride, outputs, size):
    """[first, end) of the outputs o with 0 <= o*stride + offset < size."""
    first = max(0, -(offset // stride))
    return first, max(first, min(outputs - 1, (size - 1 - offset) // stride) + 1)


@compiled
def _first_taps(S, stride, left, dilation, Q, W):
    """For each output column its first tap inside the image, or -1."""
    taps = np.full(Q, -1, np.int64)
    for s in range(S - 1, -1, -1):
        first, end = _inside(s * dilation - left, stride, Q, W)
        taps[first:end] = s
    return taps


@compiled
def _max_forward(x, y, argmax, R, S, stride_h, stride_w, top, left, dil_h, dil_w):
    (H, W), (P, Q) = x.shape[1:], y.shape[1:]
    # for a row of outputs, all taps in turn: the inner loop runs along the row, without branches
    taps, kind = _first_taps(S, stride_w, left, dil_w, Q, W), argmax.dtype.type
    for plane in range(len(x)):
        for p in range(P):
            best, index = y[plane, p], argmax[plane, p]
            best[:] = -np.inf
            index[:] = kind(-1)
            started = False
            for r in range(R):
                h = p * stride_h - top + r * dil_h
                if h < 0 or h >= H:
                    continue
                if not started:
                    started = True
                    for q in range(Q):
                        index[q] = kind(-1) if taps[q] < 0 else kind(r * S + taps[q])
                for s in range(S):
                    offset = s * dil_w - left
                    first, end = _inside(offset, stride_w, Q, W)
                    row = x[plane, h, max(first * stride_w + offset, 0) :]
                    tap = kind(r * S + s)
                    _update_max(row, best[first:end], index[first:end], tap, stride_w)


@compiled
def _max_forward_vectors(x, y, argmax, R, S, stride_h, stride_w, top, left, dil_h, dil_w):
    """As _max_forward, a vector of outputs at a time, whose maxima stay in registers."""
    (H, W), (P, Q) = x.shape[1:], y.shape[1:]
    masks = np.zeros((-(-Q // LANES), S), np.int64)
    for s in range(S):
        first, end = _inside(s * dil_w - left, stride_w, Q, W)
        for q in range(first, end):
            masks[q // LANES, s] |= 1 << q % LANES
    for plane in range(len(x)):
        for p in range(P):
            corner = p * stride_h - top
            r = max(0, -(corner // dil_h))
            rows = min(R, (H - 1 - corner) // dil_h + 1) - r
            if rows <= 0:
                y[plane, p] = -np.inf
                argmax[plane, p] = 255
                continue
            line = (plane * H + corner + r * dil_h) * W - left
            for q in range(0, Q, LANES):
                out = (plane * P + p) * Q + q
                largest_taps(
                    address(x) + 4 * (line + q * stride_w), 4 * W * dil_h, rows, 4 * dil_w, S,
                    stride_w, address(masks[q // LANES]), r * S, S, address(y) + 4 * out,
                    address(argmax) + out, first_lanes(Q - q),
                )  # fmt: skip


@compiled
def _update_max(row, best, index, tap, step):
    for q in range(len(best)):
        best[q], index[q] = _larger(best[q], index[q], row[q * step], tap)


@compiled
def _larger(best, index, value, tap):
    """The larger of two and its tap; selections without a branch, so that loops vectorise."""
    wins = (value > best) | (value != value)
    return value if wins else best, tap if wins else index


@compiled
def _max_backward(dx, dy, argmax, R, S, stride_h, stride_w, top, left, dil_h, dil_w):
    P, Q = dy.shape[1:]
    W = dx.shape[2]
    none, places = argmax.dtype.type(-1), np.zeros(R * S, np.int64)
    for tap in range(R * S):
        places[tap] = tap // S * dil_h * W + tap % S * dil_w
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
def _sum(image, pooled, backward, R, S, stride_h, stride_w, top, left, dil_h, dil_w):
    """pooled = the sums of the image's windows; backward, image = the sums of what covers it."""
    (H, W), (P, Q) = image.shape[1:], pooled.shape[1:]
    for plane in range(len(image)):
        if backward:
            image[plane] = 0
        else:
            pooled[plane] = 0
        for p in range(P):
            for r in range(R):
                h = p * stride_h - top + r * dil_h
                if h < 0 or h >= H:
                    continue
                for s in range(S):
                    offset = s * dil_w - left
                    first, end = _inside(offset, stride_w, Q, W)
                    row = image[plane, h, max(first * stride_w + offset, 0) :]
                    sums = pooled[plane, p, first:end]
                    # the constant 1 is compiled with vectors, and takes a third of the time
                    if backward and stride_w == 1:
                        _add(row, 1, sums, 1, end - first)
                    elif backward:
                        _add(row, stride_w, sums, 1, end - first)
                    elif stride_w == 1:
                        _add(sums, 1, row, 1, end - first)
                    else:
                        _add(sums, 1, row, stride_w, end - first)


@compiled
def _add(total, total_step, values, step, count):
    for q in range(count):
        total[q * total_step] += values[q * step]
