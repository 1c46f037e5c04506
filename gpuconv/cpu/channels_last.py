"""Loops over channels-last images (moves.Image) beside the convolutions of a compiled network.

Every output belongs to one thread, so the result does not depend on their number.
"""

from __future__ import annotations

import numpy as np

from gpuconv.cpu.compiled import compiled, inner
from gpuconv.cpu.moves import place_of


@compiled
def pool(x, image, rows, columns, counts, y, to, begin, end):
    """Rows [begin, end), of all images, of the maxima over the pixels from rows[p] to columns[q]
    (first, end), or of their sums divided by counts[p, q] if that is not None.

    A NaN counts as larger than every number.
    """
    for line in range(begin, end):
        n, p = line // to.H, line % to.H
        for q in range(to.W):
            made = pixel_of(y, to, line * to.W + q)
            made[:] = -np.inf if counts is None else 0
            for h in range(rows[p, 0], rows[p, 1]):
                for w in range(columns[q, 0], columns[q, 1]):
                    values = pixel_of(x, image, (n * image.H + h) * image.W + w)
                    for c in range(to.C):
                        value = values[c]
                        if counts is not None:
                            made[c] += value
                        else:
                            made[c] = value if (value > made[c]) | (value != value) else made[c]
            if counts is not None:
                for c in range(to.C):
                    made[c] /= counts[p, q]


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
        fours = x.shape[1] // 4 * 4
        for c in range(0, fours, 4):  # `row` is read and written once for four of them
            values, weights = x[n, c : c + 4], w[c : c + 4]
            for k in range(len(row)):
                left = values[0] * weights[0, k] + values[1] * weights[1, k]
                row[k] += left + (values[2] * weights[2, k] + values[3] * weights[3, k])
        for c in range(fours, x.shape[1]):
            value, weights = x[n, c], w[c]
            for k in range(len(row)):
                row[k] += value * weights[k]
        for k in range(len(row)):
            row[k] = least if row[k] < least else row[k]


@inner
def pixel_of(a, image, pixel):
    """The channels of a pixel, a view: unlike an index, its loops vectorise."""
    place = place_of(image, pixel, 0)
    return a[place : place + image.C]
