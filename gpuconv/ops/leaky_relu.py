"""The leaky rectifier, a ReLU with a small slope below 0. Source: Maas, Hannun and Ng 2013."""

from __future__ import annotations

import numpy as np

from gpuconv.cpu import elementwise as fast
from gpuconv.ops.op import Array, elementwise, op


@op
def leaky_relu(x: Array, negative_slope: float = 0.01) -> Array:
    """x where x >= 0, else negative_slope * x, element by element.

    x: floats of any shape. Returns y, the same shape and dtype. A NaN stays NaN.

    >>> leaky_relu(np.float32([-2, 0, 2]), 0.5)
    array([-1.,  0.,  2.], dtype=float32)
    """
    return np.where(x < 0, x.dtype.type(negative_slope) * x, x)


@op
def leaky_relu_backward(dy: Array, x: Array, negative_slope: float = 0.01) -> Array:
    """dx = dy where x > 0, else negative_slope * dy; so also where x is 0 or NaN, as in PyTorch.

    dy, x: floats of one shape, x being what `leaky_relu` was given.
    """
    return np.where(x > 0, dy, dy.dtype.type(negative_slope) * dy)


elementwise(leaky_relu, "leaky_relu.cu")
elementwise(leaky_relu_backward, "leaky_relu.cu")
leaky_relu.onnx = "LeakyRelu", {"alpha": "negative_slope"}


@leaky_relu.cpu
def leaky_relu_cpu(x, negative_slope):
    def scale_negative(x, y):
        np.multiply(x, x.dtype.type(negative_slope), out=y)
        np.copyto(y, x, where=~(x < 0))

    return fast.elementwise(scale_negative, x)


@leaky_relu_backward.cpu
def leaky_relu_backward_cpu(dy, x, negative_slope):
    def scale_negative(dy, x, dx):
        np.multiply(dy, dy.dtype.type(negative_slope), out=dx)
        np.copyto(dx, dy, where=x > 0)

    return fast.elementwise(scale_negative, dy, x)
