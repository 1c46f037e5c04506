"""Convolution: the definition against loops, SciPy, PyTorch and differences; `cpu` against the
definition.
"""

import cases
import loops
import numpy as np
import pytest
from bounds import U32, assert_within, gamma

from gpuconv import ops

signal = pytest.importorskip("scipy.signal", reason="SciPy is not installed")

SWEEP = 60
IMAGE = ["11100", "01110", "00111", "00110", "01100"]
U64 = 2.0**-53


def test_golden_of_the_article():
    x = np.array([[[[int(v) for v in row] for row in IMAGE]]], np.float32)
    w = np.array([[[[1, 0, 1], [0, 1, 0], [1, 0, 1]]]], np.float32)
    expected = [[4, 3, 4], [2, 4, 3], [2, 3, 4]]
    for run in (ops.conv2d, ops.conv2d.reference):
        np.testing.assert_array_equal(run(x, w)[0, 0], expected)


@pytest.mark.parametrize("seed", range(SWEEP))
def test_definition_and_cpu_agree_with_loops(seed):
    x, w, b, *geometry = cases.conv_case(seed)
    exact, absolute = loops.conv2d(x, w, b, *geometry)
    terms = w[0].size + 2
    assert_within(ops.conv2d.reference(x, w, b, *geometry), exact, gamma(terms, U64) * absolute)
    assert_within(ops.conv2d(x, w, b, *geometry), exact, gamma(terms, U64) * absolute)
    x4, w4 = x.astype(np.float32), w.astype(np.float32)
    b4 = None if b is None else b.astype(np.float32)
    exact, absolute = loops.conv2d(x4, w4, b4, *geometry)
    y = ops.conv2d(x4, w4, b4, *geometry)
    assert y.dtype == np.float32
    assert_within(y, exact, gamma(terms, U32) * absolute)


@pytest.mark.parametrize("seed", range(20))
def test_one_channel_equals_scipy(seed):
    rng = np.random.default_rng(seed)
    image, kernel = rng.standard_normal((7, 9)), rng.standard_normal((3, 4))
    x, w = image[None, None], kernel[None, None]
    for padding in ("valid", "full"):
        expected = signal.correlate2d(image, kernel, padding)
        np.testing.assert_allclose(
            ops.conv2d.reference(x, w, padding=padding)[0, 0], expected, 1e-12
        )
        flipped = w[:, :, ::-1, ::-1]
        expected = signal.convolve2d(image, kernel, padding)
        np.testing.assert_allclose(ops.conv2d(x, flipped, padding=padding)[0, 0], expected, 1e-12)


def test_depth_is_one_map_per_filter():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 3, 8, 9)), rng.standard_normal((5, 3, 3, 3))
    stacked = ops.conv2d.reference(x, w)
    for k in range(5):
        np.testing.assert_allclose(
            stacked[:, k : k + 1], ops.conv2d.reference(x, w[k : k + 1]), 1e-12
        )


@pytest.mark.parametrize("seed", range(12))
def test_gradients_equal_central_differences(seed):
    x, w, b, *geometry = cases.conv_case(seed)
    x, b = x[:1], np.ones(w.shape[0]) if b is None else b
    activation = [None, "relu", "tanh", "scaled_tanh", "sigmoid"][seed % 5]
    y = ops.conv2d.reference(x, w, b, *geometry, activation)
    dy = np.random.default_rng(seed).standard_normal(y.shape)

    def objective():
        return float((dy * ops.conv2d.reference(x, w, b, *geometry, activation)).sum())

    gradients = ops.conv2d_backward.reference(dy, x, w, b, *geometry, activation, y)
    for gradient, array in zip(gradients, (x, w, b), strict=True):
        difference = loops.central_difference(objective, array)
        np.testing.assert_allclose(gradient, difference, rtol=1e-5, atol=1e-6)


def gradient_bounds(dy, x, w, geometry):
    """Each gradient's sum of absolute products: the gradient of absolute values."""
    return ops.conv2d_backward.reference(abs(dy), abs(x), abs(w), np.ones(len(w)), *geometry)


