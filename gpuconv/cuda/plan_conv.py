"""Launch plans of convolution and, as its 1x1 case, of linear layers."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from gpuconv.cuda import plan_depthwise, plan_first
from gpuconv.cuda.plan import (
    GRID_YZ,
    THREADS,
    Launch,
    Plan,
    ceil_div,
    defines,
    magics,
    require_int,
    vector,
)
from gpuconv.cuda.plan_slices import BLOCKS_WANTED, slice_length, sliced
from gpuconv.shapes import Window

BITS_ROWS, BITS_COLUMNS = 16, 15  # of a window whose taps fit the gather's bit mask


@dataclass(frozen=True)
class Conv:
    """The shape of a convolution: x (N, C, H, W), filters (K, C/groups, R, S), y (N, K, P, Q)."""

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
    def of(
        cls, x_shape: tuple[int, ...], w_shape: tuple[int, ...], window: Window, groups: int
    ) -> Conv:
        """From the shapes that users see, NCHW and OIHW, and their window."""
        (N, C, H, W), (K, _, R, S) = x_shape, w_shape
        (top, _), (left, _) = window.pads(H, W)
        (stride_h, stride_w), (dil_h, dil_w) = window.stride, window.dilation
        P, Q = window.output_size(H, W)
        geometry = (stride_h, stride_w, top, left, dil_h, dil_w)
        return cls(N, C, H, W, K, R, S, P, Q, *geometry, groups)

    @classmethod
    def linear(cls, rows: int, features_in: int, features_out: int) -> Conv:
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
    def depthwise(self) -> bool:
        """Every channel has filters of its own."""
        return self.groups > 1 and self.channels == 1

    @property
    def window_scalars(self) -> dict[str, int]:
        names = ("stride_h", "stride_w", "pad_h", "pad_w", "dil_h", "dil_w")
        return {name: getattr(self, name) for name in names}

    def require(self, name: str) -> None:
        """ValueError where a count passes the kernels' 32 bits."""
        reach_h, reach_w = self.dil_h * (self.R + 1) + self.H, self.dil_w * (self.S + 1) + self.W
        require_int(
            name,
            output_pixels=self.N * self.P * self.Q + 128,
            input_pixels=self.N * self.H * self.W + 128,
            filter_elements_of_a_group=(self.filters + 128) * (self.R * self.S + 1) * self.channels,
            rows_and_columns_with_padding=reach_h * reach_w,
            vectors_of_x=(self.N * self.H + 2 * reach_h) * self.W * self.C // vector(self.channels),
            vectors_of_y=(self.N * self.P + 2 * reach_h) * self.Q * self.K // vector(self.filters),
            elements_of_an_image=(reach_h * self.W + reach_w) * self.C,
        )
        if self.groups > GRID_YZ:
            raise ValueError(f"{name}: {self.groups} groups; at most {GRID_YZ} are supported")


def forward(conv: Conv, bias: bool, relu: bool) -> Plan:
    """y (N,P,Q,K) from x (N,H,W,C), w (K,R,S,C/groups) and b; without bias, give w for b."""
    conv.require("conv2d")
    if conv.depthwise:
        return plan_depthwise.forward(conv, bias, relu)
    if first := plan_first.forward(conv, bias, relu):
        return first
    reduction = conv.R * conv.S * conv.channels
    pixels = conv.N * conv.P * conv.Q
    vec, out = vector(conv.channels), vector(conv.filters)
    sizes = (pixels, 1, conv.filters, conv.channels)
    tile, macros = _gather((conv.R, conv.S), sizes, conv.groups, vec, vec, out)
    across = ceil_div(conv.filters, tile)
    scalars = {
        **_common(conv, pixels, across),
        **magics(p=conv.P, q=conv.Q, channels=conv.channels),
        "reduction": reduction,
        "use_bias": int(bias),
        "rectify": int(relu),
    }
    grid = (ceil_div(pixels, tile) * across, conv.groups, 1)
    chosen = defines(**macros)
    kernel = "conv2d_forward_simt"
    return Plan((Launch("conv_simt.cu", kernel, grid, THREADS, chosen, scalars),))


