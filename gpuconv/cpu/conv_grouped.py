"""Convolution of groups of few channels, depthwise convolution above all; float32.

A vector holds adjacent pixels of one channel, so that a group of one filter fills it. What the rows
of a block read is copied into scratch memory: a padded plane for each channel of the group and each
phase of the stride, where the pixels of a tap are adjacent. All planes have the same width, and an
output's inputs lie at fixed distances: rows of outputs are one long row, of which the ends, where a
window would cross the edge, are dropped. dx is the same of dy, one pass for each stride phase.

A thread has whole planes of y and dx, and whole filters of dw: no result depends on their number.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from gpuconv.cpu.compiled import compiled
from gpuconv.cpu.direct_plan import ends, taps_reaching
from gpuconv.cpu.moves import address, copy_floats, first_lanes
from gpuconv.cpu.simd import LANES
from gpuconv.cpu.simd_planes import (
    COLUMNS,
    FILTERS,
    MOST_VECTORS,
    deinterleave,
    next_size,
    plane_gradients,
    plane_tile,
    store_shifted,
    tile_pixels,
)
from gpuconv.cpu.workspace import scratch
from gpuconv.shapes import Window
from gpuconv.threads import parallel, shards

# Of a group, on both sides. At 8 the direct path takes 1.6 times as long forward, 1.1 backward.
MOST_CHANNELS = 8
BLOCK_FLOATS = 1 << 14  # of a block's planes: they stay in the caches next to the core


class Geometry(NamedTuple):
    """A block's planes. All integers, for Numba."""

    C: int  # of a group
    K: int
    groups: int
    stride_h: int  # rows of the input from one row of a plane to the next
    stride_w: int
    out_h: int  # rows of the output from one row of a pass to the next
    out_w: int
    P: int  # output rows of the largest pass
    rows: int  # of a block
    high: int  # rows of a plane
    width: int


class Plan(NamedTuple):
    """phases: the input row and column of each plane's first element. passes: of each pass where
    its offsets start, its depth, the first row and column, the rows and the columns of its output.
    offsets: in bytes, of each (channel, tap) of each pass. taps: of each pass.
    """

    geometry: Geometry
    phases: np.ndarray
    passes: np.ndarray
    offsets: np.ndarray
    taps: tuple[np.ndarray, ...]


def suits(x_shape: tuple[int, ...], w_shape: tuple[int, ...], window: Window, groups: int) -> bool:
    """Whether there are several groups, of few channels and filters."""
    return groups > 1 and max(x_shape[1], w_shape[0]) <= MOST_CHANNELS * groups


def forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None, window: Window, groups: int, relu: bool
) -> np.ndarray:
    """y (N, K, P, Q) of x (N, C, H, W) and w (K, C/groups, R, S); C-contiguous float32."""
    y = np.empty((len(x), len(w), *window.output_size(*x.shape[2:])), np.float32)
    return _convolve(_forward_plan(x.shape, w.shape, window, groups), x, w, False, b, relu, y)


def input_gradient(
    dy: np.ndarray, w: np.ndarray, x_shape: tuple[int, ...], window: Window, groups: int
) -> np.ndarray:
    """dx (N, C, H, W) of dy (N, K, P, Q)."""
    plan = _input_gradient_plan(x_shape, w.shape, window, groups)
    reached = sum(P * Q for *_, P, Q in plan.passes) == x_shape[2] * x_shape[3]
    dx = (np.empty if reached else np.zeros)(x_shape, np.float32)
    return _convolve(plan, dy, w, True, None, False, dx)


