"""The inner loops of Winograd's convolution (winograd.py), for one block of 4x4 output tiles.

Pixels are transposed to channels-last on the way in, so that a vector is LANES channels of one
pixel, and back on the way out. `span` is a block: (first image, images, first row of tiles, rows of
tiles, tiles in a row). Arrays of 36 hold the entries of transformed 6x6 tiles. Offsets of 24 *
plane bytes lead from a row of entries to the next: 6 planes of floats.
"""

from __future__ import annotations

import numpy as np

from gpuconv.cpu.compiled import compiled
from gpuconv.cpu.inner_loops import (
    ALL_LANES,
    HEIGHT_2,
    HEIGHT_3,
    TILE_WIDTH,
    address,
    outer_product_tile,
)
from gpuconv.cpu.simd import LANES, TILE_HEIGHTS
from gpuconv.cpu.simd_moves import all_below, transpose
from gpuconv.cpu.simd_transforms import winograd_transform

HEIGHT_1 = TILE_HEIGHTS[2]
# Above it, or with NaN, intermediate sums could overflow into outputs that the direct algorithm
# computes from other inputs alone.
MAX_MAGNITUDE = 1e15

Matrix = list[list[float]]

INPUT_TRANSFORM: Matrix = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
         [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]  # fmt: skip
FILTER_TRANSFORM: Matrix = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
          [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]  # fmt: skip
OUTPUT_TRANSFORM: Matrix = [
    [1, 1, 1, 1, 1, 0],
    [0, 1, -1, 2, -2, 0],
    [0, 1, 1, 4, 4, 0],
    [0, 1, -1, 8, -8, 1],
]

transform_input = winograd_transform(INPUT_TRANSFORM)
transform_filter = winograd_transform(FILTER_TRANSFORM)
transform_output = winograd_transform(OUTPUT_TRANSFORM, finish=True)
transform_gradient = winograd_transform(
    [list(column) for column in zip(*OUTPUT_TRANSFORM, strict=True)]
)
transform_filter_gradient = winograd_transform(
    [list(column) for column in zip(*FILTER_TRANSFORM, strict=True)]
)


@compiled
def load_channels(x, n, images, first_row, rows, columns, left, channel, pixels):
    """LANES channels of x (N, C, H, W) from `channel`: pixels[image][row][column][lane].

    Row 0 is the image's row first_row, and column 0 its column -left; pixels outside the image are
    already zero. Returns 0 if a value is too large, infinite or NaN, else 1.
    """
    _, C, H, W = x.shape
    used = min(W, columns - left)
    for i in range(images):
        for row in range(max(0, -first_row), min(rows, H - first_row)):
            source = address(x[n + i, channel]) + 4 * (first_row + row) * W
            target = address(pixels) + 4 * LANES * ((i * rows + row) * columns + left)
            for w in range(0, used, LANES):
                bits = ALL_LANES if used - w >= LANES else (1 << (used - w)) - 1
                transpose(
                    source + 4 * w,
                    4 * H * W,
                    C - channel,
                    bits,
                    target + 4 * LANES * w,
                    4 * LANES,
                    ALL_LANES,
                )
    return all_below(address(pixels), images * rows * columns, MAX_MAGNITUDE)


@compiled
def transform_input_tiles(x, span, top, left, line, plane, pixels, out):
    """out[36][tile][channel]: the transform of each tile's 6x6 inputs; strides `plane`, `line`, 1.

    Returns 0 if a value is out of range, else 1.
    """
    n, images, first, rows, tile_columns = span
    height, width = 4 * rows + 2, 4 * tile_columns + 2
    in_range = 1
    pixels[: images * height * width * LANES] = 0
    for channel in range(0, x.shape[1], LANES):
        in_range &= load_channels(
            x, n, images, 4 * first - top, height, width, left, channel, pixels
        )
        for i in range(images):
            for row in range(rows):
                for column in range(tile_columns):
                    tile = (i * rows + row) * tile_columns + column
                    source = address(pixels) + 4 * LANES * (
                        (i * height + 4 * row) * width + 4 * column
                    )
                    target = address(out) + 4 * (tile * line + channel)
                    transform_input(
                        source,
                        4 * LANES * width,
                        4 * LANES,
                        target,
                        24 * plane,
                        4 * plane,
                        target,
                        0,
                    )
    return in_range


