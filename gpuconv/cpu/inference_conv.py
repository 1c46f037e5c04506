"""Convolutions of a compiled network, on channels-last images: which algorithm, blocks and threads.

Both are matrix products with a fused end: bias, residual sum and ReLU are added to a register tile
before it is stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from gpuconv.cpu import conv_direct, winograd
from gpuconv.cpu.direct_plan import plan_of
from gpuconv.cpu.moves import Place
from gpuconv.cpu.simd import PAIR
from gpuconv.cpu.workspace import aligned
from gpuconv.shapes import Window
from gpuconv.threads import thread_count


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
    pack: Callable[[str, Callable[[], Any]], Any],
    pooled: bool = False,
) -> Callable[[], object]:
    """What computes made = relu(w * given + b + rest), w (K, C/groups, R, S).

    before: scale and shift (C) of the input, and whether it is rectified then; or None. pack(form,
    make): keeps the weights in a form. pooled: `made` are the maxima of 2x2 outputs, planar.
    """
    (x, image), (y, to), threads = given, made, thread_count()
    size = image.N, image.C, image.H, image.W

    def direct() -> Callable[[], object]:
        # with more weights than pixels the threads share the filters, else the blocks of pixels
        by_filters = w.size > math.prod(size) and len(w) >= threads * groups * PAIR
        fixed = w.shape, window, groups, threads, before is not None, by_filters
        plan = plan_of("pooled" if pooled else "forward", image, to, *fixed)
        g = plan.geometry

        def packed() -> tuple[np.ndarray, np.ndarray]:
            return conv_direct.packed(plan, w, b, out=aligned(plan.filters))

        filters, bias = pack(f"direct, {g.across} {g.groups} {g.wide}", packed)
        return conv_direct.bound(plan, x, y, filters, bias, relu, rest, before)

    if pooled or before is not None or not winograd.suits(size, w.shape, window, groups):
        return direct()
    filters = pack("winograd", partial(winograd.transformed, w, False, True))
    if filters is None:
        return direct()
    (top, _), (left, _) = window.pads(image.H, image.W)
    plan = winograd.plan_of(image, to, (top, left), threads)
    convolve = winograd.bound(plan, x, y, filters, b, relu, rest)
    return lambda: convolve() or direct()()
