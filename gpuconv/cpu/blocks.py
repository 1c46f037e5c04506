"""The loops over one block of a convolution, compiled: stage it, multiply it, store it (see
plan.py).
"""

from __future__ import annotations

import numpy as np

from gpuconv.cpu.compiled import compiled
from gpuconv.cpu.vector import HEIGHTS, LANES, TILE_WIDTH
from gpuconv.cpu.vector_lanes import copy_lanes, store_rows, transpose
from gpuconv.cpu.vector_tiles import (
    conv_tile_high,
    conv_tile_low,
    conv_tile_middle,
    gradient_slim_high,
    gradient_slim_low,
    gradient_slim_middle,
    gradient_tile_high,
    gradient_tile_low,
    gradient_tile_middle,
)

HIGH, MIDDLE, _ = HEIGHTS
ALL = (1 << LANES) - 1
SLIM, WIDE = LANES, TILE_WIDTH


@compiled
def address(a):
    """Of an array's first element; signed, as Numba turns a sum of both kinds into a float."""
    return np.intp(a.ctypes.data)


@compiled
def copy_floats(source, target, count):
    """`count` floats from one address to another."""
    for i in range(0, count - LANES + 1, LANES):
        copy_lanes(source + 4 * i, target + 4 * i, ALL)
    if count % LANES:
        done = count - count % LANES
        copy_lanes(source + 4 * done, target + 4 * done, (1 << (count % LANES)) - 1)


@compiled
def extent(stage, block):
    """(first image, images, first row, rows) of a block."""
    row_blocks = -(-stage.P // stage.rows)
    n, p = block // row_blocks * stage.images, block % row_blocks * stage.rows
    return n, min(stage.images, stage.N - n), p, min(stage.rows, stage.P - p)


@compiled
def stage_input(x, stage, phases, group, n, images, p, rows, scratch):
    """Copy a block of x (N, groups*C, H, W) into scratch, whose padding columns are zero."""
    for c in range(stage.C):
        for f in range(len(phases)):
            down, right = phases[f, 0] - stage.top, phases[f, 1] - stage.left
            first = max(0, -(right // stage.stride_w))
            last = min(stage.width - 1, (stage.W - 1 - right) // stage.stride_w)
            plane = (c * len(phases) + f) * stage.plane
            for i in range(images):
                source = x[n + i, group * stage.C + c]
                for t in range(rows + stage.extra):
                    place = plane + (i * (rows + stage.extra) + t) * stage.width
                    h = (p + t) * stage.stride_h + down
                    if h < 0 or h >= stage.H:
                        scratch[place : place + stage.width] = 0
                    elif stage.stride_w == 1:
                        begin = address(source) + 4 * (h * stage.W + first + right)
                        copy_floats(begin, address(scratch) + 4 * (place + first), last - first + 1)
                    else:
                        for j in range(first, last + 1):
                            scratch[place + j] = source[h, j * stage.stride_w + right]


@compiled
def find_segments(stage, images, staged_rows, rows, Q, steps, starts, segments):
    """Which lanes of which vector of staged positions are output pixels, and where they go.

    steps: elements from an output image, row and pixel to the next. Vector v has the segments
    starts[v] to starts[v + 1]: first lane, end lane, the output element of lane 0. Returns the
    vectors.
    """
    count, vector = 0, -1
    for i in range(images):
        for p in range(rows):
            begin = (i * staged_rows + p) * stage.width
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
    staged,
    vectors,
    weights,
    bias,
    relu,
    offsets,
    first,
    height,
    K,
    segments,
    starts,
    y,
    place,
    steps,
):
    """Every output channel of one block: y.flat[place + channel*steps[3] + segment] = the sum, bias
    and ReLU.

    weights: tiles of (depth, height) one after another; offsets (depth), in bytes from `staged`.
    """
    sums = np.empty((HIGH, TILE_WIDTH), np.float32)
    out, depth = address(sums), len(offsets)
    for tile in range(len(first)):
        k = first[tile]
        a = address(weights) + 4 * k * depth
        for v in range(0, vectors, 2):
            b = staged + 4 * LANES * v
            if height[tile] == HIGH:
                conv_tile_high(a, b, address(offsets), depth, 0, out)
            elif height[tile] == MIDDLE:
                conv_tile_middle(a, b, address(offsets), depth, 0, out)
            else:
                conv_tile_low(a, b, address(offsets), depth, 0, out)
            channel, rows = place + k * steps[3], min(height[tile], K - k)
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
    """As store_rows, to pixels that are steps[2] apart; no bias and no ReLU: only dx comes here."""
    for m in range(rows):
        for lane in range(begin, end):
            y[target + m * steps[3] + lane * steps[2]] = sums[m, half * LANES + lane]


@compiled
def transpose_gradient(dy, group, K, n, images, p, rows, Q, out):
    """dy's block as out[tile of channels][pixel][channel], the tiles SLIM or WIDE channels wide.

    A tile of channels starts at out[first channel * pixels]; channels beyond K are zero.
    """
    pixels = rows * Q
    total = images * pixels
    plane = 4 * dy.shape[2] * dy.shape[3]
    k = 0
    while k < K:
        width = WIDE if K - k > SLIM else SLIM
        for i in range(images):
            for half in range(0, width, LANES):
                source = address(dy[n + i, min(group * K + k + half, dy.shape[1] - 1), p])
                for q in range(0, pixels, LANES):
                    bits = ALL if pixels - q >= LANES else (1 << (pixels - q)) - 1
                    target = address(out) + 4 * (k * total + (i * pixels + q) * width + half)
                    transpose(source + 4 * q, plane, K - k - half, bits, target, 4 * width, ALL)
        k += width


@compiled
def accumulate_weights(
    staged, stage, images, rows, gradient, offsets, first, height, K, columns, sums
):
    """sums[tile of channels][column][channel] += the block's share of dw; a column is an input
    channel's tap.

    gradient: as transpose_gradient leaves it. offsets (columns), in bytes. A tile of channels
    starts at
    sums[first channel * columns].
    """
    pixels = rows * stage.Q
    row_bytes = 4 * stage.width
    image = 4 * (rows + stage.extra) * stage.width
    lines, length = rows, stage.Q
    if stage.width == stage.Q:  # no gaps: one long row
        lines, length = 1, pixels
    k = 0
    while k < K:
        width = WIDE if K - k > SLIM else SLIM
        for tile in range(len(first)):
            at = address(offsets) + 8 * first[tile]
            out = address(sums) + 4 * (k * columns + first[tile] * width)
            for i in range(images):
                d = address(gradient) + 4 * (k * images + i * width) * pixels
                x = staged + i * image
                outer_products(
                    width == WIDE, height[tile], d, x, at, lines, row_bytes, length, 4, 1, out
                )
        k += width


@compiled
def outer_products(wide, height, d, x, offsets, lines, row_bytes, length, step, keep, out):
    """The gradient tile of this width and height (see vector.py)."""
    if wide:
        if height == HIGH:
            gradient_tile_high(d, x, offsets, lines, row_bytes, length, step, keep, out)
        elif height == MIDDLE:
            gradient_tile_middle(d, x, offsets, lines, row_bytes, length, step, keep, out)
        else:
            gradient_tile_low(d, x, offsets, lines, row_bytes, length, step, keep, out)
    elif height == HIGH:
        gradient_slim_high(d, x, offsets, lines, row_bytes, length, step, keep, out)
    elif height == MIDDLE:
        gradient_slim_middle(d, x, offsets, lines, row_bytes, length, step, keep, out)
    else:
        gradient_slim_low(d, x, offsets, lines, row_bytes, length, step, keep, out)
