"""Definitions by loops: slow, plain, and independent of the package's own geometry and
operations.
"""

import math

import numpy as np


def window_starts(size, kernel, stride, before, after, dilation, ceil_mode=False):
    """Where each window begins, in pixels: found by trying, not by a formula.

    ceil_mode adds one window for what is left over, and drops those that start past the image.
    """
    reach, end = dilation * (kernel - 1), size + after
    starts, start = [], -before
    while start + reach < end:
        starts.append(start)
        start += stride
    left_over = start - stride + reach + 1 < end
    if ceil_mode and left_over:
        starts.append(start)
    return [start for start in starts if start < size] if ceil_mode else starts


def geometry(shape, kernel, stride, pads, dilation, ceil_mode=False):
    return [
        window_starts(shape[a], kernel[a], stride[a], *pads[a], dilation[a], ceil_mode)
        for a in (0, 1)
    ]


def conv2d(x, w, b, stride, pads, dilation, groups):
    """Cross-correlation in float64, and the sum of absolute products, for the error bound."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    (N, _, H, W), (K, cg, R, S) = x.shape, w.shape
    rows, columns = geometry((H, W), (R, S), stride, pads, dilation)
    y = np.zeros((N, K, len(rows), len(columns)))
    size = np.zeros_like(y)
    for n in range(N):
        for k in range(K):
            g = k // (K // groups)
            for p, top in enumerate(rows):
                for q, left in enumerate(columns):
                    total, absolute = 0.0, 0.0
                    for c in range(cg):
                        for r in range(R):
                            for s in range(S):
                                h, v = top + r * dilation[0], left + s * dilation[1]
                                if 0 <= h < H and 0 <= v < W:
                                    product = x[n, g * cg + c, h, v] * w[k, c, r, s]
                                    total += product
                                    absolute += abs(product)
                    y[n, k, p, q] = total + (0 if b is None else b[k])
                    size[n, k, p, q] = absolute + (0 if b is None else abs(b[k]))
    return y, size


def max_pool2d(x, kernel, stride, pads, dilation, ceil_mode):
    N, C, H, W = x.shape
    rows, columns = geometry((H, W), kernel, stride, pads, dilation, ceil_mode)
    y = np.empty((N, C, len(rows), len(columns)), x.dtype)
    argmax = np.empty(y.shape, np.int64)
    for n, c, p, q in np.ndindex(y.shape):
        best, winner = -math.inf, -1
        for r in range(kernel[0]):
            for s in range(kernel[1]):
                h, v = rows[p] + r * dilation[0], columns[q] + s * dilation[1]
                if 0 <= h < H and 0 <= v < W:
                    value = x[n, c, h, v]
                    if winner == -1 or value > best or math.isnan(value):
                        best, winner = value, r * kernel[1] + s
        y[n, c, p, q], argmax[n, c, p, q] = best, winner
    return y, argmax.astype(np.uint8 if kernel[0] * kernel[1] <= 255 else np.int32)


def avg_pool2d(x, kernel, stride, pads, dilation, ceil_mode, include_pad, average=True):
    N, C, H, W = x.shape
    rows, columns = geometry((H, W), kernel, stride, pads, dilation, ceil_mode)
    y = np.empty((N, C, len(rows), len(columns)), x.dtype)
    for n, c, p, q in np.ndindex(y.shape):
        total, count = 0.0, 0
        for r in range(kernel[0]):
            for s in range(kernel[1]):
                h, v = rows[p] + r * dilation[0], columns[q] + s * dilation[1]
                inside = 0 <= h < H and 0 <= v < W
                padded = h < H + pads[0][1] and v < W + pads[1][1]
                total += x[n, c, h, v] if inside else 0
                count += (inside or padded) if include_pad else inside
        y[n, c, p, q] = total / max(count, 1) if average else total
    return y


def central_difference(function, x, step=1e-6):
    """The gradient of a scalar function of a float64 array, one element at a time."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        kept = x[index]
        x[index] = kept + step
        above = function()
        x[index] = kept - step
        below = function()
        x[index] = kept
        gradient[index] = (above - below) / (2 * step)
    return gradient
