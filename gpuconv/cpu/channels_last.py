"""Loops over channels-last images, of which `nn.compiled` makes a network's forward pass.

An image is floats at [pixel * step + channel] of a flat array, from an offset on: step is the
image's channels, or more where the channels are part of a wider image. Pixels are in the order
(n, h, w). Every output belongs to one thread, so the result does not depend on their number.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gpuconv.cpu.compiled import compiled
from gpuconv.cpu.inner_loops import address, first_lanes, tile_width
from gpuconv.cpu.simd import LANES, TILE_HEIGHTS, TILE_WIDTH
from gpuconv.cpu.simd_moves import all_below, copy_lanes, store_pixels
from gpuconv.cpu.simd_tiles import outer_tile
from gpuconv.cpu.winograd_loops import (
    MAX_MAGNITUDE,
    multiply,
    pair_place,
    tile_height,
    tile_pixel,
    transform_input,
    transform_output,
)

VECTOR_BYTES = 4 * LANES


class Image(NamedTuple):
    """Where an image lies in its flat array. All integers, for Numba."""

    offset: int
    step: int
    N: int
    H: int
    W: int
    C: int


class Sliding(NamedTuple):
    """A convolution's geometry, and how its output is cut into blocks of `rows` rows.

    copied: whether a block's input is first copied, with its padding; else the filters are 1x1,
    and without padding. rectified: whether what is copied passes a ReLU.
    """

    R: int
    S: int
    stride_h: int
    stride_w: int
    dilation_h: int
    top: int
    left: int
    rows: int
    copied: int
    rectified: int


@compiled
def pack_filters(w, out):
    """out[pair of K][tap][C][..], TILE_WIDTH filters side by side, or LANES where no more are left:
    w (K, C, taps); places beyond the last filter are left as they are.
    """
    K, C, taps = w.shape
    for k in range(K):
        first = k // TILE_WIDTH * TILE_WIDTH
        width = tile_width(K - first)
        for t in range(taps):
            for c in range(C):
                out[first * taps * C + (t * C + c) * width + k - first] = w[k, c, t]


@compiled
def copy_block(x, image, sliding, scale, shift, n, first, rows, columns, out):
    """out[row][column][channel] = scale * x + shift from row `first` and column -left on, zero
    beyond the image; under a ReLU where that is asked for. Empty scale and shift: 1 and 0.
    """
    C, least = image.C, np.float32(0 if sliding.rectified else -np.inf)
    left, right = sliding.left, min(sliding.left + image.W, columns)
    for row in range(rows):
        place, h = row * columns * C, first + row
        if h < 0 or h >= image.H:
            out[place : place + columns * C] = 0
            continue
        out[place : place + left * C] = 0
        out[place + right * C : place + columns * C] = 0
        source = image.offset + (n * image.H + h) * image.W * image.step
        for column in range(left, right):
            at, to = source + (column - left) * image.step, place + column * C
            pixel, copied = x[at : at + C], out[to : to + C]  # views: their loops vectorise
            if len(scale) == 0:
                for c in range(C):  # a slice's assignment takes Numba 2 seconds to compile
                    copied[c] = pixel[c]
            else:
                for c in range(C):
                    value = pixel[c] * scale[c] + shift[c]
                    copied[c] = least if value < least else value


@compiled
def convolve(
    x, image, sliding, scale, shift, filters, bias, rest, rest_image, relu, y, to, padded, begin,
    end, first_pair, last_pair,
):  # fmt: skip
    """y = the convolution of x, + bias (K) + rest, or its ReLU: blocks [begin, end) of rows, pairs
    [first_pair, last_pair) of vectors of filters.

    filters: as pack_filters leaves them. rest: another summand, zeros of step 0 without one.
    scale, shift: as in copy_block; with `copied` alone. padded: scratch memory of a block's input.
    """
    C, K, Q = image.C, to.C, to.W
    depth, span = sliding.R * sliding.S * C, (sliding.R - 1) * sliding.dilation_h + 1
    columns = (Q - 1) * sliding.stride_w + sliding.S if sliding.copied else image.W
    step = C if sliding.copied else image.step
    sums = np.empty(TILE_HEIGHTS[0] * TILE_WIDTH, np.float32)
    offsets = np.zeros(sliding.rows * Q + TILE_HEIGHTS[0], np.int64)
    for i in range(sliding.rows * Q):
        down, right = i // Q * sliding.stride_h, i % Q * sliding.stride_w
        offsets[i] = 4 * step * (down * columns + right)
    in_image = -(-to.H // sliding.rows)
    for block in range(begin, end):
        n, p = block // in_image, block % in_image * sliding.rows
        rows = min(sliding.rows, to.H - p)
        h, place = p * sliding.stride_h - sliding.top, (n * to.H + p) * Q
        if sliding.copied:
            high = (rows - 1) * sliding.stride_h + span
            copy_block(x, image, sliding, scale, shift, n, h, high, columns, padded)
            source = address(padded)
        else:
            source = address(x) + 4 * (image.offset + (n * image.H + h) * image.W * image.step)
        for k in range(first_pair * TILE_WIDTH, min(last_pair * TILE_WIDTH, K), TILE_WIDTH):
            width, pixel = tile_width(K - k), 0
            panel = address(filters) + 4 * k * depth
            while pixel < rows * Q:
                height = tile_height(rows * Q - pixel)
                outer_tile(
                    height, width, panel, source, address(offsets) + 8 * pixel, sliding.R,
                    4 * step * columns * sliding.dilation_h, sliding.S * C, 4, 0, address(sums),
                )  # fmt: skip
                count = min(height, rows * Q - pixel)
                for v in range(0, min(width, K - k), LANES):
                    store_pixels(
                        address(sums) + 4 * v, 4 * width, count, address(bias) + 4 * (k + v),
                        address(rest) + 4 * place_of(rest_image, place + pixel, k + v),
                        4 * rest_image.step, relu,
                        address(y) + 4 * place_of(to, place + pixel, k + v), 4 * to.step,
                        first_lanes(K - k - v),
                    )  # fmt: skip
                pixel += height


@compiled
def place_of(image, pixel, channel):
    """Where a pixel's channel lies; an image of step 0 is one pixel."""
    return image.offset + pixel * image.step + channel


