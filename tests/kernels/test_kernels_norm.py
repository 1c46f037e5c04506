"""Batch norm, response norm, adaptive pooling and joining kernels, run by the simulator, against
the definitions in float64: copies equal, all else within bounds proved here.
"""

from math import ceil, log2

import numpy as np
import pytest
from kernel_runs import F4, assert_within, first, gamma, last, run

from gpuconv import ops
from gpuconv.cuda import layout
from gpuconv.cuda.launch_config import vector_width
from gpuconv.ops import (
    batch_norm2d_launch,
    pool2d_launch,
)
from gpuconv.ops.local_response_norm import (
    config_local_response_norm,
    config_local_response_norm_backward,
)

U = 2.0**-24
ORDERS = ("forward", "reverse", "shuffled")
MERGED = 128  # partial results that a block merges at a time, then in a tree of 7 levels
UNTRACKED = dict.fromkeys(("keep", "momentum", "unbiased"), 0.0)  # numbers of no account
NORM_INPUTS = ("x", "w", "b", "mean", "var")


def wide(x, stride, rng):
    """x (N, C, H, W) as the kernels read it: pixels `stride` floats apart, others between them."""
    N, C, H, W = x.shape
    memory = rng.standard_normal((N * H * W, stride)).astype(F4)
    memory[:, :C] = last(x).reshape(-1, C)
    return memory.reshape(-1)[: (N * H * W - 1) * stride + C]


def norm_case(seed):
    """x, w, b, eps, relu, stride: around the tiles, large means, one value a channel, wider images.

    About every third has pixels enough for several slices.
    """
    rng = np.random.default_rng([51, seed])
    C = int(rng.choice([1, 2, 3, 4, 5, 7, 8, 12, 31, 32, 33, 36, 127, 128, 132]))
    N, H, W = (int(n) for n in rng.integers(1, 8, 3))
    if seed % 3 == 0:
        C, N, H, W = min(C, 12), 3, 17 + seed % 5, 23
    if seed == 10:  # more slices than the block that merges them takes at a time
        C, N, H, W = 2, 3, 109, 111
    spread, mean = rng.choice([0.1, 1, 5]), rng.choice([0, 3, -20])
    x = (rng.standard_normal((N, C, H, W)) * spread + mean).astype(F4)
    w, b = rng.standard_normal((2, C)).astype(F4)
    extra = int(rng.choice([0, 0, 4, 5]))
    w, b = (w if seed % 5 else None), (b if seed % 7 else None)
    return x, w, b, float(rng.choice([1e-5, 1e-3])), seed % 2, C + extra, rng


def depth(config):
    """Additions one after another in the longest path of a plan's sums."""
    (launch,) = config.launches
    rows = 256 // launch.scalars["lanes"]
    own = ceil(launch.scalars["split_length"] / rows)
    return own + log2(rows) + ceil(launch.grid[1] / rows) + log2(rows)


def statistics(x, stride, rng, **how):
    C = x.shape[1]
    config = batch_norm2d_launch.config_statistics(x.shape, stride, vector_width(C, stride))
    outputs = {"mean": ((C,), F4), "var": ((C,), F4)}
    found = run(config, {"x": wide(x, stride, rng)}, outputs, UNTRACKED, **how)
    return config, found["mean"], found["var"]


def statistics_bounds(config, x):
    """(mean's, var's) of `statistics`, for each channel."""
    first_, merge = config.launches
    rows = 256 // first_.scalars["lanes"]
    own = ceil(first_.scalars["split_length"] / rows / 4) + log2(rows)
    return merged_bounds(x, own, log2(rows) / 2, merge.scalars["splits"])