def backward_data(conv: Conv, mask: bool) -> Plan:
    """dx (N,H,W,C) from dy (N,P,Q,K) and w; with mask, 0 where x is not positive.

    Without mask give dy for x: it is not read.
    """
    conv.require("conv2d_backward")
    if conv.depthwise:
        return plan_depthwise.backward_data(conv, mask)
    rows, columns = ceil_div(conv.H, conv.stride_h), ceil_div(conv.W, conv.stride_w)
    classes_w = min(conv.stride_w, conv.W)
    classes = min(conv.stride_h, conv.H) * classes_w
    every_h, every_w = (
        conv.stride_h // gcd(conv.stride_h, conv.dil_h),
        conv.stride_w // gcd(conv.stride_w, conv.dil_w),
    )
    pixels = conv.N * rows * columns  # of the largest class
    taps = (ceil_div(conv.R, every_h), ceil_div(conv.S, every_w))
    vec, out = vector(conv.filters), vector(conv.channels)
    sizes = (pixels, classes, conv.channels, conv.filters)
    tile, macros = _gather(taps, sizes, conv.groups, vec, out, out)
    across = ceil_div(conv.channels, tile)
    tiles = ceil_div(pixels, tile) * classes
    require_int("conv2d_backward", tiles_of_pixels=tiles * max(tile, across))
    scalars = {
        **_common(conv, conv.N * conv.H * conv.W, across),
        **{"N": conv.N, "classes": classes, "classes_w": classes_w},
        **{"every_h": every_h, "every_w": every_w},
        **{"step_h": conv.dil_h * every_h // conv.stride_h},
        **{"step_w": conv.dil_w * every_w // conv.stride_w},
        **magics(rows=rows, rows_less=max(1, conv.H // conv.stride_h)),
        **magics(columns=columns, columns_less=max(1, conv.W // conv.stride_w)),
        **magics(filters=conv.filters),
        "use_mask": int(mask),
    }
    grid = (tiles * across, conv.groups, 1)
    chosen = defines(**macros)
    kernel = "conv2d_backward_data_simt"
    return Plan((Launch("conv_simt.cu", kernel, grid, THREADS, chosen, scalars),))


def backward_weight(conv: Conv) -> Plan:
    """dw (K,R,S,C/groups) from dy (N,P,Q,K) and x (N,H,W,C)."""
    conv.require("conv2d_backward")
    if conv.depthwise:
        return plan_depthwise.backward_weight(conv)
    if first := plan_first.backward_weight(conv):
        return first
    columns, pixels = conv.R * conv.S * conv.channels, conv.N * conv.P * conv.Q
    vec_a, vec_b = vector(conv.filters), vector(conv.channels)
    big = vec_a == vec_b == 4 and conv.filters > 64 and columns > 64
    tile = 128 if big else 64
    across = ceil_div(columns, tile)
    tiles = ceil_div(conv.filters, tile) * across
    length = slice_length(pixels, tiles * conv.groups)
    slices = max(1, ceil_div(pixels, length))
    scalars = {
        **_common(conv, pixels, across),
        **magics(p=conv.P, q=conv.Q),
        "columns": columns,
        "slice": length,
    }
    del scalars["R"]
    chosen = defines(TILE=tile, VEC_A=vec_a, VEC_B=vec_b, VEC_OUT=vec_b)
    return sliced(
        Launch(
            "conv_simt_weight.cu",
            "conv2d_backward_weight_simt",
            (tiles, conv.groups, slices),
            THREADS,
            chosen,
            scalars,
        ),
        "dw",
        conv.K * columns,
        slices,
    )


def backward_bias(pixels: int, K: int) -> Plan:
    """db (K,) from dy (pixels, K)."""
    require_int("conv2d_backward", output_pixels=pixels)
    columns = min(K, 32)
    blocks = ceil_div(K, columns)
    length = slice_length(pixels, blocks)
    slices = max(1, ceil_div(pixels, length))
    scalars = {"pixels": pixels, "slice": length, "K": K, "columns": columns}
    chosen = defines(TILE=64, VEC_A=1, VEC_B=1, VEC_OUT=1)
    kernel = "conv2d_backward_bias_slices"
    grid = (blocks, slices, 1)
    launch = Launch("conv_simt_weight.cu", kernel, grid, THREADS, chosen, scalars)
    return sliced(launch, "db", K, slices)


def _gather(
    taps: tuple[int, int],
    sizes: tuple[int, int, int, int],
    groups: int,
    vec_a: int,
    vec_b: int,
    vec_out: int,
) -> tuple[int, dict[str, int]]:
    """(tile, macros) of a pass that gathers windows of this many rows and columns.

    sizes: pixels of a class and how many classes, channels of a result, channels gathered.
    """
    pixels, classes, across, gathered = sizes
    bits = taps[0] <= BITS_ROWS and taps[1] <= BITS_COLUMNS
    whole = vec_a == vec_b == vec_out == 4 and gathered % 8 == 0 and bits
    tiles = ceil_div(pixels, 128) * classes * ceil_div(across, 128) * groups
    big = whole and across > 64 and tiles >= BLOCKS_WANTED // 4
    uniform = vec_a == 4 and gathered % (8 if big else 16) == 0
    tile = 128 if big else 64
    macros = {"TILE": tile, "VEC_A": vec_a, "VEC_B": vec_b, "VEC_OUT": vec_out}
    return tile, {**macros, "UNIFORM": int(uniform), "WINDOW_BITS": int(bits)}


def _common(conv: Conv, pixels: int, across: int) -> dict[str, int]:
    names = ("H", "W", "P", "Q", "R", "S", "C", "K", "channels", "filters")
    return {
        "pixels": pixels,
        "tiles_across": across,
        **{name: getattr(conv, name) for name in names},
        **conv.window_scalars,
    }
