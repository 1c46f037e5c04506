"""Register tiles of a grouped convolution, along the pixels of planes (see conv_grouped.py)."""

from __future__ import annotations

from typing import Any

from gpuconv.cpu.compiled import compiled
from gpuconv.cpu.simd import (
    FLOAT,
    FLOAT_BYTES,
    LANES,
    TILE_HEIGHTS,
    VECTOR,
    VECTOR_BYTES,
    ZERO,
    i64,
    load,
    load_row,
    loop,
    mask_of,
    masked_load,
    masked_store,
    on_addresses,
    plus,
    rectified,
    splat,
    store,
    switch,
)
from gpuconv.cpu.simd_moves import every_other
from gpuconv.cpu.simd_tiles import fma_rows, sum_over_taps

# Filters of a tile; its sums fit into 32 registers or 16. And the weights whose gradients are
# summed at a time: those of 3x3.
FILTERS, SUMS = (4, 2, 1), 16 if TILE_HEIGHTS[0] == 12 else 8
COLUMNS = (9, 3, 1)
MOST_VECTORS = 8


@compiled
def next_size(sizes, rest):
    """The largest of three sizes, the last of which is 1, that is not above `rest`."""
    return sizes[0] if rest >= sizes[0] else (sizes[1] if rest >= sizes[1] else 1)


@compiled
def tile_pixels(filters):
    """The pixels that a tile of so many filters covers."""
    return min(MOST_VECTORS, SUMS // filters) * LANES


@on_addresses
def plane_tile(builder, filters, weights, weights_step, x, offsets, depth, out, out_step):
    """out[m*out_step][pixel] = sum over i of weights[m*weights_step][i] * x[offsets[i]][pixel], for
    m < filters, one of FILTERS, and pixel < tile_pixels(filters); offsets and steps are in bytes.
    """

    def tile(height: int) -> None:
        width = min(MOST_VECTORS, SUMS // height)
        starts = [builder.add(weights, builder.mul(weights_step, i64(m))) for m in range(height)]

        def tap(i: Any, at: Any, sums: list[Any]) -> list[Any]:
            here = builder.mul(i, i64(FLOAT_BYTES))
            scalars = [load(builder, builder.add(start, here), FLOAT) for start in starts]
            return fma_rows(builder, sums, scalars, load_row(builder, at, VECTOR, width))

        sums = sum_over_taps(builder, x, offsets, depth, height * width, tap)
        for i, total in enumerate(sums):
            row = builder.add(out, builder.mul(out_step, i64(i // width)))
            store(builder, total, plus(builder, row, i % width * VECTOR_BYTES))

    switch(builder, filters, FILTERS, tile)


@on_addresses
def plane_gradients(
    builder, columns, dy, dy_row, x, x_row, offsets, rows, vectors, last_bits, out, dy_sum
):
    """out[j][lane] += the sum of dy * x[offsets[j]] over rows and vectors, j < columns, one of
    COLUMNS; dy_sum[lane] += that of dy. Of the last vector of a row the lanes whose bit is set
    count, and nothing else is read: what lies beside may be infinite.
    """

    def tile(count: int) -> None:
        starts = [builder.add(x, offset) for offset in load_row(builder, offsets, i64, count)]
        last = builder.sub(vectors, i64(1))

        def row(p: Any, state: list[Any]) -> list[Any]:
            dy_at, x_at = builder.mul(p, dy_row), builder.mul(p, x_row)

            def step(v: Any, sums: list[Any]) -> list[Any]:
                full = builder.icmp_signed("<", v, last)
                mask = mask_of(builder, builder.select(full, i64(-1), last_bits))
                far = builder.mul(v, i64(VECTOR_BYTES))
                place = builder.add(dy, builder.add(dy_at, far))
                gradient, far = masked_load(builder, place, mask), builder.add(x_at, far)
                values = [masked_load(builder, builder.add(at, far), mask) for at in starts]
                products = [builder.fmul(gradient, value, flags=fuse) for value in values]
                return [
                    builder.fadd(total, product, flags=fuse)
                    for total, product in zip(sums, [*products, gradient], strict=True)
                ]

            return loop(builder, vectors, state, step)

        *sums, total = loop(builder, rows, [ZERO] * (count + 1), row)
        places = [*(plus(builder, out, j * VECTOR_BYTES) for j in range(count)), dy_sum]
        for place, part in zip(places, [*sums, total], strict=True):
            store(builder, builder.fadd(load(builder, place, VECTOR), part), place)

    fuse = ("contract",)
    switch(builder, columns, COLUMNS, tile)


@on_addresses
def deinterleave(builder, source, target, bits):
    """target[lane] = source[2*lane] for the lanes whose bit is set."""
    inside = mask_of(builder, bits)
    masked_store(builder, every_other(builder, source, inside), target, inside)


@on_addresses
def store_shifted(builder, source, bias, relu, target, bits):
    """target[lane] = source[lane] + bias[0], or its ReLU, for the lanes whose bit is set; NaN stays
    NaN.
    """
    value = builder.fadd(load(builder, source, VECTOR), splat(builder, load(builder, bias, FLOAT)))
    rectify = builder.icmp_signed("!=", relu, i64(0))
    value = builder.select(rectify, rectified(builder, value), value)
    masked_store(builder, value, target, mask_of(builder, bits))
