"""The hyperbolic tangent, and LeCun's scaled form of it.

Source: the article; LeCun et al. 1998, "Efficient BackProp".
"""

from __future__ import annotations

import numpy as np

from gpuconv.cpu import elementwise as fast
from gpuconv.ops.op import Array, elementwise, op

AMPLITUDE, SLOPE = 1.7159, 2 / 3  # chosen by LeCun so that the unit maps +-1 to +-1


@op
def tanh(x: Array) -> Array:
    """tanh(x), element by element. x: floats of any shape; returns the same shape and dtype."""
    return np.tanh(x)


@op
def tanh_backward(dy: Array, y: Array) -> Array:
    """dx = dy * (1 - y*y). dy, y: floats of one shape, y being what `tanh` returned."""
    return dy * (1 - y * y)


@op
def scaled_tanh(x: Array) -> Array:
    """1.7159 * tanh(2x/3), element by element: LeNet-5's squashing function.

    x: floats of any shape; returns the same shape and dtype.
    """
    return (AMPLITUDE * np.tanh(SLOPE * x)).astype(x.dtype)


@op
def scaled_tanh_backward(dy: Array, y: Array) -> Array:
    """dx = dy * 2/3 * (1.7159 - y*y/1.7159).

    dy, y: floats of one shape, y being what `scaled_tanh` returned.
    """
    return (dy * SLOPE * (AMPLITUDE - y * y / AMPLITUDE)).astype(dy.dtype)


def _scaled(x, y):
    np.multiply(x, SLOPE, out=y)
    np.tanh(y, out=y)
    np.multiply(y, AMPLITUDE, out=y)


def _gradient(amplitude, slope):
    return lambda dy, y, dx: fast.tanh_backward(dy, y, dx, amplitude, slope)


elementwise(tanh, "activations.cu", np.tanh)
elementwise(tanh_backward, "activations.cu", _gradient(1.0, 1.0))
tanh.onnx = "Tanh", {}
elementwise(scaled_tanh, "activations.cu", _scaled)
elementwise(scaled_tanh_backward, "activations.cu", _gradient(AMPLITUDE, SLOPE))
