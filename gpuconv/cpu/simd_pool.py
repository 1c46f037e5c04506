"""2x2 max-pooling of vectors in registers: LANES windows side by side (see simd.py)."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from gpuconv.cpu.simd import (
    LANES,
    VECTOR,
    VECTOR_BYTES,
    i64,
    intrinsic,
    mask_of,
    masked_load,
    masked_store,
    plus,
)


def _interleaved(builder: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """a0 b0 a1 b1 ..., as two vectors."""
    lanes = ir.VectorType(ir.IntType(32), LANES)
    orders = [[LANES * (i % 2) + half + i // 2 for i in range(LANES)] for half in (0, LANES // 2)]
    low, high = (builder.shuffle_vector(a, b, ir.Constant(lanes, order)) for order in orders)
    return low, high


def _load_even_and_odd(builder: Any, address: Any, bits: Any) -> list[Any]:
    """`even_and_odd` of 2*LANES floats in memory, of which those whose bit is set are read."""
    first = masked_load(builder, address, mask_of(builder, bits))
    rest = builder.lshr(bits, i64(LANES))
    second = masked_load(builder, plus(builder, address, VECTOR_BYTES), mask_of(builder, rest))
    return even_and_odd(builder, first, second)


def even_and_odd(builder: Any, first: Any, second: Any) -> list[Any]:
    """The elements with even and those with odd numbers, of two vectors one after the other."""
    lanes = ir.VectorType(ir.IntType(32), LANES)
    orders = [[2 * i + odd for i in range(LANES)] for odd in (0, 1)]
    return [builder.shuffle_vector(first, second, ir.Constant(lanes, order)) for order in orders]


BYTES = ir.VectorType(ir.IntType(8), LANES)


def maximum_of_4(builder: Any, values: list[Any]) -> tuple[Any, Any]:
    """(maximum, index) of four vectors: the first of equal numbers; a NaN beats every number."""
    best, index = values[0], ir.Constant(BYTES, [0] * LANES)
    for tap, value in enumerate(values[1:], 1):
        larger = builder.fcmp_ordered(">", value, best)
        wins = builder.or_(larger, builder.fcmp_unordered("uno", value, value))
        best = builder.select(wins, value, best)
        index = builder.select(wins, ir.Constant(BYTES, [tap] * LANES), index)
    return best, index


@intrinsic
def max_2x2(typingctx, upper, lower, bits, y, argmax):
    """LANES maxima of 2x2 windows, of those of the 2*LANES floats at each address whose bit is set.

    y[lane] is the maximum and argmax[lane] its index, 0 to 3: the first of equal numbers; a NaN
    beats every number. y is written for the windows inside, argmax for all lanes.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        upper, lower, bits, y, argmax = args
        values = _load_even_and_odd(builder, upper, bits) + _load_even_and_odd(builder, lower, bits)
        best, index = maximum_of_4(builder, values)
        inside = builder.trunc(bits, ir.IntType(2 * LANES))
        pairs = builder.bitcast(inside, ir.VectorType(ir.IntType(1), 2 * LANES))
        lanes = ir.VectorType(ir.IntType(32), LANES)
        odd = ir.Constant(lanes, [2 * i + 1 for i in range(LANES)])
        mask = builder.shuffle_vector(pairs, ir.Constant(pairs.type, ir.Undefined), odd)
        masked_store(builder, best, y, mask)
        builder.store(index, builder.inttoptr(argmax, BYTES.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), emit


@intrinsic
def scatter_2x2(typingctx, dy, argmax, bits, upper, lower):
    """The gradient of max_2x2: dy[lane] at index argmax[lane] of its window, 0 at the other three.

    bits: of the 2*LANES floats at `upper` and at `lower`, those to write. argmax is read for all
    lanes.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        dy, argmax, bits, upper, lower = args
        zero = ir.Constant(VECTOR, [0.0] * LANES)
        inside = builder.bitcast(
            builder.trunc(bits, ir.IntType(2 * LANES)), ir.VectorType(ir.IntType(1), 2 * LANES)
        )
        lanes = ir.VectorType(ir.IntType(32), LANES)
        odd = ir.Constant(lanes, [2 * i + 1 for i in range(LANES)])
        mask = builder.shuffle_vector(inside, ir.Constant(inside.type, ir.Undefined), odd)
        gradient = masked_load(builder, dy, mask)
        index = builder.load(builder.inttoptr(argmax, BYTES.as_pointer()), align=1)
        parts = []
        for tap in range(4):
            here = builder.icmp_signed("==", index, ir.Constant(BYTES, [tap] * LANES))
            parts.append(builder.select(here, gradient, zero))
        for row, (left, right) in ((upper, parts[:2]), (lower, parts[2:])):
            low, high = _interleaved(builder, left, right)
            masked_store(builder, low, row, mask_of(builder, bits))
            rest = mask_of(builder, builder.lshr(bits, i64(LANES)))
            masked_store(builder, high, plus(builder, row, VECTOR_BYTES), rest)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), emit
