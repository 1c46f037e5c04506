"""The kernels of small convolutions (conv_small.cu, conv_small_backward.cu) against the float64
definition: element by element, the proved bound.
"""

import itertools

import numpy as np
import pytest
from kernel_runs import F4, assert_within, gamma, how_of, run

from gpuconv import ops
from gpuconv.ops import conv2d_launch_small as small
from gpuconv.ops.conv2d_launch import Conv2dShape
from gpuconv.shapes import window

TINY = 1e-37
# Windows and threads' filters: each a specialisation, which is slow to compile.
SPECIALISATIONS = [(3, 2, 2), (5, 5, 3), (3, 3, 5), (2, 3, 8), (4, 5, 4), (5, 4, 6)]
SEEDS, MORE_SEEDS = range(12), range(12, 120)  # the first: of the first specialisation


@pytest.fixture(autouse=True)
def uncached(monkeypatch):
    for name in ("applies", "config_forward", "config_backward", "_tiling"):
        monkeypatch.setattr(small, name, getattr(small, name).__wrapped__)


def specialisation(seed):
    return SPECIALISATIONS[0 if seed in SEEDS else seed % len(SPECIALISATIONS)]


def case(seed):
    """((x, w, b), pads, pool or None, ceil_mode, layouts, images, processors) of a small layer."""
    rng = np.random.default_rng([29, seed])
    R, S, width = specialisation(seed)
    C, K = (int(rng.choice([width, 2 * width, 3 * width - (width > 4)])) for _ in range(2))
    P, Q = (int(n) for n in rng.integers(2, 20, 2))
    pads = tuple((int(rng.integers(n)), int(rng.integers(n))) for n in (R, S))
    H, W = (max(n + r - 1 - sum(p), 1) for n, r, p in zip((P, Q), (R, S), pads, strict=True))
    x = rng.standard_normal((int(rng.integers(1, 6)), C, H, W)).astype(F4)
    w, b = rng.standard_normal((K, C, R, S)).astype(F4), rng.standard_normal(K).astype(F4)
    layouts = tuple(bool(n) for n in rng.integers(0, 2, 3))
    return (x, w, b), pads, seed % 3 > 0, seed % 5 < 2, layouts, int(rng.choice([1, 4, 132]))


def laid(a, last):
    """(N, C, H, W) as it lies in memory."""
    return np.ascontiguousarray(a.transpose(0, 2, 3, 1)) if last else np.ascontiguousarray(a)


def seen(a, last):
    return a.transpose(0, 3, 1, 2) if last else a


def shaped(shape, last):
    N, C, H, W = shape
    return (N, H, W, C) if last else shape


def compare(number, monkeypatch, **how):
    (x, w, b), pads, pooling, ceil_mode, (x_last, y_last, dy_last), processors = case(number)
    width = specialisation(number)[2]
    monkeypatch.setattr(small, "WIDTHS", (width,))
    monkeypatch.setattr(small, "PROCESSORS", processors)
    conv = Conv2dShape.of(x.shape, w.shape, window(w.shape[2:], 1, pads), 1)
    assert small.applies(conv)
    win = window(2, None, 0, 1, ceil_mode)
    pooling = pooling and (ceil_mode or min(conv.P, conv.Q) > 1)
    pool = small.Pooled(*win.output_size(conv.P, conv.Q)) if pooling else None
    y, argmax = compare_forward(conv, x, w, b, pads, pool, ceil_mode, x_last, y_last, **how)
    for need_dx in (True, False):
        layouts = dy_last, y_last, x_last
        given = conv, x, w, b, y, argmax, pads, pool, ceil_mode, layouts
        compare_backward(*given, need_dx, **how)


