"""The inner loops over one block of a convolution: fill its input tile, multiply, store.

Blocks, padded input tiles and register tiles are described in blocking.py and simd_tiles.py. The
loops pass addresses, not array views: a view costs instructions that the innermost loops feel.
"""

from __future__ import annotations

import numpy as np

from gpuconv.cpu.compiled import compiled
from gpuconv.cpu.simd import LANES, TILE_HEIGHTS, TILE_WIDTH
from gpuconv.cpu.simd_moves import copy_lanes, deinterleave, store_rows, transpose
from gpuconv.cpu.simd_tiles import conv_tile, outer_tile


@compiled
def address(a):
    """An array's address; signed, because Numba adds signed and unsigned numbers as floats."""
    return np.intp(a.ctypes.data)


@compiled
def first_lanes(count):
    """Bits for the first `count` lanes of a vector, or for all where there are fewer lanes."""
    return (1 << min(count, LANES)) - 1


@compiled
def copy_floats(source, target, count, step):
    """Copy `count` floats, `step` (1 or 2) apart at one address, to another, a vector at a time."""
    for i in range(0, count, LANES):
        if step == 1:
            copy_lanes(source + 4 * i, target + 4 * i, first_lanes(count - i))
        else:
            deinterleave(source + 8 * i, target + 4 * i, first_lanes(count - i))


@compiled
def transpose_matrix(source, stride, rows, columns, target, step, height):
    """target[j * step + i] = source[i * stride + j] for all i < rows and j < columns; in bytes.

    Of each column `height` floats are written: zeros from `rows` on.
    """
    for i in range(0, height, LANES):
        written = first_lanes(height - i)
        for j in range(0, columns, LANES):
            at, to = source + i * stride + 4 * j, target + j * step + 4 * i
            transpose(at, stride, rows - i, first_lanes(columns - j), to, step, written)


@compiled
def add_rows(total, part):
    """total += part, of two dimensions; unlike NumPy's, without a warning for what is unused."""
    for i in range(len(total)):
        for j in range(total.shape[1]):
            total[i, j] += part[i, j]


