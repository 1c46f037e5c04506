"""Average pooling to an output size, whatever the input's; size 1 is global average pooling.

Source: torch.nn.functional.adaptive_avg_pool2d; Lin et al. 2013 (global).
"""

from __future__ import annotations

import numpy as np

from gpuconv.arguments import pair
from gpuconv.arrays import ShapeOnly
from gpuconv.ops.cost import moved
from gpuconv.ops.op import (
    Array,
    Shape,
    Size,
    op,
    require_floats,
    require_image_shape,
    require_rank,
    require_shape,
)
from gpuconv.ops.pool2d_launch import (
    config_adaptive_avg_pool2d,
    config_adaptive_avg_pool2d_backward,
)


@op
def adaptive_avg_pool2d(x: Array, output_size: Size) -> Array:
    """y[p, q]: the mean of rows floor(p H/P) to ceil((p+1) H/P), and columns alike.

    x: floats (N, C, H, W). output_size: P = Q, or (P, Q); it may be larger than the input, whose
    pixels are then repeated. Returns y (N, C, P, Q), x's dtype.

    >>> adaptive_avg_pool2d(np.float64([[[[1, 2, 3]]]]), (1, 2))
    array([[[[1.5, 2.5]]]])
    """
    size = pair("output_size", output_size, 1)
    y = np.empty((*x.shape[:2], *size), x.dtype)
    for outputs, pixels in bins(x.shape, size):
        y[outputs] = x[pixels].mean((2, 3), keepdims=True)
    return y


@op
def adaptive_avg_pool2d_backward(dy: Array, x_shape: Shape) -> Array:
    """Each pixel's gradient: the sum over the outputs it is part of, of dy / (pixels of that one).

    dy: floats (N, C, P, Q). x_shape: (N, C, H, W). Returns dx, dy's dtype, of x_shape.
    """
    dx = np.zeros(x_shape, dy.dtype)
    for outputs, pixels in bins(x_shape, dy.shape[2:]):
        part = dx[pixels]
        count = dy.dtype.type(part.shape[2] * part.shape[3])
        part += (dy[outputs] / count).sum((2, 3), keepdims=True)
    return dx


def bins(x_shape, size):
    """(outputs, pixels), as slices of (N, C, P, Q) and (N, C, H, W): these outputs are all the mean
    of these pixels.
    """
    columns = _bins(x_shape[3], size[1])
    for p, rows in _bins(x_shape[2], size[0]):
        for q, across in columns:
            yield (..., p, q), (..., rows, across)


def _bins(length, outputs):
    """The same along one axis. Where outputs are many, neighbours share their pixels: there are
    fewer than two bins a pixel.
    """
    found, first = [], 0
    while first < outputs:
        begin, end = first * length // outputs, -(-(first + 1) * length // outputs)
        # the last with this begin and this end: p * length < (begin + 1) * outputs, and
        # (p + 1) * length <= end * outputs
        last = min(-(-(begin + 1) * outputs // length) - 1, end * outputs // length - 1)
        found.append((slice(first, last + 1), slice(begin, end)))
        first = last + 1
    return found


adaptive_avg_pool2d.stores_16 = adaptive_avg_pool2d_backward.stores_16 = True


@adaptive_avg_pool2d.output
def adaptive_avg_pool2d_output(x, output_size):
    return ShapeOnly((*x.shape[:2], *pair("output_size", output_size, 1)), x.dtype)


@adaptive_avg_pool2d.cost
def adaptive_avg_pool2d_cost(x, output_size):
    return moved(x, adaptive_avg_pool2d_output(x, output_size))


@adaptive_avg_pool2d_backward.cost
def adaptive_avg_pool2d_backward_cost(dy, x_shape):
    return moved(dy, ShapeOnly(x_shape, dy.dtype))


@adaptive_avg_pool2d.check
def adaptive_avg_pool2d_check(x, output_size):
    require_floats(x=x)
    require_rank(4, "(N, C, H, W)", x=x)
    pair("output_size", output_size, 1)
    _require_pixels(x.shape)


@adaptive_avg_pool2d_backward.check
def adaptive_avg_pool2d_backward_check(dy, x_shape):
    require_floats(dy=dy)
    require_rank(4, "(N, C, P, Q)", dy=dy)
    require_image_shape(x_shape)
    require_shape({"dy": (*x_shape[:2], *dy.shape[2:])}, dy=dy)
    _require_pixels(x_shape)


def _require_pixels(x_shape):
    if min(x_shape[2:]) < 1:
        raise ValueError(f"an image without pixels has no mean; its shape is {x_shape}")


@adaptive_avg_pool2d.launch
def adaptive_avg_pool2d_launch(runtime, x, output_size):
    y = adaptive_avg_pool2d_output(x, output_size)
    return runtime.image(config_adaptive_avg_pool2d(x.shape, y.shape[2:]), "y", y.shape, x=x)


@adaptive_avg_pool2d_backward.launch
def adaptive_avg_pool2d_backward_launch(runtime, dy, x_shape):
    return runtime.image(
        config_adaptive_avg_pool2d_backward(tuple(x_shape), dy.shape[2:]), "dx", x_shape, dy=dy
    )
