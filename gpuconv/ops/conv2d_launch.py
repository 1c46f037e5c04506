"""Launch configurations of convolution and, as its 1x1 case, of linear layers.

Kernels: kernels/conv_simt.cu, kernels/conv_simt_weight.cu; depthwise filters and images of few
channels have files of their own, here and there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import gcd, isqrt

from gpuconv.cuda.launch_config import (
    CACHED,
    MAX_GRID_YZ,
    THREADS,
    Launch,
    LaunchConfig,
    ceil_div,
    defines,
    fast_divisions,
    require_int32,
    vector_width,
)
from gpuconv.cuda.split_k import TARGET_BLOCKS, split_k, split_length
from gpuconv.ops import conv2d_launch_depthwise as depthwise
from gpuconv.ops import conv2d_launch_few_channels as few_channels
from gpuconv.shapes import Window

MOMENT_ROWS = 4  # of a part of the pixels: kernels/moments.cuh
MASK_ROWS, MASK_COLUMNS = 16, 15  # of a window whose taps fit the bit mask of conv_gather.cuh


@dataclass(frozen=True)
class Conv2dShape:
    """The sizes of a convolution: x (N, C, H, W), filters (K, C/groups, R, S), y (N, K, P, Q)."""

    N: int
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    P: int
    Q: int
    stride_h: int = 1
    stride_w: int = 1
    pad_h: int = 0
    pad_w: int = 0
    dil_h: int = 1
    dil_w: int = 1
    groups: int = 1

    @classmethod
    @lru_cache(maxsize=CACHED)
    def of(
        cls, x_shape: tuple[int, ...], w_shape: tuple[int, ...], window: Window, groups: int
    ) -> Conv2dShape:
        """From the shapes that users see, NCHW and OIHW, and their window."""
        (N, C, H, W), (K, _, R, S) = x_shape, w_shape
        (top, _), (left, _) = window.pads(H, W)
        (stride_h, stride_w), (dil_h, dil_w) = window.stride, window.dilation
        P, Q = window.output_size(H, W)
        geometry = (stride_h, stride_w, top, left, dil_h, dil_w)
        return cls(N, C, H, W, K, R, S, P, Q, *geometry, groups)

    @classmethod
    def linear(cls, rows: int, features_in: int, features_out: int) -> Conv2dShape:
        """A linear layer: one pixel an image, one tap a filter."""
        return cls(rows, features_in, 1, 1, features_out, 1, 1, 1, 1)

    @property
    def channels(self) -> int:
        """Of one group."""
        return self.C // self.groups

    @property
    def filters(self) -> int:
        """Of one group."""
        return self.K // self.groups

    @property
    def multiply_adds(self) -> int:
        """Of each of the three passes."""
        return self.size("y") * self.R * self.S * self.channels

    @property
    def is_linear(self) -> bool:
        """One window, which is the whole image: a linear layer of its pixels' channels."""
        whole = (self.R, self.S, self.P, self.Q, self.groups) == (self.H, self.W, 1, 1, 1)
        return whole and (self.pad_h, self.pad_w) == (0, 0) and self.N > 0

    @property
    def depthwise(self) -> bool:
        """Every channel has filters of its own."""
        return self.groups > 1 and self.channels == 1

    @property
    def window_scalars(self) -> dict[str, int]:
        names = ("stride_h", "stride_w", "pad_h", "pad_w", "dil_h", "dil_w")
        return {name: getattr(self, name) for name in names}

    @property
    def phase_scalars(self) -> dict[str, int]:
        """The stride phases into which the pixels of dx are cut (kernels/conv_simt.cu, "Math"), of
        which the first has the most rows and columns.
        """
        every_h = self.stride_h // gcd(self.stride_h, self.dil_h)
        every_w = self.stride_w // gcd(self.stride_w, self.dil_w)
        phases_w = min(self.stride_w, self.W)
        rows, columns = ceil_div(self.H, self.stride_h), ceil_div(self.W, self.stride_w)
        return {
            **{"phases": min(self.stride_h, self.H) * phases_w, "phases_w": phases_w},
            **{"every_h": every_h, "every_w": every_w},
            **{"step_h": self.dil_h * every_h // self.stride_h},
            **{"step_w": self.dil_w * every_w // self.stride_w},
            **fast_divisions(rows=rows, short_rows=max(1, self.H // self.stride_h)),
            **fast_divisions(columns=columns, short_columns=max(1, self.W // self.stride_w)),
        }

    def size(self, array: str) -> int:
        """Elements of x (and dx), w (and dw), b or y (and dy)."""
        return {
            "x": self.N * self.H * self.W * self.C,
            "w": self.K * self.R * self.S * self.channels,
            "b": self.K,
            "y": self.N * self.P * self.Q * self.K,
        }[array]

    def sizes_written(self, bias: bool, parts: int) -> tuple[dict[str, int | None], dict[str, str]]:
        """(sizes, arrays) of a kernel that writes the moments of so many parts of y, or of none."""
        partials = MOMENT_ROWS * parts * self.K if parts else None
        sizes = {**self.sizes_forward(bias), "partials": partials}
        return sizes, {} if parts else {"partials": "y"}

    def sizes_forward(self, bias: bool) -> dict[str, int | None]:
        """Of the pointers of every kernel of the forward pass; without bias, b is not read."""
        sizes: dict[str, int | None] = {name: self.size(name) for name in "yxw"}
        return {**sizes, "b": self.size("b") if bias else None}

    def sizes_data(self, mask: bool, onto: bool) -> dict[str, int | None]:
        """Of every kernel of backward data; without mask, x is not read, nor `onto` without it."""
        x = self.size("x")
        read = {"x": x if mask else None, "onto": x if onto else None}
        return {"dx": x, "dy": self.size("y"), "w": self.size("w"), **read}

    def sizes_weight(self) -> dict[str, int | None]:
        """Of every kernel of backward weight, but for the partial results."""
        return {"dy": self.size("y"), "x": self.size("x")}

    def require(self, name: str) -> None:
        """ValueError where a count passes the kernels' 32 bits."""
        reach_h, reach_w = self.dil_h * (self.R + 1) + self.H, self.dil_w * (self.S + 1) + self.W
        x_width, y_width = vector_width(self.channels), vector_width(self.filters)
        require_int32(
            name,
            output_pixels=self.N * self.P * self.Q + 128,
            input_pixels=self.N * self.H * self.W + 128,
            filter_elements_of_a_group=(self.filters + 128) * (self.R * self.S + 1) * self.channels,
            rows_and_columns_with_padding=reach_h * reach_w,
            vectors_of_x=(self.N * self.H + 2 * reach_h) * self.W * self.C // x_width,
            vectors_of_y=(self.N * self.P + 2 * reach_h) * self.Q * self.K // y_width,
            elements_of_an_image=(reach_h * self.W + reach_w) * self.C,
        )
        if self.groups > MAX_GRID_YZ:
            raise ValueError(f"{name}: {self.groups} groups; at most {MAX_GRID_YZ} are supported")


@lru_cache(maxsize=CACHED)
def config_forward(
    conv: Conv2dShape, bias: bool, relu: bool, moments: bool = False
) -> LaunchConfig:
    """y (N,P,Q,K) from x (N,H,W,C), w (K,R,S,C/groups) and b; without bias, give w for b.

    moments: "partials" takes the moments of y in `moment_parts` parts.
    """
    conv.require("conv2d")
    if conv.depthwise:
        return depthwise.config_forward(conv, bias, relu)
    if config := few_channels.config_forward(conv, bias, relu, moments):
        return config
    pixels = conv.N * conv.P * conv.Q
    vec, out = vector_width(conv.channels), vector_width(conv.filters)
    sizes = (pixels, 1, conv.filters, conv.channels)
    tile, macros = _gather((conv.R, conv.S), sizes, conv.groups, vec, vec, out)
    tiles, across = ceil_div(pixels, tile[0]), ceil_div(conv.filters, tile[1])
    pointers = conv.sizes_written(bias, tiles if moments else 0)
    scalars = {
        **_common(conv, pixels, across),
        **fast_divisions(p=conv.P, q=conv.Q, channels=conv.channels),
        "reduction": conv.R * conv.S * conv.channels,
        "use_bias": int(bias),
        "rectify": int(relu),
    }
    launch = Launch(
        "conv_simt.cu",
        "conv2d_forward_simt",
        (tiles * across, conv.groups, 1),
        _threads(tile),
        defines(**macros, MOMENTS=moments),
        scalars,
        *pointers,
        multiply_adds=conv.multiply_adds,
    )
    return LaunchConfig((launch,))


def moment_parts(conv: Conv2dShape) -> int:
    """The parts of y whose moments a forward pass can write; 0 where no kernel does."""
    if conv.depthwise:
        return 0
    partials = config_forward(conv, False, False, True).launches[0].sizes["partials"]
    return (partials or 0) // (MOMENT_ROWS * conv.K)


@lru_cache(maxsize=CACHED)
def config_backward_data(conv: Conv2dShape, mask: bool, onto: bool = False) -> LaunchConfig:
    """dx (N,H,W,C) from dy (N,P,Q,K) and w, added to "onto" if there is one; with mask, 0 where x
    is not positive.

    Without mask give dy for x: it is not read.
    """
    conv.require("conv2d_backward")
    if conv.depthwise:
        return depthwise.config_backward_data(conv, mask, onto)
    of_phases = conv.phase_scalars
    phases = of_phases["phases"]
    pixels = conv.N * ceil_div(conv.H, conv.stride_h) * ceil_div(conv.W, conv.stride_w)
    taps = (ceil_div(conv.R, of_phases["every_h"]), ceil_div(conv.S, of_phases["every_w"]))
    vec, out = vector_width(conv.filters), vector_width(conv.channels)
    sizes = (pixels, phases, conv.channels, conv.filters)
    tile, macros = _gather(taps, sizes, conv.groups, vec, out, out)
    tiles, across = ceil_div(pixels, tile[0]) * phases, ceil_div(conv.channels, tile[1])
    require_int32("conv2d_backward", tiles_of_pixels=tiles * max(tile[0], across))
    scalars = {
        **_common(conv, conv.N * conv.H * conv.W, across),
        **of_phases,
        "N": conv.N,
        **fast_divisions(filters=conv.filters),
        **{"use_mask": int(mask), "use_onto": int(onto)},
    }
    launch = Launch(
        "conv_simt.cu",
        "conv2d_backward_data_simt",
        (tiles * across, conv.groups, 1),
        _threads(tile),
        defines(**macros, MOMENTS=0),
        scalars,
        conv.sizes_data(mask, onto),
        {} if onto else depthwise.ONTO,
        multiply_adds=conv.multiply_adds,
    )
    return LaunchConfig((launch,))


@lru_cache(maxsize=CACHED)
def config_backward_weight(conv: Conv2dShape) -> LaunchConfig:
    """dw (K,R,S,C/groups) from dy (N,P,Q,K) and x (N,H,W,C)."""
    conv.require("conv2d_backward")
    if conv.depthwise:
        return depthwise.config_backward_weight(conv)
    if config := few_channels.config_backward_weight(conv):
        return config
    columns, pixels = conv.R * conv.S * conv.channels, conv.N * conv.P * conv.Q
    vec_a, vec_b = vector_width(conv.filters), vector_width(conv.channels)
    tile = (64, 64)
    if vec_a == vec_b == 4 and conv.filters > 32 and columns > 64:
        tile = (128, _across(conv.filters))
    # the columns across, but in the tile of 128 x 64 the filters
    down, side = (columns, conv.filters) if tile == (128, 64) else (conv.filters, columns)
    across = ceil_div(side, tile[1])
    tiles = ceil_div(down, tile[0]) * across
    length = split_length(pixels, tiles * conv.groups)
    splits = max(1, ceil_div(pixels, length))
    together = isqrt(splits)  # parts of a group: about as many as there are groups
    scalars = {
        **_common(conv, pixels, across),
        **fast_divisions(p=conv.P, q=conv.Q),
        **{"columns": columns, "split_length": length, "together": together},
    }
    del scalars["R"]
    workspace = tiles * conv.groups * splits * tile[0] * tile[1] if splits > 1 else 0
    tickets = tiles * conv.groups * (ceil_div(splits, together) + 1) if splits > 1 else 1
    held = tickets if splits > 1 else None
    sizes = {"dw": conv.size("w"), "partials": workspace or None, "tickets": held}
    launch = Launch(
        "conv_simt_weight.cu",
        "conv2d_backward_weight_simt",
        (tiles, conv.groups, splits),
        _threads(tile),
        defines(TILE=tile[0], TILE_N=tile[1], VEC_A=vec_a, VEC_B=vec_b, VEC_OUT=vec_b),
        scalars,
        {**sizes, **conv.sizes_weight()},
        {"partials": "workspace" if workspace else "dw"},
        multiply_adds=conv.multiply_adds,
    )
    return LaunchConfig((launch,), workspace, tickets)


@lru_cache(maxsize=CACHED)
def config_backward_bias(pixels: int, K: int) -> LaunchConfig:
    """db (K,) from dy (pixels, K)."""
    require_int32("conv2d_backward", output_pixels=pixels)
    columns = min(K, 32)
    blocks = ceil_div(K, columns)
    length = split_length(pixels, blocks)
    splits = max(1, ceil_div(pixels, length))
    launch = Launch(
        "conv_simt_weight.cu",
        "conv2d_backward_bias_partials",
        (blocks, splits, 1),
        THREADS,
        defines(TILE=64, TILE_N=64, VEC_A=1, VEC_B=1, VEC_OUT=1),
        {"pixels": pixels, "split_length": length, "K": K, "columns": columns},
        {"dy": pixels * K},
    )
    return split_k(launch, "db", K, splits)


def _across(side: int) -> int:
    """The side of large tiles across so many filters or channels that wastes the least."""
    return 64 if ceil_div(side, 64) % 2 else 128


def _threads(tile: tuple[int, int]) -> int:
    """Of a block of conv_simt.cu or conv_simt_weight.cu."""
    return 128 if tile == (128, 64) else THREADS


def _gather(
    taps: tuple[int, int],
    sizes: tuple[int, int, int, int],
    groups: int,
    vec_a: int,
    vec_b: int,
    vec_out: int,
) -> tuple[tuple[int, int], dict[str, int]]:
    """(pixels and channels of a tile, macros) of a pass that gathers windows of this many rows and
    columns.

    sizes: pixels of a phase and how many phases, channels of a result, channels gathered.
    """
    pixels, phases, across, gathered = sizes
    bits = taps[0] <= MASK_ROWS and taps[1] <= MASK_COLUMNS
    whole = vec_a == vec_b == vec_out == 4 and gathered % 8 == 0 and bits
    tiles = ceil_div(pixels, 128) * phases * ceil_div(across, 128) * groups
    large = whole and across > 32 and tiles >= TARGET_BLOCKS // 4
    uniform = vec_a == 4 and gathered % (8 if large else 16) == 0
    tile = (128, _across(across)) if large else (64, 64)
    macros = {"TILE": tile[0], "TILE_N": tile[1], "VEC_A": vec_a, "VEC_B": vec_b}
    return tile, {**macros, "VEC_OUT": vec_out, "UNIFORM": int(uniform), "WINDOW_BITS": int(bits)}


def _common(conv: Conv2dShape, pixels: int, across: int) -> dict[str, int]:
    names = ("H", "W", "P", "Q", "R", "S", "C", "K", "channels", "filters")
    return {
        "pixels": pixels,
        "tiles_across": across,
        **{name: getattr(conv, name) for name in names},
        **conv.window_scalars,
    }
