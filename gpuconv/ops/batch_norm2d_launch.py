"""Launch configurations of batch normalisation (kernels/batchnorm.cu, kernels/batchnorm_pool.cu).

The pixels of x and dy may lie apart (`Runtime.pixels`), as the first channels of a wider image do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from gpuconv.cuda.launch_config import (
    CACHED,
    LOOP_BLOCKS,
    THREADS,
    Grid,
    Launch,
    LaunchConfig,
    ceil_div,
    defines,
    loop_grid,
)
from gpuconv.cuda.layout import (
    Shape,
    channel_loop,
    channel_tile,
    require_channels,
    strided_size,
)
from gpuconv.cuda.split_k import split_length
from gpuconv.ops.conv2d_launch import MOMENT_ROWS
from gpuconv.ops.pool2d_launch import TAP, window_scalars
from gpuconv.shapes import Window

FILE, POOLED = "batchnorm.cu", "batchnorm_pool.cu"
WORKSPACE = {"partials": "workspace"}
MERGE_LANES = 2  # channels of a block that merges partial results
UNTRACKED = {"running_mean": "mean", "running_var": "var"}  # what stands in for them
STEP = {"step": 2, "stop": 1}  # what the recorder of a step reads in their place


@lru_cache(maxsize=CACHED)
def config_statistics(shape: Shape, x_stride: int, vec: int, tracked: bool = False) -> LaunchConfig:
    """mean and var (C) of x, and the running ones, as `config_merge`; shape is (N, C, H, W), x's
    pixels are x_stride elements apart.
    """
    pixels, C = require_channels("batch_norm2d", shape)
    grid, split = _split(pixels, C, vec)
    workspace = MOMENT_ROWS * grid[1] * C
    scalars = {"pixels": pixels, "x_stride": x_stride, "C": C, **split}
    sizes = {"partials": workspace, "x": strided_size(pixels, x_stride, C)}
    kernel, chosen = "batch_norm2d_statistics", defines(VEC=vec)
    first = Launch(FILE, kernel, grid, THREADS, chosen, scalars, sizes, WORKSPACE)
    (merge,) = config_merge(pixels, C, grid[1], tracked).launches
    return LaunchConfig((first, replace(merge, arrays={**merge.arrays, **WORKSPACE})), workspace)


@lru_cache(maxsize=CACHED)
def config_merge(pixels: int, C: int, splits: int, tracked: bool) -> LaunchConfig:
    """mean and var (C) from the moments of so many parts of the pixels (moments.cuh).

    tracked: running_mean and running_var, in place, move towards them, by the numbers and arrays of
    `config_track`; else they are not given, and the numbers are of no account.
    """
    scalars = {"pixels": pixels, "C": C, "splits": splits, "tracked": int(tracked)}
    sizes = {
        **{"partials": MOMENT_ROWS * splits * C, "mean": C, "var": C, **STEP},
        **dict.fromkeys(UNTRACKED, C if tracked else None),
    }
    grid, chosen = (ceil_div(C, MERGE_LANES), 1, 1), defines(VEC=1)
    launch = Launch(FILE, "batch_norm2d_merge", grid, THREADS, chosen, scalars, sizes)
    return LaunchConfig((launch if tracked else replace(launch, arrays=UNTRACKED),))


@lru_cache(maxsize=CACHED)
def config_forward(
    shape: Shape,
    x_stride: int,
    vec: int,
    weight: bool,
    bias: bool,
    relu: bool,
    other_stride: int | None = None,
) -> LaunchConfig:
    """y (N, H, W, C) from x, w, b, mean, var, other, and the number eps.

    Without weight or bias any array of C elements stands in for w or b. other_stride: elements from
    a pixel of `other` to the next; None if there is none.
    """
    pixels, C = require_channels("batch_norm2d", shape)
    stride = 0 if other_stride is None else other_stride
    sizes = {
        **{"y": pixels * C, "x": strided_size(pixels, x_stride, C), **_sizes(C, weight, bias)},
        "other": strided_size(pixels, stride, C) if stride else None,
    }
    strides = {"x_stride": x_stride, "other_stride": stride, "use_other": int(stride > 0)}
    scalars = {**strides, **_flags(weight, bias, relu)}
    config = _pixelwise("batch_norm2d_forward", shape, vec, scalars, sizes)
    if stride:
        return config
    return LaunchConfig((replace(config.launches[0], arrays={"other": "x"}),))


@lru_cache(maxsize=CACHED)
def config_backward_sums(
    shape: Shape, dy_stride: int, x_stride: int, vec: int, weight: bool, bias: bool, relu: bool
) -> LaunchConfig:
    """dw and db from dy, x, w, b, mean, var, and the number eps."""
    pixels, C = require_channels("batch_norm2d_backward", shape)
    grid, split = _split(pixels, C, vec)
    workspace, sums, arrays = _partial_sums(grid, C)
    scalars = {
        **{"pixels": pixels, "C": C, "dy_stride": dy_stride, "x_stride": x_stride},
        **split,
        **_flags(weight, bias, relu),
    }
    sizes = {
        **sums,
        **{"dy": strided_size(pixels, dy_stride, C), "x": strided_size(pixels, x_stride, C)},
        **_sizes(C, weight, bias),
    }
    kernel, chosen = "batch_norm2d_backward_sums", defines(VEC=vec)
    launch = Launch(FILE, kernel, grid, THREADS, chosen, scalars, sizes, arrays)
    return LaunchConfig((launch,), workspace, grid[0])


@lru_cache(maxsize=CACHED)
def config_backward(
    shape: Shape,
    dy_stride: int,
    x_stride: int,
    vec: int,
    weight: bool,
    bias: bool,
    relu: bool,
    of_batch: bool,
) -> LaunchConfig:
    """dx (N, H, W, C) from dy, x, w, b, mean, var, dw, db, and the number eps; without of_batch dw
    and db are not read.
    """
    pixels, C = require_channels("batch_norm2d_backward", shape)
    scalars = {
        **{"dy_stride": dy_stride, "x_stride": x_stride, "of_batch": int(of_batch)},
        **_flags(weight, bias, relu),
    }
    sums = C if of_batch else None
    sizes = {
        **{"dx": pixels * C, "dy": strided_size(pixels, dy_stride, C)},
        **{"x": strided_size(pixels, x_stride, C), "dw": sums, "db": sums},
        **_sizes(C, weight, bias),
    }
    return _pixelwise("batch_norm2d_backward", shape, vec, scalars, sizes)


@lru_cache(maxsize=CACHED)
def config_pooled(
    shape: Shape, window: Window, x_stride: int, vec: int, weight: bool, bias: bool
) -> LaunchConfig:
    """y and argmax (N, P, Q, C), the max-pool of batch norm and ReLU, from x, w, b, mean, var, and
    the number eps; shape is x's, (N, C, H, W).
    """
    kernel = "batch_norm2d_relu_max_pool2d_forward"
    pixels, C = require_channels(kernel, shape)
    P, Q = window.output_size(*shape[2:])
    pooled = shape[0] * P * Q
    sizes = {"y": pooled * C, "argmax": pooled * C, "x": strided_size(pixels, x_stride, C)}
    return _pooled(kernel, shape, window, x_stride, vec, (weight, bias), pooled, sizes)


@lru_cache(maxsize=CACHED)
def config_pooled_sums(
    shape: Shape, window: Window, x_stride: int, vec: int, weight: bool, bias: bool
) -> LaunchConfig:
    """dw and db from dy, argmax, x, w, b, mean, var, and the number eps."""
    kernel = "batch_norm2d_relu_max_pool2d_backward_sums"
    pixels, C = require_channels(kernel, shape)
    grid, split = _split(pixels, C, vec)
    workspace, sums, arrays = _partial_sums(grid, C)
    sizes = {**sums, **_sizes_before_pool(shape, window, x_stride)}
    config = _pooled(kernel, shape, window, x_stride, vec, (weight, bias), pixels, sizes)
    launch = config.launches[0]
    scalars = {**launch.scalars, **split}
    launch = replace(launch, grid=grid, scalars=scalars, arrays=arrays)
    return LaunchConfig((launch,), workspace, grid[0])


@lru_cache(maxsize=CACHED)
def config_pooled_backward(
    shape: Shape,
    window: Window,
    x_stride: int,
    vec: int,
    weight: bool,
    bias: bool,
    of_batch: bool,
) -> LaunchConfig:
    """dx (N, H, W, C) from dy, argmax, x, w, b, mean, var, dw, db, and the number eps; without
    of_batch dw and db are not read.
    """
    kernel = "batch_norm2d_relu_max_pool2d_backward"
    pixels, C = require_channels(kernel, shape)
    sums = C if of_batch else None
    sizes = {
        **{"dx": pixels * C, "dw": sums, "db": sums},
        **_sizes_before_pool(shape, window, x_stride),
    }
    config = _pooled(kernel, shape, window, x_stride, vec, (weight, bias), pixels, sizes)
    launch = config.launches[0]
    scalars = {**launch.scalars, "of_batch": int(of_batch)}
    return LaunchConfig((replace(launch, scalars=scalars),))


@lru_cache(maxsize=CACHED)
def config_track(C: int) -> LaunchConfig:
    """running_mean and running_var, in place, from mean and var, and the numbers keep, momentum
    and unbiased.
    """
    sizes = {**dict.fromkeys(("running_mean", "running_var", "mean", "var"), C), **STEP}
    kernel, chosen = "batch_norm2d_track", defines(VEC=1)
    return LaunchConfig((Launch(FILE, kernel, loop_grid(C), THREADS, chosen, {"C": C}, sizes),))


def _sizes_before_pool(shape: Shape, window: Window, x_stride: int) -> dict[str, int]:
    N, C, H, W = shape
    P, Q = window.output_size(H, W)
    pooled = N * P * Q * C
    return {"dy": pooled, "argmax": pooled, "x": strided_size(N * H * W, x_stride, C)}


def _pooled(
    kernel: str,
    shape: Shape,
    window: Window,
    x_stride: int,
    vec: int,
    parameters: tuple[bool, bool],
    pixels: int,
    sizes: Mapping[str, int | None],
) -> LaunchConfig:
    """A kernel of batchnorm_pool.cu that strides over so many pixels; parameters: weight, bias."""
    C = shape[1]
    lanes, blocks = channel_tile(C, vec)
    along = min(ceil_div(pixels, THREADS // lanes), ceil_div(LOOP_BLOCKS, blocks))
    weight, bias = parameters
    scalars = {
        **window_scalars(kernel, shape, window),
        **{"pixels": pixels, "x_stride": x_stride, "lanes": lanes},
        **{"use_weight": int(weight), "use_bias": int(bias)},
    }
    sizes = {**sizes, **_sizes(C, weight, bias)}
    chosen = defines(VEC=vec, TAP=TAP[window.tap_type])
    grid = (blocks, max(along, 1), 1)
    return LaunchConfig((Launch(POOLED, kernel, grid, THREADS, chosen, scalars, sizes),))


def _flags(weight: bool, bias: bool, relu: bool) -> dict[str, int]:
    return {"use_weight": int(weight), "use_bias": int(bias), "rectify": int(relu)}


def _sizes(C: int, weight: bool, bias: bool) -> dict[str, int | None]:
    return {"w": C if weight else None, "b": C if bias else None, "mean": C, "var": C}


def _partial_sums(grid: Grid, C: int) -> tuple[int, dict[str, int | None], Mapping[str, str]]:
    """(workspace, sizes, arrays) of a kernel that makes dw and db of the sums of grid[1] parts; one
    part needs neither workspace nor tickets.
    """
    several = grid[1] > 1
    workspace = 2 * grid[1] * C if several else 0
    held = {"partials": workspace or None, "tickets": grid[0] if several else None}
    return workspace, {"dw": C, "db": C, **held}, WORKSPACE if several else {"partials": "dw"}


def _split(pixels: int, C: int, vec: int) -> tuple[Grid, dict[str, int]]:
    """(grid, scalars) of a kernel that sums parts of the pixels: blocks of channels by parts."""
    lanes, blocks = channel_tile(C, vec)
    length = split_length(pixels, blocks)
    grid = (blocks, ceil_div(pixels, length), 1)
    return grid, {"lanes": lanes, "split_length": length}


def _pixelwise(
    kernel: str,
    shape: Shape,
    vec: int,
    scalars: Mapping[str, int],
    sizes: Mapping[str, int | None],
) -> LaunchConfig:
    pixels, C = require_channels(kernel, shape)
    grid, lanes = channel_loop(pixels, C, vec)
    scalars = {"pixels": pixels, "C": C, "lanes": lanes, **scalars}
    return LaunchConfig((Launch(FILE, kernel, grid, THREADS, defines(VEC=vec), scalars, sizes),))
