"""Register tiles: small matrix products whose sums stay in registers (see simd.py)."""

from __future__ import annotations

from functools import partial
from typing import Any

from llvmlite import ir

from gpuconv.cpu.simd import (
    FLOAT,
    LANES,
    TILE_HEIGHTS,
    VECTOR,
    VECTOR_BYTES,
    ZERO,
    i64,
    load,
    load_row,
    loop,
    on_addresses,
    plus,
    prefetch,
    splat,
    store,
    switch,
    when,
)

# Products added to one sum before it joins the total. The rounding error of a sum of n random terms
# grows like sqrt(c + n / c) with chains of c terms; the totals cost time: seven of ResNet-50's
# layers take 51.3 ms with chains of 64, 50.5 with 128 and 50.3 with 256.
CHAIN = 128
# How far ahead the vectors that a tile multiplies are fetched into the L2 cache, in bytes. On an
# Intel Xeon (Emerald Rapids), whose own prefetching stops at a page, a linear layer from 9,216 to
# 4,096 takes one image 8.0 ms without, 7.0 with 512 bytes, 5.9 with 4 KB and 5.0 with 16 or 64 KB.
AHEAD = 16 * 1024


def fma_rows(builder: Any, sums: list[Any], scalars: list[Any], vectors: list[Any]) -> list[Any]:
    """sums[row][v] += scalars[row] * vectors[v], fused where the processor can."""
    width, fuse = len(vectors), ("contract",)
    spread = [value if value.type == VECTOR else splat(builder, value) for value in scalars]
    return [
        builder.fadd(
            total, builder.fmul(spread[i // width], vectors[i % width], flags=fuse), flags=fuse
        )
        for i, total in enumerate(sums)
    ]


def _opaque(builder: Any, value: Any) -> Any:
    """The value, of which LLVM knows nothing: it makes no sums with it for use in a later pass of a
    loop, of which it would keep twelve, and adds it where it loads.
    """
    return builder.call(ir.InlineAsm(ir.FunctionType(i64, [i64]), "", "=r,0"), [value])


@on_addresses
def outer_tile(
    builder, height, width, across, d, x, offsets, rows, row_bytes, pixels, step, keep, out
):
    """out[j] = sum over p, q of d[p][q] * x[offsets[j] + p*row_bytes + q*step], j < height.

    width: LANES times 1, 2, ...; height: one of TILE_HEIGHTS for it. d is [rows][pixels][width]
    without gaps, out [height][width]; offsets and steps are in bytes. With `keep` the sum is added
    to what out holds. With `across`, 1 or else 0, what is read of x is a vector, multiplied lane by
    lane; a tile is then at most two vectors wide.
    """

    def tile(columns: int, vectors: int, kind: Any) -> None:
        pixel_bytes = vectors * VECTOR_BYTES
        at = [builder.add(x, start) for start in load_row(builder, offsets, i64, columns)]
        d_row_bytes = builder.mul(pixels, i64(pixel_bytes))

        def row(p: Any, state: list[Any]) -> list[Any]:
            d_row = builder.add(d, builder.mul(p, d_row_bytes))
            x_row = builder.mul(p, row_bytes)

            def pixel(q: Any, state: list[Any]) -> list[Any]:
                here = builder.add(d_row, builder.mul(q, i64(pixel_bytes)))
                column = _opaque(builder, builder.add(x_row, builder.mul(q, step)))
                for v in range(0, vectors, 2):  # a processor fetches lines by twos
                    prefetch(builder, plus(builder, here, AHEAD + v * VECTOR_BYTES))
                scalars = [load(builder, builder.add(base, column), kind) for base in at]
                return fma_rows(builder, state, scalars, load_row(builder, here, VECTOR, vectors))

            def two(half: Any, state: list[Any]) -> list[Any]:
                first = builder.shl(half, i64(1))
                return pixel(builder.add(first, i64(1)), pixel(first, state))

            if vectors <= 2 or columns < TILE_HEIGHTS[vectors - 1][0]:  # it would gain little
                return loop(builder, pixels, state, pixel)
            pairs, last = builder.lshr(pixels, i64(1)), builder.sub(pixels, i64(1))
            some = builder.icmp_signed(">", pairs, i64(0))
            state = when(builder, some, state, lambda state: loop(builder, pairs, state, two))
            odd = builder.trunc(pixels, ir.IntType(1))
            return when(builder, odd, state, partial(pixel, last))

        # from zero, and the old sums last: a shorter chain of roundings than going on from them
        zeros = [ZERO] * (columns * vectors)
        sums = loop(builder, rows, zeros, row)
        places = [plus(builder, out, i * VECTOR_BYTES) for i in range(len(sums))]
        with builder.if_else(builder.icmp_signed("!=", keep, i64(0))) as (add, replace):
            with add:
                for place, total in zip(places, sums, strict=True):
                    store(builder, builder.fadd(load(builder, place, VECTOR), total), place)
            with replace:
                for place, total in zip(places, sums, strict=True):
                    store(builder, total, place)

    def of_width(kind: Any, lanes: int) -> None:
        vectors = lanes // LANES
        switch(builder, height, TILE_HEIGHTS[vectors - 1], lambda rows: tile(rows, vectors, kind))

    def of_kind(vectors: int) -> None:
        kind, most = (VECTOR, 2) if vectors else (FLOAT, len(TILE_HEIGHTS))
        widths = [LANES * count for count in range(most, 0, -1)]
        switch(builder, width, widths, partial(of_width, kind))

    switch(builder, across, (0, 1), of_kind)