def merged_bounds(x, depth, halves, splits):
    """(mean's, var's) of moments merged `depth` times in a row, `halves` of each pixel's weight in
    trees, then as batch_norm2d_merge does; proved here, for each channel.

    Let t = x less one of its values, |t| <= a; to take t from one to another rounds twice. A merge
    forms m + (m' - m) n' / n: its roundings are at most 10 u a, its operands' errors are averaged;
    the means of up to eight have 10 u a. So after D merges in a row every mean is within
    e = (14 + 10 D) u a, and the sum with the shift rounds once more.
    n var is the squared length of a vector with an entry t - m for each value within its eight,
    and sqrt(w) (m' - m) for each merge, w = n n' / (n + n') <= min(n, n'). The first are off by
    13 u a, the others by sqrt(w) (2 e + 2 u a); all w add up to at most T n: n for each run of
    merges in a row, n / 2 for each level of a tree. So the vector's length is off by sqrt(n) E,
    E = 13 u a + sqrt(T) (2 e + 2 u a), and its square by the sums' own gamma besides.
    """
    pixels = last(x).reshape(-1, x.shape[1]).astype(float)
    D = depth + ceil(splits / MERGED) + 7
    T = 2 + halves + 7 / 2
    a = pixels.max(0) - pixels.min(0)
    e = (14 + 10 * D) * U * a
    E = 13 * U * a + T**0.5 * (2 * e + 2 * U * a)
    deviation = pixels.std(0)
    mean = e + 2 * U * abs(pixels.mean(0))
    var = gamma(14 + 8 * D) * (deviation + E) ** 2 + 2 * deviation * E + E**2
    return mean + 1e-37, var + U * deviation**2 + 1e-37


def compare_norm(number, **how):
    x, w, b, eps, relu, stride, rng = norm_case(number)
    activation = "relu" if relu else None
    config, mean, var = statistics(x, stride, rng, **how)
    _, exact_mean, exact_var = ops.batch_norm2d.definition(x.astype(float))
    bounds = statistics_bounds(config, x)
    assert_within(mean, exact_mean, bounds[0])
    assert_within(var, exact_var, bounds[1])
    assert (var >= 0).all()
    if not number % 4:  # as in evaluation: numbers that are not x's own
        mean, var = mean + F4(0.5), var + F4(0.25)
    given = {"mean": mean, "var": var, "w": mean if w is None else w, "b": mean if b is None else b}
    flags = w is not None, b is not None, bool(relu)
    double = [a if a is None else a.astype(float) for a in (x, w, b, mean, var)]
    compare_output(x, double, eps, activation, given, flags, stride, rng, **how)
    compare_gradients(
        x, double, eps, activation, given, flags, stride, rng, bool(number % 4), **how
    )


def parts(double, eps):
    """(x - mean) / deviation, scale = w / deviation and b, as (N, C, H, W) broadcasts."""
    x, w, b, mean, var = double
    over = [None if a is None else a[:, None, None] for a in (w, b, mean, var)]
    deviation = np.sqrt(over[3] + eps)
    scale = (1 if w is None else over[0]) / deviation
    return (x - over[2]) / deviation, scale, 0 * deviation if b is None else over[1], deviation


def output_bound(double, eps):
    """scale rounds four times, x - mean and the sum once each."""
    z, scale, b, deviation = parts(double, eps)
    return gamma(6) * (abs(z * deviation * scale) + abs(b)) + 1e-37


def compare_output(x, double, eps, activation, given, flags, stride, rng, **how):
    vec = vector_width(x.shape[1], stride)
    config = batch_norm2d_launch.config_forward(x.shape, stride, vec, *flags)
    inputs = {"x": wide(x, stride, rng), **given}
    y = run(config, inputs, {"y": (last(x).shape, F4)}, {"eps": eps}, **how)["y"]
    exact = ops.batch_norm2d.definition(*double, eps, activation)[0]
    assert_within(first(y), exact, output_bound(double, eps))
    compare_sum(x, double, eps, activation, inputs, flags, stride, rng, **how)


