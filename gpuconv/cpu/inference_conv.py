"""Convolutions of a compiled network, on channels-last images: which algorithm, blocks and threads.

Both are matrix products with a fused end: bias, residual sum and ReLU are added to a register tile
before it is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from gpuconv.cpu import conv_direct, winograd
from gpuconv.cpu.conv_pool import GRAIN
from gpuconv.cpu.direct_loops import convolve
from gpuconv.cpu.direct_plan import forward_plan
from gpuconv.cpu.moves import Image
from gpuconv.cpu.simd import TILE_WIDTH
from gpuconv.shapes import Window
from gpuconv.threads import parallel, shards, thread_count

Place = tuple[np.ndarray, Image]
Pack = Callable[[str, Callable[[], Any]], Any]


def convolution(
    given: Place,
    made: Place,
    rest: Place,
    w: np.ndarray,
    b: np.ndarray,
    window: Window,
    groups: int,
    before: tuple[Any, Any, bool],
    relu: bool,
    pack: Pack,
) -> Callable[[], object]:
    """What computes made = relu(w * given + b + rest), w (K, C/groups, R, S).

    before: scale and shift (C) of the input, or None, and whether it is rectified then. pack(form,
    make): keeps the weights in a form.
    """
    image = given[1]
    direct = partial(_direct, given, made, rest, w, b, window, groups, before, relu, pack)
    shape = image.N, image.C, image.H, image.W
    if before[0] is None and winograd.suits(shape, w.shape, window, groups):
        return _winograd(given, made, rest, w, b, window, relu, pack, direct)
    return direct()


def _direct(
    given: Place,
    made: Place,
    rest: Place,
    w: np.ndarray,
    b: np.ndarray,
    window: Window,
    groups: int,
    before: tuple[Any, Any, bool],
    relu: bool,
    pack: Pack,
) -> Callable[[], object]:
    (x, image), (y, to), (scale, shift, rectified) = given, made, before
    none, threads = np.empty(0, np.float32), thread_count()
    affine = (none, none) if scale is None else (scale, shift)
    # with more weights than pixels the threads share the filters, else the blocks of pixels
    by_filters = w.size > image.N * image.H * image.W * image.C
    by_filters &= len(w) >= threads * groups * TILE_WIDTH
    cores = 1 if by_filters else threads
    plan = forward_plan(image, to, window, groups, cores, affine=scale is not None)
    blocks, pairs = plan.geometry.blocks, -(-len(w) // groups // TILE_WIDTH)
    filters = pack("direct", partial(_packed, plan, w))
    fixed = (
        x, plan.image, y, plan.to, plan.geometry, plan.passes, plan.strips, filters, b, *rest,
        *affine, int(rectified), int(relu),
    )  # fmt: skip

    def run(begin: int, end: int) -> None:
        span = (0, blocks, begin, end) if by_filters else (begin, end, 0, pairs)
        convolve(*fixed, *conv_direct.memory_of(plan), *span)

    parts = pairs if by_filters else blocks
    multiply_adds = to.N * to.H * to.W * w.size
    return partial(parallel, run, shards(parts, -(-GRAIN * parts // max(multiply_adds, 1))))


def _packed(plan: Any, w: np.ndarray) -> np.ndarray:
    out = np.zeros(plan.geometry.groups * plan.filters, np.float32)
    return conv_direct.packed(plan, w, False, out)


def _winograd(
    given: Place,
    made: Place,
    rest: Place,
    w: np.ndarray,
    b: np.ndarray,
    window: Window,
    relu: bool,
    pack: Pack,
    direct: Callable[[], Callable[[], object]],
) -> Callable[[], object]:
    (x, image), (y, to) = given, made
    filters = pack("winograd", partial(winograd.transformed, w, False, True))
    if filters is None:
        return direct()
    (top, _), (left, _) = window.pads(image.H, image.W)
    plan = winograd.plan_of(image, to, top, left, thread_count())
    convolve = winograd.convolution(plan, x, filters, b, *rest, int(relu), y)
    return lambda: convolve() or direct()()
