"""Register tiles of a convolution under a 2x2 max-pool (see simd_tiles.py and conv_pool.py)."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from gpuconv.cpu.simd import (
    FLOAT,
    FLOAT_BYTES,
    LANES,
    TILE_HEIGHTS,
    TILE_WIDTH,
    VECTOR,
    VECTOR_BYTES,
    i64,
    intrinsic,
    load,
    loop,
    mask_of,
    masked_load,
    masked_store,
    plus,
    splat,
    store,
)
from gpuconv.cpu.simd_pool import BYTES, even_and_odd, maximum_of_4
from gpuconv.cpu.simd_tiles import fma_rows, sum_over_taps

# What fits into the registers: 20 and 24 vectors of sums where there are 32, else 12 and 8.
POOLED_PIXELS, FILTERS = (5, 6) if TILE_HEIGHTS[0] == 12 else (3, 2)
ROWS, COLUMNS = (5, 3, 1), (2, 1)  # sizes of the tiles that visit only the maxima


def _rectified(builder: Any, value: Any, shift: Any) -> Any:
    zero = ir.Constant(VECTOR, [0.0] * LANES)
    value = builder.fadd(value, shift)
    return builder.select(builder.fcmp_ordered("<", value, zero), zero, value)


def _store_bytes(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.inttoptr(address, BYTES.as_pointer()), align=1)


def _depth_loop(builder: Any, args: list[Any], count: int, step: Any) -> list[Any]:
    """`count` vectors of sums over the depth: step(i, address of tap i, sums) adds one tap."""
    b, offsets, depth = args

    def tap(i: Any, sums: list[Any]) -> list[Any]:
        offset = load(builder, builder.add(offsets, builder.mul(i, i64(8))), i64)
        return step(i, builder.add(b, offset), sums)

    return sum_over_taps(builder, depth, count, tap)


@intrinsic
def pooled_filters(typingctx, a, b, row_bytes, offsets, depth, bias, y, argmax):
    """POOLED_PIXELS pooled pixels of LANES filters: y[pixel][filter], argmax[pixel][filter].

    a: weights (depth, LANES). b: where the pixels' inputs start; offsets (depth), in bytes from
    there; row_bytes: from a pixel to the one below. Bias and ReLU are applied before the pool.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, b, row_bytes, offsets, depth, bias, y, argmax = args
        below = builder.add(b, row_bytes)
        distance = builder.sub(below, b)

        def step(i: Any, at: Any, sums: list[Any]) -> list[Any]:
            weights = load(builder, builder.add(a, builder.mul(i, i64(VECTOR_BYTES))), VECTOR)
            rows = at, builder.add(at, distance)
            pixels = [
                load(builder, plus(builder, row, q * FLOAT_BYTES), FLOAT)
                for row in rows
                for q in range(2 * POOLED_PIXELS)
            ]
            return fma_rows(builder, sums, pixels, [weights])

        sums = _depth_loop(builder, [b, offsets, depth], 4 * POOLED_PIXELS, step)
        shift = load(builder, bias, VECTOR)
        values = [_rectified(builder, total, shift) for total in sums]
        for pair in range(POOLED_PIXELS):
            pool_taps = [
                values[row * 2 * POOLED_PIXELS + 2 * pair + q] for row in (0, 1) for q in (0, 1)
            ]
            best, index = maximum_of_4(builder, pool_taps)
            store(builder, best, plus(builder, y, pair * VECTOR_BYTES))
            _store_bytes(builder, index, plus(builder, argmax, pair * LANES))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 8), emit


