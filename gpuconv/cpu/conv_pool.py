"""Convolution, bias, ReLU and 2x2 max-pool in one pass: the convolution's output is never stored.

A register tile holds the sums of whole pool windows and reduces them before it writes. Only the
pooled values and the index of each maximum are kept: a quarter of the convolution's output, and one
byte each. The backward pass visits only those maxima (conv_pool_backward.py). Other pools, and
layers for which this does not pay, run the two operations one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from gpuconv.cpu import conv, conv_direct, pool
from gpuconv.cpu.compiled import compiled
from gpuconv.cpu.conv_pool_backward import GRAIN, backward_of_maxima
from gpuconv.cpu.direct_plan import abreast
from gpuconv.cpu.elementwise import contiguous
from gpuconv.cpu.moves import address, copy_floats, first_lanes, transpose_matrix
from gpuconv.cpu.precision import modes
from gpuconv.cpu.simd import LANES, TILE_WIDTH, VECTOR_BYTES
from gpuconv.cpu.simd_pool_tiles import FILTERS, POOLED_PIXELS, pooled_filters, pooled_pixels
from gpuconv.cpu.workspace import scratch
from gpuconv.shapes import Window
from gpuconv.threads import Pieces, parallel, shards

# Floats of one image's convolution output, and of its padded input, which are to fit the L2 cache.
# Forward and backward take 0.3 to 0.9 of the separate passes' time up to there; with 3 channels
# larger images gain as much; with 16 and more the backward pass at 112x112 and up is 1.1 to 1.3
# times as long.
MAX_IMAGE_FLOATS, MAX_INPUT_FLOATS = 96 * 1024, 160 * 1024


class Padded(NamedTuple):
    """An image's channels of one group, each a plane with explicit zeros for the padding; there the
    values that a tap reads for neighbouring outputs are neighbours. All integers, for Numba.
    """

    C: int
    top: int
    left: int
    width: int  # of a row
    plane: int  # an odd number of cache lines: planes do not compete for cache sets


class Fused(NamedTuple):
    """How the fused loops run. offsets: of each (channel, tap) in the planes, in bytes. tile: LANES
    (vectors of filters) or FILTERS (vectors of pixels). P, Q: of the pooled output. pixels: of one
    filter's pooled output, with the last tile's unused ones.
    """

    padded: Padded
    offsets: np.ndarray
    tile: int
    P: int
    Q: int
    pixels: int


@lru_cache(maxsize=1024)
def _fused(
    x_shape: tuple[int, ...],
    dtype: np.dtype,
    w_shape: tuple[int, ...],
    window: Window,
    groups: int,
    pool_window: Window,
    modes: tuple[bool, bool],
) -> Fused | None:
    """None where the two operations run one after the other. modes: precision.modes()."""
    (H, W), (R, S), (down, right) = x_shape[2:], window.kernel_size, window.dilation
    (P, Q), C = window.output_size(H, W), x_shape[1] // groups
    ((top, bottom), (left, more)) = window.pads(H, W)
    width = W + left + more
    plane = (-(-(H + top + bottom) * width // 16) | 1) * 16
    float64_sums, _ = modes
    if (
        float64_sums
        or window.stride != (1, 1)
        or not _is_2x2(pool_window, P, Q)
        or w_shape[0] * P * Q > MAX_IMAGE_FLOATS
        or C * plane > MAX_INPUT_FLOATS
        or abreast(x_shape[0], w_shape, groups)
        or conv.algorithms(dtype, x_shape, w_shape, window, groups, modes)[0] is not conv_direct
    ):
        return None
    c, r, s = np.indices((C, R, S)).reshape(3, -1)
    offsets = 4 * (c * plane + r * down * width + s * right)
    P, Q, filters = P // 2, Q // 2, w_shape[0] // groups
    by_filters = -(-filters // LANES) * -(-Q // POOLED_PIXELS) * POOLED_PIXELS
    by_pixels = -(-filters // FILTERS) * -(-Q // LANES) * FILTERS
    tile = LANES if by_filters <= by_pixels else FILTERS  # what computes less in vain
    pixels = -(-P * Q // LANES) * LANES + POOLED_PIXELS
    return Fused(Padded(C, top, left, width, plane), offsets, tile, P, Q, pixels)


def _is_2x2(window: Window, H: int, W: int) -> bool:
    """Whether windows are 2x2 and lie side by side; a last row or column may be left over."""
    return (
        window.kernel_size == window.stride == (2, 2)
        and window.dilation == (1, 1)
        and window.pads(H, W) == ((0, 0), (0, 0))
        and window.output_size(H, W) == (H // 2, W // 2)
    )


def forward(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None,
    window: Window,
    groups: int,
    pool_window: Window,
) -> tuple[np.ndarray, np.ndarray]:
    """(y, argmax) of conv.forward with its ReLU and pool.max_forward."""
    fused = fused_forward(x.shape, x.dtype, w, b, window, groups, pool_window)
    if fused is None:
        return pool.max_forward(conv.forward(x, w, b, window, groups, "relu"), pool_window)
    return fused(contiguous(x))


Forward = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def fused_forward(
    x_shape: tuple[int, ...],
    dtype: np.dtype,
    w: np.ndarray,
    b: np.ndarray | None,
    window: Window,
    groups: int,
    pool_window: Window,
    indices: bool = True,
) -> Forward | None:
    """`forward` in one pass, of contiguous images of that shape, its weights packed once; None
    where the two operations run one after the other. indices: whether argmax is wanted.
    """
    fused = _fused(x_shape, dtype, w.shape, window, groups, pool_window, modes())
    if fused is None:
        return None
    N, K = x_shape[0], len(w)
    weights = _pack(contiguous(w).reshape(groups, K // groups, -1), fused.tile)
    bias = np.zeros((groups, weights.shape[1] * fused.tile), np.float32)
    if b is not None:
        bias[:, : K // groups] = b.reshape(groups, -1)
    pieces = shards(N, -(-GRAIN // (4 * fused.P * fused.Q * w.size)))
    return partial(_run, fused, weights, bias, K, pieces, indices)


def _run(
    fused: Fused,
    weights: np.ndarray,
    bias: np.ndarray,
    K: int,
    pieces: Pieces,
    indices: bool,
    x: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    layout, offsets, _, P, Q, pixels = fused
    y = np.empty((len(x), K, P, Q), np.float32)
    argmax = np.empty(y.shape if indices else (len(x), 0, 0, 0), np.uint8)

    def run(begin: int, end: int) -> None:
        padded = scratch("padded", layout.C * layout.plane + 4 * TILE_WIDTH)
        values = scratch("pooled", pixels * LANES)
        memory = padded, values, scratch("argmax", pixels * LANES, np.uint8)
        _forward(x, y, argmax, layout, offsets, weights, bias, *memory, begin, end)

    parallel(run, pieces)
    return y, argmax


def _pack(w: np.ndarray, tile: int) -> np.ndarray:
    """w (groups, K, depth) as (groups, tiles, depth, tile), zero beyond K."""
    groups, K, depth = w.shape
    packed = np.zeros((groups, -(-K // tile) * tile, depth), np.float32)
    packed[:, :K] = w
    return np.ascontiguousarray(packed.reshape(groups, -1, tile, depth).swapaxes(2, 3))


@compiled
def _forward(
    x, y, argmax, layout, offsets, weights, bias, padded, values, indices, begin, end
):  # fmt: skip
    """The pass over images [begin, end); an argmax without elements is left out. A vector holds
    LANES filters of one pixel where the tiles of weights have LANES filters, else LANES pixels of
    one filter.
    """
    groups, tiles, depth, width = weights.shape
    _, K, P, Q = y.shape
    K //= groups
    padded[:] = 0
    row_bytes = 4 * layout.width
    last = max(Q - POOLED_PIXELS, 0)  # the last tile overlaps the one before it, to stay in the row
    for n in range(begin, end):
        for group in range(groups):
            for c in range(layout.C):
                for h in range(x.shape[2]):
                    place = c * layout.plane + (h + layout.top) * layout.width + layout.left
                    source = address(x[n, group * layout.C + c, h])
                    copy_floats(source, address(padded) + 4 * place, x.shape[3])
            for tile in range(tiles):
                first, count = group * K + tile * width, min(width, K - tile * width)
                a, shift = address(weights[group, tile]), address(bias[group]) + 4 * tile * width
                for p in range(P):
                    pixels = address(padded) + 2 * p * row_bytes
                    if width == LANES:
                        for column in range(0, Q, POOLED_PIXELS):
                            q = min(column, last)
                            pooled_filters(
                                a, pixels + 8 * q, row_bytes, address(offsets), depth, shift,
                                address(values) + (p * Q + q) * VECTOR_BYTES,
                                address(indices) + (p * Q + q) * LANES,
                            )  # fmt: skip
                    else:
                        for q in range(0, Q, LANES):
                            inside = min(LANES, Q - q)
                            pooled_pixels(
                                a, pixels + 8 * q, row_bytes, address(offsets), depth, shift, count,
                                address(y[n, first, p]) + 4 * q, 4 * P * Q, first_lanes(inside),
                                address(indices),
                            )  # fmt: skip
                            for m in range(count if argmax.size else 0):
                                for lane in range(inside):
                                    argmax[n, first + m, p, q + lane] = indices[m * LANES + lane]
                if width == LANES:
                    _unpack(values, indices, y[n], argmax[n], first, count, P * Q)


@compiled
def _unpack(values, indices, y, argmax, first, count, pixels):
    """Transpose values and indices (pixels, LANES) to y[first + lane] and argmax, `count` lanes."""
    to = argmax.reshape(-1)
    target = address(y) + 4 * first * pixels
    transpose_matrix(address(values), VECTOR_BYTES, pixels, count, target, 4 * pixels, pixels)
    for lane in range(count if argmax.size else 0):
        for pixel in range(pixels):
            to[(first + lane) * pixels + pixel] = indices[pixel * LANES + lane]


def backward(
    dy: np.ndarray,
    y: np.ndarray,
    argmax: np.ndarray,
    x: np.ndarray,
    w: np.ndarray,
    window: Window,
    groups: int,
    pool_window: Window,
    need_dx: bool = True,
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """(dx or None, dw, db) of dy, the gradient of `forward`'s y; y and argmax are `forward`'s."""
    if _fused(x.shape, x.dtype, w.shape, window, groups, pool_window, modes()) is not None:
        dy, y, argmax, x, w = map(contiguous, (dy, y, argmax, x, w))
        return backward_of_maxima(dy, y, argmax, x, w, window, groups, need_dx)
    size = window.output_size(*x.shape[2:])
    masked = np.where(y <= 0, np.zeros((), dy.dtype), dy)
    unpooled = pool.max_backward(masked, argmax, (len(x), w.shape[0], *size), pool_window)
    del masked
    return conv.backward(unpooled, x, w, window, groups, need_dx)
