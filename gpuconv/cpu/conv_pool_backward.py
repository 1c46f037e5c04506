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

from gpuconv.cpu.compiled import compiled
from gpuconv.cpu.moves import add_rows, address, copy_floats, first_lanes, transpose_matrix
from gpuconv.cpu.simd import LANES, VECTOR_BYTES
from gpuconv.cpu.simd_pool_tiles import gather_tile, scatter_tile
from gpuconv.cpu.workspace import scratch
from gpuconv.shapes import Window
from gpuconv.threads import parallel, shards

# Images worked on together, so that a weight vector in registers serves several of them: 32 KB,
# which stay in the L1 cache. LeNet's second layer takes 0.36 ms at batch 64, with half of it 0.52,
# with twice 0.35.
GROUP_FLOATS = 8 * 1024
# With fewer multiply-adds in the fused loops another thread costs more than it saves: with four
# times as many a LeNet step at batch 64 takes 2.02 ms, with these 1.75.
GRAIN = 1 << 20


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


@lru_cache(maxsize=1024)
def _layout(
    x_shape: tuple[int, ...], filters: int, window: Window, groups: int
) -> tuple[Layout, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(layout, starts, tap_offsets, places, sources), starts and offsets in bytes.

    starts: for each pooled pixel, where the window of its first convolution output begins.
    tap_offsets: how much further the windows of its four outputs begin. places: of each weight
    (c, r, s) of a filter in the filter's line, which is [strip][vector][row][lane]. sources: the
    weight at each place of a line; lanes that no window has hold weight 0 and are never stored.
    """
    (_, C, H, W), (R, S) = x_shape, window.kernel_size
    C //= groups
    P, Q = window.output_size(H, W)
    (top, _), (left, _) = window.pads(H, W)
    (stride_h, stride_w), (dil_h, dil_w) = window.stride, window.dilation
    height = max(H + top, (P - 1) * stride_h + (R - 1) * dil_h + 1)
    width = max(W + left, (Q - 1) * stride_w + (S - 1) * dil_w + 1)
    image = height * width * C
    strips, strip = (1, S * C) if dil_w == 1 else (S, C)
    images = max(1, GROUP_FLOATS // image)
    layout = Layout(
        C, filters // groups, R, top, left, width, image, images, strips, strip,
        -(-strip // LANES), 4 * dil_w * C, 4 * dil_h * width * C,
    )  # fmt: skip
    down, right = 4 * stride_h * width * C, 4 * stride_w * C
    rows, columns = np.arange(P // 2) * 2 * down, np.arange(Q // 2) * 2 * right
    starts = (rows[:, None] + columns).ravel().astype(np.int64)
    c, r, s = np.indices((C, R, S)).reshape(3, -1)
    along, of_strip = (s * C + c, 0) if dil_w == 1 else (c, s * layout.vectors)
    places = ((of_strip + along // LANES) * R + r) * LANES + along % LANES
    sources = np.zeros(strips * layout.vectors * R * LANES, np.int64)
    sources[places] = np.arange(C * R * S)
    return layout, starts, np.array([0, right, down, down + right], np.int64), places, sources


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
    """(dx or None, dw, db), as conv_pool.backward, of arrays in C order; float32, argmax uint8."""
    N, K = len(x), w.shape[0]
    layout, starts, tap_offsets, places, sources = _layout(x.shape, K, window, groups)
    line = len(sources)  # of one filter
    multiply_adds = dy[0].size * line * (2 if need_dx else 1)  # of one image
    pieces = shards(N, -(-GRAIN // multiply_adds))
    # the calling thread's scratch: a worker's could be overwritten once it has done its piece
    sums = scratch("filter sums", len(pieces) * K * line).reshape(len(pieces), K, line)
    biases = np.zeros((len(pieces), K), np.float32)
    # "clip" takes a quarter of the time of the default, which guards the indices
    weights = w.reshape(K, -1).take(sources, axis=1, mode="clip")
    dx = np.empty(x.shape, np.float32) if need_dx else x
    number = {begin: i for i, (begin, _) in enumerate(pieces)}

    def run(begin: int, end: int) -> None:
        part = number[begin]
        sums[part] = 0
        floats = layout.images * layout.image + (layout.vectors + 1) * LANES
        maxima = layout.images * layout.K * len(starts)
        padded, dx_padded = scratch("channels last", floats), scratch("channels-last dx", floats)
        padded[:] = 0
        arrays = dy[begin:end], y[begin:end], argmax[begin:end], x[begin:end], dx[begin:end]
        values = scratch("gradients of maxima", maxima)
        offsets = scratch("offsets of maxima", maxima, np.int64)
        rest = layout, starts, tap_offsets, padded, dx_padded, values, offsets, weights
        _gradient_images(*arrays, need_dx, *rest, sums[part], biases[part])

    parallel(run, pieces)
    (total, *others), (db, *other_biases) = sums, biases
    for part, bias in zip(others, other_biases, strict=True):
        add_rows(total, part)
        db += bias
    dw = total.take(places, axis=1, mode="clip").reshape(w.shape)
    return dx if need_dx else None, dw, db


@compiled
def _gradient_images(
    dy, y, argmax, x, dx, need_dx, layout, starts, tap_offsets, padded, dx_padded, values, places,
    weights, sums, biases,
):  # fmt: skip
    N, groups, maxima = len(x), x.shape[1] // layout.C, len(starts)
    for begin in range(0, N, layout.images):
        images = min(layout.images, N - begin)
        for group in range(groups):
            first = group * layout.K
            for i in range(images):
                _to_channels_last(x[begin + i], group * layout.C, layout, padded, i * layout.image)
            for k in range(layout.K):
                at = k * maxima * images
                total = np.float32(0)
                for i in range(images):
                    n, image = begin + i, 4 * i * layout.image
                    to, result = dy[n, first + k].reshape(-1), y[n, first + k].reshape(-1)
                    indices = argmax[n, first + k].reshape(-1)
                    for j in range(maxima):
                        value = np.float32(0) if result[j] <= 0 else to[j]
                        total += value
                        values[at + j * images + i] = value
                        places[at + j * images + i] = image + starts[j] + tap_offsets[indices[j]]
                biases[first + k] += total
                _visit_windows(
                    False, address(values) + 4 * at, address(places) + 8 * at, maxima * images,
                    address(padded), layout, address(sums[first + k]),
                )  # fmt: skip
            if need_dx:
                dx_padded[:] = 0
                for j in range(maxima):
                    # the loop over places is outside: successive additions then go to windows of
                    # other images, and no load waits for the store just before it
                    for k in range(layout.K):
                        at = (k * maxima + j) * images
                        _visit_windows(
                            True, address(values) + 4 * at, address(places) + 8 * at, images,
                            address(dx_padded), layout, address(weights[first + k]),
                        )  # fmt: skip
                for i in range(images):
                    _from_channels_last(
                        dx_padded, i * layout.image, layout, dx[begin + i], group * layout.C
                    )


@compiled
def _to_channels_last(x, first, layout, padded, place):
    """Copy channels [first, first + C) of x (C, H, W) to padded[place:], whose padding is zero."""
    _, H, W = x.shape
    for h in range(H):
        row = place + ((h + layout.top) * layout.width + layout.left) * layout.C
        source, target = address(x[first, h]), address(padded) + 4 * row
        if layout.C == 1:
            copy_floats(source, target, W)
        else:
            transpose_matrix(source, 4 * H * W, layout.C, W, target, 4 * layout.C, layout.C)


@compiled
def _from_channels_last(padded, place, layout, x, first):
    """The reverse of _to_channels_last; the padding is dropped."""
    _, H, W = x.shape
    for h in range(H):
        row = place + ((h + layout.top) * layout.width + layout.left) * layout.C
        source, target = address(padded) + 4 * row, address(x[first, h])
        transpose_matrix(source, 4 * layout.C, W, layout.C, target, 4 * H * W, W)


@compiled
def _visit_windows(scatter, values, places, count, x, layout, filters):
    """filters[strip][vector][row] += the sum of `count` windows of x, each times its gradient.

    With `scatter`, the windows += the filter times their gradient. Rows and vectors go in tiles, so
    that the filter's part stays in registers.
    """
    column_bytes, row_bytes = layout.R * VECTOR_BYTES, layout.row_bytes
    for strip in range(layout.strips):
        for v in range(0, layout.vectors, 2):
            columns = min(layout.vectors - v, 2)
            bits = first_lanes(layout.strip - (v + columns - 1) * LANES)
            row = 0
            while row < layout.R:
                rest = layout.R - row
                rows = 5 if rest >= 5 else (3 if rest >= 3 else 1)
                at = x + strip * layout.strip_bytes + v * VECTOR_BYTES + row * row_bytes
                f = filters + ((strip * layout.vectors + v) * layout.R + row) * VECTOR_BYTES
                if scatter:
                    scatter_tile(
                        rows, columns, values, places, count, at, row_bytes, f, column_bytes, bits
                    )
                else:
                    gather_tile(
                        rows, columns, values, places, count, at, row_bytes, f, column_bytes
                    )
                row += rows
