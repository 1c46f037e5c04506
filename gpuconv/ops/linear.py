"""The fully connected layer.

Source: the article's "fully connected layer"; torch.nn.functional.linear.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpuconv.arrays import ShapeOnly
from gpuconv.cpu.matmul import products
from gpuconv.ops import conv2d_launch as config
from gpuconv.ops import linear_launch as small
from gpuconv.ops import tensor_cores
from gpuconv.ops.activation import activate, activation_backward, require_activation
from gpuconv.ops.cost import Cost, nbytes
from gpuconv.ops.op import Array, op, require_floats, require_rank, require_shape


@op
def linear(
    x: Array,
    w: Array,
    b: Array = None,
    activation: str | None = None,
    precision: str = "ieee",
) -> Array:
    """y = activation(x w^T + b).

    x: floats (N, features in). w: (features out, features in). b: (features out,) or None.
    activation, precision: as in conv2d. Returns y (N, features out).
    Raises TypeError for other dtypes, ValueError for shapes that do not fit.
    """
    y = x @ w.T
    if b is not None:
        y += b
    return activate(y, activation, reference=True)


@op
def linear_backward(
    dy: Array,
    x: Array,
    w: Array,
    b: Array = None,
    activation: str | None = None,
    y: Array = None,
    need_dx: bool = True,
    precision: str = "ieee",
) -> tuple[Array, ...]:
    """The gradients of `linear` for x, w and b.

    dy: (N, features out). x, w, b, activation, precision: as linear had them.
    y: what linear returned; needed with an activation. need_dx: False saves a first layer's work.
    Returns (dx, dw, db), shaped as x, w and b; dx is None without need_dx, db where b is None.
    """
    dy = activation_backward(dy, y, activation, reference=True)
    return dy @ w if need_dx else None, dy.T @ x, dy.sum(0) if b is not None else None


@linear_backward.check
def linear_backward_check(dy, x, w, b, activation, y, need_dx, precision):
    linear_check(x, w, b, activation, precision)
    require_floats(("y",), **tensor_cores.as_floats(precision, x=x, dy=dy, y=y))
    shape = (x.shape[0], w.shape[0])
    require_shape({"dy": shape, "y": shape}, dy=dy, y=y)
    if activation is not None and y is None:
        raise ValueError(f"activation={activation!r} needs y, what linear returned")


@linear.check
def linear_check(x, w, b, activation, precision):
    tensor_cores.require_precision(precision, activation, x)
    require_floats(("b",), **tensor_cores.as_floats(precision, x=x), w=w, b=b)
    require_rank(2, "(N, features in)", x=x)
    require_rank(2, "(features out, features in)", w=w)
    if x.shape[1] != w.shape[1]:
        raise ValueError(
            f"x has {x.shape[1]} features, w expects {w.shape[1]} "
            f"(x.shape={x.shape}, w.shape={w.shape})"
        )
    require_shape({"b": w.shape[:1]}, b=b)
    require_activation(activation)


@linear.output
def linear_output(x, w, b, activation, precision):
    return ShapeOnly((x.shape[0], w.shape[0]), x.dtype)


@linear.count
def linear_multiply_adds(x, w, b, activation, precision):
    return x.shape[0] * math.prod(w.shape)


@linear.cost
def linear_cost(x, w, b, activation, precision):
    return Cost(2 * len(x) * w.size, nbytes(x, w, b) + len(x) * len(w) * x.dtype.itemsize)


@linear_backward.cost
def linear_backward_cost(dy, x, w, b, activation, y, need_dx, precision):
    traffic = nbytes(dy, x, w, b) + (nbytes(x, w) if need_dx else 0)
    traffic += nbytes(y) if activation else 0
    return Cost((4 if need_dx else 2) * len(x) * w.size, traffic)


@linear.cpu
def linear_cpu(x, w, b, activation, precision):
    (y,) = products((x, w.T))
    if b is not None:
        y += b
    if activation == "relu":
        return np.maximum(y, 0, out=y)
    return activate(y, activation)


@linear_backward.cpu
def linear_backward_cpu(dy, x, w, b, activation, y, need_dx, precision):
    dy = activation_backward(dy, y, activation)
    db = dy.sum(0) if b is not None else None
    if not need_dx:
        return None, *products((dy.T, x)), db
    return *products((dy, w), (dy.T, x)), db


@linear.launch
def linear_launch(runtime, x, w, b, activation, precision):
    """A convolution of one pixel by one tap, but where the rows are few."""
    conv = config.Conv2dShape.linear(len(x), *reversed(w.shape))
    if tensor_cores.applies(runtime, conv, precision):
        images = tensor_cores.pixels(runtime, x), tensor_cores.pixels(runtime, w)
        y, _ = tensor_cores.forward(runtime, conv, precision, *images, b, activation == "relu")
        y = y.reshape(len(x), len(w))
        return y if activation == "relu" else activate(y, activation)
    if small.applies(len(x), w.shape[::-1]):
        return linear_chain_launch(runtime, x, ((w, b, activation),))[0]
    fused = activation == "relu"
    y, x, w = runtime.empty((conv.N, conv.K)), runtime.contiguous(x), runtime.contiguous(w)
    bias = w if b is None else runtime.contiguous(b)
    runtime.run(config.config_forward(conv, b is not None, fused), y=y, x=x, w=w, b=bias)
    return y if fused else activate(y, activation)


@linear_backward.launch
def linear_backward_launch(runtime, dy, x, w, b, activation, y, need_dx, precision):
    conv = config.Conv2dShape.linear(len(x), *reversed(w.shape))
    if tensor_cores.applies(runtime, conv, precision):
        dy = tensor_cores.before_activation(dy, y, activation, precision)
        dy, images, filters = (tensor_cores.pixels(runtime, rows) for rows in (dy, x, w))
        given = dy, images, filters, b is not None, need_dx
        dx, dw, db = tensor_cores.backward(runtime, conv, precision, *given)
        return dx.reshape(x.shape) if need_dx else None, dw.reshape(w.shape), db
    if small.applies(len(x), w.shape[::-1]):
        masked = activation == "relu"
        dy = runtime.contiguous(dy if masked else activation_backward(dy, y, activation))
        return backward_small(runtime, dy, y if masked else dy, x, w, b, masked, need_dx)
    dy, dx, db = runtime.contiguous(activation_backward(dy, y, activation)), None, None
    if need_dx:
        dx, launches = runtime.empty(x.shape), config.config_backward_data(conv, mask=False)
        runtime.run(launches, dx=dx, dy=dy, w=runtime.contiguous(w), x=dy)  # x is not read
    dw = runtime.empty(w.shape)
    runtime.run(config.config_backward_weight(conv), dw=dw, dy=dy, x=runtime.contiguous(x))
    if b is not None:
        db = runtime.empty(conv.K)
        runtime.run(config.config_backward_bias(conv.N, conv.K), db=db, dy=dy)
    return dx, dw, db


def backward_small(runtime, dy, y, x, w, b, masked, need_dx):
    """(dx, dw, db) by config_backward of linear_launch.py."""
    (rows, features_in), features_out = x.shape, len(w)
    dw, db = runtime.empty(w.shape), runtime.empty(features_out)
    dx = runtime.empty(x.shape if need_dx else 1)
    launches = small.config_backward(
        rows, features_in, features_out, b is not None, masked, need_dx
    )
    read = {"dy": dy, "y": y, "x": x, "w": w}
    read = {name: runtime.contiguous(array) for name, array in read.items()}
    runtime.run(launches, dx=dx, dw=dw, db=db, **read)
    return dx if need_dx else None, dw, db if b is not None else None


@op
def linear_chain(x: Array, layers: tuple[Any, ...]) -> tuple[Array, ...]:
    """Fully connected layers in a row: what each returns, as `linear` of the one before.

    layers: (w, b, activation) each, at most four, of few features; activation None or "relu", of
    the last any.
    """
    found = []
    for w, b, activation in layers:
        x = linear.definition(x, w, b, activation)
        found.append(x)
    return tuple(found)


@linear_chain.launch
def linear_chain_launch(runtime, x, layers):
    *ys, y = _chain(runtime, x, layers)
    activation = layers[-1][2]
    return *ys, y if activation in (None, "relu") else activate(y, activation)


def _chain(runtime, x, layers):
    """The outputs of layers that linear_launch allows, by one kernel."""
    features = (x.shape[1], *(len(w) for w, *_ in layers))
    biases = tuple(b is not None for _, b, _ in layers)
    relus = tuple(activation == "relu" for *_, activation in layers)
    ys = tuple(runtime.empty((len(x), n)) for n in features[1:])
    arrays = {"x": runtime.contiguous(x)}
    for i in range(small.MAX_LAYERS):
        w, b, _ = layers[min(i, len(layers) - 1)]
        arrays[f"w{i}"] = w = runtime.contiguous(w)
        arrays[f"b{i}"] = w if b is None else runtime.contiguous(b)
        arrays[f"y{i}"] = ys[i] if i < len(ys) else runtime.empty(1)
    runtime.run(small.config_chain(len(x), features, biases, relus), **arrays)
    return ys
