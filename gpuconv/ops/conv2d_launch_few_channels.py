"""Launch configurations of convolution of images of few channels
(kernels/conv_few_channels.cu).

`conv2d_launch` chooses them and caches what they return.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuconv.cuda.launch_config import (
    INT_MAX,
    MAX_SHARED,
    THREADS,
    Launch,
    LaunchConfig,
    ceil_div,
    defines,
    fast_divisions,
    vector_width,
)
from gpuconv.cuda.split_k import split_k, split_length

if TYPE_CHECKING:
    from gpuconv.ops.conv2d_launch import Conv2dShape

FILE = "conv_few_channels.cu"
MAX_CHANNELS = 4
TILE_ROWS, TILE_COLUMNS = 32, 32  # of a tile of y, the rows for one lane of filters
MIN_COLUMNS = 16  # of y that are worth a tile
FILTERS = 8  # of a thread
WHOLE_BYTES = 16 << 10  # in which a block has the whole window: three blocks of any processor
MERGED = 1 + 3 * THREADS // 32  # floats for each filter: a shift, and the moments of each warp
MAX_COLUMNS = 6  # (r,s,c) of a thread in backward weight: 48 sums


def config_forward(conv: Conv2dShape, bias: bool, relu: bool, moments: bool) -> LaunchConfig | None:
    """As conv2d_launch.config_forward, or None where the kernel does not apply."""
    lanes, line = _lanes(conv), _line(conv)
    rows, block, whole = TILE_ROWS // lanes, FILTERS * lanes, _whole(conv)
    shared = max(_staged(conv, whole), 4 * MERGED * block)
    tiles_h, tiles_w = ceil_div(conv.P, rows), ceil_div(conv.Q, TILE_COLUMNS)
    blocks, tiles = ceil_div(conv.K, block), conv.N * tiles_h * tiles_w
    grid = tiles * blocks
    if not _applies(conv, shared) or grid > INT_MAX:
        return None
    scalars = {
        **_common(conv, line),
        **{"blocks": blocks, "tiles_h": tiles_h, "tiles_w": tiles_w},
        **{"use_bias": int(bias), "rectify": int(relu), "rows": _rows(conv, whole)},
    }
    kernel, chosen = "conv2d_forward_few_channels", macros(conv, moments)
    sizes, arrays = conv.sizes_written(bias, tiles if moments else 0)
    launch = Launch(
        *(FILE, kernel, (grid, 1, 1), THREADS, chosen, scalars, sizes, arrays, shared),
        multiply_adds=conv.multiply_adds,
    )
    return LaunchConfig((launch,))


def config_backward_weight(conv: Conv2dShape) -> LaunchConfig | None:
    """As conv2d_launch.config_backward_weight, or None where the kernel does not apply."""
    block, line = FILTERS * _lanes(conv), _line(conv)
    shared = 4 * max(conv.R * line + TILE_COLUMNS * block, FILTERS * THREADS)
    blocks = ceil_div(conv.K, block)
    if not _applies(conv, shared):
        return None
    tiles_w = ceil_div(conv.Q, TILE_COLUMNS)
    segments = conv.N * conv.P * tiles_w
    length = ceil_div(split_length(segments * TILE_COLUMNS, blocks), TILE_COLUMNS)
    splits = ceil_div(segments, length)
    scalars = {
        **_common(conv, line),
        **{"segments": segments, "split_length": length, "tiles_w": tiles_w},
    }
    kernel, grid = "conv2d_backward_weight_few_channels", (blocks, 1, splits)
    sizes = conv.sizes_weight()
    launch = Launch(
        *(FILE, kernel, grid, THREADS, macros(conv), scalars, sizes),
        shared=shared,
        multiply_adds=conv.multiply_adds,
    )
    return split_k(launch, "dw", conv.size("w"), splits)


def _applies(conv: Conv2dShape, shared: int) -> bool:
    """Few channels, rows wide enough for a tile, and what a block needs is there."""
    return (
        conv.groups == 1
        and conv.C <= MAX_CHANNELS
        and conv.Q >= MIN_COLUMNS
        and conv.N > 0
        and shared <= MAX_SHARED
        and _terms(conv) <= MAX_COLUMNS * (THREADS // _lanes(conv))
    )


def _lanes(conv: Conv2dShape) -> int:
    """Threads across a block's filters."""
    return next(n for n in (1, 2, 4) if FILTERS * n >= conv.K or n == 4)


def _line(conv: Conv2dShape) -> int:
    """Floats of a row of x that a tile's row reads."""
    return ((TILE_COLUMNS - 1) * conv.stride_w + (conv.S - 1) * conv.dil_w + 1) * conv.C


def _rows(conv: Conv2dShape, whole: bool) -> int:
    """Rows of x in a forward block's shared memory, for a row of the window or for all."""
    rows = TILE_ROWS // _lanes(conv)
    return (rows - 1) * conv.stride_h + (conv.R - 1) * conv.dil_h + 1 if whole else rows


def _staged(conv: Conv2dShape, whole: bool) -> int:
    """Bytes of these, and of the filters that go with them."""
    taps = (conv.R if whole else 1) * conv.S * conv.C
    return 4 * (taps * (FILTERS * _lanes(conv) + 4) + _rows(conv, whole) * _line(conv))


def _whole(conv: Conv2dShape) -> bool:
    """Whether a forward block has its whole window in shared memory at once."""
    return _staged(conv, True) <= WHOLE_BYTES


def _terms(conv: Conv2dShape) -> int:
    return conv.R * conv.S * conv.C


def _columns(terms: int, threads: int) -> tuple[int, int, int]:
    """(columns, groups, parts): (r,s,c) of a thread, threads for all of them, and how many such
    groups share a segment's pixels.

    The least time by a model: of a warp, 8 multiply-adds take two clocks, a load from shared
    memory takes one, and a pixel has columns + 2 of these.
    """

    def split(columns: int) -> tuple[int, int, int]:
        groups = ceil_div(terms, columns)
        return columns, groups, min(threads // groups, TILE_COLUMNS)

    def clocks(columns: int) -> int:
        return ceil_div(TILE_COLUMNS, split(columns)[2]) * (2 * columns + columns + 2)

    return split(min(range(ceil_div(terms, threads), MAX_COLUMNS + 1), key=clocks))


def macros(conv: Conv2dShape, moments: bool = False) -> tuple[tuple[str, str], ...]:
    """The specialisation, without moments the same of both kernels."""
    lanes = _lanes(conv)
    columns, groups, parts = _columns(_terms(conv), THREADS // lanes)
    across = {"LANES": lanes, "COLUMNS": columns, "GROUPS": groups, "PARTS": parts}
    sizes = {"C": conv.C, "R": conv.R, "S": conv.S}
    modes = {"MOMENTS": moments, "WHOLE": _whole(conv)}
    return defines(**sizes, VEC=vector_width(conv.K), **modes, **across)


def _common(conv: Conv2dShape, line: int) -> dict[str, int]:
    sizes = {name: getattr(conv, name) for name in ("H", "W", "P", "Q", "K")}
    return {**sizes, **conv.window_scalars, **fast_divisions(line=line), "line": line}
