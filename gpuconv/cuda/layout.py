"""Launch configurations of layout conversion and of copies between channels of images.

Kernels: kernels/layout.cu, kernels/channels.cu. The blocks over channels are those of
kernels/channels.cuh, which batch norm and global pooling use too.
"""

from __future__ import annotations

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
    require_int32,
    vector_width,
)

Shape = tuple[int, int, int, int]

FLIGHT = 4  # pixels that a thread has in flight: kernels/channels.cuh
MAX_LANES = 32  # threads along the channels: a warp, 512 bytes of a pixel


@lru_cache(maxsize=CACHED)
def config_transpose(batch: int, rows: int, columns: int) -> LaunchConfig:
    """y (batch, columns, rows) from x (batch, rows, columns).

    With (N, C, H*W) it gives NHWC from NCHW and KRSC from OIHW, with (N, H*W, C) it goes back.
    No launch where one of them is 1: the same memory is both.
    """
    if rows == 1 or columns == 1:
        return LaunchConfig(())
    require_int32("transpose", rows=rows + 64, columns=columns + 64)
    vec = vector_width(rows, columns)
    side = 64 if vec == 4 else 32
    down, across = ceil_div(rows, side), ceil_div(columns, side)
    require_int32("transpose", tiles_of_a_matrix=down * across)
    tiles = batch * down * across
    scalars = {
        **{"tiles": tiles, "tiles_down": down, "tiles_across": across},
        **{"rows": rows, "columns": columns},
    }
    sizes = dict.fromkeys(("x", "y"), batch * rows * columns)
    grid = loop_grid(tiles, 1)
    launch = Launch("layout.cu", "transpose", grid, THREADS, defines(VEC=vec), scalars, sizes)
    return LaunchConfig((launch,))


@lru_cache(maxsize=CACHED)
def config_channels(
    kernel: str, shape: Shape, to_stride: int, from_stride: int, vec: int
) -> LaunchConfig:
    """copy_channels or add_channels: "to" from "from", both (N, H, W, C), shape being (N, C, H, W).

    to_stride, from_stride: elements from a pixel to the next. vec: 4 where all is whole and
    aligned, else 1.
    """
    pixels, C = require_channels(kernel, shape)
    grid, lanes = channel_loop(pixels, C, vec)
    scalars = {
        **{"pixels": pixels, "C": C, "lanes": lanes},
        **{"to_stride": to_stride, "from_stride": from_stride},
    }
    sizes = {"to": strided_size(pixels, to_stride, C), "from": strided_size(pixels, from_stride, C)}
    launch = Launch("channels.cu", kernel, grid, THREADS, defines(VEC=vec), scalars, sizes)
    return LaunchConfig((launch,))


def require_channels(name: str, shape: Shape) -> tuple[int, int]:
    """(pixels of all images, channels); ValueError where 32 bits do not hold them."""
    N, C, H, W = shape
    require_int32(name, pixels=N * H * W, channels=C + MAX_LANES * 4)
    return N * H * W, C


def channel_tile(C: int, vec: int) -> tuple[int, int]:
    """(threads along the channels, a power of two; blocks of channels)."""
    lanes = 1
    while lanes < min(ceil_div(C, vec), MAX_LANES):
        lanes *= 2
    return lanes, ceil_div(C, lanes * vec)


def channel_loop(pixels: int, C: int, vec: int) -> tuple[Grid, int]:
    """(grid, lanes) of a kernel whose grid.x is blocks of channels and whose grid.y strides over
    the pixels.
    """
    lanes, blocks = channel_tile(C, vec)
    along = ceil_div(pixels, THREADS // lanes * FLIGHT)
    return (blocks, max(1, min(along, ceil_div(LOOP_BLOCKS, blocks))), 1), lanes


def strided_size(pixels: int, stride: int, C: int) -> int:
    """Elements from the first to the last of pixels of C channels, `stride` elements apart."""
    return (pixels - 1) * stride + C
