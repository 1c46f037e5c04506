"""Launch configurations of convolution and linear layers on tensor cores.

Kernels: kernels/conv_mma.cu, kernels/conv_mma_weight.cu; what brings their operands into shape:
kernels/weight_transform.cu, kernels/pad_channels.cu.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import isqrt

import numpy as np

from gpuconv.cuda.launch_config import (
    CACHED,
    Launch,
    LaunchConfig,
    ceil_div,
    defines,
    fast_divisions,
    loop_grid,
    require_int32,
)
from gpuconv.cuda.split_k import split_length
from gpuconv.ops.conv2d_launch import MASK_COLUMNS, MASK_ROWS, MOMENT_ROWS, Conv2dShape

MAX_REACH = 1 << 30  # elements that a window spans in memory: bytes are counted in 32 bits
SIZES = ("H", "W", "P", "Q", "R", "S")


@dataclass(frozen=True)
class Format:
    """How operands are stored: a kernel's macros, and the arrays' dtype."""

    name: str
    element: str  # the kernels' type
    dtype: np.dtype  # of activations and their gradients
    width: int  # elements of 16 bytes

    @property
    def macros(self) -> dict[str, str]:
        return {"FORMAT": self.name.upper(), "ELEMENT": self.element}

    def whole(self, channels: int) -> int:
        """So many channels, padded to vectors of 16 bytes."""
        return ceil_div(channels, self.width) * self.width


FORMATS = {
    "tf32": Format("tf32", "float", np.dtype(np.float32), 4),
    "bf16": Format("bf16", "unsigned short", np.dtype(np.uint16), 8),
    "fp16": Format("fp16", "unsigned short", np.dtype(np.float16), 8),
}

# Tiles of pixels x channels (backward weight: filters x columns), the largest first, each with the
# least blocks of it that a pass must have. A larger tile reads less for each product; too few
# blocks leave processors idle.
TILES = (
    ((128, 256), 264),  # two rounds of blocks on 132 processors, which hold one such block each
    ((128, 128), 132),  # a processor holds two; half a round is the most that may be lost
    ((128, 64), 132),  # up to 64 channels, or a last tile of at most 64: no column is idle
    ((64, 64), 0),  # whatever is left: the most blocks
)


def tile_of(down: int, across: int, times: int) -> tuple[int, int]:
    """The tile for a result of `down` x `across`, `times` of them, by TILES."""
    for tile, least in TILES:
        columns = ceil_div(across, tile[1]) * tile[1]
        idle = columns - ceil_div(across, 64) * 64
        if idle == 0 and ceil_div(down, tile[0]) * (columns // tile[1]) * times >= least:
            return tile
    return TILES[-1][0]


def weight_tile(filters: int, channels: int, columns: int) -> tuple[int, int]:
    """Filters x columns of a tile of backward weight."""
    if filters <= 64 or columns <= 64:
        return 64, 64  # half of a larger one would be idle
    if channels % 128 == 0:
        return 128, 128  # one tap a tile: its place is computed once for all columns
    if channels % 64 == 0 or ceil_div(columns, 64) % 2:
        return 128, 64  # one tap a tile, or no idle half
    return 128, 128


def threads(tile: tuple[int, int]) -> int:
    """Of a block: a warp for 64 x 64, and four warps at least."""
    return 256 if tile == (128, 256) else 128


def stages(deep: bool) -> tuple[int, int]:
    """(stages of copies, bytes of a row in each), as kernels/conv_mma.cuh has them."""
    return (2, 128) if deep else (3, 64)


def applies(conv: Conv2dShape) -> bool:
    """Whether tensor cores take a convolution of this shape, its channels being padded."""
    window = conv.R <= MASK_ROWS and conv.S <= MASK_COLUMNS
    window &= (conv.dil_h * conv.R * conv.W + conv.dil_w * conv.S) * conv.C < MAX_REACH
    return window and not conv.depthwise and min(conv.N, conv.P, conv.Q) > 0


def padded(conv: Conv2dShape, form: Format) -> Conv2dShape:
    """The shape with whole vectors of channels in each group of x: that of the forward pass."""
    return replace(conv, C=form.whole(conv.channels) * conv.groups)


def padded_filters(conv: Conv2dShape, form: Format) -> Conv2dShape:
    """The shape with whole vectors of filters in each group of dy: that of backward data."""
    return replace(conv, K=form.whole(conv.filters) * conv.groups)


def filters_size(conv: Conv2dShape, form: Format, backward: bool) -> int:
    """Elements of the transformed filters."""
    rows, terms = (conv.C, conv.filters) if backward else (conv.K, conv.channels)
    return rows * conv.R * conv.S * form.whole(terms)


@lru_cache(maxsize=CACHED)
def config_filters(conv: Conv2dShape, form: Format, backward: bool) -> LaunchConfig:
    """`filters` for conv_mma.cu from w (K,R,S,C/groups); backward: for backward data."""
    conv.require("conv2d")
    taps = conv.R * conv.S
    sizes = {"filters": filters_size(conv, form, backward), "w": conv.size("w")}
    require_int32("conv2d", elements_of_transformed_filters=sizes["filters"])
    macros = defines(**form.macros)
    if not backward:
        padded = form.whole(conv.channels)
        scalars = {"taps": conv.K * taps, "channels": conv.channels, "padded": padded}
        grid = loop_grid(sizes["filters"])
        launch = Launch("weight_transform.cu", "filters_forward", grid, 256, macros, scalars, sizes)
        return LaunchConfig((launch,))
    whole = form.whole(conv.filters)
    scalars = {
        **{"filters_here": conv.filters, "padded": whole, "R": conv.R, "S": conv.S},
        **{"channels": conv.channels, **conv.window_scalars},
    }
    grid = (ceil_div(whole, 32) * ceil_div(conv.channels, 32), taps, conv.groups)
    launch = Launch("weight_transform.cu", "filters_backward", grid, 256, macros, scalars, sizes)
    return LaunchConfig((launch,))


@lru_cache(maxsize=CACHED)
def config_forward(
    conv: Conv2dShape, form: Format, bias: bool, relu: bool, moments: bool = False
) -> LaunchConfig:
    """y (N,P,Q,K) from x (N,H,W,C), whose channels are padded, and `filters`; b is float32.

    moments: "partials" takes the moments of y in `moment_parts` parts.
    """
    conv.require("conv2d")
    tile = tile_of(conv.N * conv.P * conv.Q, conv.filters, conv.groups)
    across = ceil_div(conv.filters, tile[1])
    parts = ceil_div(conv.N * conv.P * conv.Q, tile[0])
    scalars = {
        **{name: getattr(conv, name) for name in SIZES},
        **{"pixels": conv.N * conv.P * conv.Q, "N": conv.N, "C": conv.C, "K": conv.K},
        **{"channels": conv.channels, "results": conv.filters, "tiles_across": across},
        **{"phases": 1, "phases_w": 1, "every_h": 1, "every_w": 1, "step_h": 1, "step_w": 1},
        **conv.window_scalars,
        **fast_divisions(rows=conv.P, short_rows=1, columns=conv.Q, short_columns=1),
        **{"use_bias": int(bias), "rectify": int(relu), "use_sign": 0, "use_onto": 0},
    }
    sizes = {
        **{"result": conv.size("y"), "gathered": conv.size("x"), "sign": None, "onto": None},
        **{"filters": filters_size(conv, form, False), "b": conv.K if bias else None},
        "partials": MOMENT_ROWS * parts * conv.K if moments else None,
    }
    arrays = {"result": "y", "gathered": "x", "sign": "x", "onto": "x"}
    if not moments:
        arrays["partials"] = "b"
    grid = (parts * across, conv.groups, 1)
    return _gather(conv, form, tile, grid, 0, moments, conv.filters, scalars, sizes, arrays)


def moment_parts(conv: Conv2dShape) -> int:
    """The parts of y whose moments `config_forward` writes."""
    pixels = conv.N * conv.P * conv.Q
    return ceil_div(pixels, tile_of(pixels, conv.filters, conv.groups)[0])


@lru_cache(maxsize=CACHED)
def config_backward_data(
    conv: Conv2dShape, form: Format, mask: bool, onto: bool = False
) -> LaunchConfig:
    """dx (N,H,W,C) from dy (N,P,Q,K), whose filters are padded, and `filters`, added to "onto" if
    there is one; with mask, 0 where x is not positive.
    """
    conv.require("conv2d_backward")
    of_phases = conv.phase_scalars
    phases = of_phases["phases"]
    pixels = conv.N * ceil_div(conv.H, conv.stride_h) * ceil_div(conv.W, conv.stride_w)
    tile = tile_of(pixels, conv.channels, phases * conv.groups)
    tiles, across = ceil_div(pixels, tile[0]) * phases, ceil_div(conv.channels, tile[1])
    require_int32("conv2d_backward", tiles_of_pixels=tiles * max(tile[0], across))
    scalars = {
        # the kernel gathers from an image (H, W, C) and writes one (P, Q, K)
        **{"H": conv.P, "W": conv.Q, "P": conv.H, "Q": conv.W, "C": conv.K, "K": conv.C},
        **{"R": conv.R, "S": conv.S, "N": conv.N, "pixels": conv.N * conv.H * conv.W},
        **{"channels": conv.filters, "results": conv.channels, "tiles_across": across},
        **of_phases,
        **conv.window_scalars,
        **{"use_bias": 0, "rectify": 0, "use_sign": int(mask), "use_onto": int(onto)},
    }
    x = conv.size("x")
    sizes = {
        **{"result": x, "gathered": conv.size("y"), "partials": None, "b": None},
        **{"filters": filters_size(conv, form, True)},
        **{"sign": x if mask else None, "onto": x if onto else None},
    }
    arrays = {"result": "dx", "gathered": "dy", "sign": "x", "partials": "b"}
    arrays["onto"] = "onto" if onto else "dy"
    grid = (tiles * across, conv.groups, 1)
    return _gather(conv, form, tile, grid, 1, False, conv.channels, scalars, sizes, arrays)


def _gather(conv, form, tile, grid, backward, moments, results, scalars, sizes, arrays):
    out = form.width if results % form.width == 0 else 1
    macros = {"TILE": tile[0], "TILE_N": tile[1], "BACKWARD": backward, "MOMENTS": int(moments)}
    scalars |= fast_divisions(vectors=scalars["channels"] // form.width)
    count, row_bytes = stages(tile[0] == 64)
    past = count * row_bytes // 16  # taps that no row has: PAST in conv_mma.cu
    shared = count * row_bytes * sum(tile) + 4 * tile[0] + 8 * (conv.R * conv.S + past)
    launch = Launch(
        "conv_mma.cu",
        "conv2d_gather_mma",
        grid,
        threads(tile),
        defines(**form.macros, **macros, VEC_OUT=out, VEC=form.width),
        scalars,
        sizes,
        arrays,
        shared,
        multiply_adds=conv.multiply_adds,
    )
    return LaunchConfig((launch,))


@lru_cache(maxsize=CACHED)
def config_backward_weight(
    conv: Conv2dShape, form: Format, real: tuple[int, int], bias: bool
) -> LaunchConfig:
    """dw (K,R,S,C/groups) and db (K,), float32, from dy (N,P,Q,K) and x (N,H,W,C), both padded.

    real: channels and filters of a group as they are, without padding.
    """
    conv.require("conv2d_backward")
    columns, pixels = conv.R * conv.S * conv.channels, conv.N * conv.P * conv.Q
    size = form.dtype.itemsize
    require_int32(
        "conv2d_backward",
        bytes_of_a_pixel=conv.C * size,
        bytes_of_16_pixels_of_dy=16 * conv.K * size,
    )
    tile = weight_tile(conv.filters, conv.channels, columns)
    whole, uniform = conv.filters % tile[0] == 0, conv.channels % tile[1] == 0
    across = ceil_div(columns + (form.width if bias else 0), tile[1])
    tiles = ceil_div(conv.filters, tile[0]) * across
    count, row_bytes = stages(tile[1] == 64)
    deep = row_bytes // size
    length = ceil_div(split_length(pixels, tiles * conv.groups), deep) * deep
    splits = max(1, ceil_div(pixels, length))
    together = isqrt(splits)
    workspace = tiles * conv.groups * splits * tile[0] * tile[1] if splits > 1 else 0
    tickets = tiles * conv.groups * (ceil_div(splits, together) + 1) if splits > 1 else 1
    channels, filters = real
    scalars = {
        **{name: getattr(conv, name) for name in (*SIZES, "C", "K", "channels", "filters")},
        **{"pixels": pixels, "split_length": length, "together": together, "tiles_across": across},
        **{"real_channels": channels, "real_filters": filters, **conv.window_scalars},
        **fast_divisions(p=conv.P, q=conv.Q, dil_h=conv.dil_h, dil_w=conv.dil_w),
    }
    dw = filters * conv.groups * conv.R * conv.S * channels
    sizes = {
        **{"dw": dw, "db": filters * conv.groups if bias else None},
        **{"partials": workspace or None, "tickets": tickets if splits > 1 else None},
        **conv.sizes_weight(),
    }
    macros = {"TILE": tile[0], "TILE_N": tile[1], "VEC": form.width}
    macros |= {"BIAS": int(bias), "WHOLE": int(whole), "UNIFORM": int(uniform)}
    launch = Launch(
        "conv_mma_weight.cu",
        "conv2d_backward_weight_mma",
        (tiles, conv.groups, splits),
        tile[0] * tile[1] // 128 if form.name == "tf32" else threads(tile),  # a warp for 64 x 64
        defines(**form.macros, **macros),
        scalars,
        sizes,
        {"partials": "workspace" if workspace else "dw"} | ({} if bias else {"db": "dw"}),
        count * row_bytes * sum(tile),
        multiply_adds=conv.multiply_adds,
    )
    return LaunchConfig((launch,), workspace, tickets)


@lru_cache(maxsize=CACHED)
def config_pad(
    shape: tuple[int, int, int, int],
    strides: tuple[int, ...],
    count: int,
    groups: int,
    form: Format,
    source: str,
) -> LaunchConfig:
    """to (N, H, W, padded) from "from" (N, C, H, W), of `count` elements in memory.

    strides: of from, in elements. source: its type in CUDA C++, float or the format's own.
    """
    N, C, H, W = shape
    pixels, vectors = N * H * W, form.whole(C // groups) // form.width
    require_int32("conv2d", vectors_of_padded_pixels=pixels * vectors * groups)
    scalars = {
        **{"pixels": pixels, "area": H * W, "groups": groups, "channels": C // groups},
        **{"vectors": vectors, "width": W},
        **dict(zip(("stride_n", "stride_c", "stride_h", "stride_w"), strides, strict=True)),
        **fast_divisions(area=H * W, width=W, pixels=pixels),
    }
    sizes = {"to": pixels * vectors * groups * form.width, "from": count}
    macros = defines(**form.macros, SOURCE=source)
    grid = loop_grid(pixels * vectors * groups)
    launch = Launch("pad_channels.cu", "pad_channels", grid, 256, macros, scalars, sizes)
    return LaunchConfig((launch,))