@compiled
def transform_gradient_tiles(dy, span, plane, pixels, out, db):
    """out[36][pair of K][tile][TILE_WIDTH]: the transform of each tile's 4x4 gradients.

    A pair of K is TILE_WIDTH output channels, two vectors. This also adds the gradients to db (K).
    Returns 0 if a value is out of range, else 1.
    """
    n, images, first, rows, tile_columns = span
    tiles, height, width = images * rows * tile_columns, 4 * rows, 4 * tile_columns
    in_range = 1
    pixels[: images * height * width * LANES] = 0
    sums = np.empty(LANES, np.float32)
    for channel in range(0, dy.shape[1], LANES):
        in_range &= load_channels(dy, n, images, 4 * first, height, width, 0, channel, pixels)
        sums[:] = 0
        for pixel in range(images * height * width):
            for lane in range(LANES):
                sums[lane] += pixels[pixel * LANES + lane]
        for lane in range(min(LANES, dy.shape[1] - channel)):
            db[channel + lane] += sums[lane]
        base = address(out) + 4 * (
            channel // TILE_WIDTH * TILE_WIDTH * tiles + channel % TILE_WIDTH
        )
        for i in range(images):
            for row in range(rows):
                for column in range(tile_columns):
                    tile = (i * rows + row) * tile_columns + column
                    source = address(pixels) + 4 * LANES * (
                        (i * height + 4 * row) * width + 4 * column
                    )
                    target = base + 4 * tile * TILE_WIDTH
                    transform_gradient(
                        source,
                        4 * LANES * width,
                        4 * LANES,
                        target,
                        24 * plane,
                        4 * plane,
                        target,
                        0,
                    )
    return in_range


@compiled
def tile_height(rest):
    """The height of the next register tile, with `rest` rows to go."""
    return HEIGHT_3 if rest > HEIGHT_2 else (HEIGHT_2 if rest > HEIGHT_1 else HEIGHT_1)


@compiled
def multiply(inputs, plane, filters, filter_plane, C, offsets, tiles, products, product_plane, K):
    """products[36][pair of K][tile][..] = inputs[36][tile][C] @ filters[36][pair of K][C][..].

    [..] is [TILE_WIDTH], the channels of a pair.
    """
    # for one entry and pair of K, all tiles: the pair's filters stay in the L1 cache
    for entry in range(36):
        for k in range(0, K, TILE_WIDTH):
            d = address(filters) + 4 * (entry * filter_plane + k * C)
            tile = 0
            while tile < tiles:
                height = tile_height(tiles - tile)
                out = address(products) + 4 * (
                    entry * product_plane + k * len(offsets) + tile * TILE_WIDTH
                )
                at = address(offsets) + 8 * tile
                outer_product_tile(
                    True, height, d, address(inputs) + 4 * entry * plane, at, 1, 0, C, 4, 0, out
                )
                tile += height


@compiled
def multiply_gradient(
    inputs, line, plane, gradient, gradient_plane, tiles, offsets, sums, sum_plane, K
):
    """sums[36][pair of K][C][..] += inputs[36][tile][C].T @ gradient[36][pair of K][tile][..].

    gradient: as transform_gradient_tiles leaves it.
    """
    for entry in range(36):
        for k in range(0, K, TILE_WIDTH):
            d = address(gradient) + 4 * (entry * gradient_plane + k * tiles)
            c = 0
            while c < len(offsets):
                height = tile_height(len(offsets) - c)
                x = address(inputs) + 4 * (entry * plane + c)
                out = address(sums) + 4 * (entry * sum_plane + k * len(offsets) + c * TILE_WIDTH)
                outer_product_tile(
                    True, height, d, x, address(offsets), 1, 0, tiles, 4 * line, 1, out
                )
                c += height


