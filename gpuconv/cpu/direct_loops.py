"""The loops of a direct convolution over one block after another (direct_plan.py): fill the tile,
multiply, store. Images are planar, (N, C, H, W), or channels-last (moves.Image).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gpuconv.cpu.compiled import compiled, inner
from gpuconv.cpu.direct_plan import Geometry
from gpuconv.cpu.moves import (
    Image,
    address,
    copy_floats,
    first_lanes,
    place_of,
    tile_height,
    tile_width,
    transpose_filters,
    transpose_matrix,
)
from gpuconv.cpu.simd import HIGHEST, LANES, VECTOR_BYTES
from gpuconv.cpu.simd_moves import copy_lanes, prefetch_lines, store_pixels
from gpuconv.cpu.simd_pool_tiles import pool_2x2
from gpuconv.cpu.simd_tiles import outer_tile


class Target(NamedTuple):
    """Where a block's results go, for a tile of filters, and what is added to them. All integers,
    for Numba: addresses, and steps in floats from one pixel to the next.
    """

    base: int
    step: int
    rows: int  # of an image in the block
    columns: int
    bias: int
    rest: int
    rest_step: int
    relu: int
    y: int  # where the first of them goes in a planar y, if `base` is scratch memory
    plane: int  # bytes from a plane of y to the next, or else 0
    channels: int  # of y


@compiled
def pack_filters(w, groups, transposed, taps, wide, start, out, begin, end):
    """out[tile of K][tap][C][..], tiles [begin, end), from `start` on in each group's part: w
    (groups*K, C, all taps). `wide` filters lie side by side, or fewer vectors in the last tile.

    transposed: K and C are exchanged, for dx. Lanes beyond the last filter hold numbers that nobody
    uses.
    """
    T, rows, columns = w.shape[2], w.shape[0] // groups, w.shape[1]
    K, C = (columns, rows) if transposed else (rows, columns)
    lanes, full = np.zeros((C * T, LANES), np.float32), first_lanes(LANES)
    for group in range(groups):
        given = w[group * rows : (group + 1) * rows]
        for k in range(begin * wide, min(end * wide, K), LANES):
            to = address(lanes)  # taken here, where each pass uses `lanes` again: see address()
            transpose_filters(given, transposed, k, min(K - k, LANES), to)
            first = k // wide * wide
            width = tile_width(K - first, wide)
            place = group * (len(out) // groups) + start + first * len(taps) * C + k - first
            for t in taps:
                for c in range(C):
                    target = address(out) + 4 * place
                    copy_lanes(to + VECTOR_BYTES * (c * T + t), target, full)
                    place += width


@inner
def block_range(g, image, block):
    """(first image, images, first output row of a pass, rows) of a block."""
    in_image = -(-g.P // g.rows)
    n, p = block // in_image * g.images, block % in_image * g.rows
    return n, min(g.images, image.N - n), p, min(g.rows, g.P - p)


@inner
def channels_of(g, image, size, group, c):
    """(first, step, count): the channels of an image in the vector that begins with number c of the
    `size` channels of a group.
    """
    if g.across:
        step, first = size // LANES, group * size + c // LANES
        return first, step, min(LANES, -(-(image.C - first) // step))
    return group * size + c, 1, min(LANES, size - c)


@inner
def load_tile(x, image, g, scale, shift, rectified, group, n, images, p, rows, tile):
    """tile[image][row][column][channel]: what a block reads of a group's channels. Columns outside
    the image are already zero; rows outside become zero.

    scale, shift: of channels-last images' values, then under a ReLU if `rectified`; or empty.
    """
    high, least = (rows - 1) * g.stride_h + g.span, np.float32(0 if rectified else -np.inf)
    begin = max(0, g.left)
    used = min(image.W - (begin - g.left), g.width - begin)
    joined = used == image.W and used == g.width  # rows follow one another in both
    factors, added = scale[group * g.C :], shift[group * g.C :]
    for line in range(images * high):
        i, row = line // high, line % high
        h = p * g.stride_h - g.top + row
        if h < 0 or h >= image.H or used <= 0:
            for j in range(g.planes):
                place = j * g.plane + line * g.width * g.step
                tile[place : place + g.width * g.step] = 0
            continue
        if joined and h > 0 and row > 0:
            continue
        count = min(high - row, image.H - h) * used if joined else used
        place = (line * g.width + begin) * g.step
        if image.step:
            pixel = ((n + i) * image.H + h) * image.W + begin - g.left
            for j in range(count):
                at, to = place_of(image, pixel + j, group * g.C), place + j * g.step
                if len(scale) == 0:
                    copy_floats(address(x) + 4 * at, address(tile) + 4 * to, g.C)
                    continue
                values, made = x[at : at + g.C], tile[to : to + g.C]  # views: their loops vectorise
                for c in range(g.C):
                    value = values[c] * factors[c] + added[c]
                    made[c] = least if value < least else value
        else:
            for c in range(0, g.C, LANES):
                first, step, channels = channels_of(g, image, g.C, group, c)
                at = ((n + i) * image.C + first) * image.H + h
                source = address(x) + 4 * (at * image.W + begin - g.left)
                target = address(tile) + 4 * (place + c // LANES * g.plane)
                plane = 4 * image.H * image.W * step
                transpose_matrix(source, plane, channels, count, target, 4 * g.step, 4 * channels)


@inner
def find_pixels(g, images, p, rows, size, first, all_rows, columns, offsets, places):
    """Where a pass's output pixels begin in the tile, in bytes, and their numbers in the block's
    output; returns how many there are. size, first: of the pass, rows and columns.
    """
    high, count = (rows - 1) * g.stride_h + g.span, 0
    for i in range(images):
        for r in range(min(rows, size[0] - p)):
            at = (i * high + r * g.stride_h) * g.width
            to = (i * all_rows + r * g.out_h + first[0]) * columns + first[1]
            for q in range(size[1]):
                offsets[count] = 4 * g.step * (at + q * g.stride_w)
                places[count] = to + q * g.out_w
                count += 1
    offsets[count : count + HIGHEST] = 0
    return count


@compiled
def convolve(
    x, y, rest, rest_step, layouts, passes, strips, filters, bias, scale, shift, rectified, relu,
    bare, argmax, memory, begin, end, first_tile, last_tile,
):  # fmt: skip
    """y = the convolution of x, + bias (all channels) + rest, or its ReLU: blocks [begin, end),
    register tiles [first_tile, last_tile) of filters.

    filters: as pack_filters leaves them. rest: another summand, channels-last pixels rest_step
    apart, or zeros of step 0. layouts: the Images of x and y and the Geometry, as plain tuples,
    which Numba takes over in a third of the time. bare: whether nothing is added to the sums of a
    planar y, nor rectified. argmax: of a pool, may be empty. memory: of g.tile + g.pool * g.out +
    g.sums floats. A planar y is transposed from `out`; pixels that no pass reaches are zero there,
    and left as they are in a channels-last y.
    """
    image, to, g = Image(*layouts[0]), Image(*layouts[1]), Geometry(*layouts[2])
    tile, out = memory[: g.tile], memory[g.tile : g.tile + g.out]
    taps, sums = memory[g.tile + g.out :], memory[len(memory) - g.sums :]
    tile[:] = 0  # what no image fills
    offsets, places = np.empty((2, len(passes), g.sums // g.wide), np.int64)
    counts, found = np.empty(len(passes), np.int64), (0, 0)
    group_size = len(filters) // g.groups
    pooled = g.pool == 2  # bias and ReLU come with the maxima
    # the products are then summed where _store_planes reads them
    bare = (bare or pooled) and g.out_h == 1 and g.out_w == 1 and g.below * g.beside == 1
    for block in range(begin, end):
        n, images, p, rows = block_range(g, image, block)
        all_rows = min(rows * g.out_h, to.H - p * g.out_h)
        for t in range(len(passes) if found != (images, all_rows) else 0):
            first, size = (passes[t, 4], passes[t, 5]), (passes[t, 6], passes[t, 7])
            counts[t] = find_pixels(
                g, images, p, rows, size, first, all_rows, to.W, offsets[t], places[t]
            )
        found = images, all_rows
        pixels, pixel = images * all_rows * to.W, (n * to.H + p * g.out_h) * to.W
        for group in range(g.groups):
            if g.tile:
                load_tile(x, image, g, scale, shift, rectified, group, n, images, p, rows, tile)
                source = address(tile)
            else:
                read = (n * image.H + p * g.stride_h) * image.W
                source = address(x) + 4 * place_of(image, read, 0)
            for k in range(first_tile * g.wide, min(last_tile * g.wide, g.K), g.wide):
                channel = group * g.K + k
                bias_k, rest_k = address(bias) + 4 * channel, address(rest)
                added, least = (rest_k, 0) if pooled else (bias_k, relu)  # rest is zeros there
                rest_k += 4 * (pixel * rest_step + channel)
                plane = 0 if to.step else 4 * (to.H * to.W // g.pool**2)
                first = (n * to.C + channel) * plane + 4 * (p * g.out_h * to.W // g.pool**2)
                base, step = address(out), g.wide
                if to.step:
                    base, step = address(y) + 4 * place_of(to, pixel, channel), to.step
                elif g.gaps:
                    out[: pixels * g.wide] = 0
                into = Target(
                    base, step, all_rows, to.W, added, rest_k, rest_step, least, address(y) + first,
                    plane, to.C,
                )  # fmt: skip
                for t in range(len(passes)):
                    _products(
                        g, passes[t], strips, filters[group * group_size :], k, source, offsets[t],
                        places[t], counts[t], bare, sums, into,
                    )  # fmt: skip
                if not to.step:
                    _store_planes(
                        g, to, group, k, n, images, p * g.out_h, all_rows, out, bias_k, relu, taps,
                        y, argmax,
                    )  # fmt: skip


@inner
def _store_planes(g, to, group, k, n, images, first_row, rows, out, bias, relu, taps, y, argmax):
    """Transpose a block's output, out[image][row][column][g.wide], into the planar y; with a
    pool the maxima of 2x2 outputs, with the bias (an address) and the ReLU, and their taps into
    argmax.
    """
    pixels, plane = rows * to.W // g.pool**2, to.H * to.W // g.pool**2
    if g.pool == 2:
        for row in range(images * rows // 2):
            for v in range(0, g.wide, LANES):
                place = 4 * (row * to.W // 2 * g.wide + v)
                pool_2x2(
                    address(out) + 4 * (2 * row * to.W * g.wide + v), 4 * to.W * g.wide,
                    4 * g.wide, to.W // 2, bias + 4 * v, first_lanes(g.K - k - v), relu,
                    address(out) + place, address(taps) + place,
                )  # fmt: skip
    for i in range(images):
        for v in range(0, tile_width(g.K - k, g.wide), LANES):
            first, apart, count = channels_of(g, to, g.K, group, k + v)
            at = ((n + i) * to.C + first) * plane + first_row // g.pool * to.W // g.pool
            place, spare = 4 * (i * pixels * g.wide + v), out[len(out) // 2 :]
            transpose_matrix(
                address(out) + place, 4 * g.wide, pixels, count, address(y) + 4 * at,
                4 * plane * apart, 4 * pixels,
            )  # fmt: skip
            if len(argmax):
                transpose_matrix(
                    address(taps) + place, 4 * g.wide, pixels, count, address(spare),
                    4 * pixels, 4 * pixels,
                )  # fmt: skip
                for lane in range(count):
                    to_byte = at + lane * plane * apart
                    values, made = spare[lane * pixels :], argmax[to_byte : to_byte + pixels]
                    for pixel in range(pixels):
                        made[pixel] = np.uint8(values[pixel])


@inner
def _products(g, of_pass, strips, filters, k, source, offsets, places, count, bare, sums, into):
    """A pass over a block's `count` pixels, for the tile of filters from k on."""
    start, depth, first, end, _, _, _, Q = of_pass
    width = tile_width(g.K * g.below * g.beside - k, g.wide)
    bare = bare and width == into.step
    panel = address(filters) + 4 * (start + k * depth)
    for strip in range(first, end):
        offset, lines, line_bytes, floats, step_bytes = strips[strip]
        pixel = 0
        while pixel < count:
            height = tile_height(count - pixel, width)
            total = into.base if bare else address(sums)
            total += 4 * width * pixel if bare or end - first > 1 else 0
            if g.fetched and strip == first:
                _fetch(g, width, height, pixel, places[pixel], into)
            outer_tile(
                height, width, g.across, panel, source + offset, address(offsets) + 8 * pixel,
                lines, line_bytes, floats, step_bytes, strip > first, total,
            )  # fmt: skip
            if strip == end - 1 and not bare:
                some = min(height, count - pixel)
                _store_tile(g, k, width, total, some, Q - pixel % Q, Q, places[pixel:], into)
            pixel += height
        panel += 4 * lines * floats * width


