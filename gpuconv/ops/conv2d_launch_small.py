"""Launch configurations of convolution of small images with few filters, with the activation and
pooling after it (kernels/conv_small.cu, kernels/conv_small_backward.cu).

`ops.conv2d` and `ops.conv2d_relu_max_pool2d` ask for these first; None says that the kernels do not
apply, and conv2d_launch has others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from gpuconv.cuda.launch_config import (
    CACHED,
    INT_MAX,
    MAX_SHARED,
    THREADS,
    Launch,
    LaunchConfig,
    ceil_div,
    defines,
    fast_divisions,
)
from gpuconv.ops.conv2d_launch import Conv2dShape

MIN_WINDOW, MAX_WINDOW = 2, 5  # rows and columns: the loops over taps are unrolled
MAX_FILTERS = 32  # and channels; more fill the tiles of conv_simt.cu
WIDTHS = (8, 6, 5, 4, 3, 2)  # filters of a thread
IMAGES = (1, 2, 4, 8)  # of a block
ROOM = MAX_SHARED - 128  # bytes for a block; last_block.cuh declares a few of its own
# What a geometry is chosen for: an H100's processors, the instructions that an element costs on its
# way to shared memory, the clocks of a trip to memory. Any choice gives right results.
PROCESSORS, STAGED, TRIP = 132, 30, 800


@dataclass(frozen=True)
class Pooled:
    """A 2x2 max-pool after a ReLU: the rows and columns of its output."""

    P: int
    Q: int


@dataclass(frozen=True)
class Tiling:
    """Of one pass that computes patches of 2x2 pixels: what a block and a thread have.

    width: filters (of backward data: channels) of a thread. splits: blocks that share them all.
    rows: of the result, an even number. columns: of patches. pitch, in_rows: of the staged input.
    """

    width: int
    filters: int
    splits: int
    images: int
    groups: int  # of images
    rows: int
    bands: int
    columns: int
    pitch: int
    in_rows: int
    block: int
    shared: int

    @property
    def blocks(self) -> int:
        return self.groups * self.bands * self.splits


@lru_cache(maxsize=CACHED)
def applies(conv: Conv2dShape) -> bool:
    """Whether the kernels are for such a convolution."""
    return (
        conv.groups == 1
        and (conv.stride_h, conv.stride_w, conv.dil_h, conv.dil_w) == (1, 1, 1, 1)
        and min(conv.R, conv.S) >= MIN_WINDOW
        and max(conv.R, conv.S) <= MAX_WINDOW
        and max(conv.C, conv.K) <= MAX_FILTERS
        and 0 <= conv.pad_h < conv.R
        and 0 <= conv.pad_w < conv.S
        and conv.P * conv.Q > 1  # else it is a linear layer
        and conv.N > 0
        and max(conv.N * conv.H * conv.W, conv.N * conv.P * conv.Q) * MAX_FILTERS <= INT_MAX
        and _weight_part(conv, 1) is not None
        and _tiling(conv, None) is not None
        and _tiling(_turned(conv), None) is not None
    )


@lru_cache(maxsize=CACHED)
def config_forward(
    conv: Conv2dShape,
    bias: bool,
    relu: bool,
    pool: Pooled | None,
    x_last: bool,
    y_last: bool,
) -> LaunchConfig | None:
    """y, and with pool argmax, from x, w (K,R,S,C) and b.

    x_last, y_last: whether x, and y with argmax, are NHWC rather than NCHW. Without bias give w for
    b, without pool y for argmax.
    """
    if not applies(conv) or (t := _tiling(conv, pool)) is None:
        return None
    P, Q = (pool.P, pool.Q) if pool else (conv.P, conv.Q)
    scalars = {
        **_sizes(conv, pool),
        **_strides("x", x_last, conv.C, conv.H * conv.W),
        **_strides("y", y_last, conv.K, P * Q),
        **{"images": t.images, "rows": t.rows, "bands": t.bands, "splits": t.splits},
        **{"filters": t.filters, "columns": t.columns, "pitch": t.pitch, "in_rows": t.in_rows},
        **fast_divisions(pitch=t.pitch, in_rows=t.in_rows, C=conv.C),
        **fast_divisions(terms=conv.R * conv.S * conv.C),
        **{"pool": int(pool is not None), "use_bias": int(bias), "rectify": int(relu)},
    }
    size = conv.N * conv.K * P * Q
    sizes = {
        **{"y": size, "argmax": size if pool else None},
        **{"x": conv.size("x"), "w": conv.size("w"), "b": conv.K if bias else None},
    }
    launch = Launch(
        *("conv_small.cu", "conv2d_forward_small", (t.blocks, 1, 1), t.block),
        *(defines(R=conv.R, S=conv.S, FILTERS=t.width), scalars, sizes),
        shared=t.shared,
        multiply_adds=conv.multiply_adds,
    )
    return LaunchConfig((launch,))


@lru_cache(maxsize=CACHED)
def config_backward(
    conv: Conv2dShape,
    bias: bool,
    mask: bool,
    pool: Pooled | None,
    need_dx: bool,
    dy_last: bool,
    y_last: bool,
    x_last: bool,
    onto: bool = False,
    rectify: bool = False,
) -> LaunchConfig | None:
    """dx (N,H,W,C), dw (K,R,S,C) and db (K,) from dy, y, argmax, x and w.

    mask: whether dy is 0 where y is not positive; with pool it always is. onto: dx is added to the
    array "onto". rectify: dx is 0 where x is not positive. For what is not there (dx without
    need_dx, db without bias, y without mask or pool, argmax without pool, onto) give any array.
    """
    if not applies(conv):
        return None
    data = _tiling(_turned(conv), None)
    # beside the blocks of dx, blocks that take as long
    share = conv.P * conv.Q / (conv.H * conv.W)
    weight = _weight_part(conv, max(PROCESSORS, int(data.blocks * share * need_dx) if data else 0))
    assert data is not None
    assert weight is not None
    width, numbers, block, shared = weight
    data_blocks = data.blocks if need_dx else 0
    P, Q = (pool.P, pool.Q) if pool else (conv.P, conv.Q)
    cells = {
        # one more where the first staged row or column is odd
        "data_cells_h": data.in_rows // 2 + 1,
        "data_cells_w": data.pitch // 2 + 1,
    }
    scalars = {
        **_sizes(conv, pool),
        **_strides("dy", dy_last, conv.K, P * Q),
        **_strides("y", y_last, conv.K, P * Q),
        **_strides("x", x_last, conv.C, conv.H * conv.W),
        **{"pool": int(pool is not None), "use_mask": int(mask), "use_bias": int(bias)},
        **{"use_onto": int(onto), "rectify": int(rectify)},
        **fast_divisions(C=conv.C, K=conv.K),
        **{"data_blocks": data_blocks, "data_images": data.images, "data_rows": data.rows},
        **{"data_bands": data.bands, "data_splits": data.splits, "channels": data.filters},
        **fast_divisions(channels=data.filters),
        **{"columns": data.columns, "data_pitch": data.pitch, "data_in_rows": data.in_rows},
        **cells,
        **fast_divisions(**cells),
        **numbers,
    }
    size, slices, tiles = conv.N * conv.K * P * Q, numbers["slices"], numbers["tiles"]
    row = ceil_div(width * (conv.R * conv.S * conv.C + 1), 4) * 4
    tickets = tiles * (ceil_div(slices, numbers["together"]) + 1)
    sizes = {
        **{"dx": conv.size("x") if need_dx else None, "dw": conv.size("w")},
        **{"db": conv.K if bias else None, "partials": tiles * slices * row},
        "tickets": tickets,
        "onto": conv.size("x") if onto else None,
        **{"dy": size, "y": size if pool or mask else None, "argmax": size if pool else None},
        **{"x": conv.size("x"), "w": conv.size("w")},
    }
    block, shared = max(block, data.block * need_dx), max(shared, data.shared * need_dx)
    launch = Launch(
        *("conv_small_backward.cu", "conv2d_backward_small"),
        (data_blocks + tiles * slices, 1, 1),
        block,
        defines(R=conv.R, S=conv.S, FILTERS=width, CHANNELS=data.width),
        scalars,
        sizes,
        {"partials": "workspace"},
        shared=max(shared, 4 * conv.S * width * block),
        multiply_adds=(1 + need_dx) * conv.multiply_adds,
    )
    return LaunchConfig((launch,), tiles * slices * row, tickets)


def _turned(conv: Conv2dShape) -> Conv2dShape:
    """Backward data as a forward pass: from g (N,P,Q,K) to dx."""
    pads = {"pad_h": conv.R - 1 - conv.pad_h, "pad_w": conv.S - 1 - conv.pad_w}
    sizes = conv.N, conv.K, conv.P, conv.Q, conv.C, conv.R, conv.S, conv.H, conv.W
    return Conv2dShape(*sizes, **pads)


def _sizes(conv: Conv2dShape, pool: Pooled | None) -> dict[str, int]:
    names = ("N", "C", "H", "W", "K", "P", "Q", "pad_h", "pad_w")
    pooled = {"PP": pool.P, "PQ": pool.Q} if pool else {"PP": 0, "PQ": 0}
    return {**{name: getattr(conv, name) for name in names}, **pooled}


def _strides(name: str, last: bool, channels: int, pixels: int) -> dict[str, int]:
    channel, pixel = (1, channels) if last else (pixels, 1)
    return {f"{name}_channel": channel, f"{name}_pixel": pixel}


@lru_cache(maxsize=CACHED)
def _tiling(conv: Conv2dShape, pool: Pooled | None) -> Tiling | None:
    """The tiling of least time by a model: a thread's multiply-adds and staging, in turn with the
    other warps that its processor's four schedulers have. None where nothing fits.
    """
    return min(_tilings(conv, pool), key=lambda t: (_clocks(conv, t), t.blocks), default=None)


def _tilings(conv: Conv2dShape, pool: Pooled | None) -> Iterator[Tiling]:
    # of a pool that leaves an odd row out, the pixels of its windows
    patch_rows = pool.P if pool else ceil_div(conv.P, 2)
    columns = pool.Q if pool else ceil_div(conv.Q, 2)
    pitch = 2 * columns + (conv.S + 2) // 2 * 2 - 2
    pitch += 2 if pitch % 4 == 0 else 0  # rows begin in different banks
    for width in WIDTHS:
        across = ceil_div(conv.K, width)
        if not _fits(width, conv.K):
            continue
        for splits in (n for n in range(1, across + 1) if across % n == 0):
            filters = across // splits * width
            for bands in range(1, patch_rows + 1):
                rows = 2 * ceil_div(patch_rows, bands)
                if bands > 1 and ceil_div(patch_rows, bands - 1) * 2 == rows:
                    continue  # the same with a band less
                for images in IMAGES if bands == 1 else (1,):
                    staged = images * conv.C * (rows + conv.R - 1) * pitch
                    weights = conv.C * conv.R * conv.S * (filters // width) * _padded(width)
                    if 4 * (weights + staged) > ROOM or (images > 1 and images > conv.N):
                        continue
                    items = images * rows // 2 * columns * (filters // width)
                    yield Tiling(
                        *(width, filters, splits, images, ceil_div(conv.N, images), rows),
                        *(ceil_div(2 * patch_rows, rows), columns, pitch, rows + conv.R - 1),
                        *(min(THREADS, ceil_div(items, 32) * 32), 4 * (weights + staged)),
                    )


def _fits(width: int, filters: int) -> bool:
    """Whether threads of this many filters waste little."""
    return width <= max(filters, min(WIDTHS)) and (
        ceil_div(filters, width) * width <= max(1.25 * filters, min(WIDTHS))
    )


def _clocks(conv: Conv2dShape, t: Tiling) -> float:
    items = t.images * t.rows // 2 * t.columns * (t.filters // t.width)
    taps, terms = conv.R * conv.S, conv.C * conv.R * conv.S
    # of a channel: products, loads of filters, of pixels, the loop itself
    loop = taps * (4 * t.width + ceil_div(t.width, 4)) + (conv.R + 1) * (conv.S + 2) // 2 + 8
    staged = t.images * conv.C * t.in_rows * t.pitch + terms * t.filters
    of_thread = ceil_div(items, t.block) * conv.C * loop + STAGED * staged / t.block
    warps = ceil_div(t.blocks, PROCESSORS) * t.block // 32
    return of_thread * max(1.0, warps / 4)


def _weight_part(conv: Conv2dShape, processors: int) -> tuple[int, dict[str, int], int, int] | None:
    """(filters of a thread, numbers, threads of a block, bytes of shared memory) of backward
    weight, by the same model; None where nothing fits.
    """
    best = min(_weight_parts(conv, processors), key=lambda part: part[0], default=None)
    return None if best is None else best[1]


def _weight_parts(
    conv: Conv2dShape, blocks: int
) -> Iterator[tuple[float, tuple[int, dict[str, int], int, int]]]:
    wide, columns = ceil_div(conv.Q, 2) * 2, conv.C * conv.R
    pitch = wide + (conv.S + 2) // 2 * 2 - 2
    pitch += 2 if pitch % 4 == 0 else 0
    if columns > THREADS:
        return
    for width in WIDTHS:
        tiles = ceil_div(conv.K, width)
        if not _fits(width, conv.K):
            continue
        for bands in range(1, ceil_div(conv.P, 2) + 1):
            rows = 2 * ceil_div(ceil_div(conv.P, 2), bands)
            for images in IMAGES if bands == 1 else (1,):
                in_rows = rows + conv.R - 1
                staged_x = images * conv.C * in_rows * pitch
                staged_g = images * rows * wide
                shared = 4 * (staged_x + staged_g * _padded(width))
                if shared > ROOM or (images > 1 and images > conv.N):
                    continue
                all_bands = ceil_div(conv.P, rows)
                units = ceil_div(conv.N, images) * all_bands
                parts = min(THREADS // columns, images * min(rows, conv.P))
                block = max(ceil_div(parts * columns, 32) * 32, 64)
                length = ceil_div(units, max(1, blocks // tiles))
                slices = ceil_div(units, length)
                lines = ceil_div(images * min(rows, conv.P), parts)
                staged = staged_x + staged_g * width
                # of two pixels: products, loads of pixels, of gradients, the loop itself
                loop = 2 * conv.S * width + (conv.S + 2) // 2 + 2 * ceil_div(width, 4) + 4
                unit = lines * wide // 2 * loop + STAGED * staged / block
                sums = ceil_div(width * conv.R * conv.S * conv.C, 4 * block)
                of_thread = length * unit + conv.S * width * parts
                fixed = TRIP * (length + 2 * sums)
                warps = ceil_div(tiles * slices, PROCESSORS) * block // 32
                numbers = {
                    **{"images": images, "rows": rows, "bands": all_bands, "tiles": tiles},
                    **{"parts": parts, "pitch": pitch, "in_rows": in_rows, "wide": wide},
                    **fast_divisions(pitch=pitch, in_rows=in_rows, filters=width),
                    **fast_divisions(cells_h=rows // 2, cells_w=wide // 2),
                    **{"units": units, "length": length, "slices": slices},
                    "together": math.isqrt(slices - 1) + 1,
                }
                clocks = of_thread * max(1.0, warps / 4) + fixed
                yield clocks, (width, numbers, block, shared)


def _padded(width: int) -> int:
    """As conv_small.cuh has it."""
    return width if width <= 2 else ceil_div(width, 4) * 4