@compiled
def store_output_tiles(products, plane, lines, span, bias, relu, pixels, y):
    """y (N, K, P, Q): the output transform of products[36][pair of K][tile][..]; bias and ReLU."""
    n, images, first, rows, tile_columns = span
    _, K, P, Q = y.shape
    height, width = 4 * rows, 4 * tile_columns
    for k in range(0, K, LANES):
        base = address(products) + 4 * (k // TILE_WIDTH * TILE_WIDTH * lines + k % TILE_WIDTH)
        for i in range(images):
            for row in range(rows):
                for column in range(tile_columns):
                    source = base + 4 * TILE_WIDTH * ((i * rows + row) * tile_columns + column)
                    target = address(pixels) + 4 * LANES * (
                        (i * height + 4 * row) * width + 4 * column
                    )
                    shift = address(bias) + 4 * k
                    transform_output(
                        source,
                        24 * plane,
                        4 * plane,
                        target,
                        4 * LANES * width,
                        4 * LANES,
                        shift,
                        relu,
                    )
            bits = ALL_LANES if K - k >= LANES else (1 << (K - k)) - 1
            for p in range(min(height, P - 4 * first)):
                for q in range(0, Q, LANES):
                    count = min(LANES, Q - q)
                    source = address(pixels) + 4 * LANES * ((i * height + p) * width + q)
                    target = address(y[n + i, k, 4 * first + p]) + 4 * q
                    transpose(source, 4 * LANES, count, bits, target, 4 * P * Q, (1 << count) - 1)


@compiled
def transform_filters(w, rotated, begin, end, plane, out):
    """out[36][pair of K][C][TILE_WIDTH], pairs [begin, end): the transform of w (K, C, 9).

    rotated: of the filters for dx, which are rotated by 180 degrees and have K and C exchanged.
    Returns 0 if a weight is out of range, else 1.
    """
    K, C = (w.shape[1], w.shape[0]) if rotated else w.shape[:2]
    transposed = np.empty((C * 9 + LANES, LANES), np.float32)
    transposed[:] = 0
    in_range = 1
    for k in range(begin * TILE_WIDTH, min(end * TILE_WIDTH, K), LANES):
        if rotated:
            for c in range(C):
                transpose(
                    address(w[c, k]),
                    36,
                    K - k,
                    (1 << 9) - 1,
                    address(transposed[9 * c]),
                    4 * LANES,
                    ALL_LANES,
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
                    address(transposed[column]),
                    4 * LANES,
                    ALL_LANES,
                )
        in_range &= all_below(address(transposed), 9 * C, MAX_MAGNITUDE)
        for c in range(C):
            target = address(out) + 4 * (
                k // TILE_WIDTH * TILE_WIDTH * C + c * TILE_WIDTH + k % TILE_WIDTH
            )
            source, step = (
                (address(transposed[9 * c + 8]), -4) if rotated else (address(transposed[9 * c]), 4)
            )
            transform_filter(
                source, 3 * step * LANES, step * LANES, target, 24 * plane, 4 * plane, target, 0
            )
    return in_range


@compiled
def store_filter_gradient(sums, plane, lines, begin, end, dw):
    """dw (K, C, 9), pairs [begin, end) of K: the transform of sums[36][pair of K][C][..]."""
    K, C = dw.shape[:2]
    transposed = np.empty((C * 9 + LANES, LANES), np.float32)
    for k in range(begin * TILE_WIDTH, min(end * TILE_WIDTH, K), LANES):
        for c in range(C):
            source = address(sums) + 4 * (
                k // TILE_WIDTH * TILE_WIDTH * lines + c * TILE_WIDTH + k % TILE_WIDTH
            )
            target = address(transposed[9 * c])
            transform_filter_gradient(
                source, 24 * plane, 4 * plane, target, 12 * LANES, 4 * LANES, target, 0
            )
        bits = ALL_LANES if K - k >= LANES else (1 << (K - k)) - 1
        for column in range(0, 9 * C, LANES):
            inside = min(LANES, 9 * C - column)
            target = address(dw[k]) + 4 * column
            transpose(
                address(transposed[column]),
                4 * LANES,
                inside,
                bits,
                target,
                36 * C,
                (1 << inside) - 1,
            )