def compare_forward(conv, x, w, b, pads, pool, ceil_mode, x_last, y_last, **how):
    exact = ops.conv2d.reference(*(a.astype(np.float64) for a in (x, w, b)), 1, pads, 1, 1, "relu")
    size = ops.conv2d.reference(*(abs(a).astype(np.float64) for a in (x, w, b)), 1, pads)
    bound = gamma(w[0].size + 2) * size + TINY
    shape = (conv.N, conv.K, *((pool.P, pool.Q) if pool else (conv.P, conv.Q)))
    config = small.config_forward(conv, True, True, pool, x_last, y_last)
    inputs = {"x": laid(x, x_last), "w": laid(w, True), "b": b}
    outputs = {"y": (shaped(shape, y_last), F4), "argmax": (shaped(shape, y_last), np.uint8)}
    found = run(config, inputs, outputs, **how)
    y, argmax = (seen(found[name], y_last) for name in ("y", "argmax"))
    if pool is None:
        assert (argmax == 0xAB).all()  # it is not followed
        assert_within(y, exact, bound)
        return y, None
    options = 2, None, 0, 1, ceil_mode
    assert_within(y, ops.max_pool2d.definition(exact, *options)[0],
                  ops.max_pool2d.definition(bound, *options)[0])  # fmt: skip
    plain = run(small.config_forward(conv, True, True, None, x_last, y_last), inputs,
                {"y": (shaped(exact.shape, y_last), F4), "argmax": ((1,), np.uint8)})  # fmt: skip
    right = ops.max_pool2d.definition(seen(plain["y"], y_last), *options)
    np.testing.assert_array_equal(y, right[0])
    np.testing.assert_array_equal(argmax, right[1])
    return y, argmax


def compare_backward(conv, x, w, b, y, argmax, pads, pool, ceil_mode, layouts, need_dx, **how):
    dy = np.random.default_rng(x.size).standard_normal(y.shape).astype(F4)
    passed = np.where(y <= 0, 0, dy).astype(np.float64)
    if pool is not None:
        between = (conv.N, conv.K, conv.P, conv.Q)
        options = 2, None, 0, 1, ceil_mode
        passed = ops.max_pool2d_backward.definition(passed, argmax, between, *options)
    onto = dy.ravel()[0] > 0 and need_dx, dy.ravel()[1] > 0 and need_dx
    rest = np.random.default_rng(y.size).standard_normal(x.shape).astype(F4)
    options = 1, pads, 1, 1, None, None, need_dx
    wide = [a.astype(np.float64) for a in (x, w, b)]
    exact = ops.conv2d_backward.reference(passed, *wide, *options)
    sizes = ops.conv2d_backward.reference(abs(passed), *map(abs, wide), *options)
    given = conv, dy, y, argmax, x, w, pool, need_dx, layouts
    dx, dw, db = backward(*given, end=(rest, *onto), **how)
    pixels = conv.N * conv.P * conv.Q
    if need_dx:
        whole = exact[0] + rest * onto[0], sizes[0] + abs(rest) * onto[0]
        keep = (x > 0) | (not onto[1])
        assert_within(dx, whole[0] * keep, gamma(w[:, 0].size + 2) * whole[1] * keep + TINY)
    assert_within(dw, exact[1], gamma(pixels + 1) * sizes[1] + TINY)
    assert_within(db, exact[2], gamma(pixels + 1) * sizes[2] + TINY)


def backward(conv, dy, y, argmax, x, w, pool, need_dx, layouts, mask=True, end=None, **how):
    """(dx, dw, db) as users see them. end: what dx is added to, whether, whether rectified."""
    dy_last, y_last, x_last = layouts
    onto, *end = end or (x, False, False)
    config = small.config_backward(conv, True, mask, pool, need_dx, *layouts, *map(bool, end))
    inputs = {
        **{"dy": laid(dy, dy_last), "y": laid(y, y_last)},
        "argmax": np.zeros(1, np.uint8) if pool is None else laid(argmax, y_last),
        **{"x": laid(x, x_last), "w": laid(w, True), "onto": laid(onto, True)},
    }
    outputs = {"dw": (laid(w, True).shape, F4), "db": ((conv.K,), F4)}
    outputs["dx"] = (shaped(x.shape, True) if need_dx else (1,), F4)
    found = run(config, inputs, outputs, **how)
    dx = seen(found["dx"], True) if need_dx else None
    return dx, seen(found["dw"], True), found["db"]


