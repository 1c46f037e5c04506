"""The loops of a direct convolution's weight gradient over one block after another
(direct_plan.py): x and dy are planar.
"""

from __future__ import annotations

import numpy as np

from gpuconv.cpu.compiled import compiled, inner
from gpuconv.cpu.direct_loops import block_range, channels_of, load_tile
from gpuconv.cpu.elementwise import total_of
from gpuconv.cpu.moves import address, tile_height, tile_width, transpose_matrix
from gpuconv.cpu.simd import LANES
from gpuconv.cpu.simd_tiles import CHAIN, outer_tile


@inner
def _load_gradient(dy, to, g, group, n, images, p, rows, first_k, last_k, out, db):
    """out[tile of channels][image][pixel][channel] of a block of dy, for channels [first_k, last_k)
    of a group; their sums are added to db.

    A tile has g.wide channels, the last one fewer vectors; channels from K on are zero.
    """
    pixels, plane = rows * to.W, to.H * to.W
    for i in range(images):
        for k in range(first_k, last_k, g.wide):
            width = tile_width(g.K - k, g.wide)
            target = address(out) + 4 * (k * images + i * width) * pixels
            for v in range(0, width, LANES):
                first, step, count = channels_of(g, to, g.K, group, k + v)
                source = address(dy) + 4 * (((n + i) * to.C + first) * plane + p * to.W)
                transpose_matrix(
                    source, 4 * plane * step, count, pixels, target + 4 * v, 4 * width, 4 * LANES
                )
        for k in range(group * g.K + first_k, min(group * g.K + last_k, to.C)):
            begin = ((n + i) * to.C + k) * plane + p * to.W
            db[k] += total_of(dy[begin : begin + pixels])


@compiled
def accumulate_weights(
    x, image, dy, to, g, offsets, begin, end, first_tile, last_tile, tile, gradient, sums, db
):
    """sums[group][tile of channels][column][channel] = the part of blocks [begin, end) in dw, for
    tiles [first_tile, last_tile) of channels, and db (all channels) += theirs in db; x and dy are
    planar.

    A column is a pair of input channel and tap. offsets: of the columns in the tile, in bytes. A
    tile of channels starts at sums[first channel * columns].
    """
    size, nothing = len(sums) // g.groups, np.empty(0, np.float32)
    tile[:] = 0  # what no image fills
    first_k, last_k = first_tile * g.wide, min(last_tile * g.wide, g.K)
    lines = first_k * len(offsets), -(-last_k // LANES) * LANES * len(offsets)
    for group in range(g.groups):
        sums[group * size + lines[0] : group * size + lines[1]] = 0
    for block in range(begin, end):
        n, images, p, rows = block_range(g, image, block)
        row_bytes = 4 * g.stride_h * g.width * g.step
        image_bytes = 4 * ((rows - 1) * g.stride_h + g.span) * g.width * g.step
        source = address(tile)
        if not g.tile:
            image_bytes = 4 * image.C * image.H * image.W
            source = address(x) + n * image_bytes + 4 * p * g.stride_h * image.W
        for group in range(g.groups):
            if g.tile:
                load_tile(x, image, g, nothing, nothing, 0, group, n, images, p, rows, tile)
            _load_gradient(dy, to, g, group, n, images, p, rows, first_k, last_k, gradient, db)
            # an outer-product tile adds up about CHAIN pixels, whose gradients stay in the L1 cache
            chain = max(1, CHAIN // to.W)
            for k in range(first_k, last_k, g.wide):
                width = tile_width(g.K - k, g.wide)
                for i in range(images):
                    for row in range(0, rows, chain):
                        at, column = source + i * image_bytes + row * row_bytes, 0
                        line = (k * images + i * width) * rows + row * width
                        d = address(gradient) + 4 * line * to.W
                        while column < len(offsets):
                            height = tile_height(len(offsets) - column, width)
                            place = group * size + k * len(offsets) + column * width
                            outer_tile(
                                height, width, g.across, d, at, address(offsets) + 8 * column,
                                min(chain, rows - row), row_bytes, to.W, 4 * g.stride_w * g.step, 1,
                                address(sums) + 4 * place,
                            )  # fmt: skip
                            column += height


@compiled
def unpack_weights(sums, g, to, begin, end, dw):
    """Transpose lines [begin, end) of sums (channels, columns), which are in the order of
    accumulate_weights, into dw (all channels, columns).
    """
    columns, channels = dw.shape[1], -(-g.K // LANES) * LANES
    for line in range(begin, end, LANES):
        group, k = line // channels, line % channels
        tile = k // g.wide * g.wide
        first, step, count = channels_of(g, to, g.K, group, k)
        width, target = tile_width(g.K - tile, g.wide), address(dw[first])
        source = address(sums[group * channels + tile]) + 4 * (k - tile)
        transpose_matrix(source, 4 * width, columns, count, target, 4 * columns * step, 4 * columns)
