"""Moves of whole vectors: masked copies, stores of register tiles, transposes (see simd.py)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import ir

from gpuconv.cpu.simd import (
    FLOAT,
    LANES,
    MASK,
    SIZES,
    VECTOR,
    element,
    i64,
    load,
    loop,
    mask_of,
    masked_gather,
    masked_load,
    masked_store,
    on_addresses,
    plus,
    prefetch,
    splat,
    switch,
)


def least_of(builder: Any, relu: Any) -> Any:
    """What no lane may be less than: 0 where relu is not 0, else minus infinity."""
    rectify = builder.icmp_signed("!=", relu, i64(0))
    return splat(builder, builder.select(rectify, FLOAT(0.0), FLOAT(-math.inf)))


@on_addresses
def store_pixels(builder, sums, step, rows, bias, rest, rest_step, relu, out, out_step, bits):
    """out[m*out_step][lane] = sums[m*step][lane] + bias[lane] + rest[m*rest_step][lane], or its
    ReLU, for m < rows and the lanes whose bit is set; steps are in bytes. NaN stays NaN.
    """
    mask, least = mask_of(builder, bits), least_of(builder, relu)
    shift = masked_load(builder, bias, mask)

    def row(m: Any, state: list[Any]) -> list[Any]:
        at, other, to = state
        value = builder.fadd(load(builder, at, VECTOR), shift)
        value = builder.fadd(value, masked_load(builder, other, mask))
        value = builder.select(builder.fcmp_ordered("<", value, least), least, value)
        masked_store(builder, value, to, mask)
        return [builder.add(at, step), builder.add(other, rest_step), builder.add(to, out_step)]

    loop(builder, rows, [sums, rest, out], row)


@on_addresses
def prefetch_lines(builder, address, step, count):
    """Fetch `count` cache lines, `step` bytes apart, into the L2 cache; none need exist."""

    def line(_: Any, state: list[Any]) -> list[Any]:
        prefetch(builder, state[0])
        return [builder.add(state[0], step)]

    loop(builder, count, [address], line)


@on_addresses
def copy_lanes(builder, source, target, bits):
    """target[lane] = source[lane] for the lanes whose bit is set."""
    mask = mask_of(builder, bits)
    masked_store(builder, masked_load(builder, source, mask), target, mask)


def every_other(builder: Any, source: Any, inside: Any, kind: Any) -> Any:
    """source[2*lane] in the lanes whose mask is set; memory of others is not touched."""
    lanes = ir.VectorType(ir.IntType(32), LANES)
    nothing = ir.Constant(MASK, ir.Undefined)
    parts = []
    for half in range(2):
        twice = ir.Constant(lanes, [(half * LANES + i) // 2 for i in range(LANES)])
        of_pair = builder.shuffle_vector(inside, nothing, twice)
        even = builder.and_(of_pair, ir.Constant(MASK, [1, 0] * (LANES // 2)))
        at = plus(builder, source, half * LANES * SIZES[kind.element])
        parts.append(masked_load(builder, at, even, kind))
    order = ir.Constant(lanes, [2 * i for i in range(LANES)])
    return builder.shuffle_vector(*parts, order)


def _over_taps(
    builder: Any,
    window: Any,
    state: list[Any],
    update: Callable[[list[Any], Any, Any, Any], list[Any]],
    finish: Callable[[list[Any]], None],
) -> None:
    """finish(state) after state = update(state, values, exists, tap) for the `count` taps from
    `first` on of a window: (source, stride, places, masks, first, count).

    values[lane] = source[places[tap] + lane*stride] in the lanes whose bit in masks[tap] says that
    the tap exists, 0 in the others.
    """
    source, stride, places, masks, first, count = (
        builder.extract_value(window, i) for i in range(6)
    )
    kind = state[0].type
    size = i64(SIZES[kind.element])
    spaced = partial(masked_gather, step=builder.mul(stride, size))
    loads: dict[int, Any] = {1: masked_load, 2: every_other, 0: spaced}

    def with_stride(step: int) -> None:
        def one(i: Any, state: list[Any]) -> list[Any]:
            tap = builder.add(first, i)
            place, bits = (element(builder, table, tap, i64) for table in (places, masks))
            at, exists = builder.add(source, builder.mul(place, size)), mask_of(builder, bits)
            return update(state, loads[step](builder, at, exists, kind), exists, tap)

        finish(loop(builder, count, state, one))

    switch(builder, stride, (1, 2, 0), with_stride)


@on_addresses
def largest_taps(builder, least, window, y, argmax, argmax_bytes, bits):
    """y[lane], argmax[lane]: the largest value of a window, see _over_taps, and its tap, an integer
    of 1 or 4 bytes; for the lanes whose bit is set.

    Where no tap exists, y is `least` and argmax -1. Of equal values the first counts, of several
    NaN the last.
    """
    i32 = ir.IntType(32)
    none, inside = splat(builder, i32(-1)), mask_of(builder, bits)

    def update(state: list[Any], value: Any, exists: Any, tap: Any) -> list[Any]:
        best, index = state
        larger = builder.or_(
            builder.fcmp_ordered(">", value, best), builder.fcmp_unordered("!=", value, value)
        )
        wins = builder.or_(larger, builder.icmp_signed("==", index, none))
        wins = builder.and_(wins, exists)
        number = splat(builder, builder.trunc(tap, i32))
        return [builder.select(wins, value, best), builder.select(wins, number, index)]

    def finish(state: list[Any]) -> None:
        best, index = state
        masked_store(builder, best, y, inside)
        byte = builder.trunc(index, ir.VectorType(ir.IntType(8), LANES))
        indices = {1: byte, 4: index}
        switch(
            builder, argmax_bytes, (1, 4),
            lambda size: masked_store(builder, indices[size], argmax, inside),
        )  # fmt: skip

    _over_taps(builder, window, [splat(builder, least), none], update, finish)


@on_addresses
def sum_taps(builder, zero, window, y, bits):
    """y[lane]: the sum of a window's values, see _over_taps, for the lanes whose bit is set."""

    def update(state: list[Any], value: Any, exists: Any, tap: Any) -> list[Any]:
        return [builder.fadd(state[0], value)]

    def finish(state: list[Any]) -> None:
        masked_store(builder, state[0], y, mask_of(builder, bits))

    _over_taps(builder, window, [splat(builder, zero)], update, finish)


@on_addresses
def transpose(builder, source, stride, rows, bits, target, step, row_bits):
    """target[lane * step + row] = source[row * stride + lane], LANES x LANES, strides in bytes.

    Rows from `rows` on, and lanes whose bit is not set, are not read and count as zero. Written are
    the lanes whose bit is set in `bits`, and of each the rows whose bit is set in `row_bits`. The
    LANES rows that follow these are fetched into the L2 cache.
    """
    written = mask_of(builder, row_bits)
    vectors = []
    for m in range(LANES):
        exists = builder.icmp_signed("<", i64(m), rows)
        inside = builder.select(exists, bits, i64(0))
        # even a load of no lanes takes microseconds where the address has no memory behind it
        far = builder.select(exists, builder.mul(stride, i64(m)), i64(0))
        address = builder.add(source, far)
        prefetch(builder, builder.add(address, builder.mul(stride, i64(LANES))))
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
