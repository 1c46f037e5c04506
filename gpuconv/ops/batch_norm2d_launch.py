"""Launch configurations of batch normalisation (kernels/batchnorm.cu).

The pixels of x and dy may lie apart (`Runtime.pixels`), as the first channels of a wider image do.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from gpuconv.cuda.launch_config import (
    CACHED,
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

FILE = "batchnorm.cu"
WORKSPACE = {"partials": "workspace"}
STEP = {"step": 2, "stop": 1}  # what the recorder of a step reads in their place
MERGE_LANES = 8  # channels of a block that merges partial results


@lru_cache(maxsize=CACHED)
def config_statistics(shape: Shape, x_stride: int, vec: int) -> LaunchConfig:
    """mean and var (C) of x; shape is (N, C, H, W), x's pixels are x_stride elements apart."""
    pixels, C = require_channels("batch_norm2d", shape)
    grid, split = _split(pixels, C, vec)
    splits = grid[1]
    workspace = (2 * splits + 1) * C
    scalars = {"pixels": pixels, "x_stride": x_stride, "C": C, **split}
    sizes = {"partials": workspace, "x": strided_size(pixels, x_stride, C)}
    kernel, chosen = "batch_norm2d_statistics", defines(VEC=vec)
    first = Launch(FILE, kernel, grid, THREADS, chosen, scalars, sizes, WORKSPACE)
    length = split["split_length"]
    scalars = {"pixels": pixels, "C": C, "split_length": length, "splits": splits}
    sizes = {"partials": workspace, "mean": C, "var": C}
    return LaunchConfig((first, _merge("batch_norm2d_merge", scalars, sizes)), workspace)


@lru_cache(maxsize=CACHED)
def config_forward(
    shape: Shape, x_stride: int, vec: int, weight: bool, bias: bool, relu: bool
) -> LaunchConfig:
    """y (N, H, W, C) from x, w, b, mean, var, and the number eps.

    Without weight or bias any array of C elements stands in for w or b.
    """
    pixels, C = require_channels("batch_norm2d", shape)
    sizes = {"y": pixels * C, "x": strided_size(pixels, x_stride, C), **_sizes(C, weight, bias)}
    flags = _flags(weight, bias, relu)
    return _pixelwise("batch_norm2d_forward", shape, vec, {"x_stride": x_stride, **flags}, sizes)


@lru_cache(maxsize=CACHED)
def config_backward_sums(
    shape: Shape, dy_stride: int, x_stride: int, vec: int, weight: bool, bias: bool, relu: bool
) -> LaunchConfig:
    """dw and db from dy, x, w, b, mean, var, and the number eps."""
    pixels, C = require_channels("batch_norm2d_backward", shape)
    grid, split = _split(pixels, C, vec)
    splits = grid[1]
    workspace = 2 * splits * C
    scalars = {
        **{"pixels": pixels, "C": C, "dy_stride": dy_stride, "x_stride": x_stride},
        **split,
        **_flags(weight, bias, relu),
    }
    sizes = {
        "partials": workspace,
        **{"dy": strided_size(pixels, dy_stride, C), "x": strided_size(pixels, x_stride, C)},
        **_sizes(C, weight, bias),
    }
    kernel, chosen = "batch_norm2d_backward_sums", defines(VEC=vec)
    first = Launch(FILE, kernel, grid, THREADS, chosen, scalars, sizes, WORKSPACE)
    sizes = {"partials": workspace, "dw": C, "db": C, "var": C}
    merge = _merge("batch_norm2d_backward_merge", {"C": C, "splits": splits}, sizes)
    return LaunchConfig((first, merge), workspace)


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
def config_track(C: int) -> LaunchConfig:
    """running_mean and running_var, in place, from mean and var, and the numbers keep, momentum
    and unbiased.
    """
    sizes = {**dict.fromkeys(("running_mean", "running_var", "mean", "var"), C), **STEP}
    kernel, chosen = "batch_norm2d_track", defines(VEC=1)
    return LaunchConfig((Launch(FILE, kernel, loop_grid(C), THREADS, chosen, {"C": C}, sizes),))


def _flags(weight: bool, bias: bool, relu: bool) -> dict[str, int]:
    return {"use_weight": int(weight), "use_bias": int(bias), "rectify": int(relu)}


def _sizes(C: int, weight: bool, bias: bool) -> dict[str, int | None]:
    return {"w": C if weight else None, "b": C if bias else None, "mean": C, "var": C}


def _split(pixels: int, C: int, vec: int) -> tuple[Grid, dict[str, int]]:
    """(grid, scalars) of a kernel that sums parts of the pixels: blocks of channels by parts."""
    lanes, blocks = channel_tile(C, vec)
    length = split_length(pixels, blocks)
    grid = (blocks, ceil_div(pixels, length), 1)
    return grid, {"lanes": lanes, "split_length": length}


def _merge(kernel: str, scalars: Mapping[str, int], sizes: Mapping[str, int | None]) -> Launch:
    grid = (ceil_div(scalars["C"], MERGE_LANES), 1, 1)
    return Launch(FILE, kernel, grid, THREADS, defines(VEC=1), scalars, sizes, WORKSPACE)


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
