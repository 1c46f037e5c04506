"""Loops over channels-last images (moves.Image) beside the convolutions of a compiled network.

Every output belongs to one thread, so the result does not depend on their number.
"""

from __future__ import annotations

import numpy as np

from gpuconv.cpu.compiled import compiled


@compiled
def max_pool(x, image, rows, columns, y, to, begin, end):
    """Rows [begin, end), of all images, of the maxima over the pixels from rows[p] to columns[q]
    (first, end). A NaN counts as larger than every number.
    """
    for line in range(begin, end):
        n, p = line // to.H, line % to.H
        for q in range(to.W):
            best = pixel_of(y, to, line * to.W + q)
            best[:] = -np.inf
            for h in range(rows[p, 0], rows[p, 1]):
                for w in range(columns[q, 0], columns[q, 1]):
                    values = pixel_of(x, image, (n * image.H + h) * image.W + w)
                    for c in range(to.C):
                        value = values[c]
                        best[c] = value if (value > best[c]) | (value != value) else best[c]


@compiled
def mean_pool(x, image, rows, columns, counts, y, to, begin, end):
    """As max_pool: the sums of these pixels, each divided by counts[p, q]."""
    for line in range(begin, end):
        n, p = line // to.H, line % to.H
        for q in range(to.W):
            total = pixel_of(y, to, line * to.W + q)
            total[:] = 0
            for h in range(rows[p, 0], rows[p, 1]):
                for w in range(columns[q, 0], columns[q, 1]):
                    values = pixel_of(x, image, (n * image.H + h) * image.W + w)
                    for c in range(to.C):
                        total[c] += values[c]
            for c in range(to.C):
                total[c] /= counts[p, q]


@compiled
def to_channels_last(x, y, to, begin, end):
    """Rows [begin, end), of all images, of x (N, C, H, W), as an image."""
    for line in range(begin, end):
        n, h = line // to.H, line % to.H
        for w in range(to.W):
            pixel = pixel_of(y, to, line * to.W + w)
            for c in range(to.C):
                pixel[c] = x[n, c, h, w]


@compiled
def scale_and_add(x, image, scale, shift, rest, rest_image, relu, y, to, begin, end):
    """Pixels [begin, end) of scale * x + shift + rest, or its ReLU."""
    least = np.float32(0 if relu else -np.inf)
    for pixel in range(begin, end):
        values, made = pixel_of(x, image, pixel), pixel_of(y, to, pixel)
        other = pixel_of(rest, rest_image, pixel)
        for c in range(to.C):
            value = values[c] * scale[c] + shift[c] + other[c]
            made[c] = least if value < least else value


@compiled
def few_rows(x, w, b, relu, y):
    """y (N, K) = x (N, C) w (C, K) + b, or its ReLU, for few N: w is read once for each."""
    least = np.float32(0 if relu else -np.inf)
    for n in range(len(x)):
        row = y[n]
        row[:] = b
        for c in range(x.shape[1]):
            value, weights = x[n, c], w[c]
            for k in range(len(row)):
                row[k] += value * weights[k]
        for k in range(len(row)):
            row[k] = least if row[k] < least else row[k]


@compiled
def pixel_of(a, image, pixel):
    """The channels of a pixel, a view: unlike an index, its loops vectorise."""
    place = image.offset + pixel * image.step
    return a[place : place + image.C]
