"""Launch configurations of pooling. Kernels: kernels/maxpool.cu, kernels/avgpool.cu,
kernels/bias_relu_pool.cu, kernels/adaptive_avgpool.cu.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from gpuconv.cuda.launch_config import (
    CACHED,
    MAX_GRID_YZ,
    THREADS,
    Launch,
    LaunchConfig,
    ceil_div,
    defines,
    fast_divisions,
    pixel_loop,
    require_int32,
    vector_width,
)
from gpuconv.cuda.layout import Shape, channel_tile, require_channels
from gpuconv.shapes import Window

TAP = {"uint8": "unsigned char", "int32": "int"}  # argmax's type
MOST_TAPS = 1 << 24  # which a thread visits one after the other


@lru_cache(maxsize=CACHED)
def config_max_pool2d(x_shape: Shape, window: Window) -> LaunchConfig:
    """y (N,P,Q,C) and argmax from x (N,H,W,C); x_shape is (N, C, H, W)."""
    return _pool("max_pool2d_forward", "maxpool.cu", x_shape, window, TAP=TAP[window.tap_type])


@lru_cache(maxsize=CACHED)
def config_max_pool2d_backward(x_shape: Shape, window: Window) -> LaunchConfig:
    """dx (N,H,W,C) from dy and argmax (N,P,Q,C)."""
    return _pool("max_pool2d_backward", "maxpool.cu", x_shape, window, TAP=TAP[window.tap_type])


@lru_cache(maxsize=CACHED)
def config_avg_pool2d(
    x_shape: Shape, window: Window, average: bool = True, count_include_pad: bool = True
) -> LaunchConfig:
    """y (N,P,Q,C) from x (N,H,W,C): means, or with average False sums."""
    limits = _counted(x_shape, window, count_include_pad)
    return _pool("avg_pool2d_forward", "avgpool.cu", x_shape, window, limits, AVERAGE=average)


@lru_cache(maxsize=CACHED)
def config_avg_pool2d_backward(
    x_shape: Shape, window: Window, average: bool = True, count_include_pad: bool = True
) -> LaunchConfig:
    """dx (N,H,W,C) from dy (N,P,Q,C)."""
    limits = _counted(x_shape, window, count_include_pad)
    return _pool("avg_pool2d_backward", "avgpool.cu", x_shape, window, limits, AVERAGE=average)


def is_2x2(window: Window) -> bool:
    """Whether bias_relu_pool.cu serves the window: 2x2, stride 2, without padding."""
    unpadded = window.padding == "valid" or window.padding == ((0, 0), (0, 0))
    geometry = (window.kernel_size, window.stride, window.dilation)
    return unpadded and geometry == ((2, 2), (2, 2), (1, 1))


@lru_cache(maxsize=CACHED)
def config_bias_relu_max_pool2d(x_shape: Shape, window: Window, bias: bool) -> LaunchConfig:
    """y (N,P,Q,C) and argmax from a convolution's sums x (N,H,W,C) and b (C); without bias, give
    x for b. The window must be `is_2x2`.
    """
    N, C, H, W = x_shape
    P, Q = window.output_size(H, W)
    scalars = {"pixels": N * P * Q, **fast_divisions(p=P, q=Q), "use_bias": int(bias)}
    pooled = N * P * Q * C
    sizes = {"y": pooled, "argmax": pooled, "x": N * H * W * C, "b": C if bias else None}
    return _pool_2x2("bias_relu_max_pool2d_forward", x_shape, window, N * P * Q, scalars, sizes)


@lru_cache(maxsize=CACHED)
def config_bias_relu_max_pool2d_backward(x_shape: Shape, window: Window) -> LaunchConfig:
    """dx (N,H,W,C), the gradient of the convolution's sums, from dy, y and argmax (N,P,Q,C)."""
    N, C, H, W = x_shape
    P, Q = window.output_size(H, W)
    rows, columns = ceil_div(H, 2), ceil_div(W, 2)  # of cells of 2x2 pixels
    cells = N * rows * columns
    divisions = fast_divisions(rows=rows, columns=columns)
    scalars = {"cells": cells, "rows": rows, "columns": columns, **divisions}
    sizes = {"dx": N * H * W * C, **dict.fromkeys(("dy", "y", "argmax"), N * P * Q * C)}
    return _pool_2x2("bias_relu_max_pool2d_backward", x_shape, window, cells, scalars, sizes)


def _pool_2x2(
    kernel: str,
    x_shape: Shape,
    window: Window,
    count: int,
    scalars: Mapping[str, int],
    sizes: Mapping[str, int | None],
) -> LaunchConfig:
    if not is_2x2(window):
        raise ValueError(f"{kernel}: the window must be 2x2, stride 2, no padding, got {window}")
    N, C, H, W = x_shape
    P, Q = window.output_size(H, W)
    require_int32(kernel, input_pixels=N * H * W)
    scalars = {"H": H, "W": W, "P": P, "Q": Q, **scalars}
    return _per_pixel("bias_relu_pool.cu", kernel, count, C, scalars, sizes)


