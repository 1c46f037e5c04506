"""The sum of two branches, and its rectifier in the same pass. Source: He et al. 2015."""

from __future__ import annotations

import numpy as np

from gpuconv.cpu import elementwise as fast
from gpuconv.ops.op import op, require_floats, require_shape


@op
def add(a, b, activation=None):
    """activation(a + b), element by element.

    a, b: floats of one shape. activation: None or "relu". Returns that shape. The gradient of both
    is dy, or relu_backward(dy, y).

    >>> add(np.float32([1, -2]), np.float32([1, 1]), "relu")
    array([2., 0.], dtype=float32)
    """
    return np.maximum(a + b, 0) if activation == "relu" else a + b


@add.check
def _(a, b, activation):
    require_floats("add", a=a, b=b)
    require_shape("add", {"b": a.shape}, b=b)
    if activation not in (None, "relu"):
        raise ValueError(f'add: activation must be None or "relu", got {activation!r}')


@add.cpu
def _(a, b, activation):
    if activation == "relu":
        return fast.elementwise(fast.add_relu, a, b)
    return fast.elementwise(lambda a, b, y: np.add(a, b, out=y), a, b)
