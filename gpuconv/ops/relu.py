"""The rectifier, max(x, 0). Source: the article's "non linearity (ReLU)"; Nair and Hinton 2010."""

from __future__ import annotations

import numpy as np

from gpuconv.cpu import elementwise as fast
from gpuconv.ops.op import Array, elementwise, op


@op
def relu(x: Array) -> Array:
    """max(x, 0), element by element.

    x: floats of any shape. Returns y, the same shape and dtype. A NaN stays NaN.

    >>> relu(np.float32([-1, 0, 2]))
    array([0., 0., 2.], dtype=float32)
    """
    return np.maximum(x, 0)


@op
def relu_backward(dy: Array, y: Array) -> Array:
    """dx = dy where y > 0, else 0: the derivative at 0 is 0.

    dy, y: floats of one shape, y being what `relu` returned. Where y is NaN, dy passes, as in
    PyTorch.
    """
    return np.where(y <= 0, np.zeros((), dy.dtype), dy)


elementwise(relu, "relu.cu", lambda x, y: np.maximum(x, 0, out=y))
elementwise(relu_backward, "relu.cu", fast.relu_backward)
relu.onnx = "Relu", {}
