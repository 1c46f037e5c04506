"""Convolution, ReLU and max pooling as one operation: the block that the article repeats.

The convolution's output is neither written to memory nor kept for the backward pass.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuconv.cpu import conv_pool as fast
from gpuconv.ops import conv2d_launch_small as small
from gpuconv.ops.conv2d import (
    backward_small,
    conv2d,
    conv2d_backward,
    require_conv2d,
    y_shape,
)
from gpuconv.ops.conv2d_launch import Conv2dShape
from gpuconv.ops.cost import Cost, like, nbytes
from gpuconv.ops.max_pool2d import max_pool2d, max_pool2d_backward, max_pool2d_output, require_pool
from gpuconv.ops.op import Array, Padding, Size, op, require_floats, require_rank, require_shape
from gpuconv.ops.pool2d_launch import (
    config_bias_relu_max_pool2d,
    config_bias_relu_max_pool2d_backward,
    is_2x2,
)
from gpuconv.ops.relu import relu_backward
from gpuconv.shapes import window


@op
def conv2d_relu_max_pool2d(
    x: Array,
    w: Array,
    b: Array = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    pool: tuple[Any, ...] = (2,),
    c_order: bool = False,
) -> tuple[Array, ...]:
    """max_pool2d(conv2d(x, w, b, ..., activation="relu"), *pool).

    x, w, b, stride, padding, dilation, groups: as in conv2d. pool: max_pool2d's arguments after
    its x: (kernel_size, stride, padding, dilation, ceil_mode), later ones may be left out. c_order:
    where a device can choose, the result lies in memory as (N, K, P, Q), to be flattened.
    Returns (y, argmax) as max_pool2d does, and raises as both do.
    """
    return max_pool2d.definition(
        conv2d.definition(x, w, b, stride, padding, dilation, groups, "relu"), *pool
    )


@op
def conv2d_relu_max_pool2d_backward(
    dy: Array,
    y: Array,
    argmax: Array,
    x: Array,
    w: Array,
    b: Array = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    pool: tuple[Any, ...] = (2,),
    need_dx: bool = True,
) -> tuple[Array, ...]:
    """The gradients of `conv2d_relu_max_pool2d` for x, w and b.

    dy: (N, K, P, Q) of the pooled output. y, argmax: as the forward operation returned them; the
    rest as it had it. Where a window's largest value was not above 0, nothing passes.
    Returns (dx, dw, db), shaped as x, w and b; dx is None without need_dx, db where b is None.
    """
    between = y_shape(x, w, stride, padding, dilation)
    passed = np.where(y <= 0, np.zeros((), dy.dtype), dy)
    spread = max_pool2d_backward.definition(passed, argmax, between, *pool)
    arguments = (x, w, b, stride, padding, dilation, groups, None, None, need_dx)
    return conv2d_backward.definition(spread, *arguments)


def _complete(pool):
    """max_pool2d's arguments after x, with its default for the stride."""
    return (*pool, None) if len(pool) == 1 else pool


def _between(x, w, options):
    """In place of the convolution's output."""
    return like(y_shape(x, w, *options), x.dtype)


def _pooled(x, w, options, pool):
    """The shape-only results, if the second window fits the first's output."""
    between, pool = _between(x, w, options), _complete(pool)
    require_pool(between.shape, window(*pool))
    return max_pool2d_output(between, *pool)


@conv2d_relu_max_pool2d.check
def conv2d_relu_max_pool2d_check(x, w, b, *options):
    *geometry, pool, _ = options
    require_conv2d(x, w, b, *geometry)
    _pooled(x, w, geometry, pool)


@conv2d_relu_max_pool2d_backward.check
def conv2d_relu_max_pool2d_backward_check(dy, y, argmax, x, w, b, *options):
    *geometry, pool, _ = options
    require_conv2d(x, w, b, *geometry)
    require_floats(x=x, dy=dy, y=y)
    require_rank(4, "(N, K, P, Q)", argmax=argmax)
    arrays = {"dy": dy, "y": y, "argmax": argmax}
    require_shape(dict.fromkeys(arrays, _pooled(x, w, geometry, pool)[0].shape), **arrays)


@conv2d_relu_max_pool2d.output
def conv2d_relu_max_pool2d_output(x, w, b, *options):
    *geometry, pool, _ = options
    return _pooled(x, w, geometry, pool)


@conv2d_relu_max_pool2d.count
def conv2d_relu_max_pool2d_multiply_adds(x, w, b, *options):
    return conv2d.multiply_adds(x, w, b, *options[:-2])