def compare_sum(x, double, eps, activation, inputs, flags, stride, rng, **how):
    """With another summand, whose pixels lie as far apart as x's, or close together."""
    C = x.shape[1]
    other, apart = rng.standard_normal(x.shape).astype(F4), (C, stride)[x.size % 2]
    vec = vector_width(C, stride, apart)
    config = batch_norm2d_launch.config_forward(x.shape, stride, vec, *flags, apart)
    inputs = {**inputs, "other": wide(other, apart, rng)}
    y = run(config, inputs, {"y": (last(x).shape, F4)}, {"eps": eps}, **how)["y"]
    exact = ops.batch_norm2d.definition(*double, eps, activation, other.astype(float))[0]
    plain = ops.batch_norm2d.definition(*double, eps)[0]
    bound = gamma(2) * (abs(plain) + abs(other)) + 2 * output_bound(double, eps)
    assert_within(first(y), exact, bound)


def compare_gradients(x, double, eps, activation, given, flags, stride, rng, of_batch, **how):
    """Sums of `depth` terms, then at most 20 roundings of each part of dx."""
    C, dy = x.shape[1], rng.standard_normal(x.shape).astype(F4)
    # On the very edge of the ReLU either side is right: such values get no gradient.
    edge = ops.batch_norm2d.definition(*double, eps)[0]
    dy[abs(edge) <= output_bound(double, eps)] = 0
    inputs = {"x": wide(x, stride, rng), "dy": wide(dy, C, rng), **given}
    key = x.shape, C, stride, vector_width(C, stride), *flags
    config = batch_norm2d_launch.config_backward_sums(*key)
    sums = run(config, inputs, {"dw": ((C,), F4), "db": ((C,), F4)}, {"eps": eps}, **how)
    exact = ops.batch_norm2d_backward.definition(
        dy.astype(float), *double, eps, activation, of_batch
    )
    passed = abs(dy.astype(float)) * ((edge > 0) | (activation is None))
    z, scale, _, _ = parts(double, eps)
    size_w, size_b = (passed * abs(z)).sum((0, 2, 3)), passed.sum((0, 2, 3))
    D = depth(config)
    if exact[1] is not None:
        assert_within(sums["dw"], exact[1], gamma(D + 6) * size_w + 1e-37)
    if exact[2] is not None:
        assert_within(sums["db"], exact[2], gamma(D) * size_b + 1e-37)
    inputs |= {"dw": sums["dw"], "db": sums["db"]}
    config = batch_norm2d_launch.config_backward(*key, of_batch)
    dx = run(config, inputs, {"dx": (last(x).shape, F4)}, {"eps": eps}, **how)["dx"]
    n = x.size // C
    size = passed
    if of_batch:
        size = size + (size_b[:, None, None] + abs(z) * size_w[:, None, None]) / n
    assert_within(first(dx), exact[0], gamma(D + 20) * abs(scale) * size + 1e-37)


@pytest.mark.parametrize("seed", range(24))
def test_batch_norm(seed):
    compare_norm(seed)


def test_the_cases_reach_every_part_of_the_kernels():
    shapes = [norm_case(seed)[0].shape for seed in range(24)]
    configs = [batch_norm2d_launch.config_statistics(s, s[1], vector_width(s[1])) for s in shapes]
    assert {dict(p.launches[0].defines)["VEC"] for p in configs} == {"1", "4"}
    assert {p.launches[0].grid[0] for p in configs} >= {1, 2}  # blocks of channels
    splits = [p.launches[0].grid[1] for p in configs]
    assert min(splits) == 1
    assert max(splits) > MERGED


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24, 240))
def test_batch_norm_at_length(seed):
    compare_norm(seed, order=ORDERS[seed % 3], seed=seed)


def test_batch_norm_without_accesses_out_of_bounds():
    for seed in (1, 2, 3, 10):
        compare_norm(seed, check=True)


