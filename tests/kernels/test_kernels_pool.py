"""The pooling kernels, run by the simulator, against the definitions: max pooling equal."""

import cases
import numpy as np
import pytest
from kernel_runs import F4, assert_within, first, gamma, how_of, last, run

from gpuconv import ops
from gpuconv.ops import pool2d_launch
from gpuconv.shapes import window


def sweep_case(seed):
    """As cases.pool_case in float32, on every other seed with channels in fours, sometimes NaN."""
    x, *geometry = cases.pool_case(seed)
    rng = np.random.default_rng([31, seed])
    if seed % 2:
        x = np.round(rng.standard_normal((len(x), 4 * int(rng.integers(1, 5)), *x.shape[2:])))
    x = x.astype(F4)
    if seed % 3 == 0:
        special = rng.choice(F4([np.nan, np.inf, -np.inf, 0.0, -0.0]), x.shape)
        x = np.where(rng.random(x.shape) < 0.1, special, x)
    return x, geometry


def compare(x, geometry, **how):
    win = window(*geometry)
    N, C, H, W = x.shape
    shape = (N, *win.output_size(H, W), C)
    y, argmax = ops.max_pool2d.definition(x, *geometry)
    outputs = {"y": (shape, F4), "argmax": (shape, np.uint8)}
    found = run(pool2d_launch.config_max_pool2d(x.shape, win), {"x": last(x)}, outputs, **how)
    np.testing.assert_array_equal(first(found["y"]), y)
    np.testing.assert_array_equal(first(found["argmax"]), argmax)
    dy = np.random.default_rng(x.size).integers(-9, 9, y.shape).astype(F4)  # sums are exact
    inputs = {"dy": last(dy), "argmax": last(argmax)}
    config = pool2d_launch.config_max_pool2d_backward(x.shape, win)
    dx = first(run(config, inputs, {"dx": (last(x).shape, F4)}, **how)["dx"])
    np.testing.assert_array_equal(
        dx, ops.max_pool2d_backward.definition(dy, argmax, x.shape, *geometry)
    )
    x = np.nan_to_num(x, posinf=2, neginf=-3)
    for average, pad in ((False, True), (True, True), (True, False)):
        compare_average(x, geometry, win, average, pad, **how)


def compare_average(x, geometry, win, average, pad, **how):
    forward, backward = ops.sum_pool2d.definition, ops.sum_pool2d_backward.definition
    more = ()
    if average:
        forward, backward = ops.avg_pool2d.definition, ops.avg_pool2d_backward.definition
        more = (pad,)
    exact = forward(x.astype(np.float64), *geometry, *more)
    size = forward(abs(x).astype(np.float64), *geometry, *more)
    config = pool2d_launch.config_avg_pool2d(x.shape, win, average, pad)
    y = first(run(config, {"x": last(x)}, {"y": (last(exact).shape, F4)}, **how)["y"])
    taps = win.taps_count
    assert_within(y, exact, gamma(taps + 1) * size)
    dy = np.random.default_rng(x.size).standard_normal(y.shape).astype(F4)
    exact = backward(dy.astype(np.float64), x.shape, *geometry, *more)
    size = backward(abs(dy).astype(np.float64), x.shape, *geometry, *more)
    config = pool2d_launch.config_avg_pool2d_backward(x.shape, win, average, pad)
    dx = first(run(config, {"dy": last(dy)}, {"dx": (last(x).shape, F4)}, **how)["dx"])
    assert_within(dx, exact, gamma(taps + 1) * size)


SEEDS, MORE_SEEDS = range(20), range(20, 240)  # of the default run, and with make test-all


