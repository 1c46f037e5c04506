"""Convolutions of a compiled network, on channels-last images: which algorithm, blocks and threads.

Both are matrix products with a fused end: bias, residual sum and ReLU are added to a register tile
before it is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from gpuconv.cpu import channels_last as loops
from gpuconv.cpu import winograd
from gpuconv.cpu.channels_last import Image, Sliding
from gpuconv.cpu.simd import LANES, TILE_WIDTH
from gpuconv.cpu.winograd_loops import transform_filters
from gpuconv.cpu.workspace import scratch
from gpuconv.shapes import Window
from gpuconv.threads import Pieces, parallel, shards, thread_count

# A block's input should stay in the L2 cache while all filters pass over it; with fewer pixels the
# filters are read more often than they serve.
BLOCK_FLOATS, MIN_PIXELS, MAX_PIXELS = 96 * 1024, 96, 384
Place = tuple[np.ndarray, Image]


def suits(window: Window, groups: int) -> bool:
    """Whether `convolution` computes it."""
    return groups == 1 and window.dilation[1] == 1


def convolution(
    given: Place,
    made: Place,
    rest: Place,
    w: np.ndarray,
    b: np.ndarray,
    window: Window,
    before: tuple[Any, Any, bool],
    relu: bool,
    pack: Callable[[str, Callable[[], Any]], Any],
) -> Callable[[], object]:
    """What computes made = relu(w * given + b + rest), w (K, C, R, S).

    before: scale and shift (C) of the input, or None, and whether it is rectified then. pack(form,
    make): keeps the weights in a form.
    """
    (x, image), (y, to) = given, made
    end = b, *rest, int(relu), y, to
    shape = image.N, image.C, image.H, image.W
    direct = partial(_direct, x, image, w, window, before, end, pack)
    if before[0] is None and winograd.suits(shape, w.shape, window, 1):
        return _winograd(x, image, w, window, end, pack, direct)
    return direct()


def _direct(
    x: np.ndarray,
    image: Image,
    w: np.ndarray,
    window: Window,
    before: tuple[Any, Any, bool],
    end: tuple[Any, ...],
    pack: Callable[[str, Callable[[], Any]], Any],
) -> Callable[[], object]:
    (scale, shift, rectified), to, threads = before, end[-1], thread_count()
    (R, S), (stride_h, stride_w) = window.kernel_size, window.stride
    (top, bottom), (left, right) = window.pads(image.H, image.W)
    plain = (R, S) == (1, 1) and not any((top, bottom, left, right))
    copied = not plain or scale is not None
    if plain and (stride_h, stride_w) == (1, 1):  # pixels are all alike: one column of them
        pixels = image.N * image.H * image.W
        image = image._replace(N=1, H=pixels, W=1)
        to = to._replace(N=1, H=pixels, W=1)
    columns = (to.W - 1) * stride_w + S
    most = max(BLOCK_FLOATS // (columns * stride_h * image.C), MIN_PIXELS // to.W, 1)
    by_filters = w.size > image.N * image.H * image.W * image.C and len(w) >= threads * TILE_WIDTH
    rows = _even_rows(to.N, to.H, min(most, -(-MAX_PIXELS // to.W)), 1 if by_filters else threads)
    sliding = Sliding(
        R, S, stride_h, stride_w, window.dilation[0], top, left, rows, int(copied), int(rectified)
    )
    filters = pack("direct", partial(_packed, w))
    none = np.empty(0, np.float32)
    affine = (none, none) if scale is None else (scale, shift)
    high = (rows - 1) * stride_h + (R - 1) * window.dilation[0] + 1
    size = (high * columns * image.C if copied else 0) + LANES
    blocks, pairs = to.N * -(-to.H // rows), -(-len(w) // TILE_WIDTH)
    fixed = x, image, sliding, *affine, filters, *end[:-1], to

    def run(begin: int, end: int) -> None:
        span = (0, blocks, begin, end) if by_filters else (begin, end, 0, pairs)
        loops.convolve(*fixed, scratch("block", size), *span)

    return partial(parallel, run, shards(pairs if by_filters else blocks))


def _even_rows(N: int, P: int, most: int, threads: int) -> int:
    """Rows of a block, at most `most`, so that blocks share out evenly among threads."""
    count = -(-P // most)
    while count < P and N * count % threads and N * count < 8 * threads:
        count += 1
    return -(-P // count)


def _packed(w: np.ndarray) -> np.ndarray:
    K, depth = len(w), w[0].size
    filters = np.zeros(-(-K // LANES) * LANES * depth, np.float32)
    loops.pack_filters(w.reshape(*w.shape[:2], -1), filters)
    return filters


def _winograd(
    x: np.ndarray,
    image: Image,
    w: np.ndarray,
    window: Window,
    end: tuple[Any, ...],
    pack: Callable[[str, Callable[[], Any]], Any],
    direct: Callable[[], Callable[[], object]],
) -> Callable[[], object]:
    (K, C), to = w.shape[:2], end[-1]
    (top, _), (left, _) = window.pads(image.H, image.W)
    plan = winograd.plan_of(to.N, C, K, to.H, to.W, thread_count())
    plane = plan.channels * C + LANES

    def transformed() -> Any:
        out = np.zeros(36 * plane, np.float32)
        pairs = plan.channels // TILE_WIDTH
        return transform_filters(w.reshape(K, C, 9), False, plane, out, 0, pairs), out

    in_range, filters = pack("winograd", transformed)
    if not in_range:
        return direct()
    fixed = x, image, top, left, plan, filters, plane, *end

    def run(begin: int, end: int) -> object:
        return loops.winograd_blocks(*fixed, *winograd.memory_of(plan), begin, end)

    pieces: Pieces = shards(plan.total)
    return lambda: all(parallel(run, pieces)) or direct()()
