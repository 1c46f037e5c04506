"""What the convolutions of conv.py and conv_pool.py take: their arrays and workspaces as outlines.

Each function makes, in the same order, the arrays that the fast one makes, from the same plans.
tests/ops/test_memory_of_ops.py holds them to what NumPy reports. float32 only.
"""

from __future__ import annotations

import numpy as np

from gpuconv.cpu import conv_columns, conv_pointwise, conv_pool, conv_whole, winograd
from gpuconv.cpu.blocks import HIGH, LANES
from gpuconv.cpu.conv_pool_gradient import _layout
from gpuconv.cpu.plan import forward_plan, input_plan, tiles
from gpuconv.cpu.vector import TILE_WIDTH
from gpuconv.cpu.vector_pooled import PAIRS, PIXELS
from gpuconv.cuda.outline import Outline
from gpuconv.shapes import Window
from gpuconv.threads import shards, thread_count

Shape = tuple[int, ...]
Gradients = tuple[Outline | None, Outline, Outline]


def forward(x: Outline, w: Outline, window: Window, groups: int) -> Outline:
    """y (N, K, P, Q), as conv.forward."""
    x, w = x.plain(), w.plain()
    (N, _, H, W), K = x.shape, len(w)
    P, Q = window.output_size(H, W)
    y = x.empty((N, K, P, Q))
    if conv_whole.suits(x.shape, window, groups):
        return y
    if conv_pointwise.suits(x.shape, w.shape, window, groups):
        return y
    if winograd.suits(x.shape, w.shape, window, groups):
        _winograd(x, y)
        return y
    plan, filters = forward_plan(x.shape, window, groups, thread_count()), K // groups
    weights = x.empty((groups * tiles(filters).rows * w[0].size,))
    if conv_columns.cheaper(plan, filters):
        work = _columns(x, N * P * Q, w[0].size, filters)
    else:
        work = x.workspace("staged", plan.scratch, _pieces(plan.stage.blocks))
    del weights, work
    return y


def backward(
    dy: Outline, x: Outline, w: Outline, window: Window, groups: int, need_dx: bool
) -> Gradients:
    """(dx or None, dw, db), as conv.backward."""
    dy, x, w = dy.plain(), x.plain(), w.plain()
    if conv_whole.suits(x.shape, window, groups):
        weights = w.empty(w.shape), w.empty((len(w),))
    elif winograd.suits_weight_gradient(x.shape, w.shape, window, groups):
        weights = _winograd_weights(dy, x, w)
    else:
        weights = _weights(dy, x, w, window, groups)
    return _input_gradient(dy, w, x.shape, window, groups) if need_dx else None, *weights


