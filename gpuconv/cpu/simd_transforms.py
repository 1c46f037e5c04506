"""The transforms of Winograd's convolution, of LANES tiles side by side (see simd.py)."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from gpuconv.cpu.simd import LANES, VECTOR, i64, intrinsic, load, store


def _combination(builder: Any, row: list[float], values: list[Any]) -> Any:
    """The sum of row[i] * values[i]; a factor of 0 or +-1 costs no multiplication."""
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


def winograd_transform(matrix: list[list[float]], finish: bool = False) -> Any:
    """An intrinsic for out = matrix @ tile @ matrix.T, of LANES tiles side by side.

    Entry (i, j) of the tiles is the vector at source + i*row_bytes + j*column_bytes; out likewise.
    With `finish` the vector at `bias` is added to every entry, and `relu` rectifies it; otherwise
    both are ignored.
    """
    size, out_size = len(matrix[0]), len(matrix)

    @intrinsic
    def apply(typingctx, source, row_bytes, column_bytes, out, out_row, out_column, bias, relu):
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            source, row_bytes, column_bytes, out, out_row, out_column, bias, relu = args

            def place(base: Any, i: int, row: Any, j: int, column: Any) -> Any:
                down = builder.add(base, builder.mul(row, i64(i)))
                return builder.add(down, builder.mul(column, i64(j)))

            half = []  # half[j][i]: column j of matrix @ tile
            for j in range(size):
                column = [
                    load(builder, place(source, i, row_bytes, j, column_bytes), VECTOR)
                    for i in range(size)
                ]
                half.append([_combination(builder, row, column) for row in matrix])
            shift = load(builder, bias, VECTOR) if finish else None
            zero, rectify = (
                ir.Constant(VECTOR, [0.0] * LANES),
                builder.icmp_signed("!=", relu, i64(0)),
            )
            for i in range(out_size):
                for j in range(out_size):
                    value = _combination(builder, matrix[j], [column[i] for column in half])
                    if finish:
                        value = builder.fadd(value, shift)
                        rectified = builder.select(
                            builder.fcmp_ordered("<", value, zero), zero, value
                        )
                        value = builder.select(rectify, rectified, value)
                    store(builder, value, place(out, i, out_row, j, out_column))
            return context.get_dummy_value()

        return types.void(*[types.intp] * 8), emit

    return apply
