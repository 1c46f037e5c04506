"""The logistic function, 1 / (1 + exp(-x)). Source: the article."""

from __future__ import annotations

import numpy as np

from gpuconv.cpu import elementwise as fast
from gpuconv.ops.op import Array, elementwise, op

PIECE = 1 << 13  # elements at a time: the definition's temporaries stay in the cache


@op
def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), element by element, without overflow for any x.

    x: floats of any shape; returns the same shape and dtype.
    """
    small = np.exp(-np.abs(x))  # never above 1
    return np.where(x >= 0, 1, small) / (1 + small)


@op
def sigmoid_backward(dy: Array, y: Array) -> Array:
    """dx = dy * y * (1 - y). dy, y: floats of one shape, y being what `sigmoid` returned."""
    return dy * y * (1 - y)


def _logistic(x, y):
    for i in range(0, x.size, PIECE):
        y[i : i + PIECE] = sigmoid.definition(x[i : i + PIECE])


elementwise(sigmoid, "activations.cu", _logistic)
elementwise(sigmoid_backward, "activations.cu", fast.sigmoid_backward)
sigmoid.onnx = "Sigmoid", {}
