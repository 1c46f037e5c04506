"""Direct convolution: register tiles over blocks whose input is copied channels-last; float32.

It takes any window and any number of groups, and stores no im2col matrix. Forward and dx are the
same loop over other tiles and filters: 12 pixels times 32 filters in registers. dw is a sum of
outer products over all output pixels: the gradients of 32 filters at a pixel, times what 12 pairs
of channel and tap read there. Where groups have few channels and filters, a vector holds one of
each of LANES groups. Every block of output belongs to one thread and sums run in a fixed order, so
that y and dx do not depend on the number of threads.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from gpuconv.cpu import direct_loops as loops
from gpuconv.cpu.direct_plan import (
    Geometry,
    Plan,
    abreast,
    forward_plan,
    input_gradient_plan,
    weight_gradient_plan,
)
from gpuconv.cpu.elementwise import GRAIN
from gpuconv.cpu.moves import Image, add_rows, planar, rows_of_tiles
from gpuconv.cpu.simd import LANES, TILE_WIDTH
from gpuconv.cpu.workspace import scratch
from gpuconv.shapes import Window
from gpuconv.threads import parallel, shards, thread_count

NOTHING = np.empty(0, np.float32)


def forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None, window: Window, groups: int, relu: bool
) -> np.ndarray:
    """y (N, K, P, Q) of x (N, C, H, W) and w (K, C/groups, R, S); C-contiguous float32."""
    y = np.empty((len(x), len(w), *window.output_size(*x.shape[2:])), np.float32)
    n = abreast(len(x), w.shape, groups) or 1
    plan = forward_plan(planar(x, n), planar(y, n), window, n * groups, thread_count())
    return _convolve(plan, x, w, False, b, relu, y)


def input_gradient(
    dy: np.ndarray, w: np.ndarray, x_shape: tuple[int, ...], window: Window, groups: int
) -> np.ndarray:
    """dx (N, C, H, W) of dy (N, K, P, Q): one stride-1 convolution of dy for each stride phase."""
    dx = np.empty(x_shape, np.float32)
    n = abreast(len(dy), w.shape, groups) or 1
    plan = input_gradient_plan(planar(dy, n), planar(dx, n), window, n * groups, thread_count())
    return _convolve(plan, dy, w, True, None, False, dx)


def _convolve(
    plan: Plan,
    x: np.ndarray,
    w: np.ndarray,
    transposed: bool,
    b: np.ndarray | None,
    relu: bool,
    y: np.ndarray,
) -> np.ndarray:
    g, K = plan.geometry, y.shape[1]
    zeros = np.zeros(g.groups * g.K, np.float32)
    bias = zeros[:K] if b is None else b
    if g.across:
        filters = _packed_across(plan, w, transposed)
        bias = _by_lanes(g, bias.reshape(-1, g.K // LANES)).ravel()
    else:
        filters = packed(plan, w, transposed, scratch("filters", g.groups * plan.filters))
    fixed = x.reshape(-1), plan.image, y.reshape(-1), plan.to, g, plan.passes, plan.strips, filters
    rest = bias, zeros, Image(0, 0, 1, 1, 1, K), NOTHING, NOTHING, 0, int(relu)

    def run(begin: int, end: int) -> None:
        loops.convolve(*fixed, *rest, *memory_of(plan), begin, end, 0, g.K)

    parallel(run, shards(g.blocks))
    return y


def packed(plan: Plan, w: np.ndarray, transposed: bool, out: np.ndarray) -> np.ndarray:
    """w, or for dx its transpose, as the plan's passes read it, in `out`."""
    flat, g = w.reshape(*w.shape[:2], -1), plan.geometry
    pairs = -(-g.K // TILE_WIDTH)
    for taps, start in zip(plan.taps, plan.passes[:, 0], strict=True):
        fixed = flat, g.groups, transposed, taps, start, plan.filters, out
        pack = partial(loops.pack_filters, *fixed)
        parallel(pack, shards(pairs, -(-GRAIN * pairs // max(len(out), 1))))
    return out


def _packed_across(plan: Plan, w: np.ndarray, transposed: bool) -> np.ndarray:
    """As `packed`, with a vector for each of a group's filters: its lanes are groups."""
    g = plan.geometry
    shape = (g.C, g.K) if transposed else (g.K, g.C)
    w = _by_lanes(g, w.reshape(-1, shape[0] // LANES, shape[1] // LANES, w[0, 0].size))
    w = w.swapaxes(1, 2) if transposed else w  # (vectors of groups, K, C, taps, lanes)
    parts = [np.empty((g.groups, 0), np.float32)]
    for taps in plan.taps:
        for k in range(0, g.K // LANES, 2):
            pair = w[:, k : k + 2, :, taps].transpose(0, 3, 2, 1, 4)
            parts.append(pair.reshape(g.groups, -1))
    return np.concatenate(parts, 1).ravel()


def _by_lanes(g: Geometry, a: np.ndarray) -> np.ndarray:
    """(vectors of groups, ..., lanes) of `a` (groups, ...), which is repeated for further images
    and for lanes without a group.
    """
    return np.moveaxis(np.resize(a, (g.groups, LANES, *a.shape[1:])), 1, -1)


def memory_of(plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """(tile, out) of a block, this thread's own; the tile is zero."""
    tile = scratch("tile", plan.tile if plan.geometry.copied else LANES)
    tile[:] = 0
    return tile, scratch("tile's output", plan.out)


def weight_gradient(
    dy: np.ndarray, x: np.ndarray, w_shape: tuple[int, ...], window: Window, groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """(dw (K, C/groups, R, S), db (K,)) of dy (N, K, P, Q), x (N, C, H, W); float32 in C order."""
    n = abreast(len(x), w_shape, groups) or 1
    plan = weight_gradient_plan(planar(x, n), planar(dy, n), window, n * groups, thread_count())
    g, K = plan.geometry, n * w_shape[0]
    offsets = _column_offsets(plan, window)
    columns = rows_of_tiles(len(offsets))
    offsets = np.pad(offsets, (0, columns - len(offsets)))
    channels, pieces = -(-g.K // LANES) * LANES, shards(g.blocks)
    # the calling thread's scratch: a worker's could be overwritten once it has done its piece
    memory = scratch("weight gradient", len(pieces) * g.groups * channels * columns)
    memory = memory.reshape(len(pieces), g.groups * channels, columns)
    parts = dict(zip([begin for begin, _ in pieces], memory, strict=True))
    db = {begin: np.zeros(K) for begin in parts}

    def accumulate(begin: int, end: int) -> None:
        tile, _ = memory_of(plan)
        loops.accumulate_weights(
            x.reshape(-1), plan.image, dy.reshape(-1), plan.to, g, offsets, begin, end, tile,
            scratch("gradient", channels * g.images * g.rows * g.Q),
            parts[begin].reshape(-1), db[begin],
        )  # fmt: skip

    parallel(accumulate, pieces)
    total = np.stack(list(db.values())).reshape(-1, w_shape[0]).sum(0)
    dw = _sum_of(plan, list(parts.values()), (K, *w_shape[1:]))
    return dw if n == 1 else dw.reshape(n, *w_shape).sum(0), total.astype(np.float32)


def _column_offsets(plan: Plan, window: Window) -> np.ndarray:
    """Where the tile holds what each (channel, tap) reads for the first pixel, in bytes."""
    g, (R, S), (down, right) = plan.geometry, window.kernel_size, window.dilation
    channel = np.arange(0, g.C, LANES if g.across else 1)[:, None, None]
    row, column = np.arange(R)[:, None] * down, np.arange(S) * right
    places = channel // LANES * g.plane + channel % LANES + (row * g.width + column) * g.step
    return 4 * places.astype(np.int64).ravel()


def _sum_of(plan: Plan, parts: list[np.ndarray], w_shape: tuple[int, ...]) -> np.ndarray:
    """dw: the sum of all parts, in their order."""
    dw = np.empty(w_shape, np.float32)
    flat, g = dw.reshape(len(dw), -1), plan.geometry
    total, lines = parts[0], len(parts[0])
    # whole register tiles: a thread unpacks only what it has added itself
    unit = TILE_WIDTH if g.groups == 1 else lines // g.groups

    def add(begin: int, end: int) -> None:
        first, last = begin * unit, min(end * unit, lines)
        for part in parts[1:]:
            add_rows(total[first:last], part[first:last])
        loops.unpack_weights(total, g, plan.to, first, last, flat)

    units = -(-lines // unit)
    parallel(add, shards(units, -(-GRAIN * units // total.size)))
    return dw
