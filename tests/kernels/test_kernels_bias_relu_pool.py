"""bias_relu_pool.cu, run by the simulator: against the definitions, and bit for bit against the
kernels that it joins.
"""

import sys

import numpy as np
import pytest
from cases import conv_case
from kernel_runs import F4, first, how_of, last, run
from simulated import DEVICE, on

from gpuconv import models, nn, ops
from gpuconv.arrays import to_device, to_numpy
from gpuconv.cuda.launch_config import config_elementwise
from gpuconv.ops import pool2d_launch
from gpuconv.shapes import window

SPECIAL = F4([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-40])
SEEDS, MORE_SEEDS = range(16), range(16, 200)  # of the default run, and with make test-all


def case(seed):
    """(x, b or None, ceil_mode): small whole numbers, so windows have ties; sometimes SPECIAL."""
    rng = np.random.default_rng([7, seed])
    C = int(rng.integers(1, 6)) * (4 if seed % 2 else 1)
    H, W = (int(size) for size in rng.integers(2, 12, 2))
    x = np.round(2 * rng.standard_normal((int(rng.integers(1, 4)), C, H, W))).astype(F4)
    if seed % 3 == 0:
        x = np.where(rng.random(x.shape) < 0.3, rng.choice(SPECIAL, x.shape), x)
    b = np.round(rng.standard_normal(C)).astype(F4) if seed % 4 else None
    return x, b, seed % 5 < 2


def pooled(shape, win):
    N, C, H, W = shape
    return (N, *win.output_size(H, W), C)


def joined(x, b, win, **how):
    """y and argmax of the one kernel, channels last."""
    shape = pooled(x.shape, win)
    config = pool2d_launch.config_bias_relu_max_pool2d(x.shape, win, b is not None)
    inputs = {"x": last(x), "b": F4([0]) if b is None else b}
    found = run(config, inputs, {"y": (shape, F4), "argmax": (shape, np.uint8)}, **how)
    return found["y"], found["argmax"]


def compare(x, b, ceil_mode, **how):
    win = window(2, None, 0, 1, ceil_mode)
    y, argmax = joined(x, b, win, **how)
    # the definition in float32 with subnormals as 0, as -ftz=true has them: no sum is rounded
    plain = np.where(abs(x) < np.finfo(F4).tiny, F4(0), x)
    v = ops.relu.definition(plain if b is None else plain + b[:, None, None])
    right, where = ops.max_pool2d.definition(v, 2, None, 0, 1, ceil_mode)
    np.testing.assert_array_equal(first(y), right)
    np.testing.assert_array_equal(first(argmax), where)
    separate = run(
        pool2d_launch.config_max_pool2d(x.shape, win),
        {"x": last(v)},
        {"y": (y.shape, F4), "argmax": (y.shape, np.uint8)},
    )
    assert argmax.tobytes() == separate["argmax"].tobytes()
    finite = ~np.isnan(y)  # a NaN's bits are the processor's choice
    assert y[finite].tobytes() == separate["y"][finite].tobytes()
    compare_backward(x.shape, y, argmax, win, **how)


def compare_backward(x_shape, y, argmax, win, **how):
    rng = np.random.default_rng(y.size)
    dy = rng.standard_normal(y.shape).astype(F4)
    dy = np.where(rng.random(y.shape) < 0.2, rng.choice(SPECIAL, y.shape), dy)
    outputs = {"dx": ((x_shape[0], *x_shape[2:], x_shape[1]), F4)}
    config = pool2d_launch.config_bias_relu_max_pool2d_backward(x_shape, win)
    dx = run(config, {"dy": dy, "y": y, "argmax": argmax}, outputs, **how)["dx"]
    plain = np.where(abs(dy) < np.finfo(F4).tiny, F4(0), dy)
    passed = ops.relu_backward.definition(plain, y)
    geometry = (win.kernel_size, win.stride, 0, 1, win.ceil_mode)
    right = ops.max_pool2d_backward.definition(first(passed), first(argmax), x_shape, *geometry)
    np.testing.assert_array_equal(first(dx), right)
    elementwise = config_elementwise("relu.cu", "relu_backward", dy.size)
    masked = run(elementwise, {"dy": dy, "y": y}, {"dx": (dy.shape, F4)})["dx"]
    separate = pool2d_launch.config_max_pool2d_backward(x_shape, win)
    other = run(separate, {"dy": masked, "argmax": argmax}, outputs)["dx"]
    number = ~np.isnan(dx)
    assert dx[number].tobytes() == other[number].tobytes()