@pytest.mark.parametrize("seed", SEEDS)
def test_random_geometries(seed):
    compare(*sweep_case(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", MORE_SEEDS)
def test_random_geometries_at_length(seed):
    compare(*sweep_case(seed), **how_of(seed))


def test_what_the_sweep_holds():
    """At least 200 different geometries, and every feature early among them."""
    drawn = {seed: sweep_case(seed) for seed in (*SEEDS, *MORE_SEEDS)}
    assert len({(x.shape, *geometry) for x, geometry in drawn.values()}) >= 200

    def leaves_over(x, kernel, stride, pads, dilation, ceil_mode):
        ways = [window(kernel, stride, pads, dilation, c).output_size(*x.shape[2:]) for c in (0, 1)]
        return ceil_mode and ways[0] != ways[1]

    features = {
        "stride other than the window": lambda x, kernel, stride, *_: stride != kernel,
        "overlap": lambda x, kernel, stride, *_: stride[0] < kernel[0],
        "gaps": lambda x, kernel, stride, *_: stride[0] > kernel[0],
        "padding on one side": lambda x, k, s, pads, *_: pads[0][0] != pads[0][1],
        "dilation": lambda x, k, s, p, dilation, _: dilation != (1, 1),
        "ceil_mode that adds a window": leaves_over,
        "one image": lambda x, *_: len(x) == 1,
        "channels in fours": lambda x, *_: x.shape[1] % 4 == 0,
        "channels not in fours": lambda x, *_: x.shape[1] % 4 > 0,
        "height other than width": lambda x, *_: x.shape[2] != x.shape[3],
        "ties": lambda x, *_: (np.nan_to_num(x) == np.round(np.nan_to_num(x))).all(),
        "NaN": lambda x, *_: np.isnan(x).any(),
        "minus infinity": lambda x, *_: np.isneginf(x).any(),
        "both zeros": lambda x, *_: len(set(np.signbit(x[x == 0]))) == 2,
    }
    for name, holds in features.items():
        assert any(holds(x, *geometry) for x, geometry in (drawn[s] for s in SEEDS)), name


@pytest.mark.parametrize(("C", "pixels"), [(1, 255), (1, 256), (1, 257), (8, 127), (8, 129)])
def test_pixels_around_the_block(C, pixels):
    x = np.random.default_rng(pixels).standard_normal((1, C, 1, pixels)).astype(F4)
    compare(x, ((1, 2), 1, 0, 1, False))
    compare(x, (1, 1, 0, 1, False))


@pytest.mark.parametrize("C", [1, 6, 255, 256, 257, 1020, 1024, 1028])
def test_channels_around_the_block(C):
    x = np.random.default_rng(C).standard_normal((2, C, 5, 4)).astype(F4)
    compare(x, (2, 2, 0, 1, True))


def test_a_window_of_255_taps_and_one_as_large_as_the_image():
    x = np.random.default_rng(1).standard_normal((1, 3, 16, 18)).astype(F4)
    compare(x, ((15, 17), 1, 0, 1, False))
    compare(x[:, :, :15, :17], ((15, 17), 1, 0, 1, False))


def test_infinity_is_a_value_and_not_a_start():
    x = np.full((1, 1, 4, 4), -np.inf, F4)
    win = window(2, 2)
    shape = (1, 2, 2, 1)
    outputs = {"y": (shape, F4), "argmax": (shape, np.uint8)}
    found = run(pool2d_launch.config_max_pool2d(x.shape, win), {"x": last(x)}, outputs)
    assert (found["argmax"] == 0).all()


def test_subnormal_numbers_are_equal_to_zero():
    """-ftz=true, which CuPy sets: comparisons read them as 0, so the first wins; it is copied as
    it is. Sums give 0.
    """
    x = F4([[[[1e-40, 2e-40], [-1e-40, 0.0]]]])
    win = window(2)
    outputs = {"y": ((1, 1, 1, 1), F4), "argmax": ((1, 1, 1, 1), np.uint8)}
    found = run(pool2d_launch.config_max_pool2d(x.shape, win), {"x": last(x)}, outputs)
    assert found["argmax"] == 0
    assert found["y"] == x[0, 0, 0, 0]
    for average in (False, True):
        config = pool2d_launch.config_avg_pool2d(x.shape, win, average)
        assert run(config, {"x": last(x)}, {"y": ((1, 1, 1, 1), F4)})["y"] == 0
        config = pool2d_launch.config_avg_pool2d_backward(x.shape, win, average)
        dy = np.full((1, 1, 1, 1), 1e-39, F4)
        assert (run(config, {"dy": dy}, {"dx": ((1, 2, 2, 1), F4)})["dx"] == 0).all()


def test_ties_and_nan_in_every_window():
    """The first of equal maxima wins, +0 and -0 are equal, and the last NaN wins over all."""
    zeros = F4([0.0, -0.0, 0.0, -0.0])
    nan = np.array([0x7FC00001, 0x3F800000, 0xFFC00002, 0x7F800000], np.uint32).view(F4)
    x = np.stack([zeros, nan, np.full(4, -np.inf, F4), F4([3, 7, 7, 7])]).reshape(1, 4, 2, 2)
    outputs = {"y": ((1, 1, 1, 4), F4), "argmax": ((1, 1, 1, 4), np.uint8)}
    found = run(pool2d_launch.config_max_pool2d(x.shape, window(2)), {"x": last(x)}, outputs)
    assert found["argmax"].ravel().tolist() == [0, 2, 0, 1]
    assert found["y"].ravel()[[0, 2, 3]].tolist() == [0.0, -np.inf, 7.0]
    assert np.isnan(found["y"].ravel()[1])
    assert not np.signbit(found["y"].ravel()[0])


def test_without_races_or_accesses_out_of_bounds():
    for seed in (1, 2, 3):
        compare(*sweep_case(seed), check=True)
