"""Two-dimensional convolution as ConvNets have it: cross-correlation, the filter is not flipped.

Source: the article's "convolution step"; ONNX Conv; torch.nn.functional.conv2d.
"""

from __future__ import annotations

import math

import numpy as np

from gpuconv.arguments import whole
from gpuconv.arrays import ShapeOnly
from gpuconv.cpu import conv as fast
from gpuconv.ops import conv2d_launch as config
from gpuconv.ops import conv2d_launch_small as small
from gpuconv.ops import tensor_cores
from gpuconv.ops.activation import activate, activation_backward, require_activation
from gpuconv.ops.add import add
from gpuconv.ops.cost import Cost, image, multiply_adds, nbytes
from gpuconv.ops.linear import linear, linear_backward
from gpuconv.ops.op import (
    Array,
    Padding,
    Size,
    op,
    require_floats,
    require_rank,
    require_shape,
)
from gpuconv.ops.relu import relu_backward
from gpuconv.shapes import window


@op
def conv2d(
    x: Array,
    w: Array,
    b: Array = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    activation: str | None = None,
    precision: str = "ieee",
) -> Array:
    """The activation of each filter's sum of products with the image, and its bias.

    y[n, k, p, q] = activation(b[k] + sum over c, r, s of w[k, c, r, s] * x[n, c, h, v]), where
    h = p*stride - padding + r*dilation, v likewise of q and s, and x is 0 outside the image.
    x: floats (N, C, H, W). w: (K, C/groups, R, S). b: (K,) or None. All of one dtype.
    stride, dilation: an int or a pair. padding: an int, a pair, ((top, bottom), (left, right)),
    "valid" (the article's narrow convolution), "full" (its wide one) or "same".
    groups: the channels are cut into this many groups, each with K/groups filters of its own.
    activation: None, "relu", "tanh", "scaled_tanh" or "sigmoid".
    precision: "ieee", or on sim and cuda "tf32", "bf16" or "fp16" (gpuconv/ops/tensor_cores.py).
    Returns y (N, K, P, Q).
    Raises TypeError for other dtypes, ValueError for shapes that do not fit.

    >>> x, w = np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2))
    >>> conv2d(x, w)[0, 0]
    array([[4., 4.],
           [4., 4.]])
    """
    (N, C, H, W), (K, _, R, S) = x.shape, w.shape
    geometry = window((R, S), stride, padding, dilation)
    y = np.zeros((N, K, *geometry.output_size(H, W)), x.dtype)
    for k, c in _groups(K, C, groups):
        for r, s, out, pixels in geometry.taps(H, W):
            y[:, k][out] += np.einsum(
                "kc,nchw->nkhw", w[k, :, r, s], x[:, c][pixels], optimize=True
            )
    if b is not None:
        y += b[:, None, None]
    return activate(y, activation, reference=True)


@op
def conv2d_backward(
    dy: Array,
    x: Array,
    w: Array,
    b: Array = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    activation: str | None = None,
    y: Array = None,
    need_dx: bool = True,
    rest: Array = None,
    rectify: bool = False,
    precision: str = "ieee",
) -> tuple[Array, ...]:
    """The gradients of `conv2d` for x, w and b.

    dy: (N, K, P, Q). x, w, b, stride, padding, dilation, groups, activation, precision: as conv2d
    had them.
    y: what conv2d returned; needed with an activation. need_dx: False saves a first layer's work.
    rest: the gradient of x from elsewhere, added to dx, or None. rectify: x is the output of a
    ReLU, and dx becomes the gradient of its input: 0 where x <= 0.
    Returns (dx, dw, db), shaped as x, w and b; dx is None without need_dx, db where b is None.
    """
    (_, C, H, W), (K, _, R, S) = x.shape, w.shape
    dy = activation_backward(dy, y, activation, reference=True)
    dx, dw = np.zeros(x.shape, x.dtype), np.zeros(w.shape, w.dtype)
    for k, c in _groups(K, C, groups):
        for r, s, out, pixels in window((R, S), stride, padding, dilation).taps(H, W):
            dw[k, :, r, s] = np.einsum(
                "nkhw,nchw->kc", dy[:, k][out], x[:, c][pixels], optimize=True
            )
            dx[:, c][pixels] += np.einsum(
                "kc,nkhw->nchw", w[k, :, r, s], dy[:, k][out], optimize=True
            )
    db = dy.sum((0, 2, 3)) if b is not None else None
    return _completed(dx, x, rest, rectify) if need_dx else None, dw, db


def _completed(dx, x, rest, rectify):
    dx = dx if rest is None else dx + rest
    return np.where(x <= 0, np.zeros((), dx.dtype), dx) if rectify else dx