@pytest.mark.parametrize("seed", range(SWEEP))
def test_cpu_gradients_agree_with_the_definition(seed):
    x, w, b, *geometry = cases.conv_case(seed)
    b = np.ones(len(w)) if b is None else b
    y = ops.conv2d.reference(x, w, b, *geometry)
    dy = np.random.default_rng(seed).standard_normal(y.shape)
    arrays = [a.astype(np.float32) for a in (dy, x, w, b)]
    exact = ops.conv2d_backward.reference(*[a.astype(np.float64) for a in arrays], *geometry)
    bounds = gradient_bounds(*[a.astype(np.float64) for a in arrays[:3]], geometry)
    terms = (w[:, 0].size, y[:, 0].size, y[:, 0].size)
    found = ops.conv2d_backward(*arrays, *geometry)
    for gradient, value, bound, count in zip(found, exact, bounds, terms, strict=True):
        assert gradient.dtype == np.float32
        assert_within(gradient, value, gamma(count + 2, U32) * bound + 1e-37)
    without_dx = ops.conv2d_backward(*arrays, *geometry, None, None, False)
    assert without_dx[0] is None
    np.testing.assert_array_equal(without_dx[1], found[1])
    double = ops.conv2d_backward(dy, x, w, b, *geometry)
    for gradient, value in zip(
        double, ops.conv2d_backward.reference(dy, x, w, b, *geometry), strict=True
    ):
        np.testing.assert_allclose(gradient, value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layout", ["reversed", "strided", "fortran", "read-only"])
def test_layouts_do_not_matter(layout):
    x, w, b, *geometry = [
        a.astype(np.float32) if isinstance(a, np.ndarray) else a for a in cases.conv_case(5)
    ]
    y = ops.conv2d(x, w, b, *geometry)
    dy = np.random.default_rng(5).standard_normal(y.shape).astype(np.float32)
    plain = ops.conv2d_backward(dy, x, w, b, *geometry)
    dy2, x2, w2 = (cases.disguises(a)[layout] for a in (dy, x, w))
    np.testing.assert_array_equal(ops.conv2d(x2, w2, b, *geometry), y)
    for found, expected in zip(ops.conv2d_backward(dy2, x2, w2, b, *geometry), plain, strict=True):
        if expected is not None:
            np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(x2, x)


def test_inputs_are_not_changed_and_calls_repeat_bit_for_bit():
    rng = np.random.default_rng(3)
    x, w = (
        rng.standard_normal((9, 8, 20, 20), np.float32),
        rng.standard_normal((16, 8, 3, 3), np.float32),
    )
    b = rng.standard_normal(16, np.float32)
    before = [a.copy() for a in (x, w, b)]
    y = ops.conv2d(x, w, b, 1, 1, activation="relu")
    dy = rng.standard_normal(y.shape, np.float32)
    first = ops.conv2d_backward(dy, x, w, b, 1, 1, activation="relu", y=y)
    for _ in range(3):
        np.testing.assert_array_equal(ops.conv2d(x, w, b, 1, 1, activation="relu"), y)
        for a, c in zip(
            ops.conv2d_backward(dy, x, w, b, 1, 1, 1, 1, "relu", y), first, strict=True
        ):
            np.testing.assert_array_equal(a, c)
    for a, c in zip((x, w, b), before, strict=True):
        np.testing.assert_array_equal(a, c)


@pytest.mark.parametrize("activation", ["relu", "tanh", "scaled_tanh", "sigmoid"])
def test_fused_activation_equals_the_separate_one(activation):
    rng = np.random.default_rng(1)
    x, w = (
        rng.standard_normal((2, 3, 9, 8), np.float32),
        rng.standard_normal((4, 3, 3, 3), np.float32),
    )
    b = rng.standard_normal(4, np.float32)
    plain = ops.conv2d(x, w, b)
    y = ops.conv2d(x, w, b, activation=activation)
    np.testing.assert_allclose(y, getattr(ops, activation)(plain), rtol=1e-5, atol=1e-6)
    dy = rng.standard_normal(y.shape, np.float32)
    fused = ops.conv2d_backward(dy, x, w, b, activation=activation, y=y)
    separate = ops.conv2d_backward(getattr(ops, activation + "_backward")(dy, y), x, w, b)
    for found, expected in zip(fused, separate, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_nan_reaches_the_outputs_it_belongs_to_and_no_others():
    x = np.zeros((1, 1, 6, 6), np.float32)
    x[0, 0, 0, 0] = np.nan
    for run in (ops.conv2d, ops.conv2d.reference):
        y = run(x, np.ones((1, 1, 3, 3), np.float32), activation="relu")
        assert np.isnan(y[0, 0, 0, 0])
        assert np.isnan(y).sum() == 1


def test_an_empty_batch_gives_empty_outputs_and_zero_gradients():
    x, w, b = (
        np.ones((0, 3, 8, 8), np.float32),
        np.ones((4, 3, 3, 3), np.float32),
        np.ones(4, np.float32),
    )
    y = ops.conv2d(x, w, b, activation="relu")
    assert y.shape == (0, 4, 6, 6)
    dx, dw, db = ops.conv2d_backward(y, x, w, b, activation="relu", y=y)
    assert dx.shape == x.shape
    assert not dw.any()
    assert not db.any()


F4 = np.float32


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": np.ones((8, 3, 32, 32), F4)}, ValueError, "x has 3 channels, w expects 4 per group"),
        ({"x": np.ones((8, 4, 32), F4)}, ValueError, r"x must have 4 axes \(N, C, H, W\)"),
        ({"w": np.ones((16, 4, 3), F4)}, ValueError, "w must have 4 axes"),
        ({"b": np.ones(3, F4)}, ValueError, r"b must have shape \(16,\), got \(3,\)"),
        ({"x": np.ones((8, 4, 32, 32))}, TypeError, "x is float64, w is float32"),
        ({"x": np.ones((8, 4, 32, 32), np.int32)}, TypeError, "x must be float32 or float64"),
        ({"x": [[1.0]]}, TypeError, "x must be a NumPy array, got list"),
        ({"groups": 3}, ValueError, "groups=3 must divide"),
        ({"x": np.ones((8, 4, 2, 9), F4)}, ValueError, "conv2d: a window of 3x3.*does not fit"),
        ({"activation": "rely"}, ValueError, "did you mean 'relu'"),
    ],
)
def test_wrong_arguments_get_the_same_line_on_every_device(change, error, text):
    arguments = {"x": np.ones((8, 4, 32, 32), F4), "w": np.ones((16, 4, 3, 3), F4), **change}
    for run in (ops.conv2d, ops.conv2d.reference):
        with pytest.raises(error, match=text) as raised:
            run(**arguments)
        assert "\n" not in str(raised.value)