def pooled(
    x: Outline, w: Outline, window: Window, groups: int, pool: Window
) -> tuple[Outline, Outline]:
    """(y, argmax), as conv_pool.forward."""
    P, Q = window.output_size(*x.shape[2:])
    size = pool.output_size(P, Q)
    shape = len(x), len(w), *size
    if not conv_pool._fuses(x.shape, x.dtype, w.shape, window, groups, pool):
        between = forward(x, w, window, groups)
        return between.empty(shape), between.empty(shape, np.uint8)
    x = x.plain()
    plan = forward_plan((1, *x.shape[1:]), window, groups, 1)
    tile = conv_pool._tile(len(w) // groups, *size)
    weights = x.empty((groups, -(-len(w) // groups // tile) * tile, w[0].size))
    y, argmax = x.empty(shape), x.empty(shape, np.uint8)
    pixels, pieces = -(-size[0] * size[1] // LANES) * LANES + PAIRS, _pieces(len(x))
    work = x.workspace("staged", plan.scratch + 2 * PIXELS, pieces)
    work += x.workspace("pooled", pixels * LANES, pieces)
    work += x.workspace("won", pixels * LANES, pieces, np.uint8)
    del weights, work
    return y, argmax


def pooled_backward(
    dy: Outline,
    y: Outline,
    argmax: Outline,
    x: Outline,
    w: Outline,
    window: Window,
    groups: int,
    pool: Window,
    need_dx: bool,
) -> Gradients:
    """(dx or None, dw, db), as conv_pool.backward."""
    if conv_pool._fuses(x.shape, x.dtype, w.shape, window, groups, pool):
        dy, y, argmax, x, w = (a.plain() for a in (dy, y, argmax, x, w))
        return _winners(dy, x, w, window, groups, need_dx)
    masked = dy.empty(dy.shape)
    spread = masked.empty((len(x), len(w), *window.output_size(*x.shape[2:])))
    del masked
    return backward(spread, x, w, window, groups, need_dx)


def _winners(
    dy: Outline, x: Outline, w: Outline, window: Window, groups: int, need_dx: bool
) -> Gradients:
    """As conv_pool_gradient.gradient."""
    layout, starts, _ = _layout(x.shape, len(w), window, groups)
    pieces, line = _pieces(len(x)), layout.strips * layout.vectors * layout.R * LANES
    work = x.workspace("filter sums", pieces * len(w) * line)
    work += x.workspace("filter lines", len(w) * line if need_dx else 0)
    dx = x.empty(x.shape) if need_dx else None
    floats = layout.images * layout.image + (layout.vectors + 1) * LANES
    winners = layout.images * layout.K * len(starts)
    work += x.workspace("channels last", floats, pieces)
    work += x.workspace("channels-last dx", floats, pieces)
    work += x.workspace("won gradients", winners, pieces)
    work += x.workspace("won", winners, pieces, np.int64)
    dw, db = w.empty(w.shape), w.empty((len(w),))
    del work
    return dx, dw, db


def _pieces(items: int) -> int:
    return len(shards(items))


def _columns(x: Outline, pixels: int, depth: int, filters: int) -> list[Outline]:
    """The workspaces of conv_columns.convolve, `filters` being one group's."""
    cut, threads = tiles(filters), thread_count()
    pairs, cost = -(-pixels // TILE_WIDTH), conv_columns.GATHER_COST
    by_pixels = -(-pairs // threads) * (cut.rows + cost)
    by_filters = pairs * (-(-cut.rows // (threads * HIGH)) * HIGH + cost)
    pieces = _pieces(pairs if by_pixels <= by_filters else len(cut.first))
    line = conv_columns.LINE * max(1, min(4, conv_columns.CHUNK // depth))
    gathered = min(depth, conv_columns.CHUNK) * line + LANES
    work = x.workspace("columns", gathered, pieces)
    return work + x.workspace("column sums", cut.rows * line, pieces)


def _winograd(x: Outline, y: Outline) -> None:
    """As winograd._convolve, of x to y."""
    (N, C, _, _), (_, K, P, Q) = x.shape, y.shape
    blocks = winograd._blocks(N, P, Q, thread_count())
    channels, _, plane = winograd._sizes(C, K, blocks.most)
    work = x.workspace("filters", 36 * (channels * C + LANES))
    work += _squares(x, blocks, plane, channels)
    del work


def _squares(x: Outline, blocks: winograd._Blocks, plane: int, channels: int) -> list[Outline]:
    """The workspaces of one piece of Winograd's blocks."""
    pieces = _pieces(blocks.total)
    work = x.workspace("inputs", 36 * plane, pieces)
    work += x.workspace("products", 36 * (channels * blocks.most + LANES), pieces)
    pixels = blocks.images * (4 * blocks.rows + 2) * (4 * blocks.across + 2) * LANES + 256
    return work + x.workspace("pixels", pixels, pieces)


def _winograd_weights(dy: Outline, x: Outline, w: Outline) -> tuple[Outline, Outline]:
    """(dw, db), as winograd.weight_gradient."""
    (N, C, _, _), (_, K, P, Q) = x.shape, dy.shape
    blocks = winograd._blocks(N, P, Q, thread_count())
    channels, _, plane = winograd._sizes(C, K, blocks.most)
    sums = channels * tiles(C).rows + LANES
    work = x.workspace("weight gradient", _pieces(blocks.total) * 36 * sums)
    work += _squares(x, blocks, plane, channels)
    dw, db = w.empty(w.shape), w.empty((K,))
    del work
    return dw, db


def _weights(
    dy: Outline, x: Outline, w: Outline, window: Window, groups: int
) -> tuple[Outline, Outline]:
    """(dw, db), as conv_weights.weight_gradient."""
    plan, K = forward_plan(x.shape, window, groups, thread_count()), len(w) // groups
    stage, pieces = plan.stage, _pieces(plan.stage.blocks)
    channels, padded = -(-K // LANES) * LANES, tiles(len(plan.offsets) + 1).rows
    work = x.workspace("weight gradient", pieces * groups * channels * padded)
    work += x.workspace("staged for weights", plan.scratch + stage.plane, pieces)
    turned = channels * stage.images * stage.rows * stage.Q
    work += x.workspace("transposed", turned, pieces)
    dw, db = w.empty(w.shape), w.empty((len(w),))
    del work
    return dw, db


def _input_gradient(
    dy: Outline, w: Outline, x_shape: Shape, window: Window, groups: int
) -> Outline:
    """dx, as conv.input_gradient."""
    dx = dy.empty(x_shape)
    if conv_whole.suits(x_shape, window, groups):
        return dx
    if conv_pointwise.suits(x_shape, w.shape, window, groups):
        return dx
    if winograd.suits(x_shape, w.shape, window, groups):
        _winograd(dy, dx)
        return dx
    plan, phases = input_plan(x_shape, dy.shape[1], window, groups, thread_count())
    if phases and conv_columns.cheaper(plan, x_shape[1] // groups):
        _input_columns(dy, x_shape, window, groups)
    elif phases:
        rows = groups * tiles(x_shape[1] // groups).rows
        weights = dy.empty((rows * sum(len(phase.offsets) for phase in phases),))
        work = dy.workspace("staged", plan.scratch, _pieces(plan.stage.blocks))
        del weights, work
    return dx


def _input_columns(dy: Outline, x_shape: Shape, window: Window, groups: int) -> None:
    """As conv_direct._input_gradient_columns."""
    filters, channels = x_shape[1] // groups, dy.shape[1] // groups
    for phase in conv_columns.input_phases(window, *x_shape[2:]):
        depth = channels * len(phase.taps)
        weights = dy.empty((groups * tiles(filters).rows * depth,))
        work = _columns(dy, len(dy) * phase.P * phase.Q, depth, filters)
        del work
    del weights
