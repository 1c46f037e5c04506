"""ReLU, tanh, scaled tanh, sigmoid, softmax, dropout: values, gradients, and the edges of the
number line.
"""

import cases
import loops
import numpy as np
import pytest

from gpuconv import nn, ops
from gpuconv.autograd import Tensor
from gpuconv.ops.activation import ACTIVATIONS

EDGES = [
    0.0,
    -0.0,
    1e-40,
    -1e-40,
    1e-8,
    1,
    -1,
    20,
    -20,
    1e4,
    -1e4,
    3e38,
    -3e38,
    np.inf,
    -np.inf,
    np.nan,
]
INDEPENDENT = {
    "relu": lambda x: x * (x > 0),
    "tanh": np.tanh,
    "scaled_tanh": lambda x: 1.7159 * np.tanh(2 * x / 3),
    "sigmoid": lambda x: 0.5 * (1 + np.tanh(x / 2)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_and_gradients(name):
    forward, backward = ACTIVATIONS[name]
    rng = np.random.default_rng(2)
    x = rng.standard_normal((3, 5, 7)) * 3
    y = forward.reference(x)
    np.testing.assert_allclose(y, INDEPENDENT[name](x), 1e-12, 1e-12)
    dy = rng.standard_normal(x.shape)
    difference = loops.central_difference(lambda: float((dy * forward.reference(x)).sum()), x)
    np.testing.assert_allclose(backward.reference(dy, y), difference, 1e-5, 1e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cpu_agrees_with_the_definition(name, dtype):
    forward, backward = ACTIVATIONS[name]
    tolerance = 0 if name == "relu" else 3e-6 if dtype == np.float32 else 1e-12
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((3, 7, 50, 211)) * 4).astype(dtype)  # enough for two threads
    x.flat[: len(EDGES)] = EDGES
    dy = rng.standard_normal(x.shape).astype(dtype)
    with np.errstate(all="ignore"):
        expected = forward.reference(x)
        np.testing.assert_allclose(forward(x), expected, tolerance, tolerance)
        found = backward(dy, expected)
        assert found.dtype == forward(x).dtype == dtype
        np.testing.assert_allclose(found, backward.reference(dy, expected), tolerance, tolerance)
        for layout, other in cases.disguises(x).items():
            np.testing.assert_array_equal(forward(other), forward(x), err_msg=layout)


def test_relu_at_zero_and_nan():
    x = np.float32([-1, -0.0, 0, 2, np.nan, np.inf, -np.inf])
    for relu, back in (
        (ops.relu, ops.relu_backward),
        (ops.relu.reference, ops.relu_backward.reference),
    ):
        y = relu(x)
        np.testing.assert_array_equal(y, np.float32([0, 0, 0, 2, np.nan, np.inf, 0]))
        np.testing.assert_array_equal(
            back(np.full(7, 5, np.float32), y), np.float32([0, 0, 0, 5, 5, 5, 0])
        )


def test_relu_backward_does_not_let_an_infinite_gradient_through_zero():
    dy = np.float32([np.inf, np.nan, -np.inf])
    np.testing.assert_array_equal(ops.relu_backward(dy, np.zeros(3, np.float32)), np.zeros(3))


@pytest.mark.parametrize("size", [1, 1e4])
def test_softmax_sums_to_one(size):
    scores = (np.random.default_rng(4).uniform(-size, size, (64, 10))).astype(np.float32)
    scores[0] = [1e4, -1e4] * 5
    with np.errstate(over="raise", invalid="raise"):
        y = ops.softmax(scores)
    assert (abs(y.astype(np.float64).sum(1) - 1) < 1e-6).all()


def test_softmax_gradient():
    rng = np.random.default_rng(5)
    x, dy = rng.standard_normal((3, 4, 2)), rng.standard_normal((3, 4, 2))
    difference = loops.central_difference(lambda: float((dy * ops.softmax.reference(x)).sum()), x)
    np.testing.assert_allclose(ops.softmax_backward(dy, ops.softmax(x)), difference, 1e-6, 1e-8)


def test_splitmix64_gives_its_published_numbers():
    """The first outputs of SplitMix64 for seed 1234567, as listed with its reference code."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    ones = np.ones(3)
    for p in (0.1, 0.3, 0.5, 0.9):
        expected = [1 / (1 - p) if number >> 32 >= round(p * 2**32) else 0 for number in published]
        np.testing.assert_allclose(ops.dropout.reference(ones, p, 1234567), expected, 1e-15)
        np.testing.assert_allclose(ops.dropout(ones, p, 1234567), expected, 1e-15)


def test_dropout_keeps_the_mean_and_the_same_mask_everywhere():
    x = np.ones((200, 1000), np.float32)
    y = ops.dropout(x, 0.25, 99)
    np.testing.assert_array_equal(y, ops.dropout.reference(x, 0.25, 99))
    dropped = (y == 0).mean()
    assert abs(dropped - 0.25) < 5 * np.sqrt(0.25 * 0.75 / x.size)
    np.testing.assert_array_equal(np.unique(y), np.float32([0, 4 / 3]))
    assert (y != ops.dropout(x, 0.25, 100)).any()


def test_dropout_layer_draws_a_new_mask_each_time_and_can_be_put_back():
    layer, x = nn.Dropout(0.5, seed=3), np.ones((4, 100), np.float32)
    inputs = Tensor(x, requires_grad=True)
    first = layer(inputs)
    first.backward(x)
    np.testing.assert_array_equal(inputs.grad, first.data)
    state = layer.rng_state
    second = layer(x).data
    assert (first.data != second).any()
    layer.rng_state = state
    np.testing.assert_array_equal(layer(x).data, second)
    layer.eval()
    assert layer(x).data is x


@pytest.mark.parametrize("p", [1.1, -0.1, float("nan")])
def test_dropout_refuses_an_impossible_probability(p):
    with pytest.raises(ValueError, match="p must be a finite number >= 0"):
        nn.Dropout(p)


def test_sigmoid_in_pieces_is_the_definition_to_the_bit():
    x = np.random.default_rng(6).standard_normal((3, 5, 91, 97)).astype(np.float32) * 9
    assert ops.sigmoid(x).tobytes() == ops.sigmoid.reference(x).tobytes()