@pytest.mark.parametrize("seed", SEEDS)
def test_random_shapes(seed):
    compare(*case(seed), **how_of(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", MORE_SEEDS)
def test_random_shapes_at_length(seed):
    compare(*case(seed), **how_of(seed))


def test_what_the_sweep_holds():
    drawn = [case(seed) for seed in SEEDS]
    features = {
        "one image": lambda x, b, ceil: len(x) == 1,
        "several images": lambda x, b, ceil: len(x) > 1,
        "odd rows": lambda x, b, ceil: x.shape[2] % 2,
        "odd columns": lambda x, b, ceil: x.shape[3] % 2,
        "a partial window": lambda x, b, ceil: ceil and x.shape[2] % 2,
        "channels in fours": lambda x, b, ceil: x.shape[1] % 4 == 0,
        "channels not in fours": lambda x, b, ceil: x.shape[1] % 4,
        "no bias": lambda x, b, ceil: b is None,
        "NaN": lambda x, b, ceil: np.isnan(x).any(),
        "minus infinity": lambda x, b, ceil: np.isneginf(x).any(),
    }
    for name, holds in features.items():
        assert any(holds(*one) for one in drawn), name


@pytest.mark.parametrize("C", [1, 255, 257, 1024, 1028])
def test_channels_around_the_block(C):
    x = np.random.default_rng(C).integers(-9, 9, (2, C, 3, 5)).astype(F4)
    compare(x, np.arange(C, dtype=F4) - C // 2, False)


@pytest.mark.parametrize("pixels", [1, 2, 511, 513, 515])
def test_pixels_around_the_block(pixels):
    x = np.random.default_rng(pixels).integers(-9, 9, (1, 1, 2, pixels)).astype(F4)
    compare(x, F4([1]), True)


def test_nan_infinities_zeros_and_ties():
    """By hand: ReLU before the comparison, the first of equals, the last NaN over all."""
    nan, inf = np.nan, np.inf
    windows = F4(
        [[-1, -2, -0.0, 0], [nan, 5, nan, inf], [-inf] * 4, [3, 7, 7, 3], [-5, -inf, 2, 1]]
    )
    y, argmax = joined(windows.reshape(1, 5, 2, 2), None, window(2, 2))
    assert argmax.ravel().tolist() == [0, 2, 0, 1, 2]
    np.testing.assert_array_equal(y.ravel(), F4([0, nan, 0, 7, 2]))
    assert not np.signbit(y.ravel()[[0, 2]]).any()


def test_which_windows_it_knows():
    known = [window(2, 2), window((2, 2), 2, 0, 1, True), window(2, 2, "valid")]
    others = [window(3, 2), window(2, 1), window(2, 2, 1), window(2, 2, 0, 2), window(2, 2, "same")]
    assert all(map(pool2d_launch.is_2x2, known))
    assert not any(map(pool2d_launch.is_2x2, others))


def test_the_plan_refuses_what_32_bits_do_not_count():
    for config in (
        lambda shape: pool2d_launch.config_bias_relu_max_pool2d(shape, window(2, 2), True),
        lambda shape: pool2d_launch.config_bias_relu_max_pool2d_backward(shape, window(2, 2)),
    ):
        config((1, 1, 2**15, 2**16 - 1))
        with pytest.raises(ValueError, match="input pixels are 2147483648; the kernels count to"):
            config((1, 1, 2**15, 2**16))
    with pytest.raises(ValueError, match="the window must be 2x2, stride 2, no padding, got"):
        pool2d_launch.config_bias_relu_max_pool2d((1, 1, 9, 9), window(3, 2), True)


def test_an_empty_batch():
    x, w = np.zeros((0, 3, 8, 9), F4), np.ones((4, 3, 3, 3), F4)
    y, argmax = ops.conv2d_relu_max_pool2d(*on(DEVICE, x, w))
    assert y.shape == argmax.shape == (0, 4, 3, 3)
    dx, dw, _ = ops.conv2d_relu_max_pool2d_backward(y, y, argmax, *on(DEVICE, x, w))
    assert dx.shape == x.shape
    assert not to_numpy(dw).any()


@pytest.mark.parametrize("seed", [*range(8)])
def test_the_operation_has_the_bits_of_the_three(seed):
    """On the device, over convolutions of every kind, depthwise among them."""
    x, w, b, *geometry = conv_case(seed)
    given = [None if a is None else a.astype(F4) for a in (x, w, b)]
    x, w, b = on(DEVICE, *given)
    v = ops.conv2d(x, w, b, *geometry, "relu")
    pool = (2, 2, 0, 1, True) if min(v.shape[2:]) < 2 or seed % 2 else (2,)
    if min(v.shape[2:]) < 2:
        pool = (1,)
    y, argmax = ops.conv2d_relu_max_pool2d(x, w, b, *geometry, pool)
    right = ops.max_pool2d(v, *pool)
    assert to_numpy(y).tobytes() == to_numpy(right[0]).tobytes()
    assert to_numpy(argmax).tobytes() == to_numpy(right[1]).tobytes()
    dy = np.random.default_rng(seed).standard_normal(y.shape).astype(F4)
    dy = to_device(dy, DEVICE)
    found = ops.conv2d_relu_max_pool2d_backward(dy, y, argmax, x, w, b, *geometry, pool)
    spread = ops.max_pool2d_backward(ops.relu_backward(dy, y), argmax, v.shape, *pool)
    separate = ops.conv2d_backward(spread, x, w, b, *geometry)
    for one, other in zip(found, separate, strict=True):
        assert (one is None) == (other is None)
        assert one is None or to_numpy(one).tobytes() == to_numpy(other).tobytes()


def test_a_training_step_of_lenet_has_the_bits_of_the_separate_kernels(monkeypatch):
    rng = np.random.default_rng(0)
    x, labels = on(DEVICE, rng.random((3, 1, 32, 32), F4), rng.integers(0, 10, 3))
    found = []
    for know in (pool2d_launch.is_2x2, lambda _: False):
        monkeypatch.setattr(sys.modules["gpuconv.ops.conv2d_relu_max_pool2d"], "is_2x2", know)
        model, loss = models.lenet().to(DEVICE), nn.CrossEntropyLoss()
        scores = model(x)
        loss(scores, labels).backward()
        arrays = [scores.data, *(p.grad for p in model.parameters())]
        found.append([to_numpy(a).tobytes() for a in arrays])
    assert found[0] == found[1]