@inner
def _fetch(g, width, height, pixel, place, into):
    """Fetch what the register tile from `pixel` on will write, or add, while it is computed."""
    if not into.plane:
        for v in range(0, width, LANES):
            prefetch_lines(into.base + 4 * (place * into.step + v), 4 * into.step, height)
            other = into.rest + 4 * (place * into.rest_step + v)
            prefetch_lines(other, 4 * into.rest_step, height if into.rest_step else 1)
    elif pixel % LANES < height:  # a line of each plane serves several tiles
        image, place = place // (into.rows * into.columns), place % (into.rows * into.columns)
        first = into.y + image * into.channels * into.plane + 4 * (place // g.pool**2)
        prefetch_lines(first, into.plane, width)


@inner
def _store_tile(g, k, width, sums, count, in_row, Q, places, into):
    """Store what a register tile has summed, of `count` pixels; in_row: those up to a row's end."""
    outputs, together, done = g.below * g.beside, g.out_h == 1 and g.out_w == 1, 0
    while done < count:  # pixels that lie evenly in y: a row's, or all
        run = count - done if together else min(count - done, (in_row - done - 1) % Q + 1)
        for output in range(outputs):
            below, beside = output // g.beside, output % g.beside
            place, length = places[done], run
            if outputs > 1:  # some lie outside: below the block or beside the image
                fit = -(-(into.columns - place % into.columns - beside) // g.out_w)
                inside = place // into.columns % into.rows + below < into.rows
                length = min(run, fit) if inside else 0
            place += below * into.columns + beside
            for v in range(0, min(width, g.K - k) if length > 0 else 0, LANES):
                store_pixels(
                    sums + 4 * (done * width + output * g.K + v), 4 * width, length,
                    into.bias + 4 * v, into.rest + 4 * (place * into.rest_step + v),
                    4 * into.rest_step, into.relu, into.base + 4 * (place * into.step + v),
                    4 * into.step * g.out_w, first_lanes(g.K - k - v),
                )  # fmt: skip
        done += run
