"""Register tiles of a convolution under a 2x2 max-pool (see simd_tiles.py and conv_pool.py)."""

from __future__ import annotations

from functools import partial
from typing import Any

from llvmlite import ir

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
from gpuconv.cpu.simd_tiles import fma_rows, sum_over_taps

# What fits into the registers: 20 and 24 vectors of sums where there are 32, else 12 and 8.
POOLED_PIXELS, FILTERS = (5, 6) if TILE_HEIGHTS[0] == 12 else (3, 2)
# Sizes of the tiles that visit only the maxima: 5 x 2 is what 16 registers hold with the loads.
ROWS, COLUMNS = (5, 3, 1), (2, 1)
BYTES = ir.VectorType(ir.IntType(8), LANES)


def _even_and_odd(builder: Any, first: Any, second: Any) -> list[Any]:
    """The elements with even and those with odd numbers, of two vectors one after the other."""
    lanes = ir.VectorType(ir.IntType(32), LANES)
    orders = [[2 * i + odd for i in range(LANES)] for odd in (0, 1)]
    return [builder.shuffle_vector(first, second, ir.Constant(lanes, order)) for order in orders]


def _maximum_of_4(builder: Any, values: list[Any]) -> tuple[Any, Any]:
    """(maximum, index) of four vectors: the first of equal numbers; a NaN beats every number."""
    best, index = values[0], ir.Constant(BYTES, [0] * LANES)
    for tap, value in enumerate(values[1:], 1):
        larger = builder.fcmp_ordered(">", value, best)
        wins = builder.or_(larger, builder.fcmp_unordered("uno", value, value))
        best = builder.select(wins, value, best)
        index = builder.select(wins, ir.Constant(BYTES, [tap] * LANES), index)
    return best, index


@on_addresses
def pooled_filters(builder, a, b, row_bytes, offsets, depth, bias, y, argmax):
    """POOLED_PIXELS pooled pixels of LANES filters: y[pixel][filter], argmax[pixel][filter].

    a: weights (depth, LANES). b: where the pixels' inputs start; offsets (depth), in bytes from
    there; row_bytes: from a pixel to the one below. Bias and ReLU are applied before the pool.
    """
    below = builder.add(b, row_bytes)
    distance = builder.sub(below, b)

    def step(i: Any, at: Any, sums: list[Any]) -> list[Any]:
        weights = load(builder, builder.add(a, builder.mul(i, i64(VECTOR_BYTES))), VECTOR)
        rows = at, builder.add(at, distance)
        pixels = [load_row(builder, row, FLOAT, 2 * POOLED_PIXELS) for row in rows]
        pixels = pixels[0] + pixels[1]
        return fma_rows(builder, sums, pixels, [weights])

    sums = sum_over_taps(builder, b, offsets, depth, 4 * POOLED_PIXELS, step)
    shift = load(builder, bias, VECTOR)
    values = [rectified(builder, builder.fadd(total, shift)) for total in sums]
    for pair in range(POOLED_PIXELS):
        pool_taps = [
            values[row * 2 * POOLED_PIXELS + 2 * pair + q] for row in (0, 1) for q in (0, 1)
        ]
        best, index = _maximum_of_4(builder, pool_taps)
        store(builder, best, plus(builder, y, pair * VECTOR_BYTES))
        store(builder, index, plus(builder, argmax, pair * LANES), align=1)


