"""Two-dimensional max pooling.

Source: the article's "pooling step"; ONNX MaxPool; torch.nn.functional.max_pool2d.
"""

from __future__ import annotations

import numpy as np

from gpuconv.arguments import LARGEST
from gpuconv.arrays import ShapeOnly
from gpuconv.cpu import pool as fast
from gpuconv.ops.avg_pool2d import pooled, require_pooled_shape
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
)
from gpuconv.ops.pool2d_launch import config_max_pool2d, config_max_pool2d_backward
from gpuconv.shapes import window


@op
def max_pool2d(
    x: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> tuple[Array, ...]:
    """The largest value in each window, and where it was.

    x: floats (N, C, H, W). kernel_size, stride (None: kernel_size), dilation: an int or a pair;
    padding as in conv2d, at most half the window.
    Returns y (N, C, P, Q), x's dtype, and argmax of the same shape: r*S + s of the largest, in
    uint8, or in int32 where a window has more than 255 taps.
    A NaN counts as larger than every number; among equals it is the first in row order; padding
    is never chosen. A window with no tap inside the image gives -infinity and argmax -1 (255).
    Raises ValueError where no window fits x.

    >>> x = np.float32([[1, 1, 2, 4], [5, 6, 7, 8], [3, 2, 1, 0], [1, 2, 3, 4]])
    >>> max_pool2d(x[None, None], 2)[0][0, 0]
    array([[6., 8.],
           [3., 4.]], dtype=float32)
    """
    geometry = window(kernel_size, stride, padding, dilation, ceil_mode)
    y = np.full((*x.shape[:2], *geometry.output_size(*x.shape[2:])), -np.inf, x.dtype)
    none = np.array(-1).astype(geometry.tap_type)
    argmax = np.full(y.shape, none)
    for r, s, out, pixels in geometry.taps(*x.shape[2:]):
        value = x[pixels]
        larger = (argmax[out] == none) | (value > y[out]) | np.isnan(value)
        y[out] = np.where(larger, value, y[out])
        argmax[out] = np.where(larger, r * geometry.kernel_size[1] + s, argmax[out])
    return y, argmax


@op
def max_pool2d_backward(
    dy: Array,
    argmax: Array,
    x_shape: Shape,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Array:
    """Each dy goes to the pixel that was its window's largest.

    dy, argmax: (N, C, P, Q), as max_pool2d returned them. x_shape: (N, C, H, W). The rest as
    max_pool2d had it. Returns dx, dy's dtype, of x_shape.
    """
    geometry = window(kernel_size, stride, padding, dilation, ceil_mode)
    dx = np.zeros(x_shape, dy.dtype)
    for r, s, out, pixels in geometry.taps(*x_shape[2:]):
        largest = argmax[out] == r * geometry.kernel_size[1] + s
        dx[pixels] += np.where(largest, dy[out], np.zeros((), dy.dtype))
    return dx


max_pool2d.stores_16 = max_pool2d_backward.stores_16 = True


@max_pool2d.check
def max_pool2d_check(x, *options):
    require_floats(x=x)
    require_rank(4, "(N, C, H, W)", x=x)
    require_pool(x.shape, window(*options))


@max_pool2d_backward.check
def max_pool2d_backward_check(dy, argmax, x_shape, *options):
    geometry = window(*options)
    require_floats(dy=dy)
    require_rank(4, "(N, C, P, Q)", dy=dy, argmax=argmax)
    require_image_shape(x_shape)
    require_pool(x_shape, geometry)
    require_pooled_shape(x_shape, geometry, dy=dy, argmax=argmax)
    if argmax.dtype != geometry.tap_type:
        raise TypeError(
            f"argmax must be {geometry.tap_type}, as max_pool2d returned it, got {argmax.dtype}"
        )


def require_pool(x_shape, geometry):
    """ValueError unless the window fits (N, C, H, W) and has a tap for every largest value."""
    geometry.output_size(*x_shape[2:])
    if geometry.taps_count > LARGEST:
        raise ValueError(f"a window of {geometry.taps_count} taps; at most {LARGEST} count")
    pads = geometry.pads(*x_shape[2:])
    if any(max(side) > extent // 2 for side, extent in zip(pads, geometry.extent, strict=True)):
        raise ValueError(
            f"padding {max(map(max, pads))} is more than half of the window's "
            f"{geometry.extent} pixels: windows of nothing but padding have no largest value; "
            f"use less padding"
        )


@max_pool2d.output
def max_pool2d_output(x, *options):
    y, geometry = pooled(x, *options), window(*options)
    return y, ShapeOnly(y.shape, geometry.tap_type)


@max_pool2d.cost
def max_pool2d_cost(x, *options):
    return Cost(0, image(x, window(*options)) + nbytes(*max_pool2d_output(x, *options)))


@max_pool2d_backward.cost
def max_pool2d_backward_cost(dy, argmax, x_shape, *options):
    return moved(dy, argmax, ShapeOnly(x_shape, dy.dtype))


@max_pool2d.cpu
def max_pool2d_cpu(x, *options):
    geometry = window(*options)
    if geometry.mostly_outside(*x.shape[2:]):
        return max_pool2d.definition(x, *options)
    return fast.max_forward(x, geometry)


@max_pool2d_backward.cpu
def max_pool2d_backward_cpu(dy, argmax, x_shape, *options):
    geometry = window(*options)
    if geometry.mostly_outside(*x_shape[2:]):
        return max_pool2d_backward.definition(dy, argmax, x_shape, *options)
    return fast.max_backward(dy, argmax, x_shape, geometry)


@max_pool2d.launch
def max_pool2d_launch(runtime, x, *options):
    geometry = window(*options)
    N, C, P, Q = pooled(x, *options).shape
    shape = N, P, Q, C
    y, argmax = runtime.empty(shape, x.dtype), runtime.empty(shape, geometry.tap_type)
    config = config_max_pool2d(x.shape, geometry)
    runtime.run(config, y=y, argmax=argmax, x=runtime.as_nhwc(x))
    return runtime.as_nchw(y), runtime.as_nchw(argmax)


@max_pool2d_backward.launch
def max_pool2d_backward_launch(runtime, dy, argmax, x_shape, *options):
    config = config_max_pool2d_backward(tuple(x_shape), window(*options))
    return runtime.image(config, "dx", x_shape, dy=dy, argmax=argmax)