@intrinsic
def pooled_pixels(typingctx, a, b, row_bytes, offsets, depth, bias, rows, y, y_bytes, bits, argmax):
    """LANES pooled pixels of FILTERS filters: y[filter][pixel], argmax[filter][pixel].

    The arguments are those of pooled_filters, with weights a (depth, FILTERS). y is written for the
    first `rows` filters, y_bytes apart, and for the lanes whose bit is set; argmax, LANES bytes a
    filter, for all lanes.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, b, row_bytes, offsets, depth, bias, rows, y, y_bytes, bits, argmax = args

        def step(i: Any, at: Any, sums: list[Any]) -> list[Any]:
            below = builder.add(at, row_bytes)
            pixels = [
                load(builder, plus(builder, row, v * VECTOR_BYTES), VECTOR)
                for row in (at, below)
                for v in range(2)
            ]
            weights = builder.add(a, builder.mul(i, i64(FILTERS * FLOAT_BYTES)))
            scalars = [
                load(builder, plus(builder, weights, m * FLOAT_BYTES), FLOAT)
                for m in range(FILTERS)
            ]
            return fma_rows(builder, sums, scalars, pixels)

        sums = _depth_loop(builder, [b, offsets, depth], 4 * FILTERS, step)
        mask = mask_of(builder, bits)
        for m in range(FILTERS):
            with builder.if_then(builder.icmp_signed("<", i64(m), rows), likely=True):
                shift = splat(builder, load(builder, plus(builder, bias, m * FLOAT_BYTES), FLOAT))
                upper, lower = (
                    even_and_odd(
                        builder,
                        *(_rectified(builder, sums[4 * m + 2 * row + v], shift) for v in range(2)),
                    )
                    for row in (0, 1)
                )
                best, index = maximum_of_4(builder, upper + lower)
                to = builder.add(y, builder.mul(y_bytes, i64(m)))
                masked_store(builder, best, to, mask)
                _store_bytes(builder, index, plus(builder, argmax, m * LANES))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 11), emit


def _gather_tile(rows: int, columns: int) -> Any:
    @intrinsic
    def tile(typingctx, gradients, places, count, x, row_bytes, out, column_bytes):
        """out[column][row] += sum over i of gradients[i] * x[places[i] + row*row_bytes + column].

        A column is a vector, places are in bytes. In out the rows of a column follow one another,
        and columns are column_bytes apart.
        """

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            gradients, places, count, x, row_bytes, out, column_bytes = args

            def step(i: Any, sums: list[Any]) -> list[Any]:
                gradient, at = _gradient_and_place(builder, gradients, places, x, i)
                vectors = []
                for row in range(rows):
                    at = builder.add(at, row_bytes) if row else at
                    vectors += [
                        load(builder, plus(builder, at, v * VECTOR_BYTES), VECTOR)
                        for v in range(columns)
                    ]
                return fma_rows(builder, sums, [gradient], vectors)

            zero = ir.Constant(VECTOR, [0.0] * LANES)
            sums = loop(builder, count, [zero] * (rows * columns), step)
            for i, total in enumerate(sums):
                row, column = divmod(i, columns)
                place = plus(builder, out, row * VECTOR_BYTES)
                place = builder.add(place, builder.mul(column_bytes, i64(column)))
                store(builder, builder.fadd(load(builder, place, VECTOR), total), place)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 7), emit

    return tile


def _scatter_tile(rows: int, columns: int) -> Any:
    @intrinsic
    def tile(typingctx, gradients, places, count, x, row_bytes, weights, column_bytes, bits):
        """x[places[i] + row*row_bytes + column] += gradients[i] * weights[column][row], i by i.

        The reverse of the gather tile; in the last column for the lanes whose bit is set.
        """

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            gradients, places, count, x, row_bytes, weights, column_bytes, bits = args
            mask = mask_of(builder, bits)
            starts = [
                builder.add(weights, builder.mul(column_bytes, i64(v))) for v in range(columns)
            ]
            held = [
                [
                    load(builder, plus(builder, start, row * VECTOR_BYTES), VECTOR)
                    for start in starts
                ]
                for row in range(rows)
            ]

            def step(i: Any, state: list[Any]) -> list[Any]:
                gradient, at = _gradient_and_place(builder, gradients, places, x, i)
                for row in range(rows):
                    at = builder.add(at, row_bytes) if row else at
                    for v in range(columns):
                        to = plus(builder, at, v * VECTOR_BYTES)
                        last = v == columns - 1
                        old = masked_load(builder, to, mask) if last else load(builder, to, VECTOR)
                        (new,) = fma_rows(builder, [old], [gradient], [held[row][v]])
                        if last:
                            masked_store(builder, new, to, mask)
                        else:
                            store(builder, new, to)
                return state

            loop(builder, count, [], step)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 8), emit

    return tile


def _gradient_and_place(
    builder: Any, gradients: Any, places: Any, x: Any, i: Any
) -> tuple[Any, Any]:
    gradient = load(builder, builder.add(gradients, builder.mul(i, i64(FLOAT_BYTES))), FLOAT)
    place = load(builder, builder.add(places, builder.mul(i, i64(8))), i64)
    return gradient, builder.add(x, place)


gather_5x2, gather_5, gather_3x2, gather_3, gather_1x2, gather_1 = (
    _gather_tile(rows, columns) for rows in ROWS for columns in COLUMNS
)
scatter_5x2, scatter_5, scatter_3x2, scatter_3, scatter_1x2, scatter_1 = (
    _scatter_tile(rows, columns) for rows in ROWS for columns in COLUMNS
)
CONV_PIXELS = TILE_WIDTH  # pixels in a row of the convolution that pooled_pixels reads