def weight_gradient(
    dy: np.ndarray, x: np.ndarray, w_shape: tuple[int, ...], window: Window, groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """(dw (K, C/groups, R, S), db (K,)) of dy (N, K, P, Q), x (N, C, H, W); float32 in C order."""
    plan = _forward_plan(x.shape, w_shape, window, groups)
    dw, db = np.empty(w_shape, np.float32), np.empty(w_shape[0], np.float32)

    def run(begin: int, end: int) -> None:
        sums = np.empty((plan.geometry.K, len(plan.offsets) + 2, LANES), np.float32)
        _gradients(
            x, dy, plan.geometry, plan.phases, plan.offsets, begin, end, _tile(plan), sums,
            dw.reshape(len(dw), -1), db,
        )  # fmt: skip

    parallel(run, shards(groups))
    return dw, db


def _convolve(
    plan: Plan,
    x: np.ndarray,
    w: np.ndarray,
    transposed: bool,
    b: np.ndarray | None,
    relu: bool,
    y: np.ndarray,
) -> np.ndarray:
    g = plan.geometry
    filters = w.reshape(g.groups, -1, w.shape[1], w[0, 0].size)
    filters = filters.swapaxes(1, 2) if transposed else filters  # (groups, K, C, taps)
    weights = [filters[..., taps].ravel() for taps in plan.taps] or [w[:0].ravel()]
    bias = np.zeros(y.shape[1], np.float32) if b is None else b
    fixed = x, y, g, plan.phases, plan.passes, plan.offsets, np.concatenate(weights)
    pixels = g.rows * g.width + MOST_VECTORS * LANES

    def run(begin: int, end: int) -> None:
        out = scratch("sums of planes", FILTERS[0] * pixels)
        _planes(*fixed, bias, int(relu), begin, end, _tile(plan), out)

    parallel(run, shards(len(x) * g.groups))
    return y


def _tile(plan: Plan) -> np.ndarray:
    """Zeros for a block's planes, this thread's own; and for what the last vectors read."""
    g = plan.geometry
    tile = scratch("planes", (g.C * len(plan.phases) * g.high + 1) * g.width + MOST_VECTORS * LANES)
    tile[:] = 0
    return tile


@lru_cache(maxsize=1024)
def _forward_plan(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], window: Window, groups: int
) -> Plan:
    (top, _), (left, _) = window.pads(*x_shape[2:])
    (R, S), (down, right), (stride_h, stride_w) = window.kernel_size, window.dilation, window.stride
    P, Q = window.output_size(*x_shape[2:])
    # tap r of output p reads row shift + p of the plane of the rows that are `phase` modulo stride
    rows = [divmod(r * down, stride_h) for r in range(R)]
    columns = [divmod(s * right, stride_w) for s in range(S)]
    pairs = sorted({(a, b) for _, a in rows for _, b in columns})
    g = _geometry(
        w_shape[1], w_shape[0] // groups, groups, window.stride, (1, 1), P, rows[-1][0],
        Q + columns[-1][0], len(pairs),
    )  # fmt: skip
    offsets = [
        4 * (((c * len(pairs) + pairs.index((a, b))) * g.high + i) * g.width + j)
        for c in range(g.C)
        for i, a in rows
        for j, b in columns
    ]
    return Plan(
        g, np.array(pairs, np.int64) - np.array((top, left)),
        np.array([(0, len(offsets), 0, 0, P, Q)], np.int64), np.array(offsets, np.int64),
        (np.arange(R * S),),
    )  # fmt: skip