def _groups(K, C, groups):
    """The filters and the channels of each group, as slices."""
    for g in range(groups):
        yield (
            slice(g * K // groups, (g + 1) * K // groups),
            slice(g * C // groups, (g + 1) * C // groups),
        )


def y_shape(x, w, *options):
    """(N, K, P, Q), which the window of these options gives; ValueError where none fits x."""
    return x.shape[0], w.shape[0], *window(w.shape[2:], *options[:3]).output_size(*x.shape[2:])


@conv2d_backward.check
def conv2d_backward_check(dy, x, w, b, *options):
    activation, y, _, rest, _, precision = options[-6:]
    require_conv2d(x, w, b, *options[:-5], precision)
    arrays = {"x": x, "dy": dy, "y": y, "rest": rest}
    require_floats(("y", "rest"), **tensor_cores.as_floats(precision, **arrays))
    shape = y_shape(x, w, *options)
    require_shape({"dy": shape, "y": shape, "rest": x.shape}, dy=dy, y=y, rest=rest)
    if activation is not None and y is None:
        raise ValueError(f"activation={activation!r} needs y, what conv2d returned")


@conv2d.check
def require_conv2d(x, w, b, stride, padding, dilation, groups, activation=None, precision="ieee"):
    """TypeError or ValueError unless these are arguments of a convolution."""
    tensor_cores.require_precision(precision, activation, x)
    require_floats(("b",), **tensor_cores.as_floats(precision, x=x), w=w, b=b)
    require_rank(4, "(N, C, H, W)", x=x)
    require_rank(4, "(K, C/groups, R, S)", w=w)
    C, (K, filter_channels, _, _) = x.shape[1], w.shape
    whole("groups", groups)
    if C % groups or K % groups:
        raise ValueError(
            f"groups={groups} must divide the {C} channels of x and the {K} filters of w"
        )
    if filter_channels * groups != C:
        raise ValueError(
            f"x has {C} channels, w expects {filter_channels} per group "
            f"(x.shape={x.shape}, w.shape={w.shape}, groups={groups})"
        )
    require_shape({"b": (K,)}, b=b)
    require_activation(activation)
    y_shape(x, w, stride, padding, dilation)


@conv2d.output
def conv2d_output(x, w, b, *options):
    return ShapeOnly(y_shape(x, w, *options), x.dtype)


@conv2d.count
def conv2d_multiply_adds(x, w, b, *options):
    return math.prod(y_shape(x, w, *options)) * math.prod(w.shape[1:])


@conv2d.cost
def conv2d_cost(x, w, b, *options):
    geometry = window(w.shape[2:], *options[:3])
    traffic = image(x, geometry) + nbytes(w, b, conv2d_output(x, w, b, *options))
    return Cost(2 * multiply_adds(x, w, geometry), traffic)


@conv2d_backward.cost
def conv2d_backward_cost(dy, x, w, b, *options):
    geometry, (activation, y, need_dx, rest, *_) = window(w.shape[2:], *options[:3]), options[-6:]
    traffic = nbytes(dy, w, b) + image(x, geometry) + (nbytes(x, w, rest) if need_dx else 0)
    traffic += nbytes(y) if activation else 0
    return Cost((4 if need_dx else 2) * multiply_adds(x, w, geometry), traffic)


@conv2d.cpu
def conv2d_cpu(x, w, b, stride, padding, dilation, groups, activation, precision):
    geometry = window(w.shape[2:], stride, padding, dilation)
    fused = activation == "relu"
    y = fast.forward(x, w, b, geometry, groups, "relu" if fused else None)
    return y if fused else activate(y, activation)


@conv2d_backward.cpu
def conv2d_backward_cpu(
    dy, x, w, b, stride, padding, dilation, groups, activation, y, need_dx, rest, rectify, precision
):
    dy = activation_backward(dy, y, activation)
    geometry = window(w.shape[2:], stride, padding, dilation)
    dx, dw, db = fast.backward(dy, x, w, geometry, groups, need_dx)
    if need_dx:
        dx = _completed(dx, x, rest, rectify)
    return dx, dw, db if b is not None else None


@conv2d.launch
def conv2d_launch(runtime, x, w, b, stride, padding, dilation, groups, activation, precision):
    geometry = window(w.shape[2:], stride, padding, dilation)
    conv = config.Conv2dShape.of(x.shape, w.shape, geometry, groups)
    if tensor_cores.applies(runtime, conv, precision):
        y, _ = tensor_cores.forward(runtime, conv, precision, x, w, b, activation == "relu")
        return y if activation == "relu" else activate(y, activation)
    if conv.is_linear:
        y = linear(_rows(runtime, x), _rows(runtime, w), b, activation)
        return runtime.as_nchw(y.reshape(conv.N, 1, 1, conv.K))
    fused = activation == "relu"
    y, filters = runtime.empty((conv.N, conv.P, conv.Q, conv.K)), runtime.as_nhwc(w)
    bias = filters if b is None else runtime.contiguous(b)
    if small.applies(conv):
        images, last = runtime.dense(x)
        launches = small.config_forward(conv, b is not None, fused, None, last, True)
        runtime.run(launches, y=y, argmax=runtime.empty(1, np.uint8), x=images, w=filters, b=bias)
        y = runtime.as_nchw(y)
        return y if fused else activate(y, activation)
    launches = config.config_forward(conv, b is not None, fused)
    runtime.run(launches, y=y, x=runtime.as_nhwc(x), w=filters, b=bias)
    y = runtime.as_nchw(y)
    return y if fused else activate(y, activation)


@conv2d_backward.launch
def conv2d_backward_launch(
    runtime,
    dy,
    x,
    w,
    b,
    stride,
    padding,
    dilation,
    groups,
    activation,
    y,
    need_dx,
    rest,
    rectify,
    precision,
):
    geometry = window(w.shape[2:], stride, padding, dilation)
    conv = config.Conv2dShape.of(x.shape, w.shape, geometry, groups)
    if tensor_cores.applies(runtime, conv, precision):
        dy = tensor_cores.before_activation(dy, y, activation, precision)
        given = dy, x, w, b is not None, need_dx, rest, rectify
        return tensor_cores.backward(runtime, conv, precision, *given)
    if conv.is_linear:
        rows, y_rows = _rows(runtime, x), None if y is None else _rows(runtime, y)
        given = _rows(runtime, dy), rows, _rows(runtime, w), b, activation, y_rows, need_dx
        dx, dw, db = linear_backward(*given)
        if need_dx and rest is not None:
            dx = add(dx, _rows(runtime, rest))
        dx = relu_backward(dx, rows) if need_dx and rectify else dx
        images = (conv.N, conv.H, conv.W, conv.C), (conv.K, conv.R, conv.S, conv.C)
        dx = runtime.as_nchw(dx.reshape(images[0])) if need_dx else None
        return dx, runtime.as_nchw(dw.reshape(images[1])), db
    if small.applies(conv):
        masked = activation == "relu"
        dy = dy if masked else activation_backward(dy, y, activation)
        passed = (dy, y) if masked else (dy, dy)
        options = masked, need_dx, rest, rectify
        return backward_small(runtime, conv, *passed, None, None, x, w, b, *options)
    dy, x = runtime.as_nhwc(activation_backward(dy, y, activation)), runtime.as_nhwc(x)
    dx, db = None, None
    if need_dx:
        dx = runtime.empty((conv.N, conv.H, conv.W, conv.C))
        launches = config.config_backward_data(conv, rectify, rest is not None)
        more = {} if rest is None else {"onto": runtime.as_nhwc(rest)}
        runtime.run(launches, dx=dx, dy=dy, w=runtime.as_nhwc(w), x=x, **more)
        dx = runtime.as_nchw(dx)
    dw = runtime.empty((conv.K, conv.R, conv.S, conv.channels))
    runtime.run(config.config_backward_weight(conv), dw=dw, dy=dy, x=x)
    if b is not None:
        db = runtime.empty(conv.K)
        launches = config.config_backward_bias(conv.N * conv.P * conv.Q, conv.K)
        runtime.run(launches, db=db, dy=dy)
    return dx, runtime.as_nchw(dw), db


def _rows(runtime, array):
    """Images as rows, each its pixels' channels."""
    return runtime.as_nhwc(array).reshape(len(array), -1)


def backward_small(
    runtime, conv, dy, y, argmax, pool, x, w, b, masked, need_dx, rest=None, rectify=False
):
    """(dx, dw, db) by conv2d_launch_small, which must apply; pool, argmax: of a max-pool, or None;
    y is read where `masked` or pooled.
    """
    dw = runtime.empty((conv.K, conv.R, conv.S, conv.channels))
    dx = runtime.empty((conv.N, conv.H, conv.W, conv.C) if need_dx else 1)
    db = runtime.empty(conv.K)
    (dy, dy_last), (y, y_last), (x, x_last) = map(runtime.dense, (dy, y, x))
    if pool is None:
        argmax = runtime.empty(1, np.uint8)
    elif y_last:
        argmax = runtime.as_nhwc(argmax)
    layouts, end = (dy_last, y_last, x_last), (rest is not None, rectify)
    launches = small.config_backward(conv, b is not None, masked, pool, need_dx, *layouts, *end)
    arrays = {"dx": dx, "dw": dw, "db": db, "dy": dy, "y": y, "argmax": argmax, "x": x}
    arrays["onto"] = x if rest is None else runtime.as_nhwc(rest)
    runtime.run(launches, w=runtime.as_nhwc(w), **arrays)
    found = runtime.as_nchw(dx) if need_dx else None, runtime.as_nchw(dw)
    return *found, db if b is not None else None
