"""Register tiles: small matrix products whose sums stay in registers (see simd.py)."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from gpuconv.cpu.simd import (
    FLOAT,
    LANES,
    TILE_HEIGHTS,
    TILE_WIDTH,
    VECTOR,
    VECTOR_BYTES,
    ZERO,
    i64,
    load,
    load_row,
    loop,
    on_addresses,
    plus,
    splat,
    store,
    switch,
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


def _prefetch(builder: Any, address: Any) -> None:
    """Fetch the cache line at an address, which need not exist, into the L2 cache."""
    i32, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [pointer, i32, i32, i32])
    name = "llvm.prefetch.p0"
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    builder.call(function, [builder.inttoptr(address, pointer), i32(0), i32(2), i32(1)])


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

    height: one of TILE_HEIGHTS; width: LANES or TILE_WIDTH. d is [rows][pixels][width] without
    gaps, out [height][width]; offsets and steps are in bytes. With `keep` the sum is added to what
    out holds. With `across`, 1 or else 0, what is read of x is a vector, multiplied lane by lane.
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
                for v in range(vectors):
                    _prefetch(builder, plus(builder, here, AHEAD + v * VECTOR_BYTES))
                scalars = [load(builder, builder.add(base, column), kind) for base in at]
                return fma_rows(builder, state, scalars, load_row(builder, here, VECTOR, vectors))

            return loop(builder, pixels, state, pixel)

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

    def of_width(lanes: int, kind: Any) -> None:
        switch(builder, height, TILE_HEIGHTS, lambda columns: tile(columns, lanes // LANES, kind))

    def of_kind(vectors: int) -> None:
        kind = VECTOR if vectors else FLOAT
        switch(builder, width, (TILE_WIDTH, LANES), lambda lanes: of_width(lanes, kind))

    switch(builder, across, (0, 1), of_kind)
