"""Launch plans of convolution of images of few channels (kernels/conv_first.cu)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuconv.cuda.plan import (
    INT_MAX,
    THREADS,
    Launch,
    Plan,
    ceil_div,
    defines,
    magics,
    vector,
)
from gpuconv.cuda.plan_depthwise import SHARED_MOST
from gpuconv.cuda.plan_slices import slice_length, sliced

if TYPE_CHECKING:
    from gpuconv.cuda.plan_conv import Conv

CHANNELS_MOST = 4
WIDE, HIGH = 32, 32  # columns of a tile of y, and its rows for one lane of filters
WIDE_LEAST = 16  # columns of y that are worth a tile
FILTERS = 8  # of a thread
COLUMNS_MOST = 6  # (r,s,c) of a thread in backward weight: 48 sums


def forward(conv: Conv, bias: bool, relu: bool) -> Plan | None:
    """As plan_conv.forward, or None where conv_first.cu does not apply."""
    lanes, line = _lanes(conv), _line(conv)
    high, block = HIGH // lanes, FILTERS * lanes
    shared = 4 * (conv.S * conv.C * (block + 4) + high * line)
    tiles_h, tiles_w = ceil_div(conv.P, high), ceil_div(conv.Q, WIDE)
    blocks = ceil_div(conv.K, block)
    grid = conv.N * tiles_h * tiles_w * blocks
    if not _applies(conv, shared) or grid > INT_MAX:
        return None
    scalars = {
        **_common(conv, line),
        **{"blocks": blocks, "tiles_h": tiles_h, "tiles_w": tiles_w},
        **{"use_bias": int(bias), "rectify": int(relu)},
    }
    kernel, chosen = "conv2d_forward_first", macros(conv)
    launch = Launch("conv_first.cu", kernel, (grid, 1, 1), THREADS, chosen, scalars, shared=shared)
    return Plan((launch,))


def backward_weight(conv: Conv) -> Plan | None:
    """As plan_conv.backward_weight, or None where conv_first.cu does not apply."""
    block, line = FILTERS * _lanes(conv), _line(conv)
    shared = 4 * max(conv.R * line + WIDE * block, FILTERS * THREADS)
    blocks = ceil_div(conv.K, block)
    if not _applies(conv, shared):
        return None
    tiles_w = ceil_div(conv.Q, WIDE)
    segments = conv.N * conv.P * tiles_w
    slice_ = ceil_div(slice_length(segments * WIDE, blocks), WIDE)
    slices = ceil_div(segments, slice_)
    scalars = {**_common(conv, line), "segments": segments, "slice": slice_, "tiles_w": tiles_w}
    kernel, grid = "conv2d_backward_weight_first", (blocks, 1, slices)
    launch = Launch("conv_first.cu", kernel, grid, THREADS, macros(conv), scalars, shared=shared)
    return sliced(launch, "dw", conv.K * _terms(conv), slices)


def _applies(conv: Conv, shared: int) -> bool:
    """Few channels, rows wide enough for a tile, and what a block needs is there."""
    return (
        conv.groups == 1
        and conv.C <= CHANNELS_MOST
        and conv.Q >= WIDE_LEAST
        and conv.N > 0
        and shared <= SHARED_MOST
        and _terms(conv) <= COLUMNS_MOST * (THREADS // _lanes(conv))
    )


def _lanes(conv: Conv) -> int:
    """Threads across a block's filters."""
    return next(n for n in (1, 2, 4) if FILTERS * n >= conv.K or n == 4)


def _line(conv: Conv) -> int:
    """Floats of a row of x that a tile's row reads."""
    return ((WIDE - 1) * conv.stride_w + (conv.S - 1) * conv.dil_w + 1) * conv.C


def _terms(conv: Conv) -> int:
    return conv.R * conv.S * conv.C


def _split(terms: int, threads: int) -> tuple[int, int, int]:
    """(columns, groups, parts): (r,s,c) of a thread, threads for all of them, and how many such
    groups share a segment's pixels.

    The least time by a model: of a warp, 8 multiply-adds take two clocks, a load from shared
    memory takes one, and a pixel has columns + 2 of these.
    """

    def split(columns: int) -> tuple[int, int, int]:
        groups = ceil_div(terms, columns)
        return columns, groups, min(threads // groups, WIDE)

    def clocks(columns: int) -> int:
        return ceil_div(WIDE, split(columns)[2]) * (2 * columns + columns + 2)

    return split(min(range(ceil_div(terms, threads), COLUMNS_MOST + 1), key=clocks))


def macros(conv: Conv) -> tuple[tuple[str, str], ...]:
    """The specialisation, the same of both kernels."""
    lanes = _lanes(conv)
    columns, groups, parts = _split(_terms(conv), THREADS // lanes)
    across = {"LANES": lanes, "COLUMNS": columns, "GROUPS": groups, "PARTS": parts}
    return defines(C=conv.C, R=conv.R, S=conv.S, VEC=vector(conv.K), **across)


def _common(conv: Conv, line: int) -> dict[str, int]:
    sizes = {name: getattr(conv, name) for name in ("H", "W", "P", "Q", "K")}
    return {**sizes, **conv.window_scalars, **magics(line=line), "line": line}
