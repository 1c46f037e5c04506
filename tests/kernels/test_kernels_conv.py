"""The convolution kernels, run by the simulator, against the float64 definition.

The gate is element by element: |error| <= gamma_K * (|x| conv |w|), a bound that is proved.
"""

from dataclasses import replace

import cases
import numpy as np
import pytest
from kernel_runs import F4, assert_within, first, gamma, how_of, last, run, set_constant

from gpuconv import ops
from gpuconv.cuda import split_k
from gpuconv.ops import conv2d_launch
from gpuconv.ops.conv2d_launch import Conv2dShape
from gpuconv.shapes import window

TINY = 1e-35  # what terms flushed to zero may add up to


def draw(seed, N, C, H, W, K, R, S, groups=1):
    rng = np.random.default_rng([21, seed])
    x = rng.standard_normal((N, C, H, W)).astype(F4)
    w = rng.standard_normal((K, C // groups, R, S)).astype(F4)
    return x, w, rng.standard_normal(K).astype(F4)


def doubles(*arrays):
    return [a.astype(np.float64) for a in arrays]


def magnitudes(*arrays):
    return [abs(a).astype(np.float64) for a in arrays]


def forward(conv, x, w, b, relu=False, **how):
    config = conv2d_launch.config_forward(conv, b is not None, relu)
    shape = (conv.N, conv.P, conv.Q, conv.K)
    inputs = {"x": last(x), "w": last(w), "b": w.ravel() if b is None else b}
    return first(run(config, inputs, {"y": (shape, F4)}, **how)["y"])


def backward_data(conv, dy, w, x, mask=False, rest=None, **how):
    config = conv2d_launch.config_backward_data(conv, mask, rest is not None)
    shape = (conv.N, conv.H, conv.W, conv.C)
    inputs = {"dy": last(dy), "w": last(w), "x": last(x)}
    if rest is not None:
        inputs["onto"] = last(rest)
    return first(run(config, inputs, {"dx": (shape, F4)}, **how)["dx"])


def backward_weight(conv, dy, x, **how):
    config = conv2d_launch.config_backward_weight(conv)
    shape = (conv.K, conv.R, conv.S, conv.channels)
    inputs = {"dy": last(dy), "x": last(x)}
    return first(run(config, inputs, {"dw": (shape, F4)}, **how)["dw"])


def backward_bias(conv, dy, **how):
    config = conv2d_launch.config_backward_bias(conv.N * conv.P * conv.Q, conv.K)
    return run(config, {"dy": last(dy)}, {"db": ((conv.K,), F4)}, **how)["db"]


def compare(x, w, b, stride=1, pads=0, dilation=1, groups=1, passes="ydwb", **how):
    """All passes of one convolution against the definition."""
    geometry = (stride, pads, dilation, groups)
    conv = Conv2dShape.of(x.shape, w.shape, window(w.shape[2:], *geometry[:3]), groups)
    bias = np.zeros(len(w), F4) if b is None else b
    exact = ops.conv2d.reference(*doubles(x, w, bias), *geometry)
    dy = np.random.default_rng(x.size).standard_normal(exact.shape).astype(F4)
    if "y" in passes:
        size = ops.conv2d.reference(*magnitudes(x, w, bias), *geometry)
        y = forward(conv, x, w, b, **how)
        assert_within(y, exact, gamma(w[0].size + 1) * size + TINY)
        np.testing.assert_array_equal(forward(conv, x, w, b, relu=True), np.maximum(y, 0))
    gradients = ops.conv2d_backward.reference(*doubles(dy, x, w, bias), *geometry)
    sizes = ops.conv2d_backward.reference(*magnitudes(dy, x, w, bias), *geometry)
    if "d" in passes:
        dx = backward_data(conv, dy, w, x, **how)
        assert_within(dx, gradients[0], gamma(w[:, 0].size // groups) * sizes[0] + TINY)
        rest = np.random.default_rng(x.size + 1).standard_normal(x.shape).astype(F4)
        masked = backward_data(conv, dy, w, x, mask=True, rest=rest)
        np.testing.assert_array_equal(masked, np.where(x <= 0, F4(0), dx + rest))
    terms = conv.N * conv.P * conv.Q
    if "w" in passes:
        bound = gamma(terms + 1) * sizes[1] + TINY
        assert_within(backward_weight(conv, dy, x, **how), gradients[1], bound)
    if "b" in passes:
        bound = gamma(terms + 1) * sizes[2] + TINY
        assert_within(backward_bias(conv, dy, **how), gradients[2], bound)


def sweep_case(seed):
    """As cases.conv_case in float32, on every other seed with channels in fours."""
    x, w, b, *geometry = cases.conv_case(seed)
    if seed % 2:
        groups, rng = geometry[-1], np.random.default_rng([22, seed])
        c, k = 4 * int(rng.integers(1, 9)), 4 * int(rng.integers(1, 9))
        x = rng.standard_normal((len(x), groups * c, *x.shape[2:]))
        w = rng.standard_normal((groups * k, c, *w.shape[2:]))
        b = None if b is None else rng.standard_normal(groups * k)
    arrays = [None if a is None else a.astype(F4) for a in (x, w, b)]
    return *arrays, *geometry


SEEDS, MORE_SEEDS = range(16), range(16, 240)  # of the default run, and with make test-all


@pytest.mark.parametrize("seed", SEEDS)
def test_random_geometries(seed):
    compare(*sweep_case(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", MORE_SEEDS)
def test_random_geometries_at_length(seed):
    compare(*sweep_case(seed), **how_of(seed))


def test_what_the_sweep_holds():
    """At least 200 different geometries for each direction, and every feature early among them."""
    drawn = {seed: sweep_case(seed) for seed in (*SEEDS, *MORE_SEEDS)}
    shapes = {(x.shape, w.shape, b is None, *rest) for x, w, b, *rest in drawn.values()}
    assert len(shapes) >= 200
    features = {
        "stride other than the window": lambda x, w, b, stride, *_: stride != w.shape[2:],
        "stride past the window": lambda x, w, b, stride, *_: stride[0] > w.shape[2],
        "two strides": lambda x, w, b, stride, *_: stride[0] != stride[1],
        "padding on one side": lambda x, w, b, s, pads, *_: pads[0][0] != pads[0][1],
        "dilation": lambda x, w, b, s, p, dilation, *_: dilation[0] != dilation[1],
        "groups": lambda x, w, b, s, p, d, groups: groups > 1 and w.shape[1] > 1,
        "one channel a group": lambda x, w, b, s, p, d, groups: groups > 1 and w.shape[1] == 1,
        "no bias": lambda x, w, b, *_: b is None,
        "one image": lambda x, *_: len(x) == 1,
        "several images": lambda x, *_: len(x) > 1,
        "channels in fours": lambda x, w, *_: w.shape[1] % 4 == 0,
        "channels not in fours": lambda x, w, *_: w.shape[1] % 4 > 0,
        "channels not in panels": lambda x, w, *_: w.shape[1] % 4 == 0 and w.shape[1] % 16 > 0,
        "height other than width": lambda x, *_: x.shape[2] != x.shape[3],
    }
    for name, holds in features.items():
        assert any(holds(*drawn[seed]) for seed in SEEDS), name


# Tile edges: 64 and 128 pixels and filters, panels of 8 and 16 steps; one below, at and above.
@pytest.mark.parametrize("K", [63, 64, 65])
@pytest.mark.parametrize("pixels", [63, 64, 65])
def test_one_below_at_and_above_a_tile(K, pixels):
    x, w, b = draw(1, 1, 5, pixels, 1, K, 1, 1)
    compare(x, w, b)


@pytest.mark.parametrize("C", [1, 3, 4, 7, 8, 9, 12, 15, 16, 17, 20, 32])
def test_one_below_at_and_above_a_panel(C):
    x, w, b = draw(2, 2, C, 5, 6, 8, 2, 3)
    compare(x, w, b, (2, 1), ((1, 0), (0, 2)), passes="y")
    x, w, b = draw(2, 2, 8, 5, 6, C, 2, 3)  # the filters are backward data's reduction
    compare(x, w, b, (2, 1), ((1, 0), (0, 2)), passes="d")


@pytest.mark.parametrize("C", [63, 64, 65])
def test_one_below_at_and_above_a_tile_of_channels(C):
    """Backward data's columns are the channels, backward weight's rows and columns both axes."""
    x, w, b = draw(13, 1, C, 3, 11, 5, 1, 1)
    compare(x, w, b, passes="dw")
    x, w, b = draw(14, 1, C, 3, 11, C, 1, 1)
    compare(x, w, b, passes="w")


@pytest.mark.parametrize("pixels", [1, 15, 16, 17, 255, 256, 257, 511, 512, 513])
def test_one_below_at_and_above_a_panel_and_a_slice_of_pixels(pixels):
    """Which are the reduction of backward weight and of the bias's gradient."""
    x, w, b = draw(15, 1, 4, 1, pixels, 8, 1, 1)
    compare(x, w, b, passes="wb")


@pytest.fixture
def big_tiles(monkeypatch):
    """Take the 128 x 128 tiles for small work too."""
    set_constant(monkeypatch, conv2d_launch, "TARGET_BLOCKS", 4)


BIG = [
    ((2, 8, 17, 19, 132, 3, 3), {"pads": 1}),
    ((2, 16, 17, 19, 136, 3, 3), {"stride": (2, 3), "pads": ((1, 2), (0, 1))}),
    ((3, 8, 13, 11, 68, 2, 3), {"stride": (1, 2), "dilation": (2, 1), "pads": 1}),
    ((2, 160, 9, 11, 128, 1, 1), {}),
    ((1, 144, 8, 16, 136, 3, 3), {"groups": 2, "pads": 1}),
    ((1, 72, 16, 8, 72, 16, 15), {"pads": 7}),  # every bit of the window's mask
    ((2, 64, 17, 19, 64, 3, 3), {"pads": 1}),  # 128 x 64
    ((1, 48, 23, 11, 180, 3, 2), {"stride": (2, 1), "pads": 1}),  # 128 x 64, the last in part
    ((1, 72, 16, 8, 60, 16, 15), {"pads": 7}),
]


@pytest.mark.parametrize(("shape", "geometry"), BIG)
def test_tiles_of_128(big_tiles, shape, geometry):
    groups = geometry.get("groups", 1)
    x, w, b = draw(3, *shape, groups=groups)
    conv = Conv2dShape.of(x.shape, w.shape, window(w.shape[2:], 1, 16), groups)
    assert (
        dict(conv2d_launch.config_forward(conv, True, False).launches[0].defines)["TILE"] == "128"
    )
    compare(x, w, b, **geometry)


@pytest.mark.parametrize("pixels", [127, 128, 129])
@pytest.mark.parametrize("wide", [60, 64])
def test_one_below_and_at_a_tile_of_128_by_64(big_tiles, pixels, wide):
    for C, K, passes in ((8, wide, "y"), (wide, 8, "d"), (pixels + 3 & ~3, wide, "w")):
        x, w, b = draw(16, 1, C, 1, pixels, K, 1, 1)
        conv = Conv2dShape.of(x.shape, w.shape, window(1), 1)
        plans = {
            "y": conv2d_launch.config_forward(conv, True, False),
            "d": conv2d_launch.config_backward_data(conv, False),
            "w": conv2d_launch.config_backward_weight(conv),
        }
        config = plans[passes]
        macros = dict(config.launches[0].defines)
        assert (macros["TILE"], macros["TILE_N"], config.launches[0].block) == ("128", "64", 128)
        compare(x, w, b, passes=passes, check=pixels == 129)


@pytest.mark.parametrize("pixels", [127, 128, 129])
@pytest.mark.parametrize("wide", [124, 128, 132])  # in fours: the large tile takes whole vectors
def test_one_below_at_and_above_a_tile_of_128(big_tiles, pixels, wide):
    for C, K, passes in ((8, wide, "y"), (wide, 8, "d"), (wide, wide, "w")):
        x, w, b = draw(16, 1, C, 1, pixels, K, 1, 1)
        conv = Conv2dShape.of(x.shape, w.shape, window(1), 1)
        plans = {
            "y": conv2d_launch.config_forward(conv, True, False),
            "w": conv2d_launch.config_backward_weight(conv),
        }
        config = plans.get(passes) or conv2d_launch.config_backward_data(conv, False)
        assert dict(config.launches[0].defines)["TILE"] == "128"
        compare(x, w, b, passes=passes)


@pytest.mark.parametrize(("C", "K"), [(3, 7), (4, 8)])
def test_windows_too_large_for_the_mask(C, K):
    x, w, b = draw(4, 2, C, 24, 25, K, 20, 18)
    compare(x, w, b, (2, 3), ((5, 3), (2, 4)))


def test_window_as_large_as_the_image():
    compare(*draw(5, 3, 4, 7, 5, 6, 7, 5))


def test_stride_past_the_window():
    compare(*draw(6, 2, 3, 11, 13, 4, 2, 2), stride=(4, 5))


@pytest.mark.parametrize(("rows", "into", "out"), [(1, 1, 1), (32, 400, 120), (5, 84, 10)])
def test_linear_is_the_1x1_case(rows, into, out):
    x, w, b = draw(7, rows, into, 1, 1, out, 1, 1)
    assert Conv2dShape.of(x.shape, w.shape, window(1), 1) == Conv2dShape.linear(rows, into, out)
    compare(x, w, b)


def test_slices_are_summed_in_order(monkeypatch):
    set_constant(monkeypatch, split_k, "MIN_SPLIT", 16)
    x, w, b = draw(8, 3, 5, 14, 13, 6, 3, 3)
    conv = Conv2dShape.of(x.shape, w.shape, window(3), 1)
    assert conv2d_launch.config_backward_weight(conv).workspace > 10 * w.size
    compare(x, w, b, passes="wb")


@pytest.mark.parametrize("seed", range(12))
def test_depthwise(seed):
    compare(*depthwise_case(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12, 212))
def test_depthwise_at_length(seed):
    compare(*depthwise_case(seed), **how_of(seed))


@pytest.mark.parametrize("C", [31, 32, 33, 124, 128, 132])  # lanes of a block, alone and in fours
def test_depthwise_one_below_at_and_above_a_block(C):
    x, w, b = draw(17, 2, C, 3, 5, C, 2, 3, groups=C)
    compare(x, w, b, (1, 2), ((0, 1), (1, 0)), groups=C)


def depthwise_case(seed):
    """One channel a group, some with several filters a channel."""
    rng = np.random.default_rng([23, seed])
    C, multiplier = int(rng.choice([2, 3, 4, 8, 36, 132])), int(rng.choice([1, 1, 2, 3]))
    x, w, b, stride, pads, dilation, _ = cases.conv_case(seed)
    x = rng.standard_normal((len(x), C, *x.shape[2:])).astype(F4)
    w = rng.standard_normal((C * multiplier, 1, *w.shape[2:])).astype(F4)
    b = rng.standard_normal(len(w)).astype(F4)
    return x, w, b, stride, pads, dilation, C


def test_every_block_order_gives_the_same_bits(monkeypatch):
    set_constant(monkeypatch, split_k, "MIN_SPLIT", 16)
    x, w, _ = draw(9, 2, 12, 15, 13, 72, 3, 3)
    for groups in (1, 12):
        f = w[:, : 12 // groups]
        conv = Conv2dShape.of(x.shape, f.shape, window(3, 1, 1), groups)
        dy = np.random.default_rng(9).standard_normal((2, 72, 15, 13)).astype(F4)
        orders = [("forward", 0), ("reverse", 0), ("shuffled", 1), ("shuffled", 2)]
        for pass_, arguments in (
            (forward, (x, f, None)),
            (backward_data, (dy, f, x)),
            (backward_weight, (dy, x)),
            (backward_bias, (dy,)),
        ):
            results = {
                pass_(conv, *arguments, order=order, seed=seed).tobytes() for order, seed in orders
            }
            assert len(results) == 1, pass_.__name__


def test_nan_stays_where_it_belongs():
    x, w, _ = draw(10, 1, 4, 9, 8, 5, 3, 3)
    x[0, 2, 4, 4] = np.nan
    conv = Conv2dShape.of(x.shape, w.shape, window(3, 1, 1), 1)
    y = forward(conv, x, w, None, relu=True)
    assert np.isnan(y[0, :, 3:6, 3:6]).all()
    assert np.isnan(y).sum() == 5 * 9
    dy = np.ones_like(y)
    dx = backward_data(conv, dy, w, x, mask=True)  # where x is NaN the gradient passes
    assert dx[0, 2, 4, 4] != 0
    assert not np.isnan(dx).any()


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("groups", [1, 4])
def test_what_is_not_finite_reaches_what_it_should(value, groups):
    """One such element of x or dy: the same results are not finite, and in the same way."""
    x, w, b = draw(18, 2, 4, 9, 8, 8, 3, 2, groups=groups)
    x[1, 2, 4, 5] = value
    geometry = ((2, 1), 1, (1, 2), groups)
    conv = Conv2dShape.of(x.shape, w.shape, window(w.shape[2:], *geometry[:3]), groups)
    exact = ops.conv2d.reference(*doubles(x, w, b), *geometry)
    assert not np.isfinite(exact).all()
    assert_alike(forward(conv, x, w, b), exact)
    dy = np.random.default_rng(18).standard_normal(exact.shape).astype(F4)
    with np.errstate(invalid="ignore"):
        exact = ops.conv2d_backward.reference(*doubles(dy, x, w, b), *geometry)
    assert_alike(backward_weight(conv, dy, x), exact[1])
    dy[1, 3, 2, 2] = value
    x = np.abs(np.nan_to_num(x, posinf=1, neginf=1)) + 1
    exact = ops.conv2d_backward.reference(*doubles(dy, x, w, b), *geometry)
    assert_alike(backward_data(conv, dy, w, x, mask=True), exact[0])
    assert_alike(backward_bias(conv, dy), exact[2])


def assert_alike(value, exact):
    """Not finite in the same places, and there equal (NaN to NaN)."""
    known = np.isfinite(exact)
    assert not known.all()
    np.testing.assert_array_equal(np.isfinite(value), known)
    np.testing.assert_array_equal(value[~known], exact[~known])


def test_subnormal_numbers_become_zero():
    """-ftz=true, which CuPy sets: read as 0, and written as 0."""
    x, w, b = np.full((1, 4, 3, 3), 1e-39, F4), np.full((4, 4, 3, 3), 1e30, F4), np.zeros(4, F4)
    conv = Conv2dShape.of(x.shape, w.shape, window(3), 1)
    dy = np.full((1, 4, 1, 1), 1e-39, F4)
    assert (forward(conv, x, w, None) == 0).all()
    assert (backward_data(conv, dy, w, x) == 0).all()
    assert (backward_weight(conv, np.full_like(dy, 1e30), x) == 0).all()
    assert (backward_bias(conv, dy) == 0).all()
    small = np.full_like(x, 1e-20)  # products of normal numbers
    assert (forward(conv, small, np.full_like(w, 1e-20), b) == 0).all()


def test_without_races_or_accesses_out_of_bounds():
    for seed in (3, 4, 7):
        compare(*sweep_case(seed), check=True)
    x, w, b = draw(11, 2, 6, 7, 8, 12, 3, 3, groups=6)
    compare(x, w, b, groups=6, pads=1, check=True)


def test_a_wrong_argument_is_noticed():
    """The gate has teeth: one step of the window off, and it fails."""
    x, w, b = draw(12, 2, 4, 9, 8, 8, 3, 3)
    conv = Conv2dShape.of(x.shape, w.shape, window(3, 1, 1), 1)
    exact = ops.conv2d.reference(*doubles(x, w, b), 1, 1)
    size = ops.conv2d.reference(*magnitudes(x, w, b), 1, 1)
    bound = gamma(w[0].size + 1) * size
    assert_within(forward(conv, x, w, b), exact, bound)
    with pytest.raises(AssertionError):
        assert_within(forward(replace(conv, pad_w=0), x, w, b), exact, bound)