def test_statistics_have_the_same_bits_in_any_order_of_blocks():
    x = np.random.default_rng(0).standard_normal((3, 5, 30, 31)).astype(F4)
    found = []
    for order in ORDERS:
        config, mean, var = statistics(x, 5, np.random.default_rng(1), order=order, seed=7)
        found.append(mean.tobytes() + var.tobytes())
    assert config.launches[0].grid[1] > 1
    assert len(set(found)) == 1


@pytest.mark.parametrize("first_value", [0.0, 1e4])
def test_the_variance_keeps_its_digits(first_value):
    """Far from zero, and with an outlier in the place that the shift is taken from."""
    x = np.random.default_rng(3).standard_normal((2, 4, 50, 50)).astype(F4) + F4(4096)
    x[0, :, 0, 0] += F4(first_value)
    _, mean, var = statistics(x, 4, np.random.default_rng(1))
    exact = x.astype(float)
    np.testing.assert_allclose(mean, exact.mean((0, 2, 3)), 4e-7)
    np.testing.assert_allclose(var, exact.var((0, 2, 3)), 1e-5)


def test_a_nan_stays_in_its_channel():
    x = np.random.default_rng(2).standard_normal((2, 3, 4, 4)).astype(F4)
    x[1, 1, 2, 3] = np.nan
    _, mean, var = statistics(x, 3, np.random.default_rng(1))
    for found in (mean, var):
        assert np.isnan(found[1])
        assert not np.isnan(found[[0, 2]]).any()


def test_forward_and_backward_cut_the_same_values():
    """Also where y is 0, or next to it: the ReLU's edge is one and the same in both."""
    rng = np.random.default_rng(8)
    x = rng.standard_normal((2, 8, 20, 20)).astype(F4)
    mean, b = x[0, :, 0, 0].copy(), np.zeros(8, F4)  # x - mean is 0 there
    x[1, :, 0] = np.nextafter(mean, F4(np.inf))[:, None]
    given = {"mean": mean, "var": rng.random(8).astype(F4), "b": b}
    given["w"] = rng.standard_normal(8).astype(F4)
    flags, eps = (True, True, True), {"eps": 1e-5}
    config = batch_norm2d_launch.config_forward(x.shape, 8, 4, *flags)
    y = run(config, {"x": last(x), **given}, {"y": (last(x).shape, F4)}, eps)["y"]
    config = batch_norm2d_launch.config_backward(x.shape, 8, 8, 4, *flags, False)
    inputs = {"x": last(x), "dy": np.ones_like(y), "dw": mean, "db": mean, **given}
    dx = run(config, inputs, {"dx": (y.shape, F4)}, eps)["dx"]
    np.testing.assert_array_equal(dx != 0, y > 0)
    assert 0.2 < (y > 0).mean() < 0.8


def test_tracking_is_within_its_roundings():
    rng = np.random.default_rng(4)
    for C, count, momentum in ((1, 2, 0.1), (300, 49, 0.3), (7, 10**6, 1.0), (5, 9, 0.0)):
        arrays = rng.random((4, C)).astype(F4)
        names = ("running_mean", "running_var", "mean", "var")
        scalars = {"keep": 1 - momentum, "momentum": momentum, "unbiased": count / (count - 1)}
        found = track(C, scalars, dict(zip(names, arrays, strict=True)))
        exact = arrays.astype(float)
        ops.batch_norm2d_track.definition(*exact, count, momentum)
        for name, expected in zip(names, exact, strict=False):
            if name in found:
                assert_within(found[name], expected, gamma(5) * abs(expected) + 1e-37)


def track(C, scalars, arrays):
    """The two running arrays after an update in place."""
    from kernel_runs import module, sim

    (launch,) = batch_norm2d_launch.config_track(C).launches
    there = {name: sim.asarray(a) for name, a in arrays.items()}
    given = [there[name] for name in arrays] + [sim.zeros(2), sim.zeros(1, np.uint32)]
    given += [np.int32(launch.scalars["C"]), *map(F4, scalars.values())]
    kernel = module(launch.file, launch.options, True)
    kernel.launch(launch.kernel, launch.grid, launch.block, given)
    return {name: sim.asnumpy(there[name]) for name in ("running_mean", "running_var")}


