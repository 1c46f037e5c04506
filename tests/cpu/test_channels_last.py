"""The loops of compiled networks, against the definitions in float64, within proved bounds."""

import math

import numpy as np
import pytest
from bounds import gamma

from gpuconv import ops
from gpuconv.cpu import channels_last as loops
from gpuconv.cpu import inference_conv, winograd
from gpuconv.cpu.moves import Image
from gpuconv.shapes import Window
from gpuconv.threads import set_thread_count, thread_count

GUARD = 777.0


def placed(x, before, behind):
    """x (N, C, H, W) as channels of a wider image whose other channels are GUARD."""
    N, C, H, W = x.shape
    step = before + C + behind
    whole = np.full((N, H, W, step), GUARD, np.float32)
    whole[..., before : before + C] = x.transpose(0, 2, 3, 1)
    return whole.reshape(-1), Image(before, step, N, H, W, C)


def taken(flat, image):
    """The image as (N, C, H, W); everything around it must still be GUARD."""
    whole = flat.reshape(image.N, image.H, image.W, image.step)
    inside = slice(image.offset, image.offset + image.C)
    assert (np.delete(whole, inside, axis=3) == GUARD).all()
    return whole[..., inside].transpose(0, 3, 1, 2)


def random_case(seed):
    """(x, w, b, rest, window, groups, before, relu) that fit."""
    rng = np.random.default_rng(seed)
    while True:
        groups = int(rng.choice([1, 1, 1, 2, 3, 8]))
        N, C, K = (int(n) for n in rng.integers(1, (5, 40, 70)))
        C, K = -(-C // groups) * groups, -(-K // groups) * groups
        kernel = (1, 1) if rng.random() < 0.4 else rng.integers(1, 5, 2).tolist()
        stride = (1, 1) if rng.random() < 0.5 else rng.integers(1, 4, 2).tolist()
        padding = tuple(tuple(rng.integers(0, 3, 2).tolist()) for _ in range(2))
        padding = padding if rng.random() < 0.6 else 0
        dilation = rng.integers(1, 3, 2).tolist()
        window = Window(tuple(kernel), tuple(stride), padding, tuple(dilation))
        shape = (N, C, *rng.integers(1, 19, 2).tolist())
        try:
            P, Q = window.output_size(*shape[2:])
        except ValueError:
            continue
        shapes = shape, (K, C // groups, *kernel)
        x, w = (rng.standard_normal(s).astype(np.float32) for s in shapes)
        b = rng.standard_normal(K).astype(np.float32)
        rest = rng.standard_normal((N, K, P, Q)).astype(np.float32) if rng.random() < 0.5 else None
        before = None
        if rng.random() < 0.4:
            scale, shift = (rng.standard_normal(C).astype(np.float32) for _ in range(2))
            before = scale, shift, bool(rng.random() < 0.5)
        return x, w, b, rest, window, groups, before, bool(rng.random() < 0.5)


def exact(x, w, b, rest, window, groups, before, relu):
    """The definition in float64, and a bound of the error."""
    x, w, b = (a.astype(np.float64) for a in (x, w, b))
    size, terms = abs(x), w[0].size + 3
    if before is not None:
        scale, shift = (a.astype(np.float64)[:, None, None] for a in before[:2])
        x, size, terms = scale * x + shift, abs(scale * x) + abs(shift), terms + 3
        x = np.maximum(x, 0) if before[2] else x
    options = window.stride, window.padding, window.dilation, groups
    y = ops.conv2d.definition(x, w, b, *options)
    bound = ops.conv2d.definition(size, abs(w), abs(b), *options)
    if rest is not None:
        y, bound = y + rest, bound + abs(rest)
    return np.maximum(y, 0) if relu else y, gamma(terms) * bound


def convolved(x, w, b, rest, window, groups, before, relu, around=(0, 0)):
    y = np.zeros((len(x), len(w), *window.output_size(*x.shape[2:])), np.float32)
    other = None if rest is None else placed(rest, *around)
    made = placed(y, *around)

    def pack(form, make):
        return make()

    given = placed(x, *around[::-1]), made, other
    inference_conv.convolution(*given, w, b, window, groups, before, relu, pack)()
    return taken(*made)


@pytest.mark.parametrize("seed", range(40))
def test_convolution(seed):
    case = random_case(seed)
    y, bound = exact(*case)
    found = convolved(*case, around=(seed % 3, seed % 2))
    assert (abs(found - y) <= bound + 1e-37).all()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40, 240))
