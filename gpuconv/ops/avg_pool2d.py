"""Two-dimensional average and sum pooling.

Source: the article's "pooling step"; ONNX AveragePool; torch.nn.functional.avg_pool2d.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from gpuconv.arguments import flag
from gpuconv.arrays import ShapeOnly
from gpuconv.cpu import pool as fast
from gpuconv.ops.cost import Cost, image, moved, nbytes
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
    return total / taps_counted(geometry, x.shape[2:], count_include_pad).astype(x.dtype)


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
    share = dy / taps_counted(geometry, tuple(x_shape[2:]), count_include_pad).astype(dy.dtype)
    return sum_pool2d_backward.definition(
        share, x_shape, kernel_size, stride, padding, dilation, ceil_mode
    )


@lru_cache(maxsize=256)
def taps_counted(geometry, image, include_pad):
    """(P, Q): the taps of each window that are inside the image, or inside it and its padding."""
    axes = zip(image, geometry.pads(*image), geometry.output_size(*image), strict=True)
    counts = []
    for axis, (size, (before, after), outputs) in enumerate(axes):
        starts = np.arange(outputs) * geometry.stride[axis] - before
        low, high = (-before, size + after) if include_pad else (0, size)
        dilation = geometry.dilation[axis]
        first = np.maximum(-((starts - low) // dilation), 0)  # the taps from low on
        end = np.minimum((high - 1 - starts) // dilation + 1, geometry.kernel_size[axis])
        counts.append(np.maximum(end - first, 0))
    total = np.maximum(np.outer(*counts), 1)  # a window of padding alone: 0 / 1, not 0 / 0
    total.flags.writeable = False  # every call shares it
    return total


def pooled(x, *options):
    """The shape-only result of a pool of x."""
    return ShapeOnly((*x.shape[:2], *window(*options).output_size(*x.shape[2:])), x.dtype)


def require_pooled_shape(x_shape, geometry, **arrays):
    """ValueError unless the arrays have the shape of a pool's result for (N, C, H, W)."""
    shape = (*x_shape[:2], *geometry.output_size(*x_shape[2:]))
    require_shape(dict.fromkeys(arrays, shape), **arrays)


# Of the options below five are the window; the sixth, avg_pool2d's alone, is count_include_pad.


@sum_pool2d.check
@avg_pool2d.check
def pool2d_check(x, *options):
    require_floats(x=x)
    require_rank(4, "(N, C, H, W)", x=x)
    window(*options[:5]).output_size(*x.shape[2:])
    _require_flag(*options[5:])


@sum_pool2d_backward.check
@avg_pool2d_backward.check
def pool2d_backward_check(dy, x_shape, *options):
    require_floats(dy=dy)
    require_image_shape(x_shape)
    require_pooled_shape(x_shape, window(*options[:5]), dy=dy)
    _require_flag(*options[5:])


def _require_flag(count_include_pad=True):
    flag("count_include_pad", count_include_pad)


@sum_pool2d.output
@avg_pool2d.output
def pool2d_output(x, *options):
    return pooled(x, *options[:5])


@sum_pool2d.cost
@avg_pool2d.cost
def pool2d_cost(x, *options):
    return Cost(0, image(x, window(*options[:5])) + nbytes(pooled(x, *options[:5])))


@sum_pool2d_backward.cost
@avg_pool2d_backward.cost
def pool2d_backward_cost(dy, x_shape, *options):
    return moved(dy, ShapeOnly(x_shape, dy.dtype))


@sum_pool2d.cpu
def sum_pool2d_cpu(x, *options):
    geometry = window(*options)
    if geometry.mostly_outside(*x.shape[2:]):
        return sum_pool2d.definition(x, *options)
    return fast.sum_forward(x, geometry)


@sum_pool2d_backward.cpu
def sum_pool2d_backward_cpu(dy, x_shape, *options):
    geometry = window(*options)
    if geometry.mostly_outside(*x_shape[2:]):
        return sum_pool2d_backward.definition(dy, x_shape, *options)
    return fast.sum_backward(dy, x_shape, geometry)


@avg_pool2d.cpu
def avg_pool2d_cpu(x, *options):
    y = sum_pool2d_cpu(x, *options[:-1])
    y /= taps_counted(window(*options[:-1]), x.shape[2:], options[-1]).astype(y.dtype)
    return y


@avg_pool2d_backward.cpu
def avg_pool2d_backward_cpu(dy, x_shape, *options):
    counts = taps_counted(window(*options[:-1]), tuple(x_shape[2:]), options[-1])
    return sum_pool2d_backward_cpu(dy / counts.astype(dy.dtype), x_shape, *options[:-1])


for each in (sum_pool2d, sum_pool2d_backward, avg_pool2d, avg_pool2d_backward):
    each.stores_16 = True


@sum_pool2d.launch
@avg_pool2d.launch
def pool2d_launch(runtime, x, *options):
    average = len(options) > 5, *options[5:]
    config = config_avg_pool2d(x.shape, window(*options[:5]), *average)
    return runtime.image(config, "y", pooled(x, *options[:5]).shape, x=x)


@sum_pool2d_backward.launch
@avg_pool2d_backward.launch
def pool2d_backward_launch(runtime, dy, x_shape, *options):
    average = len(options) > 5, *options[5:]
    config = config_avg_pool2d_backward(tuple(x_shape), window(*options[:5]), *average)
    return runtime.image(config, "dx", x_shape, dy=dy)