@compiled
def block_range(tile_shape, block):
    """(first image, images, first output row, output rows) of a block."""
    row_blocks = -(-tile_shape.P // tile_shape.rows)
    n, p = block // row_blocks * tile_shape.images, block % row_blocks * tile_shape.rows
    return n, min(tile_shape.images, tile_shape.N - n), p, min(tile_shape.rows, tile_shape.P - p)


@compiled
def load_padded_tile(x, tile_shape, phases, group, n, images, p, rows, padded):
    """Copy what one block reads of x (N, groups*C, H, W) into its padded input tile.

    padded: scratch memory, zero in the padding columns, which this does not write; rows outside the
    image are written as zeros.
    """
    for c in range(tile_shape.C):
        for f in range(len(phases)):
            down, right = phases[f, 0] - tile_shape.top, phases[f, 1] - tile_shape.left
            first = max(0, -(right // tile_shape.stride_w))
            last = min(tile_shape.width - 1, (tile_shape.W - 1 - right) // tile_shape.stride_w)
            plane = (c * len(phases) + f) * tile_shape.plane
            for i in range(images):
                source = x[n + i, group * tile_shape.C + c]
                for t in range(rows + tile_shape.extra):
                    place = plane + (i * (rows + tile_shape.extra) + t) * tile_shape.width
                    h = (p + t) * tile_shape.stride_h + down
                    column = first * tile_shape.stride_w + right
                    if h < 0 or h >= tile_shape.H:
                        padded[place : place + tile_shape.width] = 0
                    elif tile_shape.stride_w <= 2:
                        begin = address(source) + 4 * (h * tile_shape.W + column)
                        target = address(padded) + 4 * (place + first)
                        copy_floats(begin, target, last - first + 1, tile_shape.stride_w)
                    else:
                        for j in range(last - first + 1):
                            padded[place + first + j] = source[h, column + j * tile_shape.stride_w]


@compiled
def find_segments(tile_shape, images, tile_rows, rows, Q, steps, starts, segments):
    """Find which lanes of each vector of tile positions are output pixels, and where they go in y.

    steps: elements from one output image, row and pixel to the next. Vector v has the segments
    starts[v] to starts[v + 1], each with its first lane, its end lane and the output element of
    lane 0. Returns the number of vectors.
    """
    count, vector = 0, -1
    for i in range(images):
        for p in range(rows):
            begin = (i * tile_rows + p) * tile_shape.width
            for v in range(begin // LANES, (begin + Q - 1) // LANES + 1):
                while vector < v:
                    vector += 1
                    starts[vector] = count
                segments[count, 0] = max(begin - v * LANES, 0)
                segments[count, 1] = min(begin + Q - v * LANES, LANES)
                segments[count, 2] = i * steps[0] + p * steps[1] + (v * LANES - begin) * steps[2]
                count += 1
    starts[vector + 1] = count
    starts[vector + 2] = count
    return vector + 1


@compiled
def convolve_block(
    padded, vectors, weights, bias, relu, offsets, first, height, K, segments, starts, y, place,
    steps,
):  # fmt: skip
    """All output channels of a block: y.flat[place + channel*steps[3] + segment] = the sum + bias.

    weights: register tiles of (depth, height) one after another. offsets: (depth), in bytes from
    `padded`. relu: whether the result is rectified. A register tile's sums go through a buffer in
    the L1 cache, because a vector of them can cover pixels of several rows.
    """
    sums = np.empty((TILE_HEIGHTS[0], TILE_WIDTH), np.float32)
    out, depth = address(sums), len(offsets)
    # all pixels for one tile of filters before the next: its weights stay in the L1 cache, and the
    # padded input tile, read once for each tile of filters, in the L2 cache
    for tile in range(len(first)):
        k = first[tile]
        a = address(weights) + 4 * k * depth
        channel, rows = place + k * steps[3], min(height[tile], K - k)
        for v in range(0, vectors, 2):
            conv_tile(height[tile], a, padded + 4 * LANES * v, address(offsets), depth, out)
            for half in range(2):
                at = out + 4 * half * LANES
                for e in range(starts[v + half], starts[v + half + 1]):
                    begin, end, target = segments[e, 0], segments[e, 1], channel + segments[e, 2]
                    if steps[2] == 1:
                        to, bits = address(y) + 4 * target, (1 << end) - (1 << begin)
                        store_rows(at, rows, address(bias) + 4 * k, relu, to, 4 * steps[3], bits)
                    else:
                        scatter_rows(sums, half, rows, begin, end, y, target, steps)


@compiled
def scatter_rows(sums, half, rows, begin, end, y, target, steps):
    """Like store_rows, to pixels steps[2] apart; without bias and ReLU: only dx needs it."""
    for m in range(rows):
        for lane in range(begin, end):
            y[target + m * steps[3] + lane * steps[2]] = sums[m, half * LANES + lane]


@compiled
def transpose_gradient(dy, group, K, n, images, p, rows, Q, out):
    """A block of dy as out[tile of channels][pixel][channel]: the channels of a pixel adjacent.

    A tile has TILE_WIDTH channels, or LANES where no more are left. It starts at
    out[first channel * pixels]; channels from K on are zero.
    """
    pixels = rows * Q
    plane = 4 * dy.shape[2] * dy.shape[3]
    for k in range(0, K, TILE_WIDTH):
        width = tile_width(K - k)
        for i in range(images):
            source = address(dy[n + i, group * K + k, p])
            target = address(out) + 4 * (k * images + i * width) * pixels
            transpose_matrix(source, plane, K - k, pixels, target, 4 * width, width)


@compiled
def tile_width(rest):
    """The width of the next tile of channels, with `rest` to go."""
    return TILE_WIDTH if rest > LANES else LANES


@compiled
def accumulate_weights(padded, tile_shape, images, rows, gradient, offsets, first, height, K, sums):
    """sums[tile of channels][column][channel] += the block's part of dw.

    A column is a pair of input channel and tap. gradient: as transpose_gradient leaves it. offsets:
    (columns), in bytes. A tile of channels starts at sums[first channel * columns].
    """
    pixels = rows * tile_shape.Q
    row_bytes = 4 * tile_shape.width
    image = 4 * (rows + tile_shape.extra) * tile_shape.width
    lines, length = rows, tile_shape.Q
    if tile_shape.width == tile_shape.Q:  # no gaps between rows: one long row
        lines, length = 1, pixels
    # an outer-product tile adds up all pixels of an image in registers, and meets memory once
    for k in range(0, K, TILE_WIDTH):
        width = tile_width(K - k)
        for tile in range(len(first)):
            at = address(offsets) + 8 * first[tile]
            out = address(sums) + 4 * (k * len(offsets) + first[tile] * width)
            for i in range(images):
                d = address(gradient) + 4 * (k * images + i * width) * pixels
                x = padded + i * image
                outer_tile(height[tile], width, d, x, at, lines, row_bytes, length, 4, 1, out)
