"""Softmax: scores to probabilities.

Source: the article's "output layer"; torch.nn.functional.softmax.
"""

from __future__ import annotations

import numpy as np

from gpuconv.ops.op import Array, elementwise, op
from gpuconv.ops.softmax_launch import config_rowwise


@op
def softmax(x: Array) -> Array:
    """exp(x) / sum(exp(x)) over axis 1, the classes; no score overflows, whatever its size.

    x: floats (N, classes, ...). Returns y, the same shape and dtype, whose classes sum to 1.

    >>> softmax(np.float64([[1000, 1000, -1000]]))
    array([[0.5, 0.5, 0. ]])
    """
    e = np.exp(x - x.max(axis=1, keepdims=True, initial=-np.inf))
    return e / e.sum(axis=1, keepdims=True)


@op
def softmax_backward(dy: Array, y: Array) -> Array:
    """dx = y * (dy - sum of dy*y over axis 1).

    dy, y: floats (N, classes, ...), y being what `softmax` returned.
    """
    return y * (dy - (dy * y).sum(axis=1, keepdims=True))


elementwise(softmax)
elementwise(softmax_backward)


@softmax.check
def softmax_check(x):
    if x.ndim < 2:
        raise ValueError(f"x must have axes (N, classes, ...), got shape {x.shape}")


@softmax.launch
def softmax_launch(runtime, x):
    rows = _rows(runtime, x)
    y = runtime.empty(rows.shape)
    runtime.run(config_rowwise("softmax_forward", *_table(rows)), y=y, x=rows)
    return _unrows(runtime, y, x.shape)


@softmax_backward.launch
def softmax_backward_launch(runtime, dy, y):
    given = {"dy": _rows(runtime, dy), "y": _rows(runtime, y)}
    dx = runtime.empty(given["dy"].shape)
    runtime.run(config_rowwise("softmax_backward", *_table(dx)), dx=dx, **given)
    return _unrows(runtime, dx, dy.shape)


def _rows(runtime, x):
    """(N, classes, ...) as contiguous (N, ..., 1, classes), one row a pixel."""
    if x.ndim != 4:
        x = runtime.contiguous(x).reshape(*x.shape[:2], -1, 1)
    return runtime.as_nhwc(x)


def _table(rows):
    return rows.size // rows.shape[-1], rows.shape[-1]


def _unrows(runtime, rows, shape):
    y = runtime.as_nchw(rows)
    return y if len(shape) == 4 else runtime.contiguous(y).reshape(shape)
