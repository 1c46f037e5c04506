"""Direct convolution: register tiles over blocks whose input is copied channels-last; float32.

It takes any window and any number of groups, and stores no im2col matrix. Forward and dx are the
same loop over other tiles and filters: 6 pixels times 64 filters in registers. dw is a sum of
outer products over all output pixels: the gradients of 64 filters at a pixel, times what 6 pairs of
channel and tap read there. Where groups have few channels and filters, a vector holds one of
each of LANES groups; where only the filters are few, it holds those of several outputs. Every block
of output belongs to one thread and sums run in a fixed order, so that y and dx do not depend on the
number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import cycle

import numpy as np

from gpuconv.cpu import direct_loops as loops
from gpuconv.cpu import direct_weights
from gpuconv.cpu.direct_plan import Geometry, Kind, Plan, planar_plan
from gpuconv.cpu.elementwise import GRAIN
from gpuconv.cpu.moves import NO_IMAGE, Place, add_rows, rows_of_tiles
from gpuconv.cpu.simd import LANES
from gpuconv.cpu.workspace import scratch
from gpuconv.shapes import Window
from gpuconv.threads import parallel, shards, thread_count

NOTHING, NO_TAPS = np.empty(0, np.float32), np.empty(0, np.uint8)


def forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None, window: Window, groups: int, relu: bool
) -> np.ndarray:
    """y (N, K, P, Q) of x (N, C, H, W) and w (K, C/groups, R, S); C-contiguous float32."""
    return _computed("forward", x, w, b, x.shape, window, groups, relu)[0]


def pooled_forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None, window: Window, groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """(y, argmax), both (N, K, P//2, Q//2): the 2x2 maxima of `forward`'s ReLU, and their taps."""
    return _computed("pooled", x, w, b, x.shape, window, groups, True)


def input_gradient(
    dy: np.ndarray, w: np.ndarray, x_shape: tuple[int, ...], window: Window, groups: int
) -> np.ndarray:
    """dx (N, C, H, W) of dy (N, K, P, Q): one stride-1 convolution of dy for each stride phase."""
    return _computed("dx", dy, w, None, x_shape, window, groups, False)[0]


def _computed(
    kind: Kind,
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None,
    x_shape: tuple[int, ...],
    window: Window,
    groups: int,
    relu: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """(y, argmax) of x, or (dx, nothing) of dy; x_shape: of x."""
    for zeros in (True, False):  # a tap of zero makes NaN of an infinity that it should not read
        plan = planar_plan(kind, x_shape, w.shape, window, groups, thread_count(), zeros)
        to, g = plan.to, plan.geometry
        channels = x_shape[1] if kind == "dx" else len(w)
        y = np.empty((len(x), channels, to.H // g.pool, to.W // g.pool), np.float32)
        argmax = np.empty(y.shape if kind == "pooled" else 0, np.uint8)
        bound(plan, x, y, *packed(plan, w, b, kind == "dx"), relu, argmax=argmax)()
        if g.below * g.beside == 1 or not np.isnan(np.max(y, initial=0)):
            break
    return y, argmax


def bound(
    plan: Plan,
    x: np.ndarray,
    y: np.ndarray,
    filters: np.ndarray,
    bias: np.ndarray,
    relu: bool = False,
    rest: Place | None = None,
    before: tuple[np.ndarray, np.ndarray, bool] | None = None,
    argmax: np.ndarray = NO_TAPS,
) -> Callable[[], object]:
    """What computes y, an array of the plan's images, as `direct_loops.convolve` says.

    filters, bias: of `packed`. rest: channels-last images that are added. before: scale and shift
    of x's values, and whether a ReLU follows them.
    """
    g = plan.geometry
    scale, shift, rectified = before or (NOTHING, NOTHING, False)
    others, added = rest or (plan.zeros, NO_IMAGE)
    bare = not (relu or rest or plan.to.step) and bias is plan.zeros
    fixed = (
        x.reshape(-1), y.reshape(-1), others[added.offset :], added.step,
        (tuple(plan.image), tuple(plan.to), tuple(g)), plan.passes, plan.strips, filters, bias,
        scale, shift, int(rectified), int(relu), int(bare), argmax.reshape(-1),
    )  # fmt: skip
    all_filters = 0, -(-g.K // g.wide)

    def run(begin: int, end: int) -> None:
        span = (0, g.blocks, begin, end) if plan.by_filters else (begin, end, *all_filters)
        loops.convolve(*fixed, scratch("block", g.tile + g.pool * g.out + g.sums), *span)

    return partial(parallel, run, plan.pieces)


def packed(
    plan: Plan,
    w: np.ndarray,
    b: np.ndarray | None,
    transposed: bool = False,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(filters, bias): w, or for dx its transpose, and b, or zeros, as the plan's passes read them;
    the filters in `out` (plan.filters) or in scratch memory.
    """
    g = plan.geometry
    w, b = w.reshape(*w.shape[:2], -1), plan.zeros if b is None else b
    if g.across:  # a filter of LANES groups is as many filters, one in each lane
        filters = g.K // LANES
        w = w.reshape(-1, g.C // LANES if transposed else filters, *w.shape[1:])
        w = w.swapaxes(1, 2) if transposed else w
        w, transposed = _by_lanes(g, w).reshape(g.groups * g.K, *w.shape[2:]), False
        b = _by_lanes(g, b.reshape(-1, filters)).ravel()
    out = scratch("filters", plan.filters) if out is None else out
    tiles = -(-g.K // g.wide)
    pieces = shards(tiles, GRAIN * tiles / max(len(out), 1))
    for taps, start in zip(plan.taps, plan.passes[:, 0], strict=True):
        given = w, g.groups, transposed, taps[0]
        if len(taps) > 1:
            given = _side_by_side(*given[:3], taps), g.groups, False, np.arange(len(taps[0]))
        parallel(partial(loops.pack_filters, *given, g.wide, start, out), pieces)
    return out, b


def _side_by_side(w: np.ndarray, groups: int, transposed: bool, taps: np.ndarray) -> np.ndarray:
    """(groups * outputs * K, C, taps) of w (groups * K, C, all taps), or C and K `transposed`: a
    filter for each output, zero where `taps` (outputs, taps) is -1.
    """
    w = w.reshape(groups, -1, *w.shape[1:])
    w = w.swapaxes(1, 2) if transposed else w
    w = np.concatenate([w, np.zeros_like(w[..., :1])], 3)  # its last tap, number -1
    chosen = w[..., taps].transpose(0, 3, 1, 2, 4)
    return np.ascontiguousarray(chosen).reshape(-1, w.shape[2], taps.shape[1])


def _by_lanes(g: Geometry, a: np.ndarray) -> np.ndarray:
    """(vectors of groups, filters, lanes, ...) of `a` (groups, filters, ...), which is repeated for
    further images and for lanes without a group.
    """
    repeated = a.take(np.arange(g.groups * LANES) % len(a), axis=0)
    return repeated.reshape(g.groups, LANES, *a.shape[1:]).swapaxes(1, 2)


def weight_gradient(
    dy: np.ndarray, x: np.ndarray, w_shape: tuple[int, ...], window: Window, groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """(dw (K, C/groups, R, S), db (K,)) of dy (N, K, P, Q), x (N, C, H, W); float32 in C order."""
    plan = planar_plan("dw", x.shape, w_shape, window, groups, thread_count())
    g, K = plan.geometry, plan.to.C
    offsets = _column_offsets(plan, window)
    columns = rows_of_tiles(len(offsets))
    offsets = np.pad(offsets, (0, columns - len(offsets)))
    # the calling thread's scratch: a worker's could be overwritten once it has done its piece
    channels, pieces = -(-g.K // LANES) * LANES, plan.pieces
    parts = 1 if plan.by_filters else len(pieces)
    shape = parts, g.groups * channels, columns
    sums = scratch("weight gradient", math.prod(shape)).reshape(shape)
    biases, all_filters = np.zeros((parts, K)), (0, -(-g.K // g.wide))
    fixed = x.reshape(-1), plan.image, dy.reshape(-1), plan.to, g, offsets

    def accumulate(begin: int, end: int, dw: np.ndarray, db: np.ndarray) -> None:
        tile = scratch("block", g.tile)
        gradient = scratch("gradient", channels * g.images * g.rows * g.Q)
        span = (0, g.blocks, begin, end) if plan.by_filters else (begin, end, *all_filters)
        direct_weights.accumulate_weights(*fixed, *span, tile, gradient, dw.reshape(-1), db)

    targets = zip(pieces, cycle(sums), cycle(biases), strict=False)
    parallel(accumulate, [(*piece, *to) for piece, *to in targets])
    dw = _sum_of(plan, sums, (K, *w_shape[1:])).reshape(-1, *w_shape)
    db = biases.reshape(-1, len(dw[0])).sum(0).astype(np.float32)
    return dw[0] if len(dw) == 1 else dw.sum(0), db


def _column_offsets(plan: Plan, window: Window) -> np.ndarray:
    """Where the tile, or x itself, holds what each (channel, tap) reads for the first pixel, in
    bytes.
    """
    g, (R, S), (down, right) = plan.geometry, window.kernel_size, window.dilation
    if not g.tile:
        return 4 * plan.image.H * plan.image.W * np.arange(g.C)
    channel = np.arange(0, g.C, LANES if g.across else 1)[:, None, None]
    row, column = np.arange(R)[:, None] * down, np.arange(S) * right
    places = channel // LANES * g.plane + channel % LANES + (row * g.width + column) * g.step
    return 4 * places.astype(np.int64).ravel()


def _sum_of(plan: Plan, parts: np.ndarray, w_shape: tuple[int, ...]) -> np.ndarray:
    """dw: the sum of all parts, in their order."""
    dw = np.empty(w_shape, np.float32)
    flat, g = dw.reshape(len(dw), -1), plan.geometry
    total, lines = parts[0], len(parts[0])
    # whole register tiles: a thread unpacks only what it has added itself
    unit = g.wide if g.groups == 1 else lines // g.groups

    def add(begin: int, end: int) -> None:
        first, last = begin * unit, min(end * unit, lines)
        for part in parts[1:]:
            add_rows(total[first:last], part[first:last])
        direct_weights.unpack_weights(total, g, plan.to, first, last, flat)

    units = -(-lines // unit)
    parallel(add, shards(units, GRAIN * units / total.size))
    return dw
