"""The loops of Winograd's convolution (winograd.py), over blocks of 4x4 output tiles.

Pixels are transposed to channels-last on the way in, so that a vector is LANES channels of one
pixel, and back on the way out. Arrays of 36 planes hold the entries of transformed 6x6 tiles, 6
planes for each row. Output channels come in pairs of vectors, PAIR channels; [..] stands for
the channels of a pair.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gpuconv.cpu.compiled import compiled, inner
from gpuconv.cpu.moves import (
    address,
    first_lanes,
    place_of,
    tile_height,
    transpose_filters,
    transpose_matrix,
)
from gpuconv.cpu.simd import LANES, PAIR, VECTOR_BYTES
from gpuconv.cpu.simd_moves import copy_lanes, store_pixels
from gpuconv.cpu.simd_tiles import outer_tile
from gpuconv.cpu.simd_transforms import winograd_transform

# Above it, or with NaN, intermediate sums could overflow into outputs that the direct algorithm
# computes from other inputs alone.
MAX_MAGNITUDE = np.float32(1e15)

INPUT_TRANSFORM = np.array([[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
         [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]])  # fmt: skip
FILTER_TRANSFORM = np.array([[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
          [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]])  # fmt: skip
OUTPUT_TRANSFORM = np.array(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
)

transform_input = winograd_transform(INPUT_TRANSFORM)
transform_filter = winograd_transform(FILTER_TRANSFORM)
transform_output = winograd_transform(OUTPUT_TRANSFORM)
transform_gradient = winograd_transform(OUTPUT_TRANSFORM.T)
transform_filter_gradient = winograd_transform(FILTER_TRANSFORM.T)


class Block(NamedTuple):
    """Output tiles of `images` images from number n on: `rows` rows of them from `row` on, with
    `columns` tiles each. All integers, for Numba.
    """

    n: int
    images: int
    row: int
    rows: int
    columns: int
    tiles: int


@inner
def row_place(image, n, channel, row):
    """The element of a channel where a row of an image begins."""
    if image.step:
        return place_of(image, (n * image.H + row) * image.W, channel)
    return ((n * image.C + channel) * image.H + row) * image.W


@inner
def tile_pixels(block, halo):
    """Where each tile begins in pixels[image][row][column], for tiles of 4x4 within a `halo`."""
    height, width = 4 * block.rows + halo, 4 * block.columns + halo
    places = np.empty(block.tiles, np.int64)
    for tile in range(len(places)):
        line, column = tile // block.columns, tile % block.columns
        row = line // block.rows * height + line % block.rows * 4
        places[tile] = row * width + 4 * column
    return places


@inner
def pair_place(k, lines):
    """The element of vector k of channels in [pair][lines][..]."""
    return k // PAIR * PAIR * lines + k % PAIR


@inner
def all_in_range(values):
    """Whether all are finite and of a magnitude that the transforms take."""
    fine = True
    for i in range(len(values)):
        fine &= abs(values[i]) < MAX_MAGNITUDE
    return fine


@inner
def load_channels(x, image, block, pads, halo, channel, pixels):
    """LANES channels of x from `channel` on: pixels[image][row][column][lane].

    They begin pads[0] rows above the block and pads[1] columns beside it; pixels outside the image
    are already zero. Returns whether all values are in range.
    """
    height, width = 4 * block.rows + halo, 4 * block.columns + halo
    (top, left), channels = pads, min(image.C - channel, LANES)
    first, used = 4 * block.row - top, min(image.W, width - left)
    for i in range(block.images):
        for row in range(max(0, -first), min(height, image.H - first)):
            source = address(x) + 4 * row_place(image, block.n + i, channel, first + row)
            target = address(pixels) + VECTOR_BYTES * ((i * height + row) * width + left)
            if image.step:
                for column in range(used):
                    at, to = source + 4 * column * image.step, target + VECTOR_BYTES * column
                    copy_lanes(at, to, first_lanes(channels))
            else:
                plane = 4 * image.H * image.W
                transpose_matrix(source, plane, channels, used, target, 4 * LANES, 4 * LANES)
    return all_in_range(pixels[: block.images * height * width * LANES])


@inner
def transform_tiles(x, image, block, pads, halo, lines, step, pixels, out):
    """out[36]: the transforms of each tile's 6x6 inputs (halo 2) or 4x4 gradients (halo 0).

    Pairs of vectors of channels are `lines` pairs apart, a channel's tiles `step` floats.
    Returns whether all values are in range.
    """
    height, width, plane = 4 * block.rows + halo, 4 * block.columns + halo, 4 * out.shape[1]
    pixels[: block.images * height * width * LANES] = 0
    in_range, places = True, tile_pixels(block, halo)
    for channel in range(0, image.C, LANES):
        in_range &= load_channels(x, image, block, pads, halo, channel, pixels)
        for tile in range(len(places)):
            source = address(pixels) + VECTOR_BYTES * places[tile]
            target = address(out) + 4 * (pair_place(channel, lines) + tile * step)
            row_bytes = VECTOR_BYTES * width
            if halo:
                transform_input(source, row_bytes, VECTOR_BYTES, target, 6 * plane, plane)
            else:
                transform_gradient(source, row_bytes, VECTOR_BYTES, target, 6 * plane, plane)
    return in_range


@inner
def multiply(inputs, line, step, rows, depth, filters, K, out, lines, keep):
    """out[36][pair of K][row][..] = sum over i < depth of inputs[36] * filters[36][pair][i][..].

    Row and i read inputs[36] at row * line + i * step. out has `lines` rows. With `keep` the sums
    are added to what is there.
    """
    offsets = np.arange(lines) * (4 * line)
    # for one entry and pair of K, all rows: the pair's filters stay in the L1 cache
    for entry in range(36):
        for k in range(0, K, PAIR):
            row = 0
            while row < rows:
                height = tile_height(rows - row, PAIR)
                outer_tile(
                    height, PAIR, 0, address(filters[entry]) + 4 * k * depth,
                    address(inputs[entry]), address(offsets) + 8 * row, 1, 0, depth, 4 * step, keep,
                    address(out[entry]) + 4 * (k * lines + row * PAIR),
                )  # fmt: skip
                row += height


@inner
def store_outputs(products, lines, block, bias, rest, rest_step, relu, pixels, y, to):
    """y = the output transform of products[36][pair of K][tile][..], + bias + rest, or its ReLU."""
    height, width, plane = 4 * block.rows, 4 * block.columns, 4 * products.shape[1]
    places = tile_pixels(block, 0)
    for k in range(0, to.C, LANES):
        for tile in range(len(places)):
            source = address(products) + 4 * (pair_place(k, lines) + tile * PAIR)
            target = address(pixels) + VECTOR_BYTES * places[tile]
            transform_output(source, 6 * plane, plane, target, VECTOR_BYTES * width, VECTOR_BYTES)
        channels = min(to.C - k, LANES)
        for i in range(block.images):
            for row in range(min(height, to.H - 4 * block.row)):
                n, p = block.n + i, 4 * block.row + row
                source = address(pixels) + VECTOR_BYTES * (i * height + row) * width
                target = address(y) + 4 * row_place(to, n, k, p)
                other = address(rest) + 4 * ((n * to.H + p) * to.W * rest_step + k)
                made, step = (target, 4 * to.step) if to.step else (source, VECTOR_BYTES)
                if len(bias):
                    store_pixels(
                        source, VECTOR_BYTES, to.W, address(bias) + 4 * k, other,
                        4 * rest_step, relu, made, step, first_lanes(channels),
                    )  # fmt: skip
                if not to.step:
                    size = 4 * to.H * to.W
                    transpose_matrix(source, VECTOR_BYTES, to.W, channels, target, size, 4 * to.W)


@compiled
def transform_filters(w, rotated, out, begin, end):
    """out[36][pair of K][C][..], pairs [begin, end): the transform of w (K, C, 9).

    rotated: of the filters for dx, which are rotated by 180 degrees and have K and C exchanged.
    Returns whether all weights are in range.
    """
    K, C = (w.shape[1], w.shape[0]) if rotated else w.shape[:2]
    transposed = np.empty((C * 9, LANES), np.float32)
    plane, in_range = 4 * out.shape[1], True
    for k in range(begin * PAIR, min(end * PAIR, K), LANES):
        transpose_filters(w, rotated, k, min(K - k, LANES), address(transposed))
        in_range &= all_in_range(transposed.reshape(-1))
        first, step = (8, -VECTOR_BYTES) if rotated else (0, VECTOR_BYTES)
        for c in range(C):
            source = address(transposed[9 * c + first])
            target = address(out) + 4 * (pair_place(k, C) + c * PAIR)
            transform_filter(source, 3 * step, step, target, 6 * plane, plane)
    return in_range


@compiled
def store_filter_gradient(sums, lines, dw, begin, end):
    """dw (K, C, 9), pairs [begin, end) of K: the transform of sums[36][pair of K][C][..]."""
    (K, C, _), plane = dw.shape, 4 * sums.shape[1]
    transposed = np.empty((C * 9, LANES), np.float32)
    for k in range(begin * PAIR, min(end * PAIR, K), LANES):
        for c in range(C):
            source = address(sums) + 4 * (pair_place(k, lines) + c * PAIR)
            target = address(transposed[9 * c])
            transform_filter_gradient(
                source, 6 * plane, plane, target, 3 * VECTOR_BYTES, VECTOR_BYTES
            )
        source, channels = address(transposed), min(K - k, LANES)
        transpose_matrix(source, VECTOR_BYTES, 9 * C, channels, address(dw[k]), 36 * C, 36 * C)


@inner
def _block(plan, number):
    in_image = -(-plan.tile_rows // plan.rows)
    n, row = number // in_image * plan.images, number % in_image * plan.rows
    images, rows = min(plan.images, plan.to.N - n), min(plan.rows, plan.tile_rows - row)
    return Block(n, images, row, rows, plan.tile_columns, images * rows * plan.tile_columns)


@compiled
def convolve_blocks(
    plan, x, filters, bias, rest, rest_step, relu, y, pixels, inputs, products, begin, end
):
    """y = the convolution of x, + bias + rest, or its ReLU: blocks [begin, end) of the plan.

    bias: empty where nothing is added, without a ReLU. rest: channels-last images, or zeros, with a
    step of 0. Returns whether all values were in range; else y is not whole.
    """
    C, K = plan.image.C, plan.to.C
    for number in range(begin, end):
        block = _block(plan, number)
        if not transform_tiles(x, plan.image, block, plan.pads, 2, 1, plan.line, pixels, inputs):
            return False
        multiply(inputs, plan.line, 1, block.tiles, C, filters, K, products, plan.tiles, 0)
        store_outputs(products, plan.tiles, block, bias, rest, rest_step, relu, pixels, y, plan.to)
    return True


@compiled
def accumulate_blocks(plan, x, dy, lines, pixels, inputs, gradients, sums, db, begin, end):
    """sums[36][pair of K][C][..] and db = the parts of blocks [begin, end), where dw's transform
    has yet to follow. Returns whether all values were in range.
    """
    sums[:] = 0
    K = plan.to.C
    for number in range(begin, end):
        block = _block(plan, number)
        tiles, none = block.tiles, (0, 0)
        if not (
            transform_tiles(x, plan.image, block, plan.pads, 2, 1, plan.line, pixels, inputs)
            and transform_tiles(dy, plan.to, block, none, 0, tiles, PAIR, pixels, gradients)
        ):
            return False
        multiply(inputs, 1, plan.line, lines, tiles, gradients, K, sums, lines, 1)
        # entry (1, 1) of a transformed tile is the sum of its gradients
        for k in range(0, K, PAIR):
            for tile in range(tiles):
                for lane in range(min(K - k, PAIR)):
                    db[k + lane] += gradients[7, k * tiles + tile * PAIR + lane]
    return True
