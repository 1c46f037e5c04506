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


elementwise(tanh, tanh_backward, scaled_tanh, scaled_tanh_backward)


@tanh.cpu
def tanh_cpu(x):
    return fast.elementwise(lambda x, y: np.tanh(x, out=y), x)


@scaled_tanh.cpu
def scaled_tanh_cpu(x):
    def scaled(x, y):
        np.multiply(x, SLOPE, out=y)
        np.tanh(y, out=y)
        np.multiply(y, AMPLITUDE, out=y)

    return fast.elementwise(scaled, x)


@tanh_backward.cpu
def tanh_backward_cpu(dy, y):
    return fast.elementwise(lambda dy, y, dx: fast.tanh_backward(dy, y, dx, 1.0, 1.0), dy, y)


@scaled_tanh_backward.cpu
def scaled_tanh_backward_cpu(dy, y):
    return fast.elementwise(
        lambda dy, y, dx: fast.tanh_backward(dy, y, dx, AMPLITUDE, SLOPE), dy, y
    )


@tanh.launch
def tanh_launch(runtime, x):
    return runtime.each("activations.cu", "tanh_forward", "y", x=x)


@tanh_backward.launch
def tanh_backward_launch(runtime, dy, y):
    return runtime.each("activations.cu", "tanh_backward", "dx", dy=dy, y=y)


@scaled_tanh.launch
def scaled_tanh_launch(runtime, x):
    return runtime.each("activations.cu", "scaled_tanh_forward", "y", x=x)


@scaled_tanh_backward.launch
def scaled_tanh_backward_launch(runtime, dy, y):
    return runtime.each("activations.cu", "scaled_tanh_backward", "dx", dy=dy, y=y)
