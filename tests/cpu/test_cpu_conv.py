"""The fast CPU convolution against its definition, a sum for each output pixel, in float64."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from bounds import gamma
from conv_geometry import (
    arrays,
    check,
    define,
    random_geometry,
    random_strides,
    random_wide_geometry,
)

from gpuconv.cpu import conv, conv_direct, conv_pool, direct_plan, pool, winograd
from gpuconv.cpu.direct_plan import planar_plan
from gpuconv.shapes import Window
from gpuconv.threads import set_thread_count, thread_count


@pytest.mark.parametrize("seed", range(40))
def test_random_geometry(seed):
    rng = np.random.default_rng(seed)
    x_shape, K, window, groups = (random_wide_geometry if seed % 4 == 3 else random_geometry)(rng)
    x, w, b = arrays(rng, x_shape, K, window.kernel_size, groups)
    placed = random_strides(rng) if seed % 2 else np.array
    check(x, w, b if seed % 3 else None, window, groups, rng, placed)


@pytest.mark.parametrize("seed", range(40))
def test_groups_of_few_channels(seed):
    rng = np.random.default_rng(seed)
    (N, C, H, W), _, window, _ = random_geometry(rng)
    channels, filters = (1, 1) if seed % 2 else rng.integers(1, 9, 2).tolist()  # of a group
    groups, multiplier = C + 1, 1 + seed % 3 if seed % 2 else 1
    x, w, b = arrays(
        rng, (N, groups * channels, H, W), groups * filters * multiplier, window.kernel_size, groups
    )
    placed = random_strides(rng) if seed % 4 < 2 else np.array
    check(x, w, b if seed % 3 else None, window, groups, rng, placed)


@pytest.mark.parametrize("seed", range(16))
def test_many_channels(seed):
    """Register tiles of every width and height, and sums over several strips of channels."""
    rng = np.random.default_rng(seed)
    C, K = rng.integers(33, 200, 2).tolist()
    size, kernel = rng.integers(3, 12, 2).tolist(), 1 if seed % 2 else (1, int(rng.integers(1, 4)))
    window = Window(kernel, int(rng.integers(1, 4)), int(seed % 4 == 3))
    x, w, b = arrays(rng, (int(rng.integers(1, 6)), C, *size), K, window.kernel_size)
    check(x, w, b if seed % 3 else None, window, 1, rng)


@pytest.fixture
def small_layers_too(monkeypatch):
    """Outputs lie side by side however little there is to compute."""
    monkeypatch.setattr(direct_plan, "LEAST_WORK", 0)
    planar_plan.cache_clear()
    yield
    planar_plan.cache_clear()


@pytest.mark.usefixtures("small_layers_too")
@pytest.mark.parametrize("seed", range(20))
def test_few_channels(seed):
    """A vector holds several images, or several outputs."""
    rng = np.random.default_rng(seed)
    (_, _, H, W), _, window, _ = random_geometry(rng)
    N, C, K = (int(rng.choice(of)) for of in ((1, 2, 8, 9, 16), (1, 3, 5, 8, 16), (6, 16, 33, 50)))
    C, K = (C, K) if seed % 3 else (K, C)
    x, w, b = arrays(rng, (N, C, H, W), K, window.kernel_size)
    check(x, w, b, window, 1, rng, random_strides(rng) if seed % 2 else np.array)


@pytest.mark.usefixtures("small_layers_too")
@pytest.mark.parametrize("seed", range(20))
def test_outputs_side_by_side_in_several_blocks(seed):
    """Few filters, or for dx few channels, and sizes that the outputs of a step do not divide."""
    rng = np.random.default_rng(seed)
    kernel, stride, dilation = (rng.integers(1, most, 2).tolist() for most in (6, 5, 3))
    window = Window(kernel, stride, int(rng.integers(0, 4)), dilation)
    few, many, groups = int(rng.integers(1, 13)), int(rng.integers(17, 40)), 1 + seed % 2
    C, K = (few, many) if seed % 4 < 2 else (many, few)
    size = int(rng.integers(1, 3)), groups * C, *rng.integers(20, 75, 2).tolist()
    x, w, b = arrays(rng, size, groups * K, window.kernel_size, groups)
    check(x, w, b, window, groups, rng)


@pytest.mark.usefixtures("small_layers_too")
@pytest.mark.parametrize(
    ("kind", "C", "K", "stride", "side_by_side"),
    [("forward", 20, 3, 1, True), ("dx", 3, 64, 2, True), ("forward", 3, 64, 2, False)],
)
def test_few_filters_compute_outputs_side_by_side(kind, C, K, stride, side_by_side):
    plan = planar_plan(kind, (2, C, 56, 56), (K, C, 3, 3), Window(3, stride, 1), 1, 2)
    assert any(len(taps) > 1 for taps in plan.taps) == side_by_side


@pytest.mark.parametrize("kind", ["forward", "dx"])
@pytest.mark.parametrize("stride", [1, 16, 64])
def test_large_kernels_and_strides_are_planned_in_milliseconds(kind, stride):
    shapes = (8, 64, 224, 224), (1, 64, 30, 30)
    if kind == "dx":
        shapes = (8, 1, 224, 224), (64, 1, 30, 30)
    times = []
    for _ in range(3):
        planar_plan.cache_clear()
        direct_plan.side_by_side.cache_clear()
        begin = time.process_time()
        planar_plan(kind, *shapes, Window(30, stride, 15), 1, 2)
        times.append(time.process_time() - begin)
    assert min(times) < 0.05


@pytest.mark.parametrize("stride", [8, 16])
def test_outputs_side_by_side_need_not_much_more_memory(stride):
    """Their windows lie far apart at a large stride: a row of them is many rows of the tile."""
    shapes, window = ((2, 64, 1024, 1024), (1, 64, 30, 30)), Window(30, stride, 15)
    together, alone = (
        planar_plan("forward", *shapes, window, 1, 2, zeros).geometry for zeros in (1, 0)
    )
    assert together.below > 1
    assert together.tile + together.out < 2 * (alone.tile + alone.out)


def test_depthwise_in_several_blocks():
    rng = np.random.default_rng(0)
    for stride in (1, 2, 3):
        window = Window(3, stride=stride, padding=1)
        check(*arrays(rng, (2, 3, 61, 67), 3, (3, 3), 3), window, 3, rng)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_depthwise_keeps_special_values_in_their_windows(value, stride):
    rng = np.random.default_rng(3)
    window = Window(3, stride=stride)
    x, w, b = arrays(rng, (2, 5, 9, 20), 5, (3, 3), 5)
    x[0, 1, 0, 0] = x[1, 2, 8, 19] = value
    y = conv.forward(x, w, b, window, 5)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    results = y, *conv.backward(dy, x, w, window, 5)
    with np.errstate(invalid="ignore"):
        exact = define(x, w, b, dy, window, 5)
    for result, right in zip(results, exact, strict=True):
        assert np.array_equal(np.isfinite(result), np.isfinite(right))
    dy[0, 3, 0, 0] = value
    dx, dw, db = conv.backward(dy, x, w, window, 5)
    assert np.isfinite(dx).sum() == dx.size - 9
    assert not np.isfinite(dw[3]).any()
    assert np.isfinite(db).sum() == 4


def test_bits_of_depthwise_do_not_depend_on_threads():
    before = thread_count()
    x, w, b = arrays(np.random.default_rng(7), (3, 14, 30, 31), 14, (3, 3), 14)
    found = set()
    try:
        for count in (1, 2, 5):
            set_thread_count(count)
            y = conv.forward(x, w, b, Window(3, stride=2), 14, "relu")
            dx, _, _ = conv.backward(y, x, w, Window(3, stride=2), 14)
            found.add(y.tobytes() + dx.tobytes())
    finally:
        set_thread_count(before)
    assert len(found) == 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40, 240))
def test_more_random_geometries(seed):
    test_random_geometry(seed)


@pytest.mark.parametrize(
    ("x_shape", "K", "window", "groups"),
    [
        ((1, 1, 1, 1), 1, Window(1), 1),
        ((1, 1, 1, 1), 3, Window(3, padding=1), 1),
        ((1, 3, 5, 7), 2, Window((5, 7)), 1),  # the window is the image
        ((8, 16, 5, 5), 120, Window(5, stride=3), 1),
        ((3, 4, 5, 5), 6, Window(5), 2),
        ((3, 4, 5, 5), 6, Window(5, padding=1), 1),
        ((3, 4, 5, 5), 6, Window(5, padding=((0, 4), (4, 0)), dilation=2), 1),
        ((2, 3, 5, 7), 2, Window(1, stride=4), 1),
        ((2, 2, 1, 9), 3, Window((1, 3), stride=(5, 2), padding=(0, 1)), 1),
        ((2, 2, 1, 1), 2, Window((2, 2), stride=2, padding=2), 1),  # windows on padding alone
        ((2, 3, 4, 4), 2, Window(1, stride=3, padding=1), 1),  # windows between the pixels
        ((3, 5, 2, 3), 5, Window((1, 3), (4, 3), ((2, 3), (0, 3))), 5),  # dx is zero everywhere
        ((2, 12, 9, 8), 12, Window(3, padding=1), 12),  # depthwise
        ((2, 12, 9, 8), 24, Window(3, stride=2, padding=1), 12),
        ((3, 4, 8, 8), 5, Window(3, padding="full"), 1),
        ((3, 4, 8, 9), 5, Window((2, 4), padding="same"), 1),
        ((5, 7, 6, 6), 33, Window(1), 1),
        ((17, 40, 3, 3), 13, Window(1), 1),
        ((1, 128, 20, 80), 17, Window(3, padding=1), 1),  # several blocks to an image
        ((1, 128, 32, 61), 12, Window(1), 1),
        ((2, 3, 40, 61), 64, Window(7, stride=2, padding=3), 1),
    ],
)
def test_edges(x_shape, K, window, groups):
    rng = np.random.default_rng(0)
    check(*arrays(rng, x_shape, K, window.kernel_size, groups), window, groups, rng)


@pytest.mark.parametrize("seed", range(100, 106))
def test_float64(seed):
    rng = np.random.default_rng(seed)
    x_shape, K, window, groups = random_geometry(rng)
    check(*arrays(rng, x_shape, K, window.kernel_size, groups, np.float64), window, groups, rng)


def test_any_strides():
    rng = np.random.default_rng(1)
    base, w, b = arrays(rng, (4, 10, 12, 14), 6, (3, 3))
    window = Window(3, padding=1)
    frozen = base.copy()
    frozen.flags.writeable = False
    offset = (
        np.frombuffer(b"\0" + base.tobytes(), np.uint8)[1:].view(np.float32).reshape(base.shape)
    )
    views = [
        base[::-1, :, ::-1, ::-1],
        base.transpose(0, 1, 3, 2),
        frozen,
        offset,
        base[:, :, 2:, 1::2],
    ]
    views.append(np.broadcast_to(base[:1], base.shape))
    for x in views:
        exact = define(x, w[:, ::-1], b, None, window, 1)[0]
        y = conv.forward(x, w[:, ::-1], b, window, 1)
        assert np.abs(y - exact).max() < 1e-4
        dy = np.asfortranarray(y)
        same = conv.backward(
            np.ascontiguousarray(dy), np.ascontiguousarray(x), w[:, ::-1].copy(), window, 1
        )
        for a, c in zip(conv.backward(dy, x, w[:, ::-1], window, 1), same, strict=True):
            assert np.array_equal(a, c)


def test_relu_is_fused_and_keeps_nan():
    rng = np.random.default_rng(2)
    for dtype in (np.float32, np.float64):
        x, w, b = arrays(rng, (2, 3, 9, 20), 5, (3, 3), dtype=dtype)
        x[0, 1, 4, 5] = np.nan
        plain = conv.forward(x, w, b, Window(3), 1)
        assert np.isnan(plain).sum() == 9 * 5
        assert np.array_equal(
            conv.forward(x, w, b, Window(3), 1, "relu"),
            np.where(plain < 0, 0, plain),
            equal_nan=True,
        )


@pytest.mark.usefixtures("small_layers_too")
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "geometry",
    [((2, 3, 9, 9), 5, 1), ((3, 32, 20, 20), 32, 1), ((2, 4, 9, 9), 4, 2), ((2, 20, 20, 19), 3, 1)],
)
def test_not_a_number_stays_in_its_windows(value, geometry):
    x_shape, K, stride = geometry
    rng = np.random.default_rng(3)
    x, w, b = arrays(rng, x_shape, K, (3, 3))
    window = Window(3, stride=stride, padding=1)
    x[0, 1, 0, 8] = value
    y = conv.forward(x, w, b, window, 1)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    _, dw, _ = conv.backward(dy, x, w, window, 1)
    with np.errstate(invalid="ignore"):
        exact = define(x, w, b, dy, window, 1)
    assert np.array_equal(np.isfinite(y), np.isfinite(exact[0]))
    assert np.isfinite(dw[:, 0]).all()


@pytest.mark.usefixtures("small_layers_too")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_dx_of_few_channels_keeps_special_values_where_they_reach(value, stride):
    rng, window = np.random.default_rng(3), Window(3, stride=stride, padding=1)
    x, w, b = arrays(rng, (2, 3, 20, 19), 24, (3, 3))
    dy = rng.standard_normal(conv.forward(x, w, b, window, 1).shape).astype(np.float32)
    dy[0, 1, 2, 3] = dy[1, 5, 0, 0] = value
    dx, _, _ = conv.backward(dy, x, w, window, 1)
    with np.errstate(invalid="ignore"):
        exact = define(x, w, b, dy, window, 1)[1]
    assert np.array_equal(np.isfinite(dx), np.isfinite(exact))
    assert 0 < np.isfinite(exact).sum() < exact.size


def test_need_dx_and_no_bias():
    rng = np.random.default_rng(4)
    x, w, _ = arrays(rng, (2, 3, 8, 8), 4, (3, 3))
    y = conv.forward(x, w, None, Window(3), 1)
    full = conv.backward(y, x, w, Window(3), 1)
    dx, dw, db = conv.backward(y, x, w, Window(3), 1, need_dx=False)
    assert dx is None
    assert np.array_equal(dw, full[1])
    assert np.array_equal(db, full[2])


FUSED = [
    ((5, 1, 32, 32), 6, Window(5), 1),
    ((19, 1, 13, 16), 6, Window(5, padding=1), 1),  # images abreast, and lanes without one
    ((4, 3, 66, 50), 20, Window(3, dilation=(1, 2)), 1),  # several blocks of rows
    ((2, 20, 11, 12), 72, Window(1), 2),
    ((2, 20, 13, 15), 3, Window(3), 1),  # outputs side by side, a row that no pool window covers
    ((2, 20, 31, 44), 5, Window(3, padding=1), 1),  # three outputs below one another
    ((3, 6, 14, 15), 16, Window(5), 1),  # a column that no pool window covers
    ((2, 4, 15, 17), 6, Window(3, stride=2, padding=1), 2),
    ((6, 64, 14, 14), 64, Window(3, padding=1), 1),  # Winograd, then a pool
]


@pytest.mark.usefixtures("small_layers_too")
@pytest.mark.parametrize(("x_shape", "K", "window", "groups"), FUSED)
@pytest.mark.parametrize("pooling", [Window(2, stride=2), Window(3, stride=2, padding=1)])
def test_conv_pool_is_conv_relu_and_pool(x_shape, K, window, groups, pooling):
    rng = np.random.default_rng(10)
    x, w, b = arrays(rng, x_shape, K, window.kernel_size, groups)
    convolved = conv.forward(x, w, b, window, groups, "relu")
    given = x[:, :, ::-1][:, :, ::-1], w, b.repeat(2)[::2]  # a bias with gaps
    y, argmax = conv_pool.forward(*given, window, groups, pooling)
    expected, indices = pool.max_forward(convolved, pooling)
    assert np.array_equal(y, expected)
    assert np.array_equal(argmax, indices)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    dx, dw, db = conv_pool.backward(dy, y, argmax, x, w, window, groups, pooling)
    spread = np.where(convolved > 0, pool.max_backward(dy, argmax, convolved.shape, pooling), 0)
    for result, right in zip(
        (dx, dw, db), conv.backward(spread, x, w, window, groups), strict=True
    ):
        assert np.abs(result - right).max() <= 1e-5 * np.abs(right).max()
    again = conv_pool.backward(dy, y, argmax, x, w, window, groups, pooling, need_dx=False)
    assert again[0] is None
    assert np.array_equal(again[1], dw)
    assert np.array_equal(again[2], db)


def test_conv_pool_keeps_nan():
    rng = np.random.default_rng(11)
    x, w, b = arrays(rng, (2, 1, 12, 12), 6, (5, 5))
    x[1, 0, 5, 5] = np.nan
    y, argmax = conv_pool.forward(x, w, b, Window(5), 1, Window(2, stride=2))
    expected, indices = pool.max_forward(
        conv.forward(x, w, b, Window(5), 1, "relu"), Window(2, stride=2)
    )
    assert np.isnan(y).any()
    assert np.array_equal(y, expected, equal_nan=True)
    assert np.array_equal(argmax, indices)


LAYERS = [
    ((5, 24, 20, 20), 40, Window(3, padding=1)),
    ((6, 64, 14, 14), 64, Window(3, padding=1)),
    ((3, 70, 15, 13), 33, Window(1)),
    ((4, 3, 33, 33), 16, Window(7, stride=2, padding=3)),
]


def run(x, w, b, window):
    y = conv.forward(x, w, b, window, 1)
    return y, *conv.backward(y, x, w, window, 1)


@pytest.mark.parametrize("layer", LAYERS)
def test_repeats_bit_for_bit_also_from_several_threads(layer):
    x_shape, K, window = layer
    x, w, b = arrays(np.random.default_rng(5), x_shape, K, window.kernel_size)
    expected = [a.tobytes() for a in run(x, w, b, window)]
    wrong = []

    def repeat():
        for _ in range(3):
            if [a.tobytes() for a in run(x, w, b, window)] != expected:
                wrong.append(1)

    threads = [threading.Thread(target=repeat) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_threads(count):
    before = thread_count()
    rng = np.random.default_rng(6)
    try:
        set_thread_count(count)
        for x_shape, K, window in LAYERS:
            check(*arrays(rng, x_shape, K, window.kernel_size), window, 1, rng)
    finally:
        set_thread_count(before)


WINOGRAD = [
    ((2, 16, 13, 14), 16, 1),
    ((5, 32, 16, 16), 32, 1),
    ((3, 33, 14, 15), 47, ((0, 2), (1, 0))),
    ((1, 64, 30, 62), 32, 2),
    ((4, 130, 12, 8), 64, 0),
    ((14, 300, 7, 7), 256, 1),
]


@pytest.mark.parametrize(("x_shape", "K", "padding"), WINOGRAD)
def test_winograd(x_shape, K, padding):
    """Its error, in norm, on normal data, within 3 * max(1e-6, 1e-7 * sqrt(terms)), and each
    element's bound.
    """
    rng = np.random.default_rng(8)
    window = Window(3, padding=padding)
    x, w, b = arrays(rng, x_shape, K, (3, 3))
    y = winograd.forward(x, w, b, window, 1, False)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    dx = winograd.input_gradient(dy, w, x.shape, window, 1)
    dw, db = winograd.weight_gradient(dy, x, w.shape, window, 1)
    exact = define(x, w, b, dy, window, 1)
    sizes = define(np.abs(x), np.abs(w), np.abs(b), np.abs(dy), window, 1)
    terms = 9 * x_shape[1], 9 * K, dy.size // K, dy.size // K
    for result, right, size, count in zip((y, dx, dw, db), exact, sizes, terms, strict=True):
        error = np.linalg.norm(result - right) / np.linalg.norm(right)
        assert error <= 3 * max(1e-6, 1e-7 * count**0.5)
        assert (np.abs(result - right) <= gamma(count) * size).all()


@pytest.mark.parametrize("algorithm", [conv_direct, winograd])
def test_db_of_many_pixels(algorithm):
    """Sums of 4 rows of 4 in float32, of those in float64, and a last rounding."""
    window = Window(3, padding=1)
    x = np.zeros((16, 32, 64, 64), np.float32)
    dy = np.random.default_rng(0).random(x.shape, np.float32)
    _, db = algorithm.weight_gradient(dy, x, (32, 32, 3, 3), window, 1)
    exact = dy.sum((0, 2, 3), np.float64)
    assert (np.abs(db - exact) <= gamma(7) * exact).all()


def test_winograd_is_chosen_and_declines_what_it_would_spoil():
    rng = np.random.default_rng(9)
    window = Window(3, padding=1)
    x, w, b = arrays(rng, (6, 64, 14, 14), 64, (3, 3))
    assert winograd.suits(x.shape, w.shape, window, 1)
    assert not winograd.suits(x.shape, w.shape, Window(3, stride=2, padding=1), 1)
    assert not winograd.suits((6, 4, 14, 14), (64, 4, 3, 3), window, 1)
    for batch, channels, y, dw in [(8, 32, 1, 1), (4, 32, 0, 0), (4, 64, 1, 0), (3, 64, 0, 0)]:
        shapes = (batch, channels, 7, 7), (channels, channels, 3, 3)
        assert winograd.suits(*shapes, window, 1) == y
        assert winograd.suits(*shapes, window, 1, dw=True) == dw
    dy = rng.standard_normal((6, 64, 14, 14)).astype(np.float32)
    for array in (x, w, dy):
        kept, array[3, 5, 1, 1] = array[3, 5, 1, 1], np.inf
        assert array is dy or winograd.forward(x, w, b, window, 1, False) is None
        assert array is x or winograd.input_gradient(dy, w, x.shape, window, 1) is None
        assert array is w or winograd.weight_gradient(dy, x, w.shape, window, 1) is None
        array[3, 5, 1, 1] = kept


@pytest.mark.torch
@pytest.mark.parametrize("x_shape", [(2, 64, 28, 28), (1, 48, 31, 29)])
def test_as_torch_does(x_shape):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(7)
    x, w, b = arrays(rng, x_shape, 64, (3, 3))
    y = conv.forward(x, w, b, Window(3, stride=1, padding=1), 1)
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, w, b)]
    expected = torch.nn.functional.conv2d(*tensors, padding=1)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    expected.backward(torch.tensor(dy))
    assert np.abs(y - expected.detach().numpy()).max() < 1e-3
    for result, tensor in zip(
        conv.backward(dy, x, w, Window(3, padding=1), 1), tensors, strict=True
    ):
        assert np.abs(result - tensor.grad.numpy()).max() < 5e-6 * np.abs(result).max() + 1e-3
