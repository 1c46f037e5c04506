"""The transforms of Winograd's convolution, of LANES tiles side by side (see simd.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from gpuconv.cpu.simd import LANES, VECTOR, i64, load, on_addresses, rectified, store


def _combination(builder: Any, row: np.ndarray, values: list[Any]) -> Any:
    """The sum of row[i] * values[i]; a factor of 0 or +-1 costs no multiplication."""
    total = None
    for factor, value in zip(row, values, strict=True):
        if factor == 0:
            continue
        term = value
        if abs(factor) != 1:
            term = builder.fmul(
                value, ir.Constant(VECTOR, [float(abs(factor))] * LANES), flags=("contract",)
            )
        if total is None:
            total = term if factor > 0 else builder.fneg(term)
        else:
            add = builder.fadd if factor > 0 else builder.fsub
            total = add(total, term, flags=("contract",))
    return total


def _transform(
    builder: Any, matrix: np.ndarray, args: list[Any], finish: Callable[[Any], Any]
) -> None:
    """finish(matrix @ tile @ matrix.T), from and to the places that `args` describe."""
    source, row_bytes, column_bytes, out, out_row, out_column = args
    size, out_size = len(matrix[0]), len(matrix)

    def place(base: Any, i: int, row: Any, j: int, column: Any) -> Any:
        down = builder.add(base, builder.mul(row, i64(i)))
        return builder.add(down, builder.mul(column, i64(j)))

    half = []  # half[j][i]: column j of matrix @ tile
    for j in range(size):
        places = [place(source, i, row_bytes, j, column_bytes) for i in range(size)]
        column = [load(builder, at, VECTOR) for at in places]
        half.append([_combination(builder, row, column) for row in matrix])
    for i in range(out_size):
        for j in range(out_size):
            value = _combination(builder, matrix[j], [column[i] for column in half])
            store(builder, finish(value), place(out, i, out_row, j, out_column))


def winograd_transform(matrix: np.ndarray) -> Any:
    """An intrinsic for out = matrix @ tile @ matrix.T, of LANES tiles side by side.

    Entry (i, j) of the tiles is the vector at source + i*row_bytes + j*column_bytes; out likewise.
    """

    @on_addresses
    def apply(builder, source, row_bytes, column_bytes, out, out_row, out_column):
        places = [source, row_bytes, column_bytes, out, out_row, out_column]
        _transform(builder, matrix, places, lambda value: value)

    return apply


def winograd_output_transform(matrix: np.ndarray) -> Any:
    """Like winograd_transform; adds the vector at `bias` to all entries; with `relu`, rectifies."""

    @on_addresses
    def apply(builder, source, row_bytes, column_bytes, out, out_row, out_column, bias, relu):
        places = [source, row_bytes, column_bytes, out, out_row, out_column]
        shift, rectify = load(builder, bias, VECTOR), builder.icmp_signed("!=", relu, i64(0))

        def finish(value: Any) -> Any:
            value = builder.fadd(value, shift)
            return builder.select(rectify, rectified(builder, value), value)

        _transform(builder, matrix, places, finish)

    return apply
