"""The transforms of Winograd's convolution, of LANES tiles side by side (see simd.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from gpuconv.cpu.simd import LANES, VECTOR, i64, load, on_addresses, store


def _combination(builder: Any, row: np.ndarray, values: list[Any]) -> Any:
    """The sum of row[i] * values[i]; of a factor of +-1 LLVM makes no multiplication."""
    total, fuse = None, ("contract",)
    for factor, value in zip(row, values, strict=True):
        if factor == 0:
            continue
        size = ir.Constant(VECTOR, [float(abs(factor))] * LANES)
        term = builder.fmul(value, size, flags=fuse)
        if total is None:
            total = term if factor > 0 else builder.fneg(term)
        else:
            add = builder.fadd if factor > 0 else builder.fsub
            total = add(total, term, flags=fuse)
    return total


def winograd_transform(matrix: np.ndarray) -> Any:
    """An intrinsic for out = matrix @ tile @ matrix.T, of LANES tiles side by side.

    Entry (i, j) of the tiles is the vector at source + i*row_bytes + j*column_bytes; out likewise.
    """

    @on_addresses
    def apply(builder, source, row_bytes, column_bytes, out, out_row, out_column):
        def place(base: Any, i: int, row: Any, j: int, column: Any) -> Any:
            down = builder.add(base, builder.mul(row, i64(i)))
            return builder.add(down, builder.mul(column, i64(j)))

        out_size, size = matrix.shape
        half = []  # half[j][i]: column j of matrix @ tile
        for j in range(size):
            places = [place(source, i, row_bytes, j, column_bytes) for i in range(size)]
            column = [load(builder, at, VECTOR) for at in places]
            half.append([_combination(builder, row, column) for row in matrix])
        for i in range(out_size):
            for j in range(out_size):
                value = _combination(builder, matrix[j], [column[i] for column in half])
                store(builder, value, place(out, i, out_row, j, out_column))

    return apply