def test_more_convolutions(seed):
    test_convolution(seed)


@pytest.mark.parametrize(
    ("shape", "K", "kernel"),
    [((1, 16, 2, 3), 200, 1), ((1, 3, 30, 40), 40, 7), ((3, 70, 20, 30), 33, 1)],
)
def test_threads_share_blocks_or_filters_and_do_not_change_bits(shape, K, kernel):
    rng, threads = np.random.default_rng(1), thread_count()
    x, w = (
        rng.standard_normal(s).astype(np.float32) for s in (shape, (K, shape[1], kernel, kernel))
    )
    case = (
        x,
        w,
        np.ones(K, np.float32),
        None,
        Window(kernel, 1, kernel // 2),
        1,
        None,
        True,
    )
    found = []
    try:
        for count in (1, 2, 3):
            set_thread_count(count)
            found.append(convolved(*case).tobytes())
    finally:
        set_thread_count(threads)
    assert len(set(found)) == 1


@pytest.mark.parametrize(
    ("shape", "K", "padding"),
    [((2, 40, 13, 17), 33, 1), ((3, 32, 14, 14), 64, ((0, 2), (2, 1))), ((16, 48, 7, 7), 50, 1)],
)
def test_winograd_has_the_bits_of_the_uncompiled_one(shape, K, padding):
    """Its error is bounded in test_cpu_conv.py."""
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(s).astype(np.float32) for s in (shape, (K, shape[1], 3, 3)))
    b, window = rng.standard_normal(K).astype(np.float32), Window(3, 1, padding)
    assert winograd.suits(shape, w.shape, window, 1)
    y = winograd.forward(x, w, b, window, 1, False)
    rest = rng.standard_normal(y.shape).astype(np.float32)
    found = convolved(x, w, b, rest, window, 1, None, True, around=(2, 3))
    assert np.array_equal(found, np.maximum(y + rest, 0))


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_what_winograd_would_spoil_is_computed_directly(value):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 32, 12, 16)).astype(np.float32)
    w = rng.standard_normal((32, 32, 3, 3)).astype(np.float32)
    assert winograd.suits(x.shape, w.shape, Window(3, 1, 1), 1)
    x[0, 3, 5, 6] = value
    case = x, w, np.zeros(32, np.float32), None, Window(3, 1, 1), 1, None, False
    y, bound = exact(*case)
    found = convolved(*case)
    reached = np.zeros(y.shape, bool)
    reached[0, :, 4:7, 5:8] = True
    assert (abs(found[~reached] - y[~reached]) <= bound[~reached]).all()
    if not math.isfinite(value):
        assert not np.isfinite(found[reached]).any()


@pytest.mark.parametrize("seed", range(8))
def test_pools_and_sums(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers((1, 1, 3, 3), (4, 40, 12, 12)))
    x = rng.standard_normal(shape).astype(np.float32)
    x[0, 0, 1, 1] = math.nan
    flat, image = placed(x, 1, 2)
    rows, columns = (np.array([[0, 2], [1, n]], np.int64) for n in shape[2:])
    parts = [
        [x[..., slice(*row), slice(*column)] for column in columns] for row in rows
    ]  # fmt: skip
    made = placed(np.zeros((*shape[:2], 2, 2), np.float32), 0, 1)
    loops.pool(flat, image, rows, columns, None, *made, 0, 2 * shape[0])
    largest = np.array([[part.max((2, 3)) for part in row] for row in parts])
    assert np.array_equal(taken(*made), largest.transpose(2, 3, 0, 1), equal_nan=True)
    made = placed(np.zeros((*shape[:2], 2, 2), np.float32), 0, 1)
    counts = np.array([[part[0, 0].size for part in row] for row in parts], np.float32)
    loops.pool(flat, image, rows, columns, counts, *made, 0, 2 * shape[0])
    mean, size = (
        np.array([[f(part.astype(np.float64)).mean((2, 3)) for part in row] for row in parts])
        for f in (lambda a: a, np.abs)
    )
    off = abs(taken(*made) - mean.transpose(2, 3, 0, 1))
    bound = gamma(shape[2] * shape[3] + 1) * size.transpose(2, 3, 0, 1)
    assert (np.isnan(off) == np.isnan(bound)).all()
    assert (off <= bound)[~np.isnan(off)].all()
