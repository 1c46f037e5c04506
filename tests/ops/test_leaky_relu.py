"""Leaky ReLU: the definition, its gradient, the CPU path, the kernels and the layer."""

import cases
import loops
import numpy as np
import pytest

from gpuconv import nn, ops
from gpuconv.nn import functional

EDGES = np.float32([0, -0.0, 1e-40, -1e-40, 1, -1, 3e38, -3e38, np.inf, -np.inf, np.nan])
PASSES = (ops.leaky_relu, ops.leaky_relu_backward)


def test_values_and_gradient_against_another_formula_and_slopes_between_points():
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 3, 5, 7))
    for slope in (0.01, 0.0, 2.5, -0.5):
        y = ops.leaky_relu.reference(x, slope)
        np.testing.assert_allclose(y, np.maximum(x, 0) + slope * np.minimum(x, 0), 1e-15, 1e-15)
        difference = loops.central_difference(
            lambda slope=slope: float((dy * ops.leaky_relu.reference(x, slope)).sum()), x
        )
        dx = ops.leaky_relu_backward.reference(dy, x, slope)
        np.testing.assert_allclose(dx, difference, 1e-6, 1e-8)


def test_edges_of_the_number_line():
    with np.errstate(all="ignore"):
        y = ops.leaky_relu(EDGES, 0.5)
    np.testing.assert_array_equal(y, np.where(EDGES < 0, EDGES / 2, EDGES))
    assert np.signbit(y[1])
    dx = ops.leaky_relu_backward(np.full_like(EDGES, 4), EDGES, 0.5)
    np.testing.assert_array_equal(dx, np.float32([2, 2, 4, 2, 4, 2, 4, 2, 4, 2, 2]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cpu_equals_the_definition(dtype):
    rng = np.random.default_rng(1)
    x, dy = rng.standard_normal((2, 3, 7, 50, 211)).astype(dtype)  # enough for two threads
    x.flat[: len(EDGES)] = EDGES
    with np.errstate(all="ignore"):
        y, dx = ops.leaky_relu(x, 0.3), ops.leaky_relu_backward(dy, x, 0.3)
        np.testing.assert_array_equal(y, ops.leaky_relu.reference(x, 0.3))
        np.testing.assert_array_equal(dx, ops.leaky_relu_backward.reference(dy, x, 0.3))
        assert y.dtype == dx.dtype == dtype
        for layout, other in cases.disguises(x).items():
            np.testing.assert_array_equal(ops.leaky_relu(other, 0.3), y, err_msg=layout)
    assert ops.leaky_relu(x[:0]).shape == (0, 7, 50, 211)


@pytest.mark.parametrize("count", [1, 3, 4, 1023, 5000])
def test_kernels_equal_the_definition(count):
    from simulated import DEVICE, on, to_numpy

    rng = np.random.default_rng(count)
    x, dy = rng.standard_normal((2, count), np.float32)
    x[: len(EDGES)] = EDGES[:count]
    x[abs(x) < 1e-37] = 0  # subnormal products may be flushed
    there = on(DEVICE, x, dy)
    y = to_numpy(ops.leaky_relu(there[0], 0.3))
    np.testing.assert_array_equal(y, ops.leaky_relu.reference(x, 0.3))
    dx = to_numpy(ops.leaky_relu_backward(there[1], there[0], 0.3))
    np.testing.assert_array_equal(dx, ops.leaky_relu_backward.reference(dy, x, 0.3))


@pytest.mark.parametrize(
    ("args", "error", "text"),
    [
        ((np.ones(3, int),), TypeError, "x must be float32 or float64, got int64"),
        ((np.ones(3), np.inf), ValueError, "negative_slope must be a finite number, got inf"),
        ((np.ones(3), "0.1"), TypeError, "negative_slope must be a number"),
    ],
)
def test_wrong_arguments(args, error, text):
    with pytest.raises(error, match=f"^leaky_relu: {text}"):
        ops.leaky_relu(*args)
    with pytest.raises(error, match=f"^leaky_relu_backward: {text}"):
        ops.leaky_relu_backward(np.ones(3), *args)


def test_the_layer_in_a_network():
    """A pending convolution is computed first; the gradient is that of the composition."""
    rng = np.random.default_rng(2)
    network = nn.Sequential(nn.Conv2d(2, 3, 3, rng=0), nn.LeakyReLU(0.2)).to(
        "reference", np.float64
    )
    assert repr(network[1]) == "LeakyReLU(0.2)"
    x, dy = rng.standard_normal((1, 2, 5, 6)), rng.standard_normal((1, 3, 3, 4))
    leaf = nn.Tensor(x, requires_grad=True)
    network(leaf).backward(dy)
    difference = loops.central_difference(lambda: float((dy * network(x).numpy()).sum()), x)
    np.testing.assert_allclose(leaf.grad, difference, 1e-5, 1e-7)
    np.testing.assert_array_equal(functional.leaky_relu(x).data, ops.leaky_relu.reference(x))


def test_a_layer_takes_a_number():
    assert str(nn.LeakyReLU(np.float64(0.25))) == "LeakyReLU(0.25)"
    with pytest.raises(TypeError, match="LeakyReLU: negative_slope must be a number, got '0'"):
        nn.LeakyReLU("0")


@pytest.mark.onnx
def test_onnxruntime_agrees_and_the_file_is_read_back(tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from onnx_runs import check_export, outputs

    from gpuconv.onnx import load

    for layer in (nn.LeakyReLU(), nn.LeakyReLU(0.3)):
        check_export(layer, tmp_path / "net.onnx", (2, 3, 4))
        x = np.random.default_rng(1).standard_normal((2, 2, 3, 4)).astype(np.float32)
        found = outputs(load(tmp_path / "net.onnx"), x)
        np.testing.assert_array_equal(found, outputs(layer, x))