@compiled
def winograd_blocks(
    x, image, top, left, plan, filters, filter_plane, bias, rest, rest_image, relu, y, to, pixels,
    inputs, products, begin, end,
):  # fmt: skip
    """As `convolve`, for 3x3 filters at stride 1, by Winograd's algorithm (winograd.py): blocks
    [begin, end) of plan. Returns whether all values were in its range; else y is not whole.
    """
    lines, in_image = plan.max_tiles, -(-plan.tile_rows // plan.rows)
    for block in range(begin, end):
        n, row = block // in_image * plan.images, block % in_image * plan.rows
        images, rows = min(plan.images, plan.N - n), min(plan.rows, plan.tile_rows - row)
        span = n, images, row, rows, plan.tile_columns
        if not _transform_input(x, image, span, top, left, plan, pixels, inputs):
            return False
        tiles = images * rows * plan.tile_columns
        multiply(
            inputs, plan.plane, plan.line, 1, tiles, image.C, filters, filter_plane, to.C,
            products, plan.product_plane, lines, 0,
        )  # fmt: skip
        _store_output(products, plan, span, bias, rest, rest_image, relu, y, to)
    return True


@compiled
def _transform_input(x, image, span, top, left, plan, pixels, out):
    """As winograd_loops.transform_input_tiles, from a channels-last image."""
    n, images, first, tile_rows, tile_columns = span
    height, width = 4 * tile_rows + 2, 4 * tile_columns + 2
    used, in_range = min(image.W, width - left), 1
    pixels[: images * height * width * LANES] = 0
    for channel in range(0, image.C, LANES):
        bits = first_lanes(image.C - channel)
        for i in range(images):
            for row in range(height):
                h = 4 * first - top + row
                if h < 0 or h >= image.H:
                    continue
                pixel = ((n + i) * image.H + h) * image.W
                source = address(x) + 4 * place_of(image, pixel, channel)
                target = address(pixels) + VECTOR_BYTES * ((i * height + row) * width + left)
                for column in range(used):
                    copy_lanes(
                        source + 4 * column * image.step, target + VECTOR_BYTES * column, bits
                    )
        in_range &= all_below(address(pixels), images * height * width, MAX_MAGNITUDE)
        for tile in range(images * tile_rows * tile_columns):
            source = address(pixels) + VECTOR_BYTES * tile_pixel(tile, tile_rows, tile_columns, 2)
            target = address(out) + 4 * (tile * plan.line + channel)
            transform_input(
                source, VECTOR_BYTES * width, VECTOR_BYTES, target, 24 * plan.plane, 4 * plan.plane
            )
    return in_range


@compiled
def _store_output(products, plan, span, bias, rest, rest_image, relu, y, to):
    """y: the output transform of products[36][pair of K][tile][..], + bias + rest, its ReLU."""
    n, images, first, tile_rows, tile_columns = span
    tile, nothing = np.empty(16 * LANES, np.float32), np.zeros(LANES, np.float32)
    for k in range(0, to.C, LANES):
        base, bits = address(products) + 4 * pair_place(k, plan.max_tiles), first_lanes(to.C - k)
        for t in range(images * tile_rows * tile_columns):
            i, row, column = (
                t // tile_columns // tile_rows, t // tile_columns % tile_rows, t % tile_columns
            )  # fmt: skip
            transform_output(
                base + 4 * TILE_WIDTH * t, 24 * plan.product_plane, 4 * plan.product_plane,
                address(tile), 4 * VECTOR_BYTES, VECTOR_BYTES, address(nothing), 0,
            )  # fmt: skip
            p, q = 4 * (first + row), 4 * column
            for down in range(min(4, to.H - p)):
                pixel = ((n + i) * to.H + p + down) * to.W + q
                store_pixels(
                    address(tile) + 4 * VECTOR_BYTES * down, VECTOR_BYTES, min(4, to.W - q),
                    address(bias) + 4 * k, address(rest) + 4 * place_of(rest_image, pixel, k),
                    4 * rest_image.step, relu, address(y) + 4 * place_of(to, pixel, k),
                    4 * to.step, bits,
                )  # fmt: skip


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
def pixel_of(a, image, pixel):
    """The channels of a pixel, a view: unlike an index, its loops vectorise."""
    place = image.offset + pixel * image.step
    return a[place : place + image.C]
