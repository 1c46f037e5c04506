"""The compiled loops of Winograd's convolution (see winograd.py), for one block of 4 x 4 output
squares.

Pixels are turned to channels-last on the way in, so that a vector is LANES channels of one pixel,
and
back on the way out. `span` is (first image, images, first row of squares, rows of squares, squares
in a row).
"""

from __future__ import annotations

import numpy as np

from gpuconv.cpu.blocks import ALL, HIGH, MIDDLE, WIDE, address, outer_products
from gpuconv.cpu.compiled import compiled
from gpuconv.cpu.vector import HEIGHTS, LANES
from gpuconv.cpu.vector_lanes import all_below, transpose
from gpuconv.cpu.vector_squares import sandwich

LOW = HEIGHTS[2]
LARGEST = (
    1e15  # beyond it, or with NaN, intermediate sums could spoil pixels the definition leaves alone
)

Matrix = list[list[float]]

INPUT: Matrix = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
         [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]  # fmt: skip
FILTER: Matrix = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
          [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]  # fmt: skip
OUTPUT: Matrix = [
    [1, 1, 1, 1, 1, 0],
    [0, 1, -1, 2, -2, 0],
    [0, 1, 1, 4, 4, 0],
    [0, 1, -1, 8, -8, 1],
]

transform_input = sandwich(INPUT)
transform_filter = sandwich(FILTER)
transform_output = sandwich(OUTPUT, finish=True)
transform_gradient = sandwich([list(column) for column in zip(*OUTPUT, strict=True)])
transform_filter_gradient = sandwich([list(column) for column in zip(*FILTER, strict=True)])


@compiled
def stage_channels(x, n, images, first_row, rows, columns, left, channel, pixels):
    """LANES channels of x (N, C, H, W) from `channel`, channels-last:
    pixels[image][row][column][lane].

    Row 0 is the image's row first_row, column 0 its column -left; the rest of pixels is already
    zero.
    Returns 0 if a value is too large, infinite or NaN, else 1.
    """
    _, C, H, W = x.shape
    used = min(W, columns - left)
    for i in range(images):
        for row in range(max(0, -first_row), min(rows, H - first_row)):
            source = address(x[n + i, channel]) + 4 * (first_row + row) * W
            target = address(pixels) + 4 * LANES * ((i * rows + row) * columns + left)
            for w in range(0, used, LANES):
                bits = ALL if used - w >= LANES else (1 << (used - w)) - 1
                transpose(
                    source + 4 * w,
                    4 * H * W,
                    C - channel,
                    bits,
                    target + 4 * LANES * w,
                    4 * LANES,
                    ALL,
                )
    return all_below(address(pixels), images * rows * columns, LARGEST)


@compiled
def squares_of_input(x, span, top, left, line, plane, pixels, out):
    """out[36][square][channel]: each square's 6 x 6 inputs, transformed; `line` and `plane` are
    out's strides.
    """
    n, images, first, rows, across = span
    high, wide = 4 * rows + 2, 4 * across + 2
    fine = 1
    pixels[: images * high * wide * LANES] = 0
    for channel in range(0, x.shape[1], LANES):
        fine &= stage_channels(x, n, images, 4 * first - top, high, wide, left, channel, pixels)
        for i in range(images):
            for row in range(rows):
                for column in range(across):
                    square = (i * rows + row) * across + column
                    source = address(pixels) + 4 * LANES * (
                        (i * high + 4 * row) * wide + 4 * column
                    )
                    target = address(out) + 4 * (square * line + channel)
                    transform_input(
                        source,
                        4 * LANES * wide,
                        4 * LANES,
                        target,
                        24 * plane,
                        4 * plane,
                        target,
                        0,
                    )
    return fine


