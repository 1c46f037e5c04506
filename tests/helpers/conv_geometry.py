"""Convolutions of random geometry, their definition in float64, and bounds of float32's error."""

import numpy as np
from bounds import gamma

from gpuconv.cpu import conv, winograd
from gpuconv.cpu.precision import modes
from gpuconv.shapes import Window

# Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2015, F(4x4, 3x3): the
# magnitudes of the transforms' factors.
INPUT = np.array([
    [4, 0, 5, 0, 1, 0], [0, 4, 4, 1, 1, 0], [0, 4, 4, 1, 1, 0],
    [0, 2, 1, 2, 1, 0], [0, 2, 1, 2, 1, 0], [0, 4, 0, 5, 0, 1],
])  # fmt: skip
FILTER = np.array(
    [[6, 0, 0], [4, 4, 4], [4, 4, 4], [1, 2, 4], [1, 2, 4], [0, 0, 24]]
) / 24  # fmt: skip
OUTPUT = np.array([[1, 1, 1, 1, 1, 0], [0, 1, 1, 2, 2, 0], [0, 1, 1, 4, 4, 0], [0, 1, 1, 8, 8, 1]])
# Roundings of one transform: at most four products or constants and five additions, in two
# directions; of three transforms, with what the sums of chains and shards and the bias add.
TRANSFORMS = 3 * 2 * 9 + 80