def _per_pixel(
    file: str,
    kernel: str,
    pixels: int,
    C: int,
    scalars: Mapping[str, int],
    sizes: Mapping[str, int | None],
    **macros: bool | str,
) -> LaunchConfig:
    """A kernel whose threads own the pixels, each `VEC` of their C channels."""
    vec = vector_width(C)
    grid, lanes = pixel_loop(pixels, C, vec)
    scalars, chosen = {"lanes": lanes, "C": C, **scalars}, defines(VEC=vec, **macros)
    return LaunchConfig((Launch(file, kernel, grid, THREADS, chosen, scalars, sizes),))


def _counted(x_shape: Shape, window: Window, include_pad: bool) -> dict[str, int]:
    """Between which rows and columns a tap counts."""
    H, W = x_shape[2:]
    (top, bottom), (left, right) = window.pads(H, W) if include_pad else ((0, 0), (0, 0))
    return {"low_h": -top, "high_h": H + bottom, "low_w": -left, "high_w": W + right}


def _pool(
    kernel: str,
    file: str,
    x_shape: Shape,
    window: Window,
    more: Mapping[str, int] = MappingProxyType({}),
    **macros: bool | str,
) -> LaunchConfig:
    """One owner of each pixel that is written: of the output, or backward of the input."""
    N, C, H, W = x_shape
    P, Q = window.output_size(H, W)
    image, pooled = N * H * W * C, N * P * Q * C
    pixels = N * P * Q if kernel.endswith("_forward") else N * H * W
    scalars = {**window_scalars(kernel.removesuffix("_forward"), x_shape, window), **more}
    scalars["pixels"] = pixels
    sizes = {"x": image, "dx": image, "y": pooled, "dy": pooled, "argmax": pooled}
    return _per_pixel(file, kernel, pixels, C, scalars, sizes, **macros)


def window_scalars(name: str, x_shape: Shape, window: Window) -> dict[str, int]:
    """The image and the window as the kernels take them; ValueError past 32 bits."""
    N, C, H, W = x_shape
    P, Q = window.output_size(H, W)
    (top, _), (left, _) = window.pads(H, W)
    (R, S), (stride_h, stride_w) = window.kernel_size, window.stride
    dil_h, dil_w = window.dilation
    if window.taps_count > MOST_TAPS:
        raise ValueError(
            f"{name}: a window of {window.taps_count} taps; the kernels visit at most {MOST_TAPS}: "
            f"use cpu"
        )
    require_int32(
        name,
        input_pixels=N * H * W,
        output_pixels=N * P * Q,
        rows_with_padding=H + top + (R - 1) * dil_h + P * stride_h,
        columns_with_padding=W + left + (S - 1) * dil_w + Q * stride_w,
    )
    return {
        **{"H": H, "W": W, "C": C, "P": P, "Q": Q, "R": R, "S": S},
        **{"stride_h": stride_h, "stride_w": stride_w, "pad_h": top, "pad_w": left},
        **{"dil_h": dil_h, "dil_w": dil_w},
    }


@lru_cache(maxsize=CACHED)
def config_adaptive_avg_pool2d(shape: Shape, size: tuple[int, int]) -> LaunchConfig:
    """y (N, P, Q, C) from x (N, H, W, C); shape is (N, C, H, W), size (P, Q)."""
    if size == (1, 1):
        return config_global_avg_pool2d(shape)
    N, C, H, W = shape
    pixels = N * size[0] * size[1]
    sizes = {"y": pixels * C, "x": N * H * W * C}
    return _adaptive("adaptive_avg_pool2d_forward", pixels, shape, size, sizes)


@lru_cache(maxsize=CACHED)
def config_global_avg_pool2d(shape: Shape) -> LaunchConfig:
    """y (N, C) from x (N, H, W, C), the means over H and W; shape is (N, C, H, W)."""
    N, C, H, W = shape
    require_channels("adaptive_avg_pool2d", shape)
    vec = vector_width(C)
    lanes, blocks = channel_tile(C, vec)
    grid = (blocks, min(N, MAX_GRID_YZ), 1)
    scalars = {"images": N, "lanes": lanes, "size": H * W, "C": C}
    sizes = {"y": N * C, "x": N * H * W * C}
    kernel, chosen = "global_avg_pool2d_forward", defines(VEC=vec)
    launch = Launch("adaptive_avgpool.cu", kernel, grid, THREADS, chosen, scalars, sizes)
    return LaunchConfig((launch,))


@lru_cache(maxsize=CACHED)
def config_adaptive_avg_pool2d_backward(shape: Shape, size: tuple[int, int]) -> LaunchConfig:
    """dx (N, H, W, C) from dy (N, P, Q, C)."""
    N, C, H, W = shape
    pixels = N * H * W
    sizes = {"dx": pixels * C, "dy": N * size[0] * size[1] * C}
    return _adaptive("adaptive_avg_pool2d_backward", pixels, shape, size, sizes)


def _adaptive(
    kernel: str, pixels: int, shape: Shape, size: tuple[int, int], sizes: Mapping[str, int]
) -> LaunchConfig:
    (_, C, H, W), (P, Q) = shape, size
    name = "adaptive_avg_pool2d"
    require_channels(name, shape)
    require_int32(name, pixels=pixels, rows=(H + 1) * (P + 1), columns=(W + 1) * (Q + 1))
    scalars = {"pixels": pixels, "H": H, "W": W, "P": P, "Q": Q}
    return _per_pixel("adaptive_avgpool.cu", kernel, pixels, C, scalars, sizes)
