"""Register tiles: small matrix products whose sums stay in registers (see simd.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from gpuconv.cpu.simd import (
    FLOAT,
    FLOAT_BYTES,
    LANES,
    TILE_HEIGHTS,
    VECTOR,
    VECTOR_BYTES,
    i64,
    intrinsic,
    load,
    loop,
    plus,
    splat,
    store,
)

# Products added to one sum before it joins the total. The error is least near the square root of
# the depth, 48 for 3x3 filters of 256 channels; longer chains spend less time on the totals.
CHAIN = 64


def fma_rows(builder: Any, sums: list[Any], scalars: list[Any], vectors: list[Any]) -> list[Any]:
    """sums[row][v] += scalars[row] * vectors[v], fused where the processor can."""
    width, fuse = len(vectors), ("contract",)
    spread = [splat(builder, scalar) for scalar in scalars]
    return [
        builder.fadd(
            total, builder.fmul(spread[i // width], vectors[i % width], flags=fuse), flags=fuse
        )
        for i, total in enumerate(sums)
    ]


def sum_over_taps(
    builder: Any, depth: Any, count: int, tap: Callable[[Any, list[Any]], list[Any]]
) -> list[Any]:
    """`count` vectors of sums: sums = tap(i, sums) for i in range(depth), in chains of CHAIN taps.

    A sum of n random terms in one chain has a rounding error that grows like sqrt(n); in chains of
    c terms it grows like sqrt(c + n/c). The totals are in memory meanwhile: two more instructions
    for each vector and chain.
    """
    zeros = [ir.Constant(VECTOR, [0.0] * LANES)] * count

    def chain(number: Any, totals: list[Any]) -> list[Any]:
        first = builder.mul(number, i64(CHAIN))
        rest = builder.sub(depth, first)
        length = builder.select(builder.icmp_signed("<", rest, i64(CHAIN)), rest, i64(CHAIN))
        sums = loop(builder, length, zeros, lambda i, sums: tap(builder.add(first, i), sums))
        return [builder.fadd(total, part) for total, part in zip(totals, sums, strict=True)]

    chains = builder.sdiv(builder.add(depth, i64(CHAIN - 1)), i64(CHAIN))
    return loop(builder, chains, zeros, chain)


def _put(builder: Any, keep: Any, sums: list[Any], places: list[Any]) -> None:
    """Store the sums; with `keep`, add them to what is there."""
    with builder.if_else(builder.icmp_signed("!=", keep, i64(0))) as (add, replace):
        with add:
            for place, total in zip(places, sums, strict=True):
                store(builder, builder.fadd(load(builder, place, VECTOR), total), place)
        with replace:
            for place, total in zip(places, sums, strict=True):
                store(builder, total, place)


def _conv_tile(height: int) -> Any:
    @intrinsic
    def tile(typingctx, a, b, offsets, depth, keep, out):
        """out[row][0:TILE_WIDTH] = sum over i of a[i][row] * b[offsets[i] : +TILE_WIDTH].

        With `keep` the sum is added to what out holds.
        """

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            a, b, offsets, depth, keep, out = args

            def step(i: Any, state: list[Any]) -> list[Any]:
                offset = load(builder, builder.add(offsets, builder.mul(i, i64(8))), i64)
                at = builder.add(b, offset)
                vectors = [
                    load(builder, plus(builder, at, v * VECTOR_BYTES), VECTOR) for v in range(2)
                ]
                row = builder.add(a, builder.mul(i, i64(height * FLOAT_BYTES)))
                scalars = [
                    load(builder, plus(builder, row, m * FLOAT_BYTES), FLOAT) for m in range(height)
                ]
                return fma_rows(builder, state, scalars, vectors)

            sums = sum_over_taps(builder, depth, 2 * height, step)
            _put(
                builder,
                keep,
                sums,
                [plus(builder, out, i * VECTOR_BYTES) for i in range(len(sums))],
            )
            return context.get_dummy_value()

        return types.void(*[types.intp] * 6), emit

    return tile


def _outer_tile(columns: int, width: int) -> Any:
    @intrinsic
    def tile(typingctx, d, x, offsets, rows, row_bytes, pixels, step, keep, out):
        """out[j] = sum over p, q of d[p][q] * x[offsets[j] + p*row_bytes + q*step], j < columns.

        d is [rows][pixels][width*LANES] without gaps, out [columns][width*LANES]; offsets and steps
        are in bytes. With `keep` the sum is added to what out holds.
        """

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            d, x, offsets, rows, row_bytes, pixels, step, keep, out = args
            at = [
                builder.add(x, load(builder, plus(builder, offsets, 8 * j), i64))
                for j in range(columns)
            ]
            places = [plus(builder, out, i * VECTOR_BYTES) for i in range(columns * width)]
            d_row_bytes = builder.mul(pixels, i64(width * VECTOR_BYTES))

            def row(p: Any, state: list[Any]) -> list[Any]:
                d_row = builder.add(d, builder.mul(p, d_row_bytes))
                x_row = builder.mul(p, row_bytes)

                def pixel(q: Any, state: list[Any]) -> list[Any]:
                    here = builder.add(d_row, builder.mul(q, i64(width * VECTOR_BYTES)))
                    vectors = [
                        load(builder, plus(builder, here, v * VECTOR_BYTES), VECTOR)
                        for v in range(width)
                    ]
                    column = builder.add(x_row, builder.mul(q, step))
                    scalars = [load(builder, builder.add(base, column), FLOAT) for base in at]
                    return fma_rows(builder, state, scalars, vectors)

                return loop(builder, pixels, state, pixel)

            # from zero, and the old sums last: a shorter chain of roundings than going on from them
            sums = loop(builder, rows, [ir.Constant(VECTOR, [0.0] * LANES)] * len(places), row)
            _put(builder, keep, sums, places)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 9), emit

    return tile


conv_tile_3, conv_tile_2, conv_tile_1 = map(_conv_tile, TILE_HEIGHTS)
outer_tile_3x2, outer_tile_2x2, outer_tile_1x2 = (_outer_tile(n, 2) for n in TILE_HEIGHTS)
outer_tile_3x1, outer_tile_2x1, outer_tile_1x1 = (_outer_tile(n, 1) for n in TILE_HEIGHTS)