def define(x, w, b, dy, window, groups):
    """y, dx, dw, db by the definition, in float64; dy may be None."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    (N, C, H, W), (K, _, R, S) = x.shape, w.shape
    P, Q = window.output_size(H, W)
    pads, (dil_h, dil_w) = window.pads(H, W), window.dilation
    image = np.pad(x, ((0, 0), (0, 0), *pads)).reshape(N, groups, C // groups, H + sum(pads[0]), -1)
    filters = w.reshape(groups, K // groups, C // groups, R, S)
    y, dx, dw = (
        np.zeros((N, groups, K // groups, P, Q)),
        np.zeros_like(image),
        np.zeros_like(filters),
    )
    gradient = None if dy is None else dy.reshape(y.shape).astype(np.float64)
    for p in range(P):
        for q in range(Q):
            top, left = p * window.stride[0], q * window.stride[1]
            rows = slice(top, top + window.extent[0], dil_h)
            patch = (..., rows, slice(left, left + window.extent[1], dil_w))
            y[..., p, q] = np.einsum("ngcrs,gkcrs->ngk", image[patch], filters, optimize=True)
            if gradient is not None:
                here = gradient[..., p, q]
                dw += np.einsum("ngk,ngcrs->gkcrs", here, image[patch], optimize=True)
                dx[patch] += np.einsum("ngk,gkcrs->ngcrs", here, filters, optimize=True)
    (top, _), (left, _) = pads
    y = y.reshape(N, K, P, Q) + (0 if b is None else b[:, None, None])
    dx = dx[..., top : top + H, left : left + W].reshape(x.shape)
    return y, dx, dw.reshape(w.shape), None if dy is None else dy.astype(np.float64).sum((0, 2, 3))


def bounds(x, w, b, dy, window, groups):
    """How far y, dx, dw and db of float32 arrays may be from `define`, for any order of summation.

    A sum of n products is off by at most gamma(n) times the sum of their magnitudes; in Winograd's
    algorithm, of the magnitudes of all its terms.
    """
    x, w, dy = (abs(a.astype(np.float64)) for a in (x, w, dy))
    b = None if b is None else abs(b)
    sizes = list(define(x, w, b, dy, window, groups))
    pixels = dy.size // w.shape[0]
    terms = [w[0].size, w.size // w.shape[1] // groups, pixels, pixels]
    shapes = x.shape, w.shape, window, groups, modes()
    one, other = (conv.algorithms(np.dtype(np.float32), *shapes, dw)[0] for dw in (False, True))
    pads = np.array(window.pads(*x.shape[2:]))[:, 0]
    if one is winograd:
        sizes[0] = _winograd_size(x, w, pads, sizes[0].shape)
        sizes[0] += 0 if b is None else b[:, None, None]
        rotated = w.swapaxes(0, 1)[..., ::-1, ::-1]
        sizes[1] = _winograd_size(dy, rotated, 2 - pads, x.shape)
        terms[:2] = terms[0] + TRANSFORMS, terms[1] + TRANSFORMS
    if other is winograd:
        sizes[2] = _winograd_dw_size(x, dy, pads)
        terms[2] += TRANSFORMS
    return [gamma(n + 2) * size + 1e-37 for n, size in zip(terms, sizes, strict=True)]


def _winograd_size(x, w, pads, shape):
    """|A'| [sum over c of (|G| |w| |G'|) * (|B'| |x| |B|)] |A|."""
    tiles = _tiles(x, pads, shape[2:], 6)
    filters = (FILTER @ w @ FILTER.T).transpose(2, 3, 1, 0)
    products = _by_entry(INPUT @ tiles @ INPUT.T) @ filters
    (N, K, P, Q), (rows, columns) = shape, tiles.shape[2:4]
    products = products.reshape(6, 6, N, rows, columns, K).transpose(2, 5, 3, 4, 0, 1)
    y = (OUTPUT @ products @ OUTPUT.T).swapaxes(3, 4)
    return y.reshape(N, K, 4 * rows, 4 * columns)[..., :P, :Q]


def _winograd_dw_size(x, dy, pads):
    """|G'| [sum over tiles of (|A| |dy| |A'|) * (|B'| |x| |B|)] |G|."""
    inputs = _by_entry(INPUT @ _tiles(x, pads, dy.shape[2:], 6) @ INPUT.T)
    gradients = _by_entry(OUTPUT.T @ _tiles(dy, (0, 0), dy.shape[2:], 4) @ OUTPUT)
    return FILTER.T @ (gradients.swapaxes(2, 3) @ inputs).transpose(2, 3, 0, 1) @ FILTER


def _by_entry(tiles):
    """(N, C, rows, columns, i, j) as (i, j, tiles, C)."""
    turned = tiles.transpose(4, 5, 0, 2, 3, 1)
    return turned.reshape(*turned.shape[:2], -1, turned.shape[-1])


def _tiles(x, pads, size, side):
    """(N, C, rows, columns, side, side): what 4x4 tiles of an output of `size` read."""
    rows, columns = (-(-n // 4) for n in size)
    image = np.zeros((*x.shape[:2], 4 * rows + 8, 4 * columns + 8))
    (top, left), (H, W) = pads, x.shape[2:]
    image[:, :, top : top + H, left : left + W] = x[
        :, :, : image.shape[2] - top, : image.shape[3] - left
    ]
    windows = np.lib.stride_tricks.sliding_window_view(image, (side, side), (2, 3))
    return windows[:, :, : 4 * rows : 4, : 4 * columns : 4]


def check(x, w, b, window, groups, rng, placed=np.array):
    """Forward and backward, element by element, within the bound for any order of summation.

    placed: makes of an array an equal one, with other strides.
    """
    P, Q = window.output_size(*x.shape[2:])
    dy = rng.standard_normal((x.shape[0], w.shape[0], P, Q)).astype(x.dtype)
    given = [placed(a) for a in (x, w, dy)]
    y = conv.forward(*given[:2], b, window, groups)
    dx, dw, db = conv.backward(given[2], *given[:2], window, groups)
    assert all(np.array_equal(a, old) for a, old in zip(given, (x, w, dy), strict=True))
    expected = define(x, w, b, dy, window, groups)
    allowed = bounds(x, w, b, dy, window, groups)
    unit = 1.0 if x.dtype == np.float32 else 1e-8
    for name, result, exact, bound in zip(
        ("y", "dx", "dw", "db"), (y, dx, dw, db), expected, allowed, strict=True
    ):
        assert result.shape == exact.shape
        assert result.dtype == x.dtype
        assert result.flags.c_contiguous
        bad = ~(np.abs(result - exact) <= unit * bound)
        assert not bad.any(), (
            f"{name} of {x.shape} * {w.shape}, {window}, groups={groups}: {bad.sum()} wrong"
        )


def arrays(rng, x_shape, K, kernel, groups=1, dtype=np.float32):
    x = rng.standard_normal(x_shape).astype(dtype)
    w = rng.standard_normal((K, x_shape[1] // groups, *kernel)).astype(dtype)
    return x, w, rng.standard_normal(K).astype(dtype)


def random_strides(rng):
    """A function that makes of an array an equal one: axes in any order, some of them reversed, or
    with gaps, or not aligned, or read-only.
    """

    def placed(a):
        order = rng.permutation(a.ndim)
        gaps, reverse = rng.integers(1, 3, a.ndim), rng.integers(0, 2, a.ndim)
        shape = [a.shape[axis] * gaps[axis] for axis in order]
        raw = np.zeros(int(np.prod(shape)) * a.itemsize + 8, np.uint8)
        begin = int(rng.choice([0, a.itemsize, 1]))
        size = len(raw) - 8
        whole = raw[begin : begin + size].view(a.dtype).reshape(shape)
        view = whole.transpose(np.argsort(order))
        steps = zip(gaps, reverse, strict=True)
        view = view[tuple(slice(None, None, -g if back else g) for g, back in steps)]
        view[...] = a
        view.flags.writeable = bool(rng.integers(0, 2))
        return view

    return placed


def random_geometry(rng):
    """(x_shape, K, window, groups) that fits."""
    while True:
        groups = int(rng.choice([1, 1, 2, 3, 5]))
        C = groups * int(rng.integers(1, 7))
        K = C * int(rng.integers(1, 3)) if rng.random() < 0.1 else groups * int(rng.integers(1, 40))
        groups = C if K % C == 0 and rng.random() < 0.1 else groups
        kernel = (1, 1) if rng.random() < 0.15 else rng.integers(1, 6, 2).tolist()
        stride = (1, 1) if rng.random() < 0.3 else rng.integers(1, 5, 2).tolist()
        padding = tuple(tuple(rng.integers(0, 4, 2).tolist()) for _ in range(2))
        if rng.random() < 0.3:
            padding = ((0, 0), (0, 0))
        window = Window(
            tuple(kernel), tuple(stride), padding, tuple(rng.integers(1, 3, 2).tolist())
        )
        x_shape = (int(rng.integers(1, 6)), C, *rng.integers(1, 24, 2).tolist())
        try:
            window.output_size(*x_shape[2:])
        except ValueError:
            continue
        return x_shape, K, window, groups


def random_wide_geometry(rng):
    """The same, of as many channels as the matrix products and Winograd's algorithm need."""
    C, K = (int(n) for n in rng.integers(16, 48, 2))
    N, H, W = int(rng.integers(1, 7)), *(int(n) for n in rng.integers(3, 19, 2))
    kind = rng.integers(0, 4)
    if kind == 0:
        return (N, C, H % 6 + 1, W % 6 + 1), K, Window((H % 6 + 1, W % 6 + 1)), 1
    if kind == 1:
        return (N, C, H, W), K, Window(1), 1
    padding = tuple(tuple(rng.integers(0, 3, 2).tolist()) for _ in range(2))
    return (N, 2 * C, H, W), 2 * K, Window(3, padding=padding), 1