@compiled
def squares_of_gradient(dy, span, plane, pixels, out, db):
    """out[36][tile of channels][square][WIDE]: each square's 4 x 4 gradients, transformed; db (K)
    += their sums.
    """
    n, images, first, rows, across = span
    squares, high, wide = images * rows * across, 4 * rows, 4 * across
    fine = 1
    pixels[: images * high * wide * LANES] = 0
    sums = np.empty(LANES, np.float32)
    for channel in range(0, dy.shape[1], LANES):
        fine &= stage_channels(dy, n, images, 4 * first, high, wide, 0, channel, pixels)
        sums[:] = 0
        for pixel in range(images * high * wide):
            for lane in range(LANES):
                sums[lane] += pixels[pixel * LANES + lane]
        for lane in range(min(LANES, dy.shape[1] - channel)):
            db[channel + lane] += sums[lane]
        base = address(out) + 4 * (channel // WIDE * WIDE * squares + channel % WIDE)
        for i in range(images):
            for row in range(rows):
                for column in range(across):
                    square = (i * rows + row) * across + column
                    source = address(pixels) + 4 * LANES * (
                        (i * high + 4 * row) * wide + 4 * column
                    )
                    target = base + 4 * square * WIDE
                    transform_gradient(
                        source,
                        4 * LANES * wide,
                        4 * LANES,
                        target,
                        24 * plane,
                        4 * plane,
                        target,
                        0,
                    )
    return fine


@compiled
def tile_height(rest):
    """The height of the next register tile, with `rest` rows to go."""
    return HIGH if rest > MIDDLE else (MIDDLE if rest > LOW else LOW)


@compiled
def multiply(inputs, plane, filters, filter_plane, C, offsets, squares, products, product_plane, K):
    """products[36][tile of K][square][WIDE] = inputs[36][square][C] times filters[36][tile of
    K][C][WIDE].
    """
    for entry in range(36):
        for k in range(0, K, WIDE):
            d = address(filters) + 4 * (entry * filter_plane + k * C)
            square = 0
            while square < squares:
                height = tile_height(squares - square)
                out = address(products) + 4 * (
                    entry * product_plane + k * len(offsets) + square * WIDE
                )
                at = address(offsets) + 8 * square
                outer_products(
                    True, height, d, address(inputs) + 4 * entry * plane, at, 1, 0, C, 4, 0, out
                )
                square += height


@compiled
def multiply_gradient(
    inputs, line, plane, gradient, gradient_plane, squares, offsets, sums, sum_plane, K
):
    """sums[36][tile of K][C][WIDE] += inputs[36][square][C] times gradient[36][tile of
    K][square][WIDE].
    """
    for entry in range(36):
        for k in range(0, K, WIDE):
            d = address(gradient) + 4 * (entry * gradient_plane + k * squares)
            c = 0
            while c < len(offsets):
                height = tile_height(len(offsets) - c)
                x = address(inputs) + 4 * (entry * plane + c)
                out = address(sums) + 4 * (entry * sum_plane + k * len(offsets) + c * WIDE)
                outer_products(
                    True, height, d, x, address(offsets), 1, 0, squares, 4 * line, 1, out
                )
                c += height


@compiled
def store_squares(products, plane, lines, span, bias, relu, pixels, y):
    """y (N, K, P, Q) from products[36][tile of K][square][WIDE], transformed, bias and ReLU."""
    n, images, first, rows, across = span
    _, K, P, Q = y.shape
    high, wide = 4 * rows, 4 * across
    for k in range(0, K, LANES):
        base = address(products) + 4 * (k // WIDE * WIDE * lines + k % WIDE)
        for i in range(images):
            for row in range(rows):
                for column in range(across):
                    source = base + 4 * WIDE * ((i * rows + row) * across + column)
                    target = address(pixels) + 4 * LANES * (
                        (i * high + 4 * row) * wide + 4 * column
                    )
                    shift = address(bias) + 4 * k
                    transform_output(
                        source,
                        24 * plane,
                        4 * plane,
                        target,
                        4 * LANES * wide,
                        4 * LANES,
                        shift,
                        relu,
                    )
            bits = ALL if K - k >= LANES else (1 << (K - k)) - 1
            for p in range(min(high, P - 4 * first)):
                for q in range(0, Q, LANES):
                    count = min(LANES, Q - q)
                    source = address(pixels) + 4 * LANES * ((i * high + p) * wide + q)
                    target = address(y[n + i, k, 4 * first + p]) + 4 * q
                    transpose(source, 4 * LANES, count, bits, target, 4 * P * Q, (1 << count) - 1)


@compiled
def filter_tiles(w, flipped, begin, end, plane, out):
    """Tiles [begin, end) of out[36][tile of K][C][WIDE]: w (K, C, 9), transformed.

    `flipped`: of the filters for dx instead, which are turned by half a circle and have K and C
    exchanged.
    """
    K, C = (w.shape[1], w.shape[0]) if flipped else w.shape[:2]
    turned = np.empty((C * 9 + LANES, LANES), np.float32)
    turned[:] = 0
    fine = 1
    for k in range(begin * WIDE, min(end * WIDE, K), LANES):
        if flipped:
            for c in range(C):
                transpose(
                    address(w[c, k]),
                    36,
                    K - k,
                    (1 << 9) - 1,
                    address(turned[9 * c]),
                    4 * LANES,
                    ALL,
                )
        else:
            for column in range(0, 9 * C, LANES):
                inside = min(LANES, 9 * C - column)
                source = address(w[k]) + 4 * column
                transpose(
                    source,
                    36 * C,
                    K - k,
                    (1 << inside) - 1,
                    address(turned[column]),
                    4 * LANES,
                    ALL,
                )
        fine &= all_below(address(turned), 9 * C, LARGEST)
        for c in range(C):
            target = address(out) + 4 * (k // WIDE * WIDE * C + c * WIDE + k % WIDE)
            source, step = (
                (address(turned[9 * c + 8]), -4) if flipped else (address(turned[9 * c]), 4)
            )
            transform_filter(
                source, 3 * step * LANES, step * LANES, target, 24 * plane, 4 * plane, target, 0
            )
    return fine


@compiled
def store_filter_gradient(sums, plane, lines, begin, end, dw):
    """Tiles [begin, end) of dw (K, C, 9) from sums[36][tile of K][C][WIDE], transformed."""
    K, C = dw.shape[:2]
    turned = np.empty((C * 9 + LANES, LANES), np.float32)
    for k in range(begin * WIDE, min(end * WIDE, K), LANES):
        for c in range(C):
            source = address(sums) + 4 * (k // WIDE * WIDE * lines + c * WIDE + k % WIDE)
            target = address(turned[9 * c])
            transform_filter_gradient(
                source, 24 * plane, 4 * plane, target, 12 * LANES, 4 * LANES, target, 0
            )
        bits = ALL if K - k >= LANES else (1 << (K - k)) - 1
        for column in range(0, 9 * C, LANES):
            inside = min(LANES, 9 * C - column)
            target = address(dw[k]) + 4 * column
            transpose(
                address(turned[column]), 4 * LANES, inside, bits, target, 36 * C, (1 << inside) - 1
            )
