"""The inner loops of Winograd's convolution (winograd.py), for one block of 4x4 output tiles.

Pixels are transposed to channels-last on the way in, so that a vector is LANES channels of one
pixel, and back on the way out. `span` is a block: (first image, images, first row of tiles, rows of
tiles, tiles in a row). Arrays of 36 hold the entries of transformed 6x6 tiles. Offsets of 24 *
plane bytes lead from a row of entries to the next: 6 planes of floats. Output channels come in
pairs of vectors, TILE_WIDTH channels; [..] stands for the channels of a pair.
"""

from __future__ import annotations

import numpy as np

from gpuconv.cpu.compiled import compiled
from gpuconv.cpu.moves import (
    address,
    first_lanes,
    place_of,
    tile_height,
    transpose_matrix,
)
from gpuconv.cpu.simd import LANES, TILE_WIDTH, VECTOR_BYTES
from gpuconv.cpu.simd_moves import all_below, copy_lanes, store_pixels
from gpuconv.cpu.simd_tiles import outer_tile
from gpuconv.cpu.simd_transforms import winograd_output_transform, winograd_transform

# Above it, or with NaN, intermediate sums could overflow into outputs that the direct algorithm
# computes from other inputs alone.
MAX_MAGNITUDE = 1e15

INPUT_TRANSFORM = np.array([[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
         [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]])  # fmt: skip
FILTER_TRANSFORM = np.array([[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
          [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]])  # fmt: skip
OUTPUT_TRANSFORM = np.array(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
)

transform_input = winograd_transform(INPUT_TRANSFORM)
transform_filter = winograd_transform(FILTER_TRANSFORM)
transform_output = winograd_output_transform(OUTPUT_TRANSFORM)
transform_gradient = winograd_transform(OUTPUT_TRANSFORM.T)
transform_filter_gradient = winograd_transform(FILTER_TRANSFORM.T)


@compiled
def load_channels(x, image, n, images, first_row, rows, columns, left, channel, pixels):
    """LANES channels of x from `channel` on: pixels[image][row][column][lane].

    Row 0 is the image's row first_row, and column 0 its column -left; pixels outside the image are
    already zero. Returns 0 if a value is too large, infinite or NaN, else 1.
    """
    channels, used = min(image.C - channel, LANES), min(image.W, columns - left)
    for i in range(images):
        for row in range(max(0, -first_row), min(rows, image.H - first_row)):
            h, target = first_row + row, (i * rows + row) * columns + left
            target = address(pixels) + VECTOR_BYTES * target
            if image.step:
                pixel = ((n + i) * image.H + h) * image.W
                source = address(x) + 4 * place_of(image, pixel, channel)
                for column in range(used):
                    at, to = source + 4 * column * image.step, target + VECTOR_BYTES * column
                    copy_lanes(at, to, first_lanes(channels))
            else:
                source = address(x) + 4 * plane_row(image, n + i, channel, h)
                plane = 4 * image.H * image.W
                transpose_matrix(source, plane, channels, used, target, VECTOR_BYTES, LANES)
    return all_below(address(pixels), images * rows * columns, MAX_MAGNITUDE)


@compiled
def plane_row(image, n, channel, row):
    """The element where a row of a planar image begins."""
    return ((n * image.C + channel) * image.H + row) * image.W


@compiled
def tile_pixel(tile, rows, tile_columns, halo):
    """Where a tile begins in pixels[image][row][column], for tiles of 4x4 within a `halo`."""
    i, row, column = tile // tile_columns // rows, tile // tile_columns % rows, tile % tile_columns
    return (i * (4 * rows + halo) + 4 * row) * (4 * tile_columns + halo) + 4 * column


@compiled
def pair_place(k, lines):
    """The element of vector k of channels in [pair][lines][..]."""
    return k // TILE_WIDTH * TILE_WIDTH * lines + k % TILE_WIDTH


@compiled
def transform_input_tiles(x, image, span, top, left, line, plane, pixels, out):
    """out[36][tile][channel]: the transform of each tile's 6x6 inputs; strides `plane`, `line`, 1.

    Returns 0 if a value is out of range, else 1.
    """
    n, images, first, rows, tile_columns = span
    height, width = 4 * rows + 2, 4 * tile_columns + 2
    pixels[: images * height * width * LANES] = 0
    in_range = 1
    for channel in range(0, image.C, LANES):
        in_range &= load_channels(
            x, image, n, images, 4 * first - top, height, width, left, channel, pixels
        )
        for tile in range(images * rows * tile_columns):
            source = address(pixels) + VECTOR_BYTES * tile_pixel(tile, rows, tile_columns, 2)
            target = address(out) + 4 * (tile * line + channel)
            transform_input(
                source, VECTOR_BYTES * width, VECTOR_BYTES, target, 24 * plane, 4 * plane
            )
    return in_range


@compiled
def transform_gradient_tiles(dy, image, span, plane, pixels, out, db):
    """out[36][pair of K][tile][..]: the transform of each tile's 4x4 gradients.

    This also adds the gradients to db (K). Returns 0 if a value is out of range, else 1.
    """
    n, images, first, rows, tile_columns = span
    tiles, height, width = images * rows * tile_columns, 4 * rows, 4 * tile_columns
    pixels[: images * height * width * LANES] = 0
    in_range = 1
    sums = np.empty(LANES, np.float32)
    for channel in range(0, image.C, LANES):
        in_range &= load_channels(
            dy, image, n, images, 4 * first, height, width, 0, channel, pixels
        )
        sums[:] = 0
        for pixel in range(images * height * width):
            for lane in range(LANES):
                sums[lane] += pixels[pixel * LANES + lane]
        for lane in range(min(LANES, image.C - channel)):
            db[channel + lane] += sums[lane]
        for tile in range(tiles):
            source = address(pixels) + VECTOR_BYTES * tile_pixel(tile, rows, tile_columns, 0)
            target = address(out) + 4 * (pair_place(channel, tiles) + tile * TILE_WIDTH)
            transform_gradient(
                source, VECTOR_BYTES * width, VECTOR_BYTES, target, 24 * plane, 4 * plane
            )
    return in_range


@compiled
def multiply(
    inputs, plane, line, step, rows, depth, filters, filter_plane, K, out, out_plane, lines, keep
):
    """out[36][pair of K][row][..] = sum over i < depth of inputs[36] * filters[36][pair][i][..].

    Row and i read inputs[36] at row * line + i * step. out has `lines` rows. With `keep` the sums
    are added to what is there.
    """
    offsets = np.arange(lines) * (4 * line)
    # for one entry and pair of K, all rows: the pair's filters stay in the L1 cache
    for entry in range(36):
        x = address(inputs) + 4 * entry * plane
        for k in range(0, K, TILE_WIDTH):
            d = address(filters) + 4 * (entry * filter_plane + k * depth)
            row = 0
            while row < rows:
                height = tile_height(rows - row)
                target = address(out) + 4 * (entry * out_plane + k * lines + row * TILE_WIDTH)
                at = address(offsets) + 8 * row
                outer_tile(height, TILE_WIDTH, 0, d, x, at, 1, 0, depth, 4 * step, keep, target)
                row += height


@compiled
def store_planes(products, plane, lines, span, bias, relu, pixels, y, to):
    """y, planar: the output transform of products[36][pair of K][tile][..]; bias and ReLU."""
    n, images, first, rows, tile_columns = span
    height, width, size = 4 * rows, 4 * tile_columns, 4 * to.H * to.W
    for k in range(0, to.C, LANES):
        base, shift = address(products) + 4 * pair_place(k, lines), address(bias) + 4 * k
        for tile in range(images * rows * tile_columns):
            source = base + 4 * TILE_WIDTH * tile
            target = address(pixels) + VECTOR_BYTES * tile_pixel(tile, rows, tile_columns, 0)
            transform_output(
                source, 24 * plane, 4 * plane, target, VECTOR_BYTES * width, VECTOR_BYTES, shift,
                relu,
            )  # fmt: skip
        for i in range(images):
            for p in range(min(height, to.H - 4 * first)):
                source = address(pixels) + VECTOR_BYTES * (i * height + p) * width
                target = address(y) + 4 * plane_row(to, n + i, k, 4 * first + p)
                channels = min(to.C - k, LANES)
                transpose_matrix(source, VECTOR_BYTES, to.W, channels, target, size, to.W)


@compiled
def store_channels(products, plane, lines, span, bias, rest, rest_image, relu, y, to):
    """As store_planes, of a channels-last y, + rest, a channels-last image."""
    n, images, first, rows, tile_columns = span
    pixels, nothing = np.empty(16 * LANES, np.float32), np.zeros(LANES, np.float32)
    for k in range(0, to.C, LANES):
        base, bits = address(products) + 4 * pair_place(k, lines), first_lanes(to.C - k)
        for t in range(images * rows * tile_columns):
            i, row, column = t // tile_columns // rows, t // tile_columns % rows, t % tile_columns
            transform_output(
                base + 4 * TILE_WIDTH * t, 24 * plane, 4 * plane, address(pixels),
                4 * VECTOR_BYTES, VECTOR_BYTES, address(nothing), 0,
            )  # fmt: skip
            p, q = 4 * (first + row), 4 * column
            for down in range(min(4, to.H - p)):
                pixel = ((n + i) * to.H + p + down) * to.W + q
                store_pixels(
                    address(pixels) + 4 * VECTOR_BYTES * down, VECTOR_BYTES, min(4, to.W - q),
                    address(bias) + 4 * k, address(rest) + 4 * place_of(rest_image, pixel, k),
                    4 * rest_image.step, relu, address(y) + 4 * place_of(to, pixel, k),
                    4 * to.step, bits,
                )  # fmt: skip


@compiled
def transform_filters(w, rotated, plane, out, begin, end):
    """out[36][pair of K][C][..], pairs [begin, end): the transform of w (K, C, 9).

    rotated: of the filters for dx, which are rotated by 180 degrees and have K and C exchanged.
    Returns 0 if a weight is out of range, else 1.
    """
    K, C = (w.shape[1], w.shape[0]) if rotated else w.shape[:2]
    transposed = np.empty((C * 9, LANES), np.float32)
    in_range = 1
    for k in range(begin * TILE_WIDTH, min(end * TILE_WIDTH, K), LANES):
        rows, to = min(K - k, LANES), address(transposed)
        if rotated:
            for c in range(C):
                target = to + 9 * VECTOR_BYTES * c
                transpose_matrix(address(w[c, k]), 36, rows, 9, target, VECTOR_BYTES, LANES)
        else:
            transpose_matrix(address(w[k]), 36 * C, rows, 9 * C, to, VECTOR_BYTES, LANES)
        in_range &= all_below(to, 9 * C, MAX_MAGNITUDE)
        first, step = (8, -VECTOR_BYTES) if rotated else (0, VECTOR_BYTES)
        for c in range(C):
            source = address(transposed[9 * c + first])
            target = address(out) + 4 * (pair_place(k, C) + c * TILE_WIDTH)
            transform_filter(source, 3 * step, step, target, 24 * plane, 4 * plane)
    return in_range


@compiled
def store_filter_gradient(sums, plane, lines, begin, end, dw):
    """dw (K, C, 9), pairs [begin, end) of K: the transform of sums[36][pair of K][C][..]."""
    K, C = dw.shape[:2]
    transposed = np.empty((C * 9, LANES), np.float32)
    for k in range(begin * TILE_WIDTH, min(end * TILE_WIDTH, K), LANES):
        for c in range(C):
            source = address(sums) + 4 * (pair_place(k, lines) + c * TILE_WIDTH)
            target = address(transposed[9 * c])
            transform_filter_gradient(
                source, 24 * plane, 4 * plane, target, 3 * VECTOR_BYTES, VECTOR_BYTES
            )
        source, channels = address(transposed), min(K - k, LANES)
        transpose_matrix(source, VECTOR_BYTES, 9 * C, channels, address(dw[k]), 36 * C, 9 * C)
