"""im2col convolution: a matrix product over the pixels of the whole batch, gathered piece by piece.

The padded tiles of conv_direct.py leave vector lanes empty at the end of each row and image: a
third of them at 7 x 7. Here the value that every output pixel reads is gathered first, one line for
each (channel, tap), pixel after pixel and image after image, in pieces that stay in the cache. A
line is written once and read for every filter, so this pays where there are many filters or small
images. Source: Chellapilla, Puri and Simard, High Performance Convolutional Neural Networks for
Document Processing, 2006.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gpuconv.cpu.blocking import Blocking, register_tiles, taps_reaching
from gpuconv.cpu.compiled import compiled
from gpuconv.cpu.inner_loops import HEIGHT_2, HEIGHT_3, address
from gpuconv.cpu.simd import LANES, TILE_WIDTH
from gpuconv.cpu.simd_moves import copy_lanes_or_zero, deinterleave, store_rows
from gpuconv.cpu.simd_tiles import conv_tile_1, conv_tile_2, conv_tile_3
from gpuconv.cpu.workspace import scratch
from gpuconv.shapes import Window
from gpuconv.threads import parallel, shards, thread_count

# A piece is CHUNK lines of LINE pixels, 256 or 512 KB with 8 or 16 lanes: half of a 1 MB cache.
# Longer lines read the weights less often; more of them add to the sums in memory less often.
CHUNK = 512
LINE = 8 * TILE_WIDTH
# Two estimates decide between this and the direct convolution, in units of a vector's product:
GATHER_COST = 16  # gathering a vector of a line costs about as much as this many products with it
STRIDED_LOAD_COST = 1.2  # a direct convolution at horizontal stride 2 takes this much longer


class Grid(NamedTuple):
    """Output pixel (n, p, q) reads x[n, :, p*stride_h + down, q*stride_w + right] for each tap."""

    C: int  # channels of a group
    H: int
    W: int
    P: int
    Q: int
    stride_h: int
    stride_w: int


def cheaper(blocking: Blocking, filters: int) -> bool:
    """Whether gathering costs less than the empty lanes of the direct convolution's tiles.

    With one tap a line is a copy of a plane, which is then read in the order in which it lies. A
    blocking for dx always counts as one: its tile is shared by all stride phases.
    """
    tile_shape = blocking.tile_shape
    if tile_shape.stride_w > 2:
        return False
    if len(blocking.offsets) == tile_shape.C and filters >= GATHER_COST:
        return True
    lanes = -(-tile_shape.images * tile_shape.rows * tile_shape.width // TILE_WIDTH) * TILE_WIDTH
    planes = lanes * filters * (STRIDED_LOAD_COST if tile_shape.stride_w == 2 else 1)
    # by 5 % at least: the estimate is rough
    return planes > 1.05 * tile_shape.images * tile_shape.rows * tile_shape.Q * (
        filters + GATHER_COST
    )


def forward_taps(window: Window, H: int, W: int) -> np.ndarray:
    """(R*S, 2): how far down and right of (p*stride_h, q*stride_w) each tap reads."""
    (top, _), (left, _) = window.pads(H, W)
    (R, S), (dil_h, dil_w) = window.kernel_size, window.dilation
    return np.array([(r * dil_h - top, s * dil_w - left) for r in range(R) for s in range(S)])


class Im2colPhase(NamedTuple):
    """Pixels of dx that are `stride` apart from `first` on: which taps reach them."""

    first: tuple[int, int]
    P: int
    Q: int
    numbers: np.ndarray  # r*S + s
    taps: np.ndarray  # as of forward_taps


def input_phases(window: Window, H: int, W: int) -> list[Im2colPhase]:
    """dx as convolutions of dy at stride 1: one for each stride phase that some tap reaches."""
    (top, _), (left, _) = window.pads(H, W)
    (stride_h, stride_w), (R, S) = window.stride, window.kernel_size
    phases = []
    for a in range(min(stride_h, H)):
        rows = taps_reaching(a, top, stride_h, window.dilation[0], R)
        for b in range(min(stride_w, W)):
            columns = taps_reaching(b, left, stride_w, window.dilation[1], S)
            numbers = np.array([r * S + s for r, _ in rows for s, _ in columns], np.int64)
            taps = np.array([(down, right) for _, down in rows for _, right in columns], np.int64)
            size = -(-(H - a) // stride_h), -(-(W - b) // stride_w)
            if len(taps):
                phases.append(Im2colPhase((a, b), *size, numbers, taps))
    return phases


def convolve(
    x: np.ndarray,
    grid: Grid,
    taps: np.ndarray,
    weights: np.ndarray,
    bias: np.ndarray,
    relu: bool,
    y: np.ndarray,
    base: int,
    steps: tuple[int, int, int, int],
) -> None:
    """y.flat[base + n*steps[0] + p*steps[1] + q*steps[2] + k*steps[3]] = sum + bias, or its ReLU.

    weights: (groups, floats), packed by conv_direct. y may have other elements; they stay as they
    are. The threads share the pixels, or the filters where there are too few pixels.
    """
    K = len(bias) // len(weights)
    is_1x1 = len(taps) == 1 and not taps.any() and grid.stride_h == grid.stride_w == 1
    if is_1x1 and grid[3:5] == grid[1:3] and steps[1] == grid.Q * steps[2]:
        # an image is one row: longer runs
        grid = grid._replace(H=1, W=grid.H * grid.W, P=1, Q=grid.P * grid.Q)
    pixels, tiling = len(x) * grid.P * grid.Q, register_tiles(K)
    pairs = -(-pixels // TILE_WIDTH)
    threads = thread_count()
    by_pixels = -(-pairs // threads) * (tiling.rows + GATHER_COST)
    by_filters = pairs * (-(-tiling.rows // (threads * HEIGHT_3)) * HEIGHT_3 + GATHER_COST)
    depth = grid.C * len(taps)
    line = LINE * max(1, min(4, CHUNK // depth))

    def run(begin: int, end: int, first: int, last: int) -> None:
        gathered = scratch("columns", min(depth, CHUNK) * line + LANES)
        sums = scratch("column sums", tiling.rows * line)
        convolve_pixels(
            x, grid, taps, weights, bias, int(relu), tiling.first[first:last],
            tiling.height[first:last], K, begin, end, line, gathered, sums, y.reshape(-1), base,
            np.array(steps),
        )  # fmt: skip

    if by_pixels <= by_filters:
        pieces = shards(pairs)
        every = len(tiling.first)
        parallel(
            lambda b, e: run(b * TILE_WIDTH, min(e * TILE_WIDTH, pixels), 0, every),
            pieces,
            blas=False,
        )
    else:
        parallel(lambda b, e: run(0, pixels, b, e), shards(len(tiling.first)), blas=False)


@compiled
def gather(x, group, grid, taps, first, last, begin, end, gathered, line):
    """gathered[(d - first)*line + i - begin] = what pixel i reads for d = channel * taps + tap.

    Pixels outside the image are zeros, by masked loads; at stride 2 two vectors are deinterleaved.
    """
    T, channels = len(taps), x.shape[1]
    image = grid.P * grid.Q
    for d in range(first, last):
        c, (down, right) = d // T, taps[d % T]
        to = address(gathered) + 4 * (d - first) * line
        i, n, q = begin, begin // image, begin % grid.Q
        p = begin % image // grid.Q
        while i < end:
            run = min(grid.Q - q, end - i)
            h, w = p * grid.stride_h + down, q * grid.stride_w + right
            plane = (n * channels + group * grid.C + c) * grid.H
            source = address(x) + 4 * ((plane + h) * grid.W + w)
            inside = 0 <= h < grid.H
            if grid.stride_w == 1:
                for v in range(0, run, LANES):
                    bits = _range_bits(-w - v, grid.W - w - v, LANES) if inside else 0
                    copy_lanes_or_zero(source + 4 * v, to + 4 * v, bits)
            else:
                for v in range(0, run, LANES):
                    bits = _range_bits(-w - 2 * v, grid.W - w - 2 * v, 2 * LANES) if inside else 0
                    deinterleave(source + 8 * v, to + 4 * v, bits)
            i, to, q, p = i + run, to + 4 * run, 0, p + 1
            if p == grid.P:
                n, p = n + 1, 0


@compiled
def _range_bits(low, high, count):
    """Bits low to high - 1, of those below count."""
    low, high = max(low, 0), min(high, count)
    return (1 << high) - (1 << low) if high > low else 0


@compiled
def _find_segments(grid, begin, end, steps, starts, segments):
    """Find the runs of pixels that lie in one row of y and in one vector of a line.

    Each has its first lane, its end lane and the element of y for lane 0. Vector v has the segments
    starts[v] to starts[v + 1].
    """
    image = grid.P * grid.Q
    # rows without a gap between them are one run
    row = image if steps[1] == grid.Q * steps[2] else grid.Q
    count = 0
    for v in range(-(-(end - begin) // TILE_WIDTH) * 2):
        starts[v] = count
        i = begin + v * LANES
        stop = min(end, i + LANES)
        lane = 0
        while i < stop:
            n, rest = i // image, i % image
            p, q = rest // row, rest % row
            run = min(row - q, stop - i)
            segments[count, 0], segments[count, 1] = lane, lane + run
            segments[count, 2] = n * steps[0] + p * steps[1] + (q - lane) * steps[2]
            count, lane, i = count + 1, lane + run, i + run
        starts[v + 1] = count


@compiled
def convolve_pixels(
    x, grid, taps, weights, bias, relu, first, height, K, begin, end, line, gathered, sums, y, base,
    steps,
):  # fmt: skip
    """y for pixels [begin, end) of the batch and the register tiles of filters given.

    The depth is summed CHUNK lines at a time; between chunks the sums wait in `sums`.
    """
    depth = grid.C * len(taps)
    starts, segments = np.empty(line // LANES + 1, np.int64), np.empty((line + 1, 3), np.int64)
    offsets = np.arange(min(depth, CHUNK)) * (4 * line)
    for i in range(begin, end, line):
        stop = min(end, i + line)
        pairs = -(-(stop - i) // TILE_WIDTH)
        _find_segments(grid, i, stop, steps, starts, segments)
        for group in range(len(weights)):
            # a chunk of the depth is gathered once, while it is in the cache all filters read it
            for d in range(0, depth, CHUNK):
                last = min(depth, d + CHUNK)
                gather(x, group, grid, taps, d, last, i, stop, gathered, line)
                for tile in range(len(first)):
                    a = address(weights[group]) + 4 * (first[tile] * depth + d * height[tile])
                    at = address(sums) + 4 * (first[tile] - first[0]) * line
                    for pair in range(pairs):
                        out = at + 4 * pair * height[tile] * TILE_WIDTH
                        b = address(gathered) + 4 * pair * TILE_WIDTH
                        keep = int(d > 0)
                        if height[tile] == HEIGHT_3:
                            conv_tile_3(a, b, address(offsets), last - d, keep, out)
                        elif height[tile] == HEIGHT_2:
                            conv_tile_2(a, b, address(offsets), last - d, keep, out)
                        else:
                            conv_tile_1(a, b, address(offsets), last - d, keep, out)
            for tile in range(len(first)):
                k = first[tile]
                at = (k - first[0]) * line
                rows, shift = min(height[tile], K - k), address(bias) + 4 * (group * K + k)
                place = base + (group * K + k) * steps[3]
                for v in range(2 * pairs):
                    source = at + v // 2 * height[tile] * TILE_WIDTH + v % 2 * LANES
                    for e in range(starts[v], starts[v + 1]):
                        low, high, to = segments[e, 0], segments[e, 1], place + segments[e, 2]
                        if steps[2] == 1:
                            bits = (1 << high) - (1 << low)
                            target, step = address(y) + 4 * to, 4 * steps[3]
                            store_rows(
                                address(sums) + 4 * source, rows, shift, relu, target, step, bits
                            )
                        else:
                            _scatter(sums[source:], rows, low, high, y, to, steps)


@compiled
def _scatter(sums, rows, low, high, y, to, steps):
    """Like store_rows, to pixels steps[2] apart; without bias and ReLU: only dx needs it."""
    for m in range(rows):
        for lane in range(low, high):
            y[to + m * steps[3] + lane * steps[2]] = sums[m * TILE_WIDTH + lane]