def test_backward_refuses_gradients_of_another_shape():
    x, w = np.ones((2, 3, 8, 8), F4), np.ones((4, 3, 3, 3), F4)
    with pytest.raises(ValueError, match=r"dy must have shape \(2, 4, 6, 6\), got \(2, 4, 5, 6\)"):
        ops.conv2d_backward(np.ones((2, 4, 5, 6), F4), x, w)
    with pytest.raises(ValueError, match="activation='relu' needs y"):
        ops.conv2d_backward(np.ones((2, 4, 6, 6), F4), x, w, activation="relu")


@pytest.mark.torch
@pytest.mark.parametrize("seed", range(40))
def test_definition_equals_pytorch(seed):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x, w, b, stride, pads, dilation, groups = cases.conv_case(seed + 1000)
    b = np.ones(len(w)) if b is None else b
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, w, b)]
    (top, bottom), (left, right) = pads
    padded = torch.nn.functional.pad(tensors[0], (left, right, top, bottom))
    y = torch.nn.functional.conv2d(padded, tensors[1], tensors[2], stride, 0, dilation, groups)
    dy = np.random.default_rng(seed).standard_normal(tuple(y.shape))
    y.backward(torch.tensor(dy))
    np.testing.assert_allclose(
        ops.conv2d.reference(x, w, b, stride, pads, dilation, groups), y.detach(), 1e-10, 1e-12
    )
    found = ops.conv2d_backward.reference(dy, x, w, b, stride, pads, dilation, groups)
    for gradient, tensor in zip(found, tensors, strict=True):
        np.testing.assert_allclose(gradient, tensor.grad, 1e-10, 1e-12)