@conv2d_relu_max_pool2d.cost
def conv2d_relu_max_pool2d_cost(x, w, b, *options):
    """Without the convolution's own output, which need not exist."""
    *geometry, pool, _ = options
    conv = conv2d.work(x, w, b, *geometry)
    between = nbytes(_between(x, w, geometry))
    return Cost(conv.flops, conv.bytes - between + nbytes(*_pooled(x, w, geometry, pool)))


@conv2d_relu_max_pool2d_backward.cost
def conv2d_relu_max_pool2d_backward_cost(dy, y, argmax, x, w, b, *options):
    between = _between(x, w, options)
    given = between, x, w, b, *options[:-2], None, None, options[-1]
    conv = conv2d_backward.work(*given)
    return Cost(conv.flops, conv.bytes - nbytes(between) + nbytes(dy, y, argmax))


@conv2d_relu_max_pool2d.cpu
def conv2d_relu_max_pool2d_cpu(x, w, b, stride, padding, dilation, groups, pool, c_order):
    geometry = window(w.shape[2:], stride, padding, dilation)
    return fast.forward(x, w, b, geometry, groups, window(*_complete(pool)))


@conv2d_relu_max_pool2d_backward.cpu
def conv2d_relu_max_pool2d_backward_cpu(
    dy, y, argmax, x, w, b, stride, padding, dilation, groups, pool, need_dx
):
    geometry = window(w.shape[2:], stride, padding, dilation)
    given = (dy, y, argmax, x, w, geometry, groups, window(*_complete(pool)), need_dx)
    dx, dw, db = fast.backward(*given)
    return dx, dw, db if b is not None else None


@conv2d_relu_max_pool2d.launch
def conv2d_relu_max_pool2d_launch(
    runtime, x, w, b, stride, padding, dilation, groups, pool, c_order
):
    geometry = window(*_complete(pool))
    if not is_2x2(geometry):
        return max_pool2d(conv2d(x, w, b, stride, padding, dilation, groups, "relu"), *pool)
    conv, pooled = _small(x, w, stride, padding, dilation, groups, geometry)
    if pooled is not None:
        size = (pooled.P, pooled.Q)
        shape = (conv.N, conv.K, *size) if c_order else (conv.N, *size, conv.K)
        y, argmax = runtime.empty(shape), runtime.empty(shape, np.uint8)
        (images, last), filters = runtime.dense(x), runtime.as_nhwc(w)
        bias = filters if b is None else runtime.contiguous(b)
        launches = small.config_forward(conv, b is not None, True, pooled, last, not c_order)
        runtime.run(launches, y=y, argmax=argmax, x=images, w=filters, b=bias)
        if c_order:
            return y, argmax
        return runtime.as_nchw(y), runtime.as_nchw(argmax)
    sums = conv2d(x, w, None, stride, padding, dilation, groups)
    N, K, H, W = sums.shape
    shape = (N, *geometry.output_size(H, W), K)
    y, argmax = runtime.empty(shape), runtime.empty(shape, np.uint8)
    sums = runtime.as_nhwc(sums)
    bias = sums if b is None else runtime.contiguous(b)
    config = config_bias_relu_max_pool2d((N, K, H, W), geometry, b is not None)
    runtime.run(config, y=y, argmax=argmax, x=sums, b=bias)
    return runtime.as_nchw(y), runtime.as_nchw(argmax)


@conv2d_relu_max_pool2d_backward.launch
def conv2d_relu_max_pool2d_backward_launch(
    runtime, dy, y, argmax, x, w, b, stride, padding, dilation, groups, pool, need_dx
):
    N, K, H, W = y_shape(x, w, stride, padding, dilation)
    geometry = window(*_complete(pool))
    conv, pooled = _small(x, w, stride, padding, dilation, groups, geometry)
    if pooled is not None:
        return backward_small(runtime, conv, dy, y, argmax, pooled, x, w, b, True, need_dx)
    if is_2x2(geometry):  # through ReLU and pool in one pass
        config = config_bias_relu_max_pool2d_backward((N, K, H, W), geometry)
        spread = runtime.image(config, "dx", (N, K, H, W), dy=dy, y=y, argmax=argmax)
    else:
        spread = max_pool2d_backward(relu_backward(dy, y), argmax, (N, K, H, W), *pool)
    return conv2d_backward(spread, x, w, b, stride, padding, dilation, groups, need_dx=need_dx)


def _small(x, w, stride, padding, dilation, groups, pool):
    """(the convolution's shape, the pooled output's size if one kernel serves both, else None)."""
    geometry = window(w.shape[2:], stride, padding, dilation)
    conv = Conv2dShape.of(x.shape, w.shape, geometry, groups)
    if not is_2x2(pool) or not small.applies(conv):
        return conv, None
    return conv, small.Pooled(*pool.output_size(conv.P, conv.Q))