def response_case(seed):
    rng = np.random.default_rng([52, seed])
    C = int(rng.choice([1, 2, 3, 4, 5, 8, 12, 31, 64, 96, 255, 260]))
    shape = (int(rng.integers(1, 4)), C, *(int(n) for n in rng.integers(1, 6, 2)))
    size = int(rng.choice([1, 2, 3, 4, 5, 6, 9, 13, 300]))
    beta = (0.75, 0.75, 0.5, 1.3)[seed % 4]
    return (
        (3 * rng.standard_normal(shape)).astype(F4),
        size,
        float(rng.random()),
        beta,
        1.0 + seed % 3,
    )


def compare_response(number, **how):
    x, size, alpha, beta, k = response_case(number)
    convention = ("torch", "paper")[number // 2 % 2]
    a = alpha / size if convention == "torch" else alpha
    double, tail = x.astype(float), (size, alpha, beta, k, convention)
    shape, C = last(x).shape, x.shape[1]
    config = config_local_response_norm(x.shape, size)
    scalars = {"a": a, "beta": beta, "k": k}
    y = first(run(config, {"x": last(x)}, {"y": (shape, F4)}, scalars, **how)["y"])
    exact = ops.local_response_norm.definition(double, *tail)
    # beta times the relative error of a sum of positive terms, and the power's own (4 units)
    terms = min(size, C)
    assert_within(y, exact, ((terms + 4) * beta + 16) * U * abs(exact) + 1e-37)
    dy = np.random.default_rng(number).standard_normal(x.shape).astype(F4)
    config = config_local_response_norm_backward(x.shape, size)
    scalars["slope"] = 2 * a * beta
    dx = run(config, {"dy": last(dy), "x": last(x)}, {"dx": (shape, F4)}, scalars, **how)["dx"]
    exact = ops.local_response_norm_backward.definition(dy.astype(float), double, *tail)
    size_of = response_terms(abs(dy.astype(float)), abs(double), size, a, beta, k)
    bound = (2 * (terms + 4) * (beta + 1) + 32) * U * size_of
    assert_within(first(dx), exact, bound + 1e-37)


def response_terms(dy, x, size, a, beta, k):
    """What dx's terms add up to without their signs, by loops over the channels."""
    C, low, high = x.shape[1], size // 2, (size - 1) // 2
    d = np.stack(
        [k + a * np.square(x[:, max(0, c - low) : c + high + 1]).sum(1) for c in range(C)], 1
    )
    t = dy * x * d ** (-beta - 1)
    around = np.stack([t[:, max(0, c - high) : c + low + 1].sum(1) for c in range(C)], 1)
    return dy * d**-beta + 2 * a * beta * x * around


@pytest.mark.parametrize("seed", range(16))
def test_response_norm(seed):
    compare_response(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(16, 160))
def test_response_norm_at_length(seed):
    compare_response(seed, order=ORDERS[seed % 3], seed=seed)


def test_response_norm_without_accesses_out_of_bounds():
    for seed in (1, 2, 3):
        compare_response(seed, check=True)


def test_response_norm_of_more_channels_than_a_block_has_threads():
    for C in (1024, 1028, 257):
        x = np.random.default_rng(C).standard_normal((1, C, 1, 2)).astype(F4)
        config = config_local_response_norm_backward(x.shape, 5)
        scalars = {"a": 1e-4, "beta": 0.75, "k": 2.0, "slope": 1.5e-4}
        outputs = {"dx": (last(x).shape, F4)}
        dx = run(config, {"dy": last(x), "x": last(x)}, outputs, scalars, check=True)["dx"]
        tail = (5, 1e-4, 0.75, 2.0, "paper")
        exact = ops.local_response_norm_backward.definition(*[x.astype(float)] * 2, *tail)
        assert_within(first(dx), exact, 50 * U * abs(exact))
    with pytest.raises(NotImplementedError, match="at most 6144 channels do: use cpu"):
        config_local_response_norm_backward((1, 6145, 1, 1), 5)


def compare_adaptive(number, **how):
    rng = np.random.default_rng([53, number])
    C = int(rng.choice([1, 3, 4, 8, 33, 64, 132, 260]))
    N, H, W = (int(n) for n in rng.integers(1, 10, 3))
    size = (1, 1) if number % 3 == 0 else tuple(int(n) for n in rng.integers(1, 10, 2))
    if number % 6 == 0:
        H, W = 19, 27
    x = rng.standard_normal((N, C, H, W)).astype(F4)
    config = pool2d_launch.config_adaptive_avg_pool2d(x.shape, size)
    y = run(config, {"x": last(x)}, {"y": ((N, *size, C), F4)}, **how)["y"]
    exact, sizes = (ops.adaptive_avg_pool2d.definition(a.astype(float), size) for a in (x, abs(x)))
    assert_within(first(y), exact, gamma(H * W + 1) * sizes)
    dy = rng.standard_normal(exact.shape).astype(F4)
    config = pool2d_launch.config_adaptive_avg_pool2d_backward(x.shape, size)
    dx = run(config, {"dy": last(dy)}, {"dx": (last(x).shape, F4)}, **how)["dx"]
    exact, sizes = (
        ops.adaptive_avg_pool2d_backward.definition(a.astype(float), x.shape) for a in (dy, abs(dy))
    )
    assert_within(first(dx), exact, gamma(size[0] * size[1] + 1) * sizes)


@pytest.mark.parametrize("seed", range(12))
def test_adaptive_average_pooling(seed):
    compare_adaptive(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12, 120))