@lru_cache(maxsize=1024)
def _input_gradient_plan(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], window: Window, groups: int
) -> Plan:
    H, W = x_shape[2:]
    S, (stride_h, stride_w) = window.kernel_size[1], window.stride
    rows, columns = taps_reaching(window, H, W)
    (low_y, high_y), (low_x, high_x) = ends(rows), ends(columns)
    g = _geometry(
        w_shape[0] // groups, w_shape[1], groups, (1, 1), window.stride, -(-H // stride_h),
        high_y - low_y, -(-W // stride_w) + high_x - low_x, 1,
    )  # fmt: skip
    passes, taps = [], []
    offsets: list[int] = []
    for a, reaching in enumerate(rows):
        for b, beside in enumerate(columns):
            if reaching and beside and a < H and b < W:
                found = [
                    4 * ((k * g.high + y - low_y) * g.width + x - low_x)
                    for k in range(g.C)
                    for _, y in reaching
                    for _, x in beside
                ]
                size = -(-(H - a) // stride_h), -(-(W - b) // stride_w)
                passes.append((len(offsets), len(found), a, b, *size))
                offsets += found
                taps.append(np.array([r * S + s for r, _ in reaching for s, _ in beside]))
    return Plan(
        g, np.array([(low_y, low_x)], np.int64), np.array(passes, np.int64).reshape(-1, 6),
        np.array(offsets, np.int64), tuple(taps),
    )  # fmt: skip


def _geometry(
    C: int,
    K: int,
    groups: int,
    stride: tuple[int, int],
    out: tuple[int, int],
    P: int,
    extra: int,
    width: int,
    phases: int,
) -> Geometry:
    rows = max(1, min(P, BLOCK_FLOATS // (width * C * phases)))
    rows = -(-P // -(-P // rows))
    return Geometry(C, K, groups, *stride, *out, P, rows, rows + extra, width)


@compiled
def _load(x, n, group, g, phases, p, rows, tile):
    """Fill the planes of a block of output rows [p, p + rows); the padding's columns are zero."""
    _, channels, H, W = x.shape
    for c in range(g.C):
        image = address(x) + 4 * (n * channels + group * g.C + c) * H * W
        for f in range(len(phases)):
            down, right = phases[f]
            first = max(0, -(right // g.stride_w))
            count = min(g.width - 1, (W - 1 - right) // g.stride_w) - first + 1
            for t in range(rows + g.high - g.rows):
                place = ((c * len(phases) + f) * g.high + t) * g.width
                h = (p + t) * g.stride_h + down
                if h < 0 or h >= H:
                    tile[place : place + g.width] = 0
                    continue
                column = first * g.stride_w + right
                source, target = image + 4 * (h * W + column), address(tile) + 4 * (place + first)
                if g.stride_w == 1:
                    copy_floats(source, target, count)
                elif g.stride_w == 2:
                    for i in range(0, count, LANES):
                        deinterleave(source + 8 * i, target + 4 * i, first_lanes(count - i))
                else:
                    line = x[n, group * g.C + c, h]
                    for i in range(count):
                        tile[place + first + i] = line[column + i * g.stride_w]


@compiled
def _planes(x, y, g, phases, passes, offsets, weights, bias, relu, begin, end, tile, out):
    """The output of (image, group) number `begin` to `end`."""
    out_step = len(out) // FILTERS[0]
    for item in range(begin, end):
        n, group = item // g.groups, item % g.groups
        for p in range(0, g.P, g.rows):
            _load(x, n, group, g, phases, p, min(g.rows, g.P - p), tile)
            for i in range(len(passes)):
                start, depth, a, b, P, Q = passes[i]
                rows, m = min(g.rows, P - p), 0
                while m < g.K and rows > 0:
                    filters, k = next_size(FILTERS, g.K - m), group * g.K + m
                    # a pass's weights follow those of the passes before, of all filters
                    at = address(weights) + 4 * (start * len(bias) + k * depth)
                    for v in range(0, rows * g.width, tile_pixels(filters)):
                        plane_tile(
                            filters, at, 4 * depth, address(tile) + 4 * v,
                            address(offsets) + 8 * start, depth, address(out) + 4 * v, 4 * out_step,
                        )  # fmt: skip
                    for j in range(filters):
                        sums = out[j * out_step : (j + 1) * out_step]
                        to = y[n, k + j, p * g.out_h + a :, b:]
                        _store(sums, g, rows, Q, bias[k + j : k + j + 1], relu, to)
                    m += filters


@compiled
def _store(sums, g, rows, Q, bias, relu, y):
    """Rows of one filter's sums to their pixels of y."""
    for r in range(rows):
        line = y[r * g.out_h]
        if g.out_w == 1:
            for q in range(0, Q, LANES):
                source = address(sums) + 4 * (r * g.width + q)
                to, bits = address(line) + 4 * q, first_lanes(Q - q)
                store_shifted(source, address(bias), relu, to, bits)
        else:  # of dx, which has neither bias nor ReLU
            for q in range(Q):
                line[q * g.out_w] = sums[r * g.width + q]


@compiled
def _gradients(x, dy, g, phases, offsets, begin, end, tile, sums, dw, db):
    """dw and db of groups [begin, end). sums (K of a group, columns + 2, LANES): after the columns
    of dw comes the sum of dy, then what nobody reads.
    """
    _, K, P, Q = dy.shape
    columns, vectors = len(offsets), -(-Q // LANES)
    last_bits = first_lanes(Q - (vectors - 1) * LANES)
    for group in range(begin, end):
        sums[:] = 0
        for n in range(len(x)):
            for p in range(0, P, g.rows):
                rows = min(g.rows, P - p)
                _load(x, n, group, g, phases, p, rows, tile)
                for m in range(g.K):
                    gradient = address(dy) + 4 * ((n * K + group * g.K + m) * P + p) * Q
                    total, column = address(sums[m, columns]), 0
                    while column < columns:
                        count = next_size(COLUMNS, columns - column)
                        plane_gradients(
                            count, gradient, 4 * Q, address(tile), 4 * g.width,
                            address(offsets) + 8 * column, rows, vectors, last_bits,
                            address(sums[m, column]), total,
                        )  # fmt: skip
                        column, total = column + count, address(sums[m, columns + 1])
        for m in range(g.K):
            k = group * g.K + m
            for column in range(columns):
                dw[k, column] = _lane_sum(sums[m, column])
            db[k] = _lane_sum(sums[m, columns])


@compiled
def _lane_sum(lanes):
    total = 0.0
    for value in lanes:
        total += value
    return total
