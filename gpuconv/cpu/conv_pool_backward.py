"""Gradient of a convolution under a ReLU and a 2x2 max-pool: it touches only each window's maximum.

For a maximum (n, k, p, q) the window of x that it saw is R rows of S*C contiguous floats, once the
image lies channels-last. dw[k] sums these windows times their gradient; dx adds w[k] times the
gradient to them. That is a quarter of the products of the plain convolution's gradient, three
quarters of whose output gradient are zeros. With a horizontal dilation a row is S strips of C
floats.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from gpuconv.cpu.compiled import compiled, inner
from gpuconv.cpu.elementwise import FMA_GRAIN, total_of
from gpuconv.cpu.moves import add_rows, address, first_lanes, transpose_matrix
from gpuconv.cpu.simd import LANES, VECTOR_BYTES
from gpuconv.cpu.simd_pool_tiles import gather_tile, scatter_tile
from gpuconv.cpu.workspace import scratch
from gpuconv.shapes import Window
from gpuconv.threads import parallel, shards

# Images worked on together, so that a weight vector in registers serves several of them: 32 KB,
# which stay in the L1 cache, yet at least four, or the sums of one wait for one another. At batch
# 64 LeNet's second layer takes 0.31 ms, with half of it 0.35, with twice 0.31, its first then 0.85
# in place of 0.56; 16 channels of 16x16 at batch 32 take 0.61 ms, one by one 1.02.
GROUP_FLOATS, MIN_IMAGES = 8 * 1024, 4


class Layout(NamedTuple):
    """Padded channels-last images of one group, and how a window lies in them; all integers."""

    C: int  # of one group, as are K's
    K: int
    R: int
    top: int
    left: int
    width: int  # pixels in a row
    image: int  # floats
    images: int  # worked on together
    strips: int  # of a window's row
    strip: int  # floats
    vectors: int  # of a strip
    strip_bytes: int  # from one to the next
    row_bytes: int  # from one row of a window to the next
    line_bytes: int  # from one row of a filter to the next


@lru_cache(maxsize=1024)
def _layout(
    x_shape: tuple[int, ...], filters: int, window: Window, groups: int
) -> tuple[Layout, np.ndarray]:
    """(layout, starts); starts (pooled pixels, 4): where the windows of each one's four outputs
    begin, in bytes.
    """
    (N, C, H, W), (R, S), (dil_h, dil_w) = x_shape, window.kernel_size, window.dilation
    C //= groups
    P, Q = window.output_size(H, W)
    (top, _), (left, _) = window.pads(H, W)
    height, width = max(H + top, P + (R - 1) * dil_h), max(W + left, Q + (S - 1) * dil_w)
    image, (strips, strip) = height * width * C, (1, S * C) if dil_w == 1 else (S, C)
    vectors, images = -(-strip // LANES), min(N, max(GROUP_FLOATS // image, MIN_IMAGES))
    layout = Layout(
        C, filters // groups, R, top, left, width, image, images, strips, strip, vectors,
        4 * dil_w * C, 4 * dil_h * width * C, strips * vectors * VECTOR_BYTES,
    )  # fmt: skip
    p, q, down, right = np.indices((P // 2, Q // 2, 2, 2), np.int64)
    return layout, 4 * C * ((2 * p + down) * width + 2 * q + right).reshape(-1, 4)


def backward_of_maxima(
    dy: np.ndarray,
    y: np.ndarray,
    argmax: np.ndarray,
    x: np.ndarray,
    w: np.ndarray,
    window: Window,
    groups: int,
    need_dx: bool,
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """(dx or None, dw, db), as conv_pool.backward; float32, argmax uint8, dy and x in C order."""
    N, (K, C, R, S) = len(x), w.shape
    layout, starts = _layout(x.shape, K, window, groups)
    strips, strip, maxima = R * layout.strips, layout.strip, len(starts)
    # a filter's line is [row][strip][vector]; lanes that no window has are 0 and are never stored
    weights = np.zeros((K, strips, layout.vectors * LANES), np.float32)
    weights[..., :strip].reshape(K, R, S, C)[:] = w.transpose(0, 2, 3, 1)
    line = weights[0].size
    # as many with dx as without, so that dw has the same bits
    pieces = shards(N, FMA_GRAIN / (2 * K * maxima * line))
    sums = np.empty((len(pieces), K, line + 1), np.float32)
    dx = np.empty(x.shape if need_dx else (0, 0, 0, 0), np.float32)
    shape = N, K, maxima
    fixed = dy.reshape(shape), y.reshape(shape), argmax.reshape(shape), x, dx

    def run(piece: tuple[int, int], to: np.ndarray) -> None:
        size = layout.images * layout.image + (layout.vectors + 1) * LANES
        count = layout.images * layout.K * maxima
        floats = scratch("maxima", 2 * size + 3 * count)
        windows, gradients = floats[2 * size : 2 * size + 2 * count], floats[2 * size + 2 * count :]
        memory = floats[:size], floats[size : 2 * size], gradients, windows.view(np.int64)
        _gradient_images(*fixed, layout, starts, weights, *memory, to, *piece)

    parallel(run, list(zip(pieces, sums, strict=True)))
    total = sums[0]
    for part in sums[1:]:
        add_rows(total, part)
    lines = total[:, :line].reshape(weights.shape)[..., :strip].reshape(K, R, S, C)
    dw = np.ascontiguousarray(lines.transpose(0, 3, 1, 2))
    return dx if need_dx else None, dw, total[:, line].copy()


@compiled
def _gradient_images(
    dy, y, argmax, x, dx, layout, starts, weights, padded, dx_padded, gradients, windows, sums,
    begin, end,
):  # fmt: skip
    """dx, unless it is empty, and sums[filter], the filter's line and its db, of images [begin,
    end).
    """
    C, K, maxima = layout.C, layout.K, len(starts)
    no, yes = np.bool_(0), np.bool_(1)  # for each of True and False Numba compiles a function anew
    sums[:] = 0
    padded[:] = 0
    for n in range(begin, end, layout.images):
        images = min(layout.images, end - n)
        count = maxima * images
        values = gradients[: K * count].reshape(K, maxima, images)
        places = windows[: K * count].reshape(K, maxima, images)
        for group in range(x.shape[1] // C):
            first = group * K
            for i in range(images):
                _move_channels(no, x[n + i], group * C, layout, padded, i * layout.image)
            for k in range(K):
                for i in range(images):
                    at = n + i, first + k
                    given, made, taps = dy[at], y[at], argmax[at]  # views take half of the time
                    for j in range(maxima):
                        values[k, j, i] = np.float32(0) if made[j] <= 0 else given[j]
                        places[k, j, i] = 4 * i * layout.image + starts[j, taps[j]]
                sums[first + k, -1] += total_of(gradients[k * count : (k + 1) * count])
                _visit_windows(
                    no, address(values[k]), address(places[k]), count, address(padded),
                    layout, address(sums[first + k]),
                )  # fmt: skip
            if dx.size:
                dx_padded[:] = 0
                for j in range(maxima):
                    # the loop over places is outside: successive additions then go to windows of
                    # other images, and no load waits for the store just before it
                    for k in range(K):
                        _visit_windows(
                            yes, address(values[k, j]), address(places[k, j]), images,
                            address(dx_padded), layout, address(weights[first + k]),
                        )  # fmt: skip
                for i in range(images):
                    _move_channels(yes, dx[n + i], group * C, layout, dx_padded, i * layout.image)


@inner
def _move_channels(back, x, first, layout, padded, place):
    """Copy channels [first, first + C) of x (C, H, W) to padded[place:], beside its padding, or
    `back`.
    """
    (_, H, W), C = x.shape, layout.C
    for h in range(H):
        row = place + ((h + layout.top) * layout.width + layout.left) * C
        plane, pixels = address(x[first, h]), address(padded) + 4 * row
        if back:
            transpose_matrix(pixels, 4 * C, W, C, plane, 4 * H * W, 4 * W)
        else:
            transpose_matrix(plane, 4 * H * W, C, W, pixels, 4 * C, 4 * C)


@inner
def _visit_windows(scatter, values, places, count, x, layout, filters):
    """filters[row][strip][vector] += the sum of `count` windows of x, each times its gradient.

    With `scatter`, the windows += the filter times their gradient. Rows and vectors go in tiles, so
    that the filter's part stays in registers.
    """
    line_bytes, row_bytes = layout.line_bytes, layout.row_bytes
    for strip in range(layout.strips):
        for v in range(0, layout.vectors, 2):
            columns = min(layout.vectors - v, 2)
            bits = first_lanes(layout.strip - (v + columns - 1) * LANES)
            at = x + strip * layout.strip_bytes + v * VECTOR_BYTES
            f = filters + (strip * layout.vectors + v) * VECTOR_BYTES
            row = 0
            while row < layout.R:
                rest = layout.R - row
                rows = 5 if rest >= 5 else (3 if rest >= 3 else 1)
                if scatter:
                    scatter_tile(
                        rows, columns, values, places, count, at, row_bytes, f, line_bytes, bits
                    )
                else:
                    gather_tile(rows, columns, values, places, count, at, row_bytes, f, line_bytes)
                row += rows
                at += rows * row_bytes
                f += rows * line_bytes
