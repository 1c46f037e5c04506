"""Launch plans of depthwise convolution (kernels/depthwise.cu): groups of one channel each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuconv.cuda.plan import (
    GRID_YZ,
    STRIDE_BLOCKS,
    THREADS,
    Launch,
    Plan,
    ceil_div,
    defines,
    magics,
    require_int,
)
from gpuconv.cuda.plan_slices import slice_length, sliced

if TYPE_CHECKING:
    from gpuconv.cuda.plan_conv import Conv

SHARED_MOST = 48 << 10  # what every architecture grants without asking


def forward(conv: Conv, bias: bool, relu: bool) -> Plan:
    """As plan_conv.forward, for filters of one channel."""
    vec, lanes = _lanes("conv2d", conv, conv.K, 1)
    pixels = conv.N * conv.P * conv.Q
    scalars = {**_common(conv, pixels, lanes), **magics(p=conv.P, q=conv.Q)}
    scalars |= {"use_bias": int(bias), "rectify": int(relu)}
    chosen = defines(VEC=vec)
    grid = _grid("conv2d", pixels, lanes, ceil_div(conv.K, lanes * vec))
    shared = 4 * lanes * vec * conv.R * conv.S
    kernel = "conv2d_forward_depthwise"
    return Plan((Launch("depthwise.cu", kernel, grid, THREADS, chosen, scalars, shared=shared),))


def backward_data(conv: Conv, mask: bool) -> Plan:
    """As plan_conv.backward_data, for filters of one channel."""
    vec, lanes = _lanes("conv2d_backward", conv, conv.C, conv.filters)
    pixels = conv.N * conv.H * conv.W
    scalars = {**_common(conv, pixels, lanes), **magics(h=conv.H, w=conv.W)}
    scalars["use_mask"] = int(mask)
    chosen = defines(VEC=vec)
    grid = _grid("conv2d_backward", pixels, lanes, ceil_div(conv.C, lanes * vec))
    shared = 4 * lanes * vec * conv.filters * conv.R * conv.S
    kernel = "conv2d_backward_data_depthwise"
    return Plan((Launch("depthwise.cu", kernel, grid, THREADS, chosen, scalars, shared=shared),))


def backward_weight(conv: Conv) -> Plan:
    """As plan_conv.backward_weight, for filters of one channel."""
    vec = _vec(conv)
    lanes = min(ceil_div(conv.K, vec), 32)
    pixels, taps = conv.N * conv.P * conv.Q, conv.R * conv.S
    require_int("conv2d_backward", filter_elements=conv.K * taps)
    blocks = ceil_div(conv.K, lanes * vec) * taps
    length = slice_length(pixels, blocks)
    slices = max(1, ceil_div(pixels, length))
    scalars = {**_common(conv, pixels, lanes), **magics(p=conv.P, q=conv.Q), "slice": length}
    launch = Launch(
        "depthwise.cu",
        "conv2d_backward_weight_depthwise",
        (blocks, slices, 1),
        THREADS,
        defines(VEC=vec),
        scalars,
    )
    return sliced(launch, "dw", conv.K * taps, slices)


def _vec(conv: Conv) -> int:
    return 4 if conv.filters == 1 and conv.C % 4 == 0 else 1


def _lanes(name: str, conv: Conv, width: int, multiplier: int) -> tuple[int, int]:
    """(VEC, threads along `width` channels) such that a block's filters fit shared memory."""
    vec, taps = _vec(conv), conv.R * conv.S
    require_int(name, filter_elements=conv.K * taps)
    room = SHARED_MOST // (4 * vec * multiplier * taps)
    if room < 1:
        raise NotImplementedError(
            f"{name}: depthwise filters of {conv.R}x{conv.S} taps, {conv.filters} a channel, do "
            f"not fit {SHARED_MOST} bytes of shared memory"
        )
    return vec, min(ceil_div(width, vec), 32, room)


def _grid(name: str, pixels: int, lanes: int, blocks: int) -> tuple[int, int, int]:
    if blocks > GRID_YZ:
        raise ValueError(f"{name}: too many channels: {blocks} blocks, {GRID_YZ} are allowed")
    return min(ceil_div(max(pixels, 1), THREADS // lanes), STRIDE_BLOCKS), blocks, 1


def _common(conv: Conv, pixels: int, lanes: int) -> dict[str, int]:
    names = ("H", "W", "C", "K", "P", "Q", "R", "S")
    return {
        "pixels": pixels,
        "lanes": lanes,
        "multiplier": conv.filters,
        **{name: getattr(conv, name) for name in names},
        **conv.window_scalars,
    }