@pytest.mark.parametrize("seed", SEEDS)
def test_random_layers(seed, monkeypatch):
    compare(seed, monkeypatch, **{**how_of(seed), "check": False})  # which compiles for seconds


@pytest.mark.slow
@pytest.mark.parametrize("seed", MORE_SEEDS)
def test_random_layers_at_length(seed, monkeypatch):
    compare(seed, monkeypatch, **how_of(seed))


def test_what_the_sweep_holds():
    cases = [case(seed) for seed in SEEDS]
    pools = {(pool, ceil) for _, _, pool, ceil, *_ in cases}
    assert pools == set(itertools.product((True, False), repeat=2))
    assert len({layouts for *_, layouts, _ in cases}) >= 5
    assert any(top != bottom for _, ((top, bottom), _), *_ in cases)
    assert any(len(x) == 1 for (x, *_), *_ in cases)
    assert any(x.shape[2] % 2 for (x, *_), *_ in cases)


def test_slices_are_summed_in_order_in_every_order_of_blocks(monkeypatch):
    """Slices are added in groups: the bits do not depend on which block is the last."""
    monkeypatch.setattr(small, "WIDTHS", (2,))
    rng = np.random.default_rng(5)
    x, w = rng.standard_normal((40, 4, 7, 5)).astype(F4), np.ones((4, 4, 3, 2), F4)
    conv = Conv2dShape.of(x.shape, w.shape, window((3, 2)), 1)
    config = small.config_backward(conv, True, False, None, False, True, True, True)
    scalars = config.launches[0].scalars
    assert scalars["slices"] >= 30
    assert scalars["slices"] > 4 * scalars["together"]
    dy = rng.standard_normal((40, 4, 5, 4)).astype(F4)
    given = conv, dy, dy, None, x, w, None, False, (True,) * 3, False
    orders = [("forward", 0), ("forward", 0), ("reverse", 0), ("shuffled", 1), ("shuffled", 2)]
    results = [backward(*given, order=order, seed=seed) for order, seed in orders]
    assert len({(dw.tobytes(), db.tobytes()) for _, dw, db in results}) == 1
    assert_within(results[0][2], dy.sum((0, 2, 3), np.float64), gamma(800) * abs(dy).sum((0, 2, 3)))


@pytest.mark.parametrize(
    ("conv", "applies"),
    [
        (Conv2dShape(64, 1, 32, 32, 6, 5, 5, 28, 28), True),
        (Conv2dShape(64, 10, 62, 62, 10, 3, 3, 60, 60), True),
        (Conv2dShape(64, 32, 32, 32, 32, 3, 3, 32, 32, 1, 1, 1, 1), True),
        (Conv2dShape(64, 3, 224, 224, 8, 3, 3, 224, 224, 1, 1, 1, 1), True),
        (Conv2dShape(64, 3, 32, 32, 64, 3, 3, 30, 30), False),  # filters
        (Conv2dShape(64, 33, 32, 32, 8, 3, 3, 30, 30), False),  # channels
        (Conv2dShape(64, 3, 32, 32, 8, 7, 7, 26, 26), False),  # window
        (Conv2dShape(64, 3, 32, 32, 8, 1, 3, 32, 30), False),
        (Conv2dShape(64, 3, 32, 32, 8, 3, 3, 15, 15, 2, 2), False),  # stride
        (Conv2dShape(64, 3, 32, 32, 8, 3, 3, 28, 28, dil_h=2, dil_w=2), False),
        (Conv2dShape(64, 4, 32, 32, 8, 3, 3, 30, 30, groups=2), False),
        (Conv2dShape(64, 3, 32, 32, 8, 3, 3, 36, 36, 1, 1, 3, 3), False),  # padding
        (Conv2dShape(64, 16, 5, 5, 120, 5, 5, 1, 1), False),  # a linear layer
        (Conv2dShape(1, 32, 90, 9000, 32, 3, 3, 88, 8998), False),  # shared memory
    ],
)
def test_where_the_configuration_takes_them(conv, applies):
    assert small.applies(conv) == applies
    if applies:
        blocks = small.config_forward(conv, True, True, None, True, True).launches[0].grid[0]
        assert blocks >= 100
