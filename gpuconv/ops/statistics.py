"""Batch normalisation's statistics by themselves, and those that a convolution makes of its output.

nn.functional calls them where kernels run: the convolution's epilogue then has the statistics of
each tile, no pass reads the output again for them, and what merges them moves the running ones too.
"""

from __future__ import annotations

from gpuconv.arrays import ShapeOnly
from gpuconv.ops import batch_norm2d_launch, conv2d_launch, tensor_cores
from gpuconv.ops.batch_norm2d import (
    batch_norm2d,
    batch_norm2d_track,
    batch_norm2d_track_check,
    tracking,
)
from gpuconv.ops.conv2d import conv2d, conv2d_output, require_conv2d, y_shape
from gpuconv.ops.conv2d_launch_mma import moment_parts
from gpuconv.ops.cost import Cost, nbytes
from gpuconv.ops.op import Array, Padding, Size, op, require_floats, require_rank
from gpuconv.shapes import window


@op
def batch_norm2d_statistics(
    x: Array, running_mean: Array = None, running_var: Array = None, momentum: float = 0.0
) -> tuple[Array, ...]:
    """The mean and the biased variance of each channel of x, over N, H and W.

    x: floats (N, C, H, W), not empty. running_mean, running_var: (C,), moved towards them in place
    as by `batch_norm2d_track`, or None. Returns (mean, var, running_mean, running_var).
    """
    _, mean, var = batch_norm2d.definition(x, eps=1.0)
    if running_mean is not None:
        count = x.size // x.shape[1]
        batch_norm2d_track.definition(running_mean, running_var, mean, var, count, momentum)
    return mean, var, running_mean, running_var


@op
def conv2d_statistics(
    x: Array,
    w: Array,
    b: Array = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    running_mean: Array = None,
    running_var: Array = None,
    momentum: float = 0.0,
    precision: str = "ieee",
) -> tuple[Array, ...]:
    """`conv2d` and `batch_norm2d_statistics` of its output: (y, mean, var, running_mean,
    running_var).
    """
    y = conv2d.definition(x, w, b, stride, padding, dilation, groups)
    statistics = batch_norm2d_statistics.definition(y, running_mean, running_var, momentum)
    return y, *statistics


batch_norm2d_statistics.in_place = conv2d_statistics.in_place = True


@batch_norm2d_statistics.check
def batch_norm2d_statistics_check(x, running_mean, running_var, momentum):
    require_floats(x=x)
    require_rank(4, "(N, C, H, W)", x=x)
    _require_running(x, x.shape, running_mean, running_var, momentum)


@conv2d_statistics.check
def conv2d_statistics_check(x, w, b, *options):
    *geometry, running_mean, running_var, momentum, precision = options
    require_conv2d(x, w, b, *geometry, None, precision)
    _require_running(w, y_shape(x, w, *geometry), running_mean, running_var, momentum)


def _require_running(x, shape, running_mean, running_var, momentum):
    N, C, H, W = shape
    if not N * C * H * W:
        raise ValueError(f"an empty batch has no mean; got shape {shape}")
    if running_mean is not None or running_var is not None:
        channels = ShapeOnly((C,), x.dtype)
        given = running_mean, running_var, channels, channels
        batch_norm2d_track_check(*given, N * H * W, momentum)


@batch_norm2d_statistics.output
def batch_norm2d_statistics_output(x, running_mean, running_var, momentum):
    statistics = ShapeOnly(x.shape[1:2], x.dtype)
    return statistics, statistics, running_mean, running_var


@conv2d_statistics.output
def conv2d_statistics_output(x, w, b, *options):
    *geometry, running_mean, running_var, momentum, _ = options
    y = conv2d_output(x, w, b, *geometry)
    return y, *batch_norm2d_statistics_output(y, running_mean, running_var, momentum)


@batch_norm2d_statistics.cost
def batch_norm2d_statistics_cost(x, running_mean, running_var, momentum):
    statistics = 2 * x.shape[1] * x.dtype.itemsize
    return Cost(0, nbytes(x) + statistics + 2 * nbytes(running_mean, running_var))


@conv2d_statistics.cost
def conv2d_statistics_cost(x, w, b, *options):
    *geometry, running_mean, running_var, _, _ = options
    conv = conv2d.work(x, w, b, *geometry)
    statistics = 2 * len(w) * x.dtype.itemsize
    return Cost(conv.flops, conv.bytes + statistics + 2 * nbytes(running_mean, running_var))


@batch_norm2d_statistics.launch
def batch_norm2d_statistics_launch(runtime, x, running_mean, running_var, momentum):
    pixels, tracked = runtime.pixels(x), running_mean is not None
    config = batch_norm2d_launch.config_statistics(x.shape, pixels.stride, pixels.vector, tracked)
    running = running_mean, running_var
    mean, var = _merged(runtime, config, x.shape, *running, momentum, x=pixels.memory)
    return mean, var, *running


@conv2d_statistics.launch
def conv2d_statistics_launch(
    runtime,
    x,
    w,
    b,
    stride,
    padding,
    dilation,
    groups,
    running_mean,
    running_var,
    momentum,
    precision,
):
    geometry = window(w.shape[2:], stride, padding, dilation)
    conv = conv2d_launch.Conv2dShape.of(x.shape, w.shape, geometry, groups)
    running = running_mean, running_var
    if tensor_cores.applies(runtime, conv, precision):
        y, partials = tensor_cores.forward(runtime, conv, precision, x, w, b, False, True)
        parts = moment_parts(conv)
    elif parts := conv2d_launch.moment_parts(conv):
        y, filters = runtime.empty((conv.N, conv.P, conv.Q, conv.K)), runtime.as_nhwc(w)
        launches = conv2d_launch.config_forward(conv, b is not None, False, True)
        partials = runtime.empty(launches.launches[0].sizes["partials"])
        bias = filters if b is None else runtime.contiguous(b)
        x = runtime.as_nhwc(x)
        runtime.run(launches, y=y, x=x, w=filters, b=bias, partials=partials)
        y = runtime.as_nchw(y)
    else:
        y = conv2d(x, w, b, stride, padding, dilation, groups)
        return y, *batch_norm2d_statistics(y, *running, momentum)
    pixels = conv.N * conv.P * conv.Q
    config = batch_norm2d_launch.config_merge(pixels, conv.K, parts, running_mean is not None)
    mean, var = _merged(runtime, config, y.shape, *running, momentum, partials=partials)
    return y, mean, var, *running


def _merged(runtime, config, shape, running_mean, running_var, momentum, **arrays):
    """(mean, var) of a configuration that merges partial moments of an image of this shape."""
    N, C, H, W = shape
    mean, var = runtime.empty(C), runtime.empty(C)
    if running_mean is not None:
        arrays |= {"running_mean": running_mean, "running_var": running_var}
    numbers, given = tracking(runtime, N * H * W, None if running_mean is None else momentum)
    runtime.run(config, numbers, mean=mean, var=var, **arrays, **given)
    return mean, var
