"""Launch configurations of adaptive average pooling (kernels/adaptive_avgpool.cu)."""

from __future__ import annotations

from functools import lru_cache

from gpuconv.cuda.launch_config import (
    CACHED,
    MAX_GRID_YZ,
    THREADS,
    Launch,
    LaunchConfig,
    defines,
    pixel_loop,
    require_int32,
    vector_width,
)
from gpuconv.cuda.layout import Shape, channel_tile, require_channels

FILE = "adaptive_avgpool.cu"


@lru_cache(maxsize=CACHED)
def config_forward(shape: Shape, size: tuple[int, int]) -> LaunchConfig:
    """y (N, P, Q, C) from x (N, H, W, C); shape is (N, C, H, W), size (P, Q)."""
    if size == (1, 1):
        return config_global(shape)
    N, C, H, W = shape
    pixels = N * size[0] * size[1]
    sizes = {"y": pixels * C, "x": N * H * W * C}
    return _pixelwise("adaptive_avg_pool2d_forward", pixels, shape, size, sizes)


@lru_cache(maxsize=CACHED)
def config_global(shape: Shape) -> LaunchConfig:
    """y (N, C) from x (N, H, W, C), the means over H and W; shape is (N, C, H, W)."""
    N, C, H, W = shape
    require_channels("adaptive_avg_pool2d", shape)
    vec = vector_width(C)
    lanes, blocks = channel_tile(C, vec)
    grid = (blocks, min(N, MAX_GRID_YZ), 1)
    scalars = {"images": N, "lanes": lanes, "size": H * W, "C": C}
    sizes = {"y": N * C, "x": N * H * W * C}
    kernel, chosen = "global_avg_pool2d_forward", defines(VEC=vec)
    return LaunchConfig((Launch(FILE, kernel, grid, THREADS, chosen, scalars, sizes),))


@lru_cache(maxsize=CACHED)
def config_backward(shape: Shape, size: tuple[int, int]) -> LaunchConfig:
    """dx (N, H, W, C) from dy (N, P, Q, C)."""
    N, C, H, W = shape
    pixels = N * H * W
    sizes = {"dx": pixels * C, "dy": N * size[0] * size[1] * C}
    return _pixelwise("adaptive_avg_pool2d_backward", pixels, shape, size, sizes)


def _pixelwise(
    kernel: str, pixels: int, shape: Shape, size: tuple[int, int], sizes: dict[str, int]
) -> LaunchConfig:
    (_, C, H, W), (P, Q) = shape, size
    name = "adaptive_avg_pool2d"
    require_channels(name, shape)
    require_int32(name, pixels=pixels, rows=(H + 1) * (P + 1), columns=(W + 1) * (Q + 1))
    vec = vector_width(C)
    grid, lanes = pixel_loop(pixels, C, vec)
    scalars = {"pixels": pixels, "lanes": lanes, "C": C, "H": H, "W": W, "P": P, "Q": Q}
    return LaunchConfig((Launch(FILE, kernel, grid, THREADS, defines(VEC=vec), scalars, sizes),))
