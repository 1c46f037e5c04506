"""How a direct convolution, in its passes (direct_passes.py), is cut into blocks. Pure functions of
shapes.

A block is a range of output rows of one image, or several whole images. What it reads is first
copied into scratch memory, its tile: pixels in rows of `width`, the channels of a pixel side by
side, with explicit zeros for the padding. There the pixels that an output needs lie at fixed
distances from the first of them, whatever the stride, padding and dilation.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from gpuconv.cpu.direct_passes import LEAST_WORK, Axis, Reading, axes, side_by_side, taps_of
from gpuconv.cpu.elementwise import FMA_GRAIN
from gpuconv.cpu.moves import Image
from gpuconv.cpu.simd import HIGHEST, LANES, TILE_HEIGHTS
from gpuconv.cpu.simd_tiles import CHAIN
from gpuconv.shapes import Window
from gpuconv.threads import Pieces, shards

# A tile should stay in the L2 cache while all filters pass over it; with fewer pixels the filters
# are read more often than they serve. ResNet-50's layers: half or twice of each is within 3%.
TILE_FLOATS, MIN_PIXELS, MAX_PIXELS = 96 * 1024, 96, 384
# Of a group, for vectors across groups: channels that are computed, and channels that are read.
# With 8 of 28x28 on both sides they take 0.7 of the time with vectors of filters, with 12 the same.
MOST_FILTERS, MOST_CHANNELS = 8, 16
# Results of more floats are fetched into the L2 cache before they are written. Smaller ones are
# still there from the last step: fetching them takes LeNet's layers 1.05 times as long.
LEAST_FETCHED = 64 * 1024
Kind = Literal["forward", "pooled", "dx", "dw"]


class Geometry(NamedTuple):
    """A block and its tile. All integers, for Numba. Channels are those of one group, or of LANES
    groups side by side.
    """

    C: int
    K: int
    groups: int
    across: int  # whether the lanes of a vector are groups: a channel of each of them
    stride_h: int  # rows of the tile from one output row to the next
    stride_w: int
    top: int  # the tile's row that holds the image's row 0
    left: int
    out_h: int  # rows of the output from one row of a pass to the next
    out_w: int
    below: int  # outputs that a pass computes as further filters, below and beside one another
    beside: int
    gaps: int  # whether no pass reaches some of the outputs
    wide: int  # filters of a register tile; of the last one fewer, but whole vectors
    pool: int  # 2 where the maxima of 2x2 outputs are stored, else 1
    P: int  # output rows of the largest pass
    Q: int
    rows: int  # of a block: output rows of a pass
    images: int  # of a block; more than one only where rows == P
    span: int  # rows of the tile for one output row
    width: int  # pixels in a row of the tile
    step: int  # floats from one pixel of the tile to the next
    planes: int  # of the tile: 1, or one for every LANES channels
    plane: int  # floats from LANES channels of a pixel to the next LANES
    tile: int  # floats of the tile; 0 where the image itself serves
    out: int  # floats of a block's output, for each register tile of filters
    sums: int  # floats of the sums of a pass
    fetched: int  # whether results are fetched into the cache before they are written
    blocks: int  # of the batch


class Plan(NamedTuple):
    """What `direct_loops` and `direct_weights` need to know.

    passes: of each pass where its filters start, its depth, its first strip and the end of its
    strips, and the first row and column, the rows and the columns of its output. strips: what is
    read one after the other for a pixel, see `_strips`. taps: of each pass (outputs below and
    beside, taps), in the order of reading, -1 for none. filters: floats of all groups'. pieces: of
    the blocks, or with by_filters of the tiles of filters. zeros: for all channels of `to`.
    """

    image: Image
    to: Image
    geometry: Geometry
    passes: np.ndarray
    strips: np.ndarray
    taps: tuple[np.ndarray, ...]
    filters: int
    by_filters: bool
    pieces: Pieces
    zeros: np.ndarray


@lru_cache(maxsize=4096)
def planar_plan(
    kind: Kind,
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    window: Window,
    groups: int,
    threads: int,
    zeros: bool = True,
) -> Plan:
    """As plan_of, for planar images x (N, C, H, W)."""
    N, C, H, W = x_shape
    (P, Q), K = window.output_size(H, W), w_shape[0]
    P, Q = (P // 2, Q // 2) if kind == "pooled" else (P, Q)
    x, y = Image(0, 0, N, H, W, C), Image(0, 0, N, P, Q, K)
    images = (y, x) if kind == "dx" else (x, y)
    return plan_of(kind, *images, w_shape, window, groups, threads, zeros=zeros)


def plan_of(
    kind: Kind,
    image: Image,
    to: Image,
    w_shape: tuple[int, ...],
    window: Window,
    groups: int,
    threads: int,
    affine: bool = False,
    by_filters: bool = False,
    zeros: bool = False,
) -> Plan:
    """For y ("forward"), its planar 2x2 maxima ("pooled"), dx ("dx") or dw ("dw"), which are
    computed from `image`, x or dy; `to` is y, the maxima, dx, or for dw the other input dy.

    Several planar images count as one of more groups where that pays. affine: whether x is scaled
    while it is copied, so that it must be copied. by_filters: threads share the filters, not the
    blocks. zeros: whether outputs may lie side by side, with taps of zero.
    """
    C, K, dx = image.C // groups, to.C // groups, kind == "dx"
    n = 0 if image.step or to.step else abreast(image.N, C, K, groups)
    across, n = n > 0, max(n, 1)
    image, to = (each._replace(N=each.N // n, C=each.C * n) for each in (image, to))
    x, pool = to if dx else image, 2 if kind == "pooled" else 1
    to = to._replace(H=to.H * pool, W=to.W * pool)  # what no pool window covers is left out
    work = image.N * math.prod(window.output_size(x.H, x.W)) * math.prod(w_shape)
    alone = across or kind == "dw" or not zeros or work < LEAST_WORK
    beside = (1, 1) if alone else side_by_side(window, x.H, x.W, K, dx)
    rows, columns = axes(window, x.H, x.W, dx, beside)
    in_place = window.taps_count == groups == 1 and not any(map(any, window.pads(x.H, x.W)))
    in_place &= not across if kind == "dw" else image.step > 0 and to.step > 0 and not affine
    if in_place and image.step and window.stride == (1, 1):  # all alike: one column of pixels
        pixels = image.N * image.H * image.W
        image, to = (each._replace(N=1, H=pixels, W=1) for each in (image, to))
    if in_place and kind == "dw":  # threads that share the filters have no sums to add up
        by_filters = 2 * threads * len(TILE_HEIGHTS) * LANES <= K
    sharing = (1, threads) if by_filters else (threads, 1)
    how = across, pool, kind == "dw", in_place, *sharing
    g = _geometry(image, to, n * groups, rows, columns, *how)
    lanes, S = LANES if g.across else 1, window.kernel_size[1]
    strips: list[tuple[int, int, int, int, int]] = []
    passes, taps, filters, products = [], [], 0, 0
    all_columns = columns.passes()
    for i, down in enumerate(rows.passes()):
        for j, right in enumerate(all_columns):
            a, b = i * rows.beside, j * columns.beside
            if down and right and a < to.H and b < to.W:
                taps.append(taps_of(down, right, S))
                size = -(-(to.H - a) // g.out_h), -(-(to.W - b) // g.out_w)
                before, depth = len(strips), len(down) * len(right) * g.C // lanes
                strips += _strips(down, right, g)
                passes.append((filters, depth, before, len(strips), a, b, *size))
                filters += -(-g.K * g.below * g.beside // LANES) * LANES * depth
                products += size[0] * size[1] * g.K * g.below * g.beside * depth
    parts = -(-g.K // g.wide) if by_filters else g.blocks
    pieces = shards(parts, FMA_GRAIN * parts / max(image.N * g.groups * products, 1))
    return Plan(
        image, to, g, np.array(passes, np.int64).reshape(-1, 8),
        np.array(strips, np.int64).reshape(-1, 5), tuple(taps), g.groups * filters,
        by_filters, pieces, np.zeros(g.groups * g.K, np.float32),
    )  # fmt: skip


def _geometry(
    image: Image,
    to: Image,
    groups: int,
    down: Axis,
    right: Axis,
    across: bool,
    pool: int,
    in_planes: bool,
    in_place: bool,
    threads: int,
    filter_threads: int,
) -> Geometry:
    """in_planes: for dw, the tile is in planes of LANES channels, because a register tile reads few
    channels of all pixels; blocks are larger: the sums are read and written once a block.
    """
    C, K, N = image.C // groups, to.C // groups, image.N
    if across:
        C, K, groups = C * LANES, K * LANES, -(-groups // LANES)
    (top, high_y), (left, high_x) = down.ends(), right.ends()
    out_h, out_w = len(down.phases), len(right.phases)
    P, Q = -(-to.H // out_h), -(-to.W // out_w)
    span, width = high_y - top + 1, (Q - 1) * right.stride + high_x - left + 1
    lines = -(-C // LANES)
    # with fewer than LANES channels a row's pixels follow one another without gaps; else the step
    # is an odd number of cache lines, so that pixels do not compete for cache sets
    step = C if C < LANES or across else LANES * (lines | 1)
    step = min(step, LANES) if in_planes else step
    if in_place:
        width, step = image.W, image.step or 1
    row = width * down.stride * lines * LANES  # floats that another row of a pass adds to the tile
    enough = -(-MIN_PIXELS // Q)
    if down.beside * right.beside > 1:  # few pixels are many outputs, and many rows of the tile
        enough = min(enough, 8 * TILE_FLOATS // row)
    most = max(TILE_FLOATS // row, enough, 1)
    most = max(1, min(most, -(-MAX_PIXELS // Q)) // pool)
    vectors = -(-K * down.beside * right.beside // LANES)
    tiles = -(-vectors // (2 if across else len(TILE_HEIGHTS)))  # of filters
    tiles = -(-tiles // filter_threads) * filter_threads
    wide = -(-vectors // tiles) * LANES
    pairs = 1 if out_h % pool == 0 else pool  # of rows of a pass, for whole windows of a pool
    rows = _even_rows(N, -(-P // pairs), most, threads) * pairs
    high, images = (rows - 1) * down.stride + span, 1
    if rows == P and (in_planes or not in_place):
        pixels = MAX_PIXELS if in_planes else 3 * MIN_PIXELS // 2
        fit = 2 * TILE_FLOATS // (high * width * lines * LANES)
        images = max(1, min(pixels // (P * Q), N // threads, fit))
    planes, plane = (lines, (images * high * width + 1) * LANES) if in_planes else (1, LANES)
    tile = images * high * width * (lines * LANES if in_planes else step) + 2 * LANES * lines
    tile = 0 if in_place else -(-tile // LANES) * LANES  # the output begins a cache line
    out = (images * rows * out_h * to.W + HIGHEST) * wide
    sums = (images * rows * Q + HIGHEST + 1) * wide
    fetched = not across and N * to.H * to.W * to.C > LEAST_FETCHED
    return Geometry(
        C, K, groups, int(across), down.stride, right.stride, -top, -left, out_h, out_w,
        down.beside, right.beside, int(not all(down.reads() + right.reads())),
        wide, pool, P, Q, rows, images, span, width, step, planes, plane, tile, out, sums,
        int(fetched), -(-N // images) * -(-P // rows),
    )  # fmt: skip


def _strips(
    rows: list[Reading], columns: list[Reading], g: Geometry
) -> list[tuple[int, int, int, int, int]]:
    """(offset, lines, line_bytes, values, step) of what a pass reads in the tile, about CHAIN
    values in each strip, steps in bytes. A line is a pixel's channels, or those of a row of taps
    where they lie at even distances. Across groups a value is a vector.
    """
    (x, _), *others = columns
    right = others[0][0] - x if others else 1
    starts = [4 * g.step * ((y + g.top) * g.width + x + g.left) for y, _ in rows]
    lanes, pixel_bytes = LANES if g.across else 1, 4 * g.step * right
    step = pixel_bytes if lanes == g.C else 4 * lanes
    if step * g.C == pixel_bytes * lanes:
        down = starts[1] - starts[0] if len(rows) > 1 else 0
        sequences = [(starts[0], len(rows), down, len(columns) * g.C // lanes)]
    else:
        sequences = [(start, len(columns), pixel_bytes, g.C // lanes) for start in starts]
    found = []
    for start, count, line_bytes, values in sequences:
        together = max(1, CHAIN // values)
        for i in range(0, count, together):
            offset, lines = start + i * line_bytes, min(together, count - i)
            for c in range(0, values, CHAIN):
                found.append((offset + step * c, lines, line_bytes, min(values - c, CHAIN), step))
    return found


def across_groups(C: int, K: int, groups: int) -> bool:
    """Whether a vector's lanes are groups, of C channels and K filters, and not channels of one."""
    return groups > K and K <= MOST_FILTERS and C <= MOST_CHANNELS


def abreast(N: int, C: int, K: int, groups: int) -> int:
    """How many of N images to take as one of so many times the groups: vectors across groups then
    have the fewest lanes empty. 0 where there are no such vectors.
    """
    divisors = [count for count in range(1, max(N, 1) + 1) if N % count == 0]
    best = min(divisors, key=lambda count: -(groups * count) % LANES / count)
    return best if across_groups(C, K, groups * best) else 0


def _even_rows(N: int, P: int, most: int, threads: int) -> int:
    """Rows of a block, at most `most`, so that blocks share out evenly among threads."""
    count = -(-P // most)
    while count < P and N * count % threads and N * count < 8 * threads:
        count += 1
    return -(-P // count)
