"""Moves of whole vectors: masked copies, stores of register tiles, transposes (see simd.py)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from gpuconv.cpu.simd import (
    LANES,
    MASK,
    VECTOR,
    VECTOR_BYTES,
    i64,
    intrinsic,
    load,
    loop,
    mask_of,
    masked_load,
    masked_store,
    on_addresses,
    plus,
    rectified,
    splat,
)


@on_addresses
def store_pixels(builder, sums, step, rows, bias, rest, rest_step, relu, out, out_step, bits):
    """out[m*out_step][lane] = sums[m*step][lane] + bias[lane] + rest[m*rest_step][lane], or its
    ReLU, for m < rows and the lanes whose bit is set; steps are in bytes. NaN stays NaN.
    """
    mask, rectify = mask_of(builder, bits), builder.icmp_signed("!=", relu, i64(0))
    shift = masked_load(builder, bias, mask)

    def row(m: Any, state: list[Any]) -> list[Any]:
        at, other, to = state
        value = builder.fadd(load(builder, at, VECTOR), shift)
        value = builder.fadd(value, masked_load(builder, other, mask))
        value = builder.select(rectify, rectified(builder, value), value)
        masked_store(builder, value, to, mask)
        return [builder.add(at, step), builder.add(other, rest_step), builder.add(to, out_step)]

    loop(builder, rows, [sums, rest, out], row)


@on_addresses
def copy_lanes(builder, source, target, bits):
    """target[lane] = source[lane] for the lanes whose bit is set."""
    mask = mask_of(builder, bits)
    masked_store(builder, masked_load(builder, source, mask), target, mask)


def every_other(builder: Any, source: Any, inside: Any) -> Any:
    """source[2*lane] in the lanes whose mask is set; memory of others is not touched."""
    lanes = ir.VectorType(ir.IntType(32), LANES)
    nothing = ir.Constant(MASK, ir.Undefined)
    parts = []
    for half in range(2):
        twice = ir.Constant(lanes, [(half * LANES + i) // 2 for i in range(LANES)])
        of_pair = builder.shuffle_vector(inside, nothing, twice)
        even = builder.and_(of_pair, ir.Constant(MASK, [1, 0] * (LANES // 2)))
        parts.append(masked_load(builder, plus(builder, source, half * VECTOR_BYTES), even))
    order = ir.Constant(lanes, [2 * i for i in range(LANES)])
    return builder.shuffle_vector(*parts, order)


@on_addresses
def largest_taps(
    builder, source, row_bytes, rows, tap_bytes, taps, stride, masks, tap, row_taps, y, argmax, bits
):
    """y[lane], argmax[lane]: the largest of source[r*row_bytes + s*tap_bytes + lane*stride], r <
    rows and s < taps, and its number tap + r*row_taps + s, a byte; for the lanes whose bit is set.

    stride: 1 or 2 floats. masks[s]: the lanes in which a tap exists; without any y is -inf, argmax
    255. Of equal values the first counts, of several NaN the last.
    """
    i32 = ir.IntType(32)
    numbers, inside = ir.VectorType(i32, LANES), mask_of(builder, bits)
    none = ir.Constant(numbers, [-1] * LANES)

    def with_loads(values: Callable[[Any, Any], Any]) -> None:
        def row(r: Any, state: list[Any]) -> list[Any]:
            begin = builder.add(source, builder.mul(r, row_bytes))
            first = builder.add(tap, builder.mul(r, row_taps))

            def step(s: Any, state: list[Any]) -> list[Any]:
                best, index = state
                at = builder.add(masks, builder.mul(s, i64(8)))
                exists = mask_of(builder, load(builder, at, i64))
                value = values(builder.add(begin, builder.mul(s, tap_bytes)), exists)
                larger = builder.or_(
                    builder.fcmp_ordered(">", value, best),
                    builder.fcmp_unordered("!=", value, value),
                )
                wins = builder.and_(
                    exists, builder.or_(larger, builder.icmp_signed("==", index, none))
                )
                number = splat(builder, builder.trunc(builder.add(first, s), i32))
                return [builder.select(wins, value, best), builder.select(wins, number, index)]

            return loop(builder, taps, state, step)

        least = ir.Constant(VECTOR, [-math.inf] * LANES)
        best, index = loop(builder, rows, [least, none], row)
        masked_store(builder, best, y, inside)
        small = builder.trunc(index, ir.VectorType(ir.IntType(8), LANES))
        masked_store(builder, small, argmax, inside)

    with builder.if_else(builder.icmp_signed("==", stride, i64(1))) as (one, two):
        with one:
            with_loads(lambda at, mask: masked_load(builder, at, mask))
        with two:
            with_loads(lambda at, mask: every_other(builder, at, mask))


@on_addresses
def transpose(builder, source, stride, rows, bits, target, step, row_bits):
    """target[lane * step + row] = source[row * stride + lane], LANES x LANES, strides in bytes.

    Rows from `rows` on, and lanes whose bit is not set, are not read and count as zero. Written are
    the lanes whose bit is set in `bits`, and of each the rows whose bit is set in `row_bits`.
    """
    written = mask_of(builder, row_bits)
    vectors = []
    for m in range(LANES):
        exists = builder.icmp_signed("<", i64(m), rows)
        inside = builder.select(exists, bits, i64(0))
        # even a load of no lanes takes microseconds where the address has no memory behind it
        far = builder.select(exists, builder.mul(stride, i64(m)), i64(0))
        address = builder.add(source, far)
        vectors.append(masked_load(builder, address, mask_of(builder, inside)))
    for lane, vector in enumerate(_transposed(builder, vectors)):
        used = builder.icmp_signed("!=", builder.and_(bits, i64(1 << lane)), i64(0))
        with builder.if_then(used, likely=True):
            to = builder.add(target, builder.mul(step, i64(lane)))
            masked_store(builder, vector, to, written)


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """The transpose of LANES vectors: interleave row i with row i + LANES/2, log2(LANES) times."""
    half = LANES // 2
    index = ir.VectorType(ir.IntType(32), LANES)
    low = ir.Constant(index, [i // 2 + (i % 2) * LANES for i in range(LANES)])
    high = ir.Constant(index, [half + i // 2 + (i % 2) * LANES for i in range(LANES)])
    for _ in range(LANES.bit_length() - 1):
        pairs = [(rows[i], rows[i + half]) for i in range(half)]
        rows = [builder.shuffle_vector(a, b, order) for a, b in pairs for order in (low, high)]
    return rows


@intrinsic
def all_below(typingctx, source, vectors, limit):
    """1 if all magnitudes in `vectors` (>= 1) vectors are below `limit`, else 0; a NaN is not."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, vectors, limit = args
        bits = ir.VectorType(ir.IntType(32), LANES)
        most, sign = splat(builder, limit), ir.Constant(bits, [0x7FFFFFFF] * LANES)

        def step(i: Any, state: list[Any]) -> list[Any]:
            value = load(builder, builder.add(source, builder.mul(i, i64(VECTOR_BYTES))), VECTOR)
            magnitude = builder.bitcast(builder.and_(builder.bitcast(value, bits), sign), VECTOR)
            return [builder.or_(state[0], builder.fcmp_unordered(">=", magnitude, most))]

        none = ir.Constant(MASK, [0] * LANES)
        at_least = builder.bitcast(loop(builder, vectors, [none], step)[0], ir.IntType(LANES))
        return builder.zext(builder.icmp_signed("==", at_least, ir.IntType(LANES)(0)), i64)

    return types.intp(types.intp, types.intp, types.float32), emit