def test_adaptive_average_pooling_at_length(seed):
    compare_adaptive(seed, order=ORDERS[seed % 3], seed=seed)


def test_adaptive_average_pooling_without_accesses_out_of_bounds():
    for seed in (3, 4, 5):
        compare_adaptive(seed, check=True)


CHANNELS = [(1, 1, 1, 1), (4, 4, 8, 40), (3, 5, 7, 90), (128, 160, 128, 9), (132, 140, 132, 33)]


@pytest.mark.parametrize(("C", "to_stride", "from_stride", "pixels"), CHANNELS)
def test_channels_are_copied_and_added(C, to_stride, from_stride, pixels):
    """What lies between a pixel's channels and the next pixel's is left alone."""
    from kernel_runs import module, sim

    rng = np.random.default_rng(C)
    before = rng.integers(-9, 9, pixels * to_stride).astype(F4)
    source = rng.integers(-9, 9, (pixels - 1) * from_stride + C).astype(F4)
    spread = np.lib.stride_tricks.as_strided(source, (pixels, C), (4 * from_stride, 4))
    for kernel, order in (("copy_channels", "forward"), ("add_channels", "shuffled")):
        shape = (1, C, 1, pixels)
        vec = vector_width(C, to_stride, from_stride)
        (launch,) = layout.config_channels(kernel, shape, to_stride, from_stride, vec).launches
        there = [sim.asarray(before), sim.asarray(source)]
        names = ("pixels", "C", "lanes", "to_stride", "from_stride")
        numbers = [np.int32(launch.scalars[name]) for name in names]
        module(launch.file, launch.options, True).launch(
            kernel, launch.grid, launch.block, [*there, *numbers], 0, order, 3
        )
        right = before.reshape(pixels, to_stride).copy()
        right[:, :C] = spread + (right[:, :C] if kernel == "add_channels" else 0)
        np.testing.assert_array_equal(sim.asnumpy(there[0]).reshape(pixels, to_stride), right)
