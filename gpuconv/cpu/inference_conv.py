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
from gpuconv.cpu.direct_plan import Kind, plan_of
from gpuconv.cpu.moves import NO_IMAGE, Place
from gpuconv.cpu.simd import TILE_WIDTH
from gpuconv.shapes import Window
from gpuconv.threads import thread_count

Pack = Callable[[str, Callable[[], Any]], Any]


def convolution(
    given: Place,
    made: Place,
    rest: Place | None,
    w: np.ndarray,
    b: np.ndarray,
    window: Window,
    groups: int,
    before: tuple[Any, Any, bool] | None,
    relu: bool,
    pack: Pack,
    pooled: bool = False,
) -> Callable[[], object]:
    """What computes made = relu(w * given + b + rest), w (K, C/groups, R, S).

    before: scale and shift (C) of the input, and whether it is rectified then; or None. pack(form,
    make): keeps the weights in a form. pooled: `made` are the maxima of 2x2 outputs, planar.
    """
    image = given[1]
    direct = partial(_direct, given, made, rest, w, b, window, groups, before, relu, pack, pooled)
    if pooled:
        return direct()
    shape = image.N, image.C, image.H, image.W
    if before is None and winograd.suits(shape, w.shape, window, groups):
        return _winograd(given, made, rest, w, b, window, relu, pack, direct)
    return direct()


def _direct(
    given: Place,
    made: Place,
    rest: Place | None,
    w: np.ndarray,
    b: np.ndarray,
    window: Window,
    groups: int,
    before: tuple[Any, Any, bool] | None,
    relu: bool,
    pack: Pack,
    pooled: bool,
) -> Callable[[], object]:
    (x, image), (y, to), threads = given, made, thread_count()
    # with more weights than pixels the threads share the filters, else the blocks of pixels
    by_filters = w.size > image.N * image.H * image.W * image.C
    by_filters &= len(w) >= threads * groups * TILE_WIDTH
    kind: Kind = "pooled" if pooled else "forward"
    fixed = w.shape, window, groups, threads, before is not None, by_filters
    plan = plan_of(kind, image, to, *fixed)

    def packed() -> tuple[np.ndarray, np.ndarray]:
        return conv_direct.packed(plan, w, b, out=np.empty(plan.filters, np.float32))

    filters, bias = pack(f"direct, {plan.geometry.across} {plan.geometry.groups}", packed)
    return conv_direct.bound(plan, x, y, filters, bias, relu, rest, before)


def _winograd(
    given: Place,
    made: Place,
    rest: Place | None,
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
    others = rest or (np.zeros(to.C, np.float32), NO_IMAGE)
    convolve = winograd.convolution(plan, x, filters, b, *others, int(relu), y)
    return lambda: convolve() or direct()()