@on_addresses
def pooled_pixels(builder, a, b, row_bytes, offsets, depth, bias, rows, y, y_bytes, bits, argmax):
    """LANES pooled pixels of FILTERS filters: y[filter][pixel], argmax[filter][pixel].

    The arguments are those of pooled_filters, with weights a (depth, FILTERS). y is written for the
    first `rows` filters, y_bytes apart, and for the lanes whose bit is set; argmax, LANES bytes a
    filter, for all lanes.
    """

    def step(i: Any, at: Any, sums: list[Any]) -> list[Any]:
        below = builder.add(at, row_bytes)
        pixels = load_row(builder, at, VECTOR, 2) + load_row(builder, below, VECTOR, 2)
        weights = builder.add(a, builder.mul(i, i64(FILTERS * FLOAT_BYTES)))
        return fma_rows(builder, sums, load_row(builder, weights, FLOAT, FILTERS), pixels)

    sums = sum_over_taps(builder, b, offsets, depth, 4 * FILTERS, step)
    mask = mask_of(builder, bits)
    for m in range(FILTERS):
        with builder.if_then(builder.icmp_signed("<", i64(m), rows), likely=True):
            shift = splat(builder, load(builder, plus(builder, bias, m * FLOAT_BYTES), FLOAT))
            of_filter = sums[4 * m : 4 * m + 4]
            values = [rectified(builder, builder.fadd(total, shift)) for total in of_filter]
            pool_taps = _even_and_odd(builder, *values[:2]) + _even_and_odd(builder, *values[2:])
            best, index = _maximum_of_4(builder, pool_taps)
            to = builder.add(y, builder.mul(y_bytes, i64(m)))
            masked_store(builder, best, to, mask)
            store(builder, index, plus(builder, argmax, m * LANES), align=1)


@on_addresses
def gather_tile(builder, rows, columns, gradients, places, count, x, row_bytes, out, column_bytes):
    """out[column][row] += sum over i of gradients[i] * x[places[i] + row*row_bytes + column].

    rows and columns: of ROWS and COLUMNS. A column is a vector, places are in bytes. In out the
    rows of a column follow one another, and columns are column_bytes apart.
    """

    def tile(height: int, width: int) -> None:
        def step(i: Any, sums: list[Any]) -> list[Any]:
            gradient, at = _gradient_and_place(builder, gradients, places, x, i)
            vectors = []
            for row in range(height):
                at = builder.add(at, row_bytes) if row else at
                vectors += load_row(builder, at, VECTOR, width)
            return fma_rows(builder, sums, [gradient], vectors)

        zeros = [ZERO] * (height * width)
        sums = loop(builder, count, zeros, step)
        for i, total in enumerate(sums):
            row, column = divmod(i, width)
            place = plus(builder, out, row * VECTOR_BYTES)
            place = builder.add(place, builder.mul(column_bytes, i64(column)))
            store(builder, builder.fadd(load(builder, place, VECTOR), total), place)

    switch(
        builder, rows, ROWS, lambda height: switch(builder, columns, COLUMNS, partial(tile, height))
    )


@on_addresses
def scatter_tile(
    builder, rows, columns, gradients, places, count, x, row_bytes, weights, column_bytes, bits
):
    """x[places[i] + row*row_bytes + column] += gradients[i] * weights[column][row], i by i.

    The reverse of gather_tile; in the last column for the lanes whose bit is set.
    """
    mask = mask_of(builder, bits)

    def tile(height: int, width: int) -> None:
        starts = [builder.add(weights, builder.mul(column_bytes, i64(v))) for v in range(width)]
        held = [load_row(builder, start, VECTOR, height) for start in starts]

        def step(i: Any, state: list[Any]) -> list[Any]:
            gradient, at = _gradient_and_place(builder, gradients, places, x, i)
            for row in range(height):
                at = builder.add(at, row_bytes) if row else at
                for v in range(width):
                    to = plus(builder, at, v * VECTOR_BYTES)
                    last = v == width - 1
                    old = masked_load(builder, to, mask) if last else load(builder, to, VECTOR)
                    (new,) = fma_rows(builder, [old], [gradient], [held[v][row]])
                    if last:
                        masked_store(builder, new, to, mask)
                    else:
                        store(builder, new, to)
            return state

        loop(builder, count, [], step)

    switch(
        builder, rows, ROWS, lambda height: switch(builder, columns, COLUMNS, partial(tile, height))
    )


def _gradient_and_place(
    builder: Any, gradients: Any, places: Any, x: Any, i: Any
) -> tuple[Any, Any]:
    gradient = load(builder, builder.add(gradients, builder.mul(i, i64(FLOAT_BYTES))), FLOAT)
    place = load(builder, builder.add(places, builder.mul(i, i64(8))), i64)
    return gradient, builder.add(x, place)
