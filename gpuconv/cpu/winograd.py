"""Winograd's convolution F(4x4, 3x3): 36 products where the definition takes 144, for 3x3 filters
at stride 1.

y = A' [(G w G') * (B' x B)] A for each 4 x 4 square of outputs and its 6 x 6 inputs, * entry by
entry,
summed over the input channels: 36 matrix products. dx is the same with the filters turned and the
channels
exchanged; dw is its transpose, G' [sum over squares of (A dy A') * (B' x B)] G.
The error is a few times the direct algorithm's, and within the square it is of the size of the
square's
largest value. Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2015.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from gpuconv.cpu.blocks import WIDE
from gpuconv.cpu.compiled import compiled
from gpuconv.cpu.plan import tiles
from gpuconv.cpu.precision import winograd_allowed
from gpuconv.cpu.vector import LANES
from gpuconv.cpu.winograd_loops import (
    filter_tiles,
    multiply,
    multiply_gradient,
    squares_of_gradient,
    squares_of_input,
    store_filter_gradient,
    store_squares,
)
from gpuconv.cpu.workspace import scratch
from gpuconv.shapes import Window
from gpuconv.threads import parallel, shards, thread_count

SQUARES = 56  # in a block, about: what a register tile reuses, against what stays in the cache
LEAST_CHANNELS = 32  # below, the transforms cost more than the products save
MOST_WEIGHTS = 512 * 512  # above, reading the transformed filters, four times the size, costs more
MOST_SUMS = 256 * 256  # the same for dw, whose sums are read and written for every block


def suits_weight_gradient(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], window: Window, groups: int
) -> bool:
    """As `suits`, for dw."""
    return w_shape[0] * w_shape[1] <= MOST_SUMS and suits(x_shape, w_shape, window, groups)


def suits(x_shape: tuple[int, ...], w_shape: tuple[int, ...], window: Window, groups: int) -> bool:
    """Whether Winograd's y and dx are defined and expected to be faster than the direct ones."""
    (N, C, H, W), (K, _, R, S) = x_shape, w_shape
    if not winograd_allowed():
        return False
    if (R, S) != (3, 3) or groups != 1 or window.stride != (1, 1) or window.dilation != (1, 1):
        return False
    if (
        max(max(pads) for pads in window.pads(H, W)) > 2
        or min(C, K) < LEAST_CHANNELS
        or C * K > MOST_WEIGHTS
    ):
        return False
    P, Q = window.output_size(H, W)
    squares = -(-P // 4) * -(-Q // 4)
    return squares * 16 <= 1.5 * P * Q and N * squares >= SQUARES


class _Blocks(NamedTuple):
    N: int
    down: int  # rows of squares in an image
    across: int
    images: int  # in a block
    rows: int  # of squares in a block
    total: int
    most: int  # squares in a block, with a register tile's unused rows


@lru_cache(maxsize=1024)
def _blocks(N: int, P: int, Q: int, threads: int) -> _Blocks:
    down, across = -(-P // 4), -(-Q // 4)
    rows, images = min(down, max(1, SQUARES // across)), 1
    if rows == down:
        images = max(1, min(SQUARES // (down * across), N // threads))
    if threads > N:
        rows = min(rows, -(-down // threads))
    count = -(-N // images) * -(-down // rows)
    return _Blocks(N, down, across, images, rows, count, tiles(images * rows * across).rows)


def forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None, window: Window, relu: bool
) -> np.ndarray | None:
    """y (N, K, P, Q); None if x or w hold values for which only the direct algorithm is right."""
    (N, _, H, W), K = x.shape, w.shape[0]
    (top, _), (left, _) = window.pads(H, W)
    y = np.empty((N, K, *window.output_size(H, W)), np.float32)
    return y if _convolve(x, w, False, b, (top, left), relu, y) else None


def input_gradient(
    dy: np.ndarray, w: np.ndarray, x_shape: tuple[int, ...], window: Window
) -> np.ndarray | None:
    """dx (N, C, H, W), or None as forward."""
    (top, _), (left, _) = window.pads(*x_shape[2:])
    dx = np.empty(x_shape, np.float32)
    return dx if _convolve(dy, w, True, None, (2 - top, 2 - left), False, dx) else None


def _convolve(x, w, flipped, b, corner, relu, y):
    (N, C, _, _), (_, K, P, Q) = x.shape, y.shape
    blocks = _blocks(N, P, Q, thread_count())
    channels, line, plane = _sizes(C, K, blocks.most)
    filter_plane, product_plane = channels * C + LANES, channels * blocks.most + LANES
    filters = scratch("filters", 36 * filter_plane)
    flat = w.reshape(*w.shape[:2], 9)
    fine = parallel(
        lambda begin, end: filter_tiles(flat, flipped, begin, end, filter_plane, filters),
        shards(channels // WIDE, -(-4096 // C)),
        blas=False,
    )
    bias = np.zeros(channels, np.float32)
    if b is not None:
        bias[:K] = b

    def convolve(begin: int, end: int) -> object:
        inputs, products = scratch("inputs", 36 * plane), scratch("products", 36 * product_plane)
        pixels = scratch(
            "pixels", blocks.images * (4 * blocks.rows + 2) * (4 * blocks.across + 2) * LANES + 256
        )
        return _convolve_blocks(
            x,
            begin,
            end,
            blocks,
            *corner,
            line,
            plane,
            filters,
            filter_plane,
            product_plane,
            bias,
            int(relu),
            pixels,
            inputs,
            products,
            y,
        )

    return all(fine) and all(parallel(convolve, shards(blocks.total), blas=False))


def weight_gradient(
    dy: np.ndarray, x: np.ndarray, w_shape: tuple[int, ...], window: Window
) -> tuple[np.ndarray, np.ndarray] | None:
    """dw (K, C, 3, 3) and db (K,), or None as forward."""
    (N, C, H, W), (_, K, P, Q) = x.shape, dy.shape
    (top, _), (left, _) = window.pads(H, W)
    blocks = _blocks(N, P, Q, thread_count())
    channels, line, plane = _sizes(C, K, blocks.most)
    lines = tiles(C).rows
    gradient_plane, sum_plane = channels * blocks.most + LANES, channels * lines + LANES

    pieces = shards(blocks.total)
    # of the calling thread: a worker's own may be overwritten once it has done its piece
    memory = scratch("weight gradient", len(pieces) * 36 * sum_plane).reshape(len(pieces), -1)
    parts = {
        begin: (part, np.zeros(K, np.float32))
        for (begin, _), part in zip(pieces, memory, strict=True)
    }

    def accumulate(begin: int, end: int) -> object:
        inputs, gradient = scratch("inputs", 36 * plane), scratch("products", 36 * gradient_plane)
        pixels = scratch(
            "pixels", blocks.images * (4 * blocks.rows + 2) * (4 * blocks.across + 2) * LANES + 256
        )
        return _accumulate_blocks(
            x,
            dy,
            begin,
            end,
            blocks,
            top,
            left,
            line,
            plane,
            lines,
            gradient_plane,
            sum_plane,
            pixels,
            inputs,
            gradient,
            *parts[begin],
        )

    if not all(parallel(accumulate, pieces, blas=False)):
        return None
    (total, db), *rest = parts.values()
    dw = np.empty(w_shape, np.float32)

    def finish(begin: int, end: int) -> None:
        for part, _ in rest:
            _add_tiles(total, part, sum_plane, begin * WIDE * lines, end * WIDE * lines)
        store_filter_gradient(total, sum_plane, lines, begin, end, dw.reshape(K, C, 9))

    parallel(finish, shards(channels // WIDE), blas=False)
    for _, part in rest:
        db += part
    return dw, db


def _sizes(C: int, K: int, squares: int) -> tuple[int, int, int]:
    """K with the last tile's unused channels; the strides of inputs[36][square][channel], odd in
    cache lines.
    """
    line = (-(-C // LANES) | 1) * LANES
    return -(-K // WIDE) * WIDE, line, squares * line + (LANES if squares % 2 == 0 else 0)


@compiled
def _span(blocks, block):
    columns = -(-blocks.down // blocks.rows)
    n, row = block // columns * blocks.images, block % columns * blocks.rows
    return (
        n,
        min(blocks.images, blocks.N - n),
        row,
        min(blocks.rows, blocks.down - row),
        blocks.across,
    )


@compiled
def _convolve_blocks(
    x,
    begin,
    end,
    blocks,
    top,
    left,
    line,
    plane,
    filters,
    filter_plane,
    product_plane,
    bias,
    relu,
    pixels,
    inputs,
    products,
    y,
):
    offsets = np.arange(blocks.most) * line * 4
    for block in range(begin, end):
        span = _span(blocks, block)
        squares = span[1] * span[3] * span[4]
        if squares_of_input(x, span, top, left, line, plane, pixels, inputs) == 0:
            return False
        multiply(
            inputs,
            plane,
            filters,
            filter_plane,
            x.shape[1],
            offsets,
            squares,
            products,
            product_plane,
            y.shape[1],
        )
        store_squares(products, product_plane, blocks.most, span, bias, relu, pixels, y)
    return True


@compiled
def _accumulate_blocks(
    x,
    dy,
    begin,
    end,
    blocks,
    top,
    left,
    line,
    plane,
    lines,
    gradient_plane,
    sum_plane,
    pixels,
    inputs,
    gradient,
    sums,
    db,
):
    offsets = np.arange(lines) * 4
    sums[:] = 0
    for block in range(begin, end):
        span = _span(blocks, block)
        squares = span[1] * span[3] * span[4]
        fine = squares_of_input(x, span, top, left, line, plane, pixels, inputs)
        if (fine & squares_of_gradient(dy, span, gradient_plane, pixels, gradient, db)) == 0:
            return False
        multiply_gradient(
            inputs,
            line,
            plane,
            gradient,
            gradient_plane,
            squares,
            offsets,
            sums,
            sum_plane,
            dy.shape[1],
        )
    return True


@compiled
def _add_tiles(total, part, plane, begin, end):
    for entry in range(36):
        for i in range(entry * plane + begin, entry * plane + end):
            total[i] += part[i]
