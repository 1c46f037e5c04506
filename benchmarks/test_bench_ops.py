"""pytest-benchmark suites: every operation, forward and backward, on the CPU path."""

import numpy as np
import pytest
from bench_cases import CONVOLUTIONS, POOLS

from gpuconv import ops
from gpuconv.ops.activation import ACTIVATIONS

RNG = np.random.default_rng(0)
BIG, SCORES = (64, 64, 28, 28), (128, 1000)


def floats(*shape):
    return RNG.standard_normal(shape, np.float32)


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_conv2d(benchmark, name, direction):
    shape, (K, R, S), stride, padding = CONVOLUTIONS[name]
    x, w, b = floats(*shape), floats(K, shape[1], R, S), floats(K)
    y = ops.conv2d(x, w, b, stride, padding)
    if direction == "forward":
        benchmark(ops.conv2d, x, w, b, stride, padding)
    else:
        benchmark(ops.conv2d_backward, floats(*y.shape), x, w, b, stride, padding)


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_max_pool2d(benchmark, name, direction):
    shape, *geometry = POOLS[name]
    x = floats(*shape)
    y, argmax = ops.max_pool2d(x, *geometry)
    if direction == "forward":
        benchmark(ops.max_pool2d, x, *geometry)
    else:
        benchmark(ops.max_pool2d_backward, floats(*y.shape), argmax, x.shape, *geometry)


@pytest.mark.parametrize("operation", [ops.avg_pool2d, ops.sum_pool2d], ids=lambda op: op.__name__)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_mean_pools(benchmark, operation, direction):
    x = floats(*BIG)
    if direction == "forward":
        benchmark(operation, x, 2)
    else:
        backward = getattr(ops, operation.__name__ + "_backward")
        benchmark(backward, operation(x, 2), x.shape, 2)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_activation(benchmark, name, direction):
    forward, backward = ACTIVATIONS[name]
    x = floats(*BIG)
    if direction == "forward":
        benchmark(forward, x)
    else:
        benchmark(backward, floats(*BIG), forward(x))


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_linear(benchmark, direction):
    x, w, b = floats(128, 1024), floats(1024, 1024), floats(1024)
    if direction == "forward":
        benchmark(ops.linear, x, w, b)
    else:
        benchmark(ops.linear_backward, floats(128, 1024), x, w, b)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_softmax(benchmark, direction):
    y = ops.softmax(floats(*SCORES))
    if direction == "forward":
        benchmark(ops.softmax, y)
    else:
        benchmark(ops.softmax_backward, floats(*SCORES), y)


def test_dropout(benchmark):
    benchmark(ops.dropout, floats(*BIG), 0.5, 1)


@pytest.mark.parametrize("name", ["cross_entropy", "half_squared_error", "hinge"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_loss(benchmark, name, direction):
    forward, backward = getattr(ops, name), getattr(ops, name + "_backward")
    scores, labels = floats(*SCORES), RNG.integers(0, SCORES[1], SCORES[0])
    if direction == "forward":
        benchmark(forward, scores, labels)
    else:
        benchmark(backward, forward(scores, labels)[1], labels)
