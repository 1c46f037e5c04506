"""Two-dimensional average and sum pooling.

Source: the article's "pooling step"; ONNX AveragePool; torch.nn.functional.avg_pool2d.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from gpuconv.arrays import ShapeOnly
from gpuconv.cpu import pool as fast
from gpuconv.ops.cost import Cost, image, nbytes, output
from gpuconv.ops.op import (
    Array,
    Padding,
    Shape,
    Size,
    op,
    require_floats,
    require_image_shape,
    require_rank,
    require_shape,
)
from gpuconv.ops.pool2d_launch import config_avg_pool2d, config_avg_pool2d_backward
from gpuconv.shapes import window


@op
def sum_pool2d(
    x: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Array:
    """The sum of each window.

    x: floats (N, C, H, W). kernel_size, stride (None: kernel_size), padding, dilation, ceil_mode:
    as in conv2d and `Window`. Returns y (N, C, P, Q), x's dtype.
    Raises ValueError where no window fits x.
    """
    geometry = window(kernel_size, stride, padding, dilation, ceil_mode)
    y = np.zeros((*x.shape[:2], *geometry.output_size(*x.shape[2:])), x.dtype)
    for _, _, out, pixels in geometry.taps(*x.shape[2:]):
        y[out] += x[pixels]
    return y


@op
def sum_pool2d_backward(
    dy: Array,
    x_shape: Shape,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Array:
    """Each pixel's gradient: the sum of dy over the windows that cover it.

    dy: (N, C, P, Q). x_shape: (N, C, H, W). The rest as sum_pool2d had it.
    Returns dx, of x_shape and dy's dtype.
    """
    dx = np.zeros(x_shape, dy.dtype)
    for _, _, out, pixels in window(kernel_size, stride, padding, dilation, ceil_mode).taps(
        *x_shape[2:]
    ):
        dx[pixels] += dy[out]
    return dx


@op
def avg_pool2d(
    x: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Array:
    """The mean of each window.

    As `sum_pool2d`, divided by the number of taps on the image and its padding, or with
    count_include_pad=False on the image alone. Taps of a last, partial window (ceil_mode) that
    lie past the padding never count.
    """
    geometry = window(kernel_size, stride, padding, dilation, ceil_mode)
    total = sum_pool2d.definition(x, kernel_size, stride, padding, dilation, ceil_mode)
    return total / _taps_counted(geometry, x.shape[2:], count_include_pad).astype(x.dtype)


@op
def avg_pool2d_backward(
    dy: Array,
    x_shape: Shape,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Array:
    """Each pixel's gradient: the sum over the windows that cover it of dy / (taps counted).

    dy: (N, C, P, Q). x_shape: (N, C, H, W). The rest as avg_pool2d had it.
    Returns dx, of x_shape and dy's dtype.
    """
    geometry = window(kernel_size, stride, padding, dilation, ceil_mode)
    share = dy / _taps_counted(geometry, tuple(x_shape[2:]), count_include_pad).astype(dy.dtype)
    return sum_pool2d_backward.definition(
        share, x_shape, kernel_size, stride, padding, dilation, ceil_mode
    )


@lru_cache(maxsize=256)
def _taps_counted(geometry, image, include_pad):
    """(P, Q): the taps of each window that are inside the image, or inside it and its padding."""
    axes = zip(image, geometry.pads(*image), geometry.output_size(*image), strict=True)
    counts = []
    for axis, (size, (before, after), outputs) in enumerate(axes):
        starts = np.arange(outputs)[:, None] * geometry.stride[axis] - before
        taps = starts + np.arange(geometry.kernel_size[axis]) * geometry.dilation[axis]
        low, high = (-before, size + after) if include_pad else (0, size)
        counts.append(((taps >= low) & (taps < high)).sum(1))
    total = np.maximum(np.outer(*counts), 1)  # a window of padding alone: 0 / 1, not 0 / 0
    total.flags.writeable = False  # every call shares it
    return total


def _require(name, x_shape, dy, geometry):
    require_image_shape(name, x_shape)
    geometry.require(name, *x_shape[2:])
    if dy is not None:
        require_shape(name, {"dy": (*x_shape[:2], *geometry.output_size(*x_shape[2:]))}, dy=dy)


@sum_pool2d.check
def sum_pool2d_check(x, kernel_size, stride, padding, dilation, ceil_mode):
    require_floats("sum_pool2d", x=x)
    require_rank("sum_pool2d", 4, "(N, C, H, W)", x=x)
    _require("sum_pool2d", x.shape, None, window(kernel_size, stride, padding, dilation, ceil_mode))


@avg_pool2d.check
def avg_pool2d_check(x, kernel_size, stride, padding, dilation, ceil_mode, count_include_pad):
    require_floats("avg_pool2d", x=x)
    require_rank("avg_pool2d", 4, "(N, C, H, W)", x=x)
    _require("avg_pool2d", x.shape, None, window(kernel_size, stride, padding, dilation, ceil_mode))


@sum_pool2d_backward.check
def sum_pool2d_backward_check(dy, x_shape, kernel_size, stride, padding, dilation, ceil_mode):
    require_floats("sum_pool2d_backward", dy=dy)
    _require(
        "sum_pool2d_backward",
        x_shape,
        dy,
        window(kernel_size, stride, padding, dilation, ceil_mode),
    )


@avg_pool2d_backward.check
def avg_pool2d_backward_check(
    dy, x_shape, kernel_size, stride, padding, dilation, ceil_mode, count_include_pad
):
    require_floats("avg_pool2d_backward", dy=dy)
    _require(
        "avg_pool2d_backward",
        x_shape,
        dy,
        window(kernel_size, stride, padding, dilation, ceil_mode),
    )


@sum_pool2d.output
def sum_pool2d_output(x, kernel_size, stride, padding, dilation, ceil_mode):
    geometry = window(kernel_size, stride, padding, dilation, ceil_mode)
    return ShapeOnly((*x.shape[:2], *geometry.output_size(*x.shape[2:])), x.dtype)


@avg_pool2d.output
def avg_pool2d_output(x, kernel_size, stride, padding, dilation, ceil_mode, count_include_pad):
    return sum_pool2d_output(x, kernel_size, stride, padding, dilation, ceil_mode)


@sum_pool2d.cost
def sum_pool2d_cost(x, kernel_size, stride, padding, dilation, ceil_mode):
    geometry = window(kernel_size, stride, padding, dilation, ceil_mode)
    return Cost(0, image(x, geometry) + output(x, x.shape[1], geometry))


@avg_pool2d.cost
def avg_pool2d_cost(x, kernel_size, stride, padding, dilation, ceil_mode, count_include_pad):
    return sum_pool2d.work(x, kernel_size, stride, padding, dilation, ceil_mode)


@sum_pool2d_backward.cost
def sum_pool2d_backward_cost(dy, x_shape, kernel_size, stride, padding, dilation, ceil_mode):
    return Cost(0, nbytes(dy) + math.prod(x_shape) * dy.dtype.itemsize)


@avg_pool2d_backward.cost
def avg_pool2d_backward_cost(
    dy, x_shape, kernel_size, stride, padding, dilation, ceil_mode, count_include_pad
):
    return sum_pool2d_backward.work(dy, x_shape, kernel_size, stride, padding, dilation, ceil_mode)


@sum_pool2d.cpu
def sum_pool2d_cpu(x, kernel_size, stride, padding, dilation, ceil_mode):
    return fast.sum_forward(x, window(kernel_size, stride, padding, dilation, ceil_mode))


@sum_pool2d_backward.cpu
def sum_pool2d_backward_cpu(dy, x_shape, kernel_size, stride, padding, dilation, ceil_mode):
    return fast.sum_backward(dy, x_shape, window(kernel_size, stride, padding, dilation, ceil_mode))


@avg_pool2d.cpu
def avg_pool2d_cpu(x, kernel_size, stride, padding, dilation, ceil_mode, count_include_pad):
    geometry = window(kernel_size, stride, padding, dilation, ceil_mode)
    y = fast.sum_forward(x, geometry)
    y /= _taps_counted(geometry, x.shape[2:], count_include_pad).astype(y.dtype)
    return y


@avg_pool2d_backward.cpu
def avg_pool2d_backward_cpu(
    dy, x_shape, kernel_size, stride, padding, dilation, ceil_mode, count_include_pad
):
    geometry = window(kernel_size, stride, padding, dilation, ceil_mode)
    return fast.sum_backward(
        dy / _taps_counted(geometry, tuple(x_shape[2:]), count_include_pad).astype(dy.dtype),
        x_shape,
        geometry,
    )


def _forward(runtime, x, geometry, *options):
    y = runtime.empty((x.shape[0], *geometry.output_size(*x.shape[2:]), x.shape[1]))
    runtime.run(config_avg_pool2d(x.shape, geometry, *options), y=y, x=runtime.as_nhwc(x))
    return runtime.as_nchw(y)


def _backward(runtime, dy, x_shape, geometry, *options):
    N, C, H, W = x_shape
    dx = runtime.empty((N, H, W, C))
    config = config_avg_pool2d_backward((N, C, H, W), geometry, *options)
    runtime.run(config, dx=dx, dy=runtime.as_nhwc(dy))
    return runtime.as_nchw(dx)


@sum_pool2d.launch
def sum_pool2d_launch(runtime, x, kernel_size, stride, padding, dilation, ceil_mode):
    return _forward(runtime, x, window(kernel_size, stride, padding, dilation, ceil_mode), False)


@sum_pool2d_backward.launch
def sum_pool2d_backward_launch(
    runtime, dy, x_shape, kernel_size, stride, padding, dilation, ceil_mode
):
    geometry = window(kernel_size, stride, padding, dilation, ceil_mode)
    return _backward(runtime, dy, x_shape, geometry, False)


@avg_pool2d.launch
def avg_pool2d_launch(
    runtime, x, kernel_size, stride, padding, dilation, ceil_mode, count_include_pad
):
    geometry = window(kernel_size, stride, padding, dilation, ceil_mode)
    return _forward(runtime, x, geometry, True, count_include_pad)


@avg_pool2d_backward.launch
def avg_pool2d_backward_launch(
    runtime, dy, x_shape, kernel_size, stride, padding, dilation, ceil_mode, count_include_pad
):
    geometry = window(kernel_size, stride, padding, dilation, ceil_mode)
    return _backward(runtime, dy, x_shape, geometry, True, count_include_pad)
