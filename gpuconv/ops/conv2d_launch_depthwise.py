"""Launch configurations of depthwise convolution (kernels/depthwise.cu): groups of one channel.

`conv2d_launch` chooses them and caches what they return.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuconv.cuda.launch_config import (
    MAX_GRID_YZ,
    MAX_SHARED,
    THREADS,
    Grid,
    Launch,
    LaunchConfig,
    ceil_div,
    defines,
    fast_divisions,
    loop_grid,
    require_int32,
)
from gpuconv.cuda.split_k import split_k, split_length

if TYPE_CHECKING:
    from gpuconv.ops.conv2d_launch import Conv2dShape

FILE = "depthwise.cu"
ONTO = {"onto": "dx"}  # what stands in for it


def config_forward(conv: Conv2dShape, bias: bool, relu: bool) -> LaunchConfig:
    """As conv2d_launch.config_forward, for filters of one channel."""
    vec, lanes = _lanes("conv2d", conv, conv.K, 1)
    pixels = conv.N * conv.P * conv.Q
    scalars = {**_common(conv, pixels, lanes), **fast_divisions(p=conv.P, q=conv.Q)}
    scalars |= {"use_bias": int(bias), "rectify": int(relu)}
    kernel, sizes = "conv2d_forward_depthwise", conv.sizes_forward(bias)
    grid = _grid("conv2d", pixels, lanes, ceil_div(conv.K, lanes * vec))
    shared = 4 * lanes * vec * conv.R * conv.S
    launch = Launch(FILE, kernel, grid, THREADS, defines(VEC=vec), scalars, sizes, shared=shared)
    return LaunchConfig((launch,))


def config_backward_data(conv: Conv2dShape, mask: bool, onto: bool) -> LaunchConfig:
    """As conv2d_launch.config_backward_data, for filters of one channel."""
    vec, lanes = _lanes("conv2d_backward", conv, conv.C, conv.filters)
    pixels = conv.N * conv.H * conv.W
    scalars = {**_common(conv, pixels, lanes), **fast_divisions(h=conv.H, w=conv.W)}
    scalars |= {"use_mask": int(mask), "use_onto": int(onto)}
    kernel, sizes = "conv2d_backward_data_depthwise", conv.sizes_data(mask, onto)
    grid = _grid("conv2d_backward", pixels, lanes, ceil_div(conv.C, lanes * vec))
    shared, arrays = 4 * lanes * vec * conv.filters * conv.R * conv.S, {} if onto else ONTO
    launch = Launch(FILE, kernel, grid, THREADS, defines(VEC=vec), scalars, sizes, arrays, shared)
    return LaunchConfig((launch,))


def config_backward_weight(conv: Conv2dShape) -> LaunchConfig:
    """As conv2d_launch.config_backward_weight, for filters of one channel."""
    vec = _vec(conv)
    lanes = min(ceil_div(conv.K, vec), 32)
    pixels, taps = conv.N * conv.P * conv.Q, conv.R * conv.S
    require_int32("conv2d_backward", filter_elements=conv.K * taps)
    blocks = ceil_div(conv.K, lanes * vec) * taps
    length = split_length(pixels, blocks)
    splits = max(1, ceil_div(pixels, length))
    scalars = {**_common(conv, pixels, lanes), **fast_divisions(p=conv.P, q=conv.Q)}
    scalars["split_length"] = length
    kernel, sizes = "conv2d_backward_weight_depthwise", conv.sizes_weight()
    launch = Launch(FILE, kernel, (blocks, splits, 1), THREADS, defines(VEC=vec), scalars, sizes)
    return split_k(launch, "dw", conv.K * taps, splits)


def _vec(conv: Conv2dShape) -> int:
    return 4 if conv.filters == 1 and conv.C % 4 == 0 else 1


def _lanes(name: str, conv: Conv2dShape, width: int, multiplier: int) -> tuple[int, int]:
    """(VEC, threads along `width` channels) such that a block's filters fit shared memory."""
    vec, taps = _vec(conv), conv.R * conv.S
    require_int32(name, filter_elements=conv.K * taps)
    room = MAX_SHARED // (4 * vec * multiplier * taps)
    if room < 1:
        raise NotImplementedError(
            f"{name}: depthwise filters of {conv.R}x{conv.S} taps, {conv.filters} a channel, do "
            f"not fit {MAX_SHARED} bytes of shared memory"
        )
    return vec, min(ceil_div(width, vec), 32, room)


def _grid(name: str, pixels: int, lanes: int, blocks: int) -> Grid:
    if blocks > MAX_GRID_YZ:
        raise ValueError(f"{name}: too many channels: {blocks} blocks, {MAX_GRID_YZ} are allowed")
    return loop_grid(pixels, THREADS // lanes)[0], blocks, 1


def _common(conv: Conv2dShape, pixels: int, lanes: int) -> dict[str, int]:
    names = ("H", "W", "C", "K", "P", "Q", "R", "S")
    return {
        "pixels": pixels,
        "lanes": lanes,
        "multiplier": conv.filters,
        **{name: getattr(conv, name) for name in names},
        **conv.window_scalars,
    }
