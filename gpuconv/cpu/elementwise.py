"""Element-by-element loops, cut into one contiguous shard for each thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv.cpu.compiled import compiled, inner
from gpuconv.threads import over_shards

# Lets the compiler sum in vector lanes; the order is fixed when the code is compiled, so results
# repeat. NaN and inf keep their meaning, unlike with fastmath=True.
REORDER = {"reassoc", "contract"}
# Values that a loop over memory reads, per thread: with fewer, another thread costs more than it
# saves. A LeNet step at batch 8 takes 0.68 ms, with half of all grains 0.80 and with twice 0.68; at
# batch 64 1.75, 1.80 and 1.86.
GRAIN = 1 << 16
# The same for multiply-adds of convolutions: with four times as many a LeNet step at batch 64 takes
# 2.02 ms, with these 1.75.
FMA_GRAIN = 1 << 20


def elementwise(function: Callable[..., Any], *inputs: np.ndarray) -> np.ndarray:
    """y, shaped like the first input: function(*shards of inputs, shard of y), on all threads."""
    flat = [contiguous(a).reshape(-1) for a in inputs]
    y = np.empty(inputs[0].shape, inputs[0].dtype)
    over_shards(function, [*flat, y.reshape(-1)], grain=GRAIN)
    return y


def contiguous(a: np.ndarray) -> np.ndarray:
    """`a` in C order, aligned and writable, as compiled loops need it; copied only if it is not."""
    return a if a.flags.carray else np.require(a, requirements=["C", "A", "W"])


@inner(fastmath=REORDER)
def total_of(x):
    """The sum of all values, in float64."""
    total = 0.0
    for i in range(len(x)):
        total += np.float64(x[i])
    return total


@compiled
def relu_backward(dy, y, dx):
    for i in range(dx.size):
        dx[i] = 0 if y[i] <= 0 else dy[i]


@compiled
def relu_backward_into(dy, y):
    """relu_backward, in dy's memory. With one array fewer the compiler sees that none overlap, and
    uses vectors.
    """
    for i in range(dy.size):
        dy[i] = 0 if y[i] <= 0 else dy[i]


@compiled
def add_relu(a, b, y):
    zero = y.dtype.type(0)
    for i in range(y.size):
        total = a[i] + b[i]
        y[i] = zero if total < zero else total


@compiled
def tanh_backward(dy, y, dx, amplitude, slope):
    for i in range(dx.size):
        dx[i] = dy[i] * slope * (amplitude - y[i] * y[i] / amplitude)


@compiled
def sigmoid_backward(dy, y, dx):
    for i in range(dx.size):
        dx[i] = dy[i] * y[i] * (1 - y[i])


@compiled
def dropout(x, y, first, seed, threshold, scale):
    for i in range(x.size):
        z = np.uint64(seed + np.uint64(first + i + 1) * np.uint64(0x9E3779B97F4A7C15))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
        y[i] = x[i] * scale if (z >> np.uint64(32)) >= threshold else 0
