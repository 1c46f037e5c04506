"""Small squares, LANES of them side by side: Winograd's transforms and 2 x 2 pooling (see
vector.py).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from gpuconv.cpu.vector import (
    LANES,
    VECTOR,
    VECTOR_BYTES,
    i64,
    intrinsic,
    load,
    mask_of,
    masked_load,
    masked_store,
    plus,
    store,
)


def _combine(builder: Any, row: list[float], values: list[Any]) -> Any:
    """The sum of row[i] * values[i], without what is zero."""
    total = None
    for factor, value in zip(row, values, strict=True):
        if factor == 0:
            continue
        term = value
        if abs(factor) != 1:
            term = builder.fmul(
                value, ir.Constant(VECTOR, [abs(factor)] * LANES), flags=("contract",)
            )
        if total is None:
            total = term if factor > 0 else builder.fneg(term)
        else:
            add = builder.fadd if factor > 0 else builder.fsub
            total = add(total, term, flags=("contract",))
    return total


def sandwich(matrix: list[list[float]], finish: bool = False) -> Any:
    """An intrinsic: out = matrix @ square @ matrix.T, for LANES squares side by side.

    Entry (i, j) of a square is the vector at source + i*row_bytes + j*column_bytes; out likewise.
    With `finish`, the vector at `bias` is added to every entry, and `relu` rectifies it; else both
    are ignored.
    """
    size, out_size = len(matrix[0]), len(matrix)

    @intrinsic
    def apply(typingctx, source, row_bytes, column_bytes, out, out_row, out_column, bias, relu):
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            source, row_bytes, column_bytes, out, out_row, out_column, bias, relu = args

            def place(base: Any, i: int, row: Any, j: int, column: Any) -> Any:
                down = builder.add(base, builder.mul(row, i64(i)))
                return builder.add(down, builder.mul(column, i64(j)))

            half = []  # half[j][i]: column j of matrix @ square
            for j in range(size):
                column = [
                    load(builder, place(source, i, row_bytes, j, column_bytes), VECTOR)
                    for i in range(size)
                ]
                half.append([_combine(builder, row, column) for row in matrix])
            shift = load(builder, bias, VECTOR) if finish else None
            zero, rectify = (
                ir.Constant(VECTOR, [0.0] * LANES),
                builder.icmp_signed("!=", relu, i64(0)),
            )
            for i in range(out_size):
                for j in range(out_size):
                    value = _combine(builder, matrix[j], [column[i] for column in half])
                    if finish:
                        value = builder.fadd(value, shift)
                        cut = builder.select(builder.fcmp_ordered("<", value, zero), zero, value)
                        value = builder.select(rectify, cut, value)
                    store(builder, value, place(out, i, out_row, j, out_column))
            return context.get_dummy_value()

        return types.void(*[types.intp] * 8), emit

    return apply


def _interleaving(builder: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """a0 b0 a1 b1 ..., as two vectors."""
    index = ir.VectorType(ir.IntType(32), LANES)
    orders = [[LANES * (i % 2) + half + i // 2 for i in range(LANES)] for half in (0, LANES // 2)]
    low, high = (builder.shuffle_vector(a, b, ir.Constant(index, order)) for order in orders)
    return low, high


def _pairs(builder: Any, address: Any, bits: Any) -> list[Any]:
    """`even_and_odd` of 2 * LANES floats in memory, of which those whose bit is set are read."""
    first = masked_load(builder, address, mask_of(builder, bits))
    rest = builder.lshr(bits, i64(LANES))
    second = masked_load(builder, plus(builder, address, VECTOR_BYTES), mask_of(builder, rest))
    return even_and_odd(builder, first, second)


def even_and_odd(builder: Any, first: Any, second: Any) -> list[Any]:
    """The even and the odd ones of two vectors side by side."""
    index = ir.VectorType(ir.IntType(32), LANES)
    orders = [[2 * i + odd for i in range(LANES)] for odd in (0, 1)]
    return [builder.shuffle_vector(first, second, ir.Constant(index, order)) for order in orders]


BYTES = ir.VectorType(ir.IntType(8), LANES)


def largest(builder: Any, values: list[Any]) -> tuple[Any, Any]:
    """The largest of four vectors and its number; the first among equals, a NaN before a number."""
    best, winner = values[0], ir.Constant(BYTES, [0] * LANES)
    for tap, value in enumerate(values[1:], 1):
        larger = builder.fcmp_ordered(">", value, best)
        wins = builder.or_(larger, builder.fcmp_unordered("uno", value, value))
        best = builder.select(wins, value, best)
        winner = builder.select(wins, ir.Constant(BYTES, [tap] * LANES), winner)
    return best, winner


@intrinsic
def max_pairs(typingctx, upper, lower, bits, y, argmax):
    """LANES maxima of 2 x 2 squares: of 2*LANES floats at `upper` and at `lower`, those whose bit
    is set.

    y[lane], argmax[lane] = the largest and 0 to 3, where; the first among equals, a NaN before any
    number.
    argmax is written for all lanes, y for those inside.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        upper, lower, bits, y, argmax = args
        values = _pairs(builder, upper, bits) + _pairs(builder, lower, bits)
        best, winner = largest(builder, values)
        inside = builder.trunc(bits, ir.IntType(2 * LANES))
        pairs = builder.bitcast(inside, ir.VectorType(ir.IntType(1), 2 * LANES))
        index = ir.VectorType(ir.IntType(32), LANES)
        odd = ir.Constant(index, [2 * i + 1 for i in range(LANES)])
        mask = builder.shuffle_vector(pairs, ir.Constant(pairs.type, ir.Undefined), odd)
        masked_store(builder, best, y, mask)
        builder.store(winner, builder.inttoptr(argmax, BYTES.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), emit


@intrinsic
def spread_pairs(typingctx, dy, argmax, bits, upper, lower):
    """The gradient of max_pairs: dy[lane] to the place argmax[lane] of its square, 0 to the other
    three.

    bits: of the 2*LANES floats at `upper` and `lower`, which to write. argmax is read for all
    lanes.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        dy, argmax, bits, upper, lower = args
        zero = ir.Constant(VECTOR, [0.0] * LANES)
        inside = builder.bitcast(
            builder.trunc(bits, ir.IntType(2 * LANES)), ir.VectorType(ir.IntType(1), 2 * LANES)
        )
        index = ir.VectorType(ir.IntType(32), LANES)
        odd = ir.Constant(index, [2 * i + 1 for i in range(LANES)])
        mask = builder.shuffle_vector(inside, ir.Constant(inside.type, ir.Undefined), odd)
        gradient = masked_load(builder, dy, mask)
        winner = builder.load(builder.inttoptr(argmax, BYTES.as_pointer()), align=1)
        parts = []
        for tap in range(4):
            here = builder.icmp_signed("==", winner, ir.Constant(BYTES, [tap] * LANES))
            parts.append(builder.select(here, gradient, zero))
        for row, (left, right) in ((upper, parts[:2]), (lower, parts[2:])):
            low, high = _interleaving(builder, left, right)
            masked_store(builder, low, row, mask_of(builder, bits))
            rest = mask_of(builder, builder.lshr(bits, i64(LANES)))
            masked_store(builder, high, plus(builder, row, VECTOR_BYTES), rest)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), emit
