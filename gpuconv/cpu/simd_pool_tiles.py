"""Register tiles of a convolution under a 2x2 max-pool (see simd_tiles.py and conv_pool.py)."""

from __future__ import annotations

from functools import partial
from typing import Any

from llvmlite import ir

from gpuconv.cpu.simd import (
    FLOAT,
    LANES,
    MASK,
    VECTOR,
    VECTOR_BYTES,
    ZERO,
    element,
    i64,
    load,
    load_row,
    loop,
    mask_of,
    masked_load,
    masked_store,
    on_addresses,
    plus,
    store,
    switch,
)
from gpuconv.cpu.simd_moves import least_of
from gpuconv.cpu.simd_tiles import fma_rows

# Sizes of the tiles that visit only the maxima: 5 x 2 is what 16 registers hold with the loads.
ROWS, COLUMNS = (5, 3, 1), (2, 1)


@on_addresses
def pool_2x2(builder, source, row_bytes, pixel_bytes, count, bias, bits, relu, y, taps):
    """y[q], taps[q]: the largest of four vectors, and its number as a float, for q < count.

    First bias is added to them, in the lanes whose bit is set, and a ReLU taken. The four are
    pixels 2q and 2q + 1 of the row at `source` and of the row below, row_bytes further. Of equal
    numbers the first counts; a NaN beats every number. y may be `source`; pixels are as far apart
    everywhere.
    """

    shift, least = masked_load(builder, bias, mask_of(builder, bits)), least_of(builder, relu)

    def value_at(at: Any) -> Any:
        value = builder.fadd(load(builder, at, VECTOR), shift)
        return builder.select(builder.fcmp_ordered("<", value, least), least, value)

    def step(q: Any, state: list[Any]) -> list[Any]:
        to = builder.mul(q, pixel_bytes)
        left = builder.add(source, builder.add(to, to))
        places = [builder.add(left, row) for row in (i64(0), row_bytes)]
        places = [at for row in places for at in (row, builder.add(row, pixel_bytes))]
        best, tap = value_at(places[0]), ZERO
        for number, at in enumerate(places[1:], 1):
            value = value_at(at)
            larger = builder.fcmp_ordered(">", value, best)
            wins = builder.or_(larger, builder.fcmp_unordered("uno", value, value))
            best = builder.select(wins, value, best)
            tap = builder.select(wins, ir.Constant(VECTOR, [float(number)] * LANES), tap)
        store(builder, best, builder.add(y, to))
        store(builder, tap, builder.add(taps, to))
        return state

    loop(builder, count, [], step)


@on_addresses
def gather_tile(builder, rows, columns, gradients, places, count, x, row_bytes, out, line_bytes):
    """out[row][column] += sum over i of gradients[i] * x[places[i] + row*row_bytes + column].

    rows and columns: of ROWS and COLUMNS. A column is a vector, places are in bytes. In out the
    rows are line_bytes apart.
    """

    def tile(height: int, width: int) -> None:
        def step(i: Any, sums: list[Any]) -> list[Any]:
            gradient = element(builder, gradients, i, FLOAT)
            at = builder.add(x, element(builder, places, i, i64))
            vectors = []
            for row in range(height):
                at = builder.add(at, row_bytes) if row else at
                vectors += load_row(builder, at, VECTOR, width)
            return fma_rows(builder, sums, [gradient], vectors)

        zeros = [ZERO] * (height * width)
        sums = loop(builder, count, zeros, step)
        for i, total in enumerate(sums):
            row, column = divmod(i, width)
            place = builder.add(out, builder.mul(line_bytes, i64(row)))
            place = plus(builder, place, column * VECTOR_BYTES)
            store(builder, builder.fadd(load(builder, place, VECTOR), total), place)

    switch(
        builder, rows, ROWS, lambda height: switch(builder, columns, COLUMNS, partial(tile, height))
    )


@on_addresses
def scatter_tile(
    builder, rows, columns, gradients, places, count, x, row_bytes, weights, line_bytes, bits
):
    """x[places[i] + row*row_bytes + column] += gradients[i] * weights[row][column], i by i.

    The reverse of gather_tile; in the last column for the lanes whose bit is set.
    """
    everywhere, in_last = ir.Constant(MASK, [1] * LANES), mask_of(builder, bits)

    def tile(height: int, width: int) -> None:
        masks = [everywhere] * (width - 1) + [in_last]
        starts = [builder.add(weights, builder.mul(line_bytes, i64(row))) for row in range(height)]
        held = [load_row(builder, start, VECTOR, width) for start in starts]

        def step(i: Any, state: list[Any]) -> list[Any]:
            gradient = element(builder, gradients, i, FLOAT)
            at = builder.add(x, element(builder, places, i, i64))
            for row in range(height):
                at = builder.add(at, row_bytes) if row else at
                for v, (weight, mask) in enumerate(zip(held[row], masks, strict=True)):
                    to = plus(builder, at, v * VECTOR_BYTES)
                    old = masked_load(builder, to, mask)
                    (new,) = fma_rows(builder, [old], [gradient], [weight])
                    masked_store(builder, new, to, mask)
            return state

        loop(builder, count, [], step)

    switch(
        builder, rows, ROWS, lambda height: switch(builder, columns, COLUMNS, partial(tile, height))
    )
