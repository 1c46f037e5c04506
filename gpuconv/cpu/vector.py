"""Register-tile kernels for Numba loops: the few instructions LLVM does not find by itself.

Numba vectorises a plain loop, but does not keep a 12 x 32 tile of sums in registers, which is what
makes a matrix product run near the machine's peak. Each intrinsic here emits such a tile as LLVM
vectors of LANES floats; LLVM lowers them to whatever the processor has. Addresses and strides are
plain integers, in bytes: the callers walk padded scratch memory, for which an array view says little.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.extending import intrinsic


def _registers() -> tuple[int, tuple[int, int, int]]:
    """Floats in a vector register, and the tile heights to use, for the processor we run on.

    A tile holds height x 2 vectors of sums, and needs three more: 12 x 2 fit 32 registers, 6 x 2 fit 16.
    """
    features = llvmlite.binding.get_host_cpu_features()
    if features.get("avx512f"):
        return 16, (12, 8, 4)
    if features.get("avx"):
        return 8, (6, 4, 2)
    return 4, (12, 8, 4) if features.get("neon") else (6, 4, 2)


LANES, HEIGHTS = _registers()
FLOAT_BYTES = 4
VECTOR_BYTES = LANES * FLOAT_BYTES
TILE_WIDTH = 2 * LANES

_i64 = ir.IntType(64)
_float = ir.FloatType()
_vector = ir.VectorType(_float, LANES)
_mask = ir.VectorType(ir.IntType(1), LANES)


def _load(builder: Any, address: Any, kind: Any) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=FLOAT_BYTES)


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=FLOAT_BYTES)


def _plus(builder: Any, address: Any, offset: int) -> Any:
    return builder.add(address, _i64(offset)) if offset else address


def _splat(builder: Any, scalar: Any) -> Any:
    one = builder.insert_element(ir.Constant(_vector, ir.Undefined), scalar, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(one, ir.Constant(_vector, ir.Undefined), zeros)


def _loop(builder: Any, count: Any, state: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
    """`state = body(i, state)` for i in range(count), count >= 1; the state lives in registers."""
    before = builder.block
    block = builder.append_basic_block("tile")
    after = builder.append_basic_block("done")
    builder.branch(block)
    builder.position_at_end(block)
    index = builder.phi(_i64)
    phis = [builder.phi(value.type) for value in state]
    result = body(index, list(phis))
    following = builder.add(index, _i64(1))
    for phi, first, again in zip([index, *phis], [_i64(0), *state], [following, *result], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(again, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, count), block, after)
    builder.position_at_end(after)
    return result


def _fma_rows(builder: Any, sums: list[Any], scalars: list[Any], vectors: list[Any]) -> list[Any]:
    """sums[row][v] += scalars[row] * vectors[v], fused where the processor can."""
    width, fuse = len(vectors), ("contract",)
    spread = [_splat(builder, scalar) for scalar in scalars]
    return [
        builder.fadd(total, builder.fmul(spread[i // width], vectors[i % width], flags=fuse), flags=fuse)
        for i, total in enumerate(sums)
    ]


def _convolution_tile(height: int) -> Any:
    @intrinsic  # type: ignore[misc]
    def tile(typingctx, a, b, offsets, depth, out):  # type: ignore[no-untyped-def]
        """out[row][0:TILE_WIDTH] = sum over i of a[i][row] * b[offsets[i] : +TILE_WIDTH]."""

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            a, b, offsets, depth, out = args

            def step(i: Any, state: list[Any]) -> list[Any]:
                offset = _load(builder, builder.add(offsets, builder.mul(i, _i64(8))), _i64)
                at = builder.add(b, offset)
                vectors = [_load(builder, _plus(builder, at, v * VECTOR_BYTES), _vector) for v in range(2)]
                row = builder.add(a, builder.mul(i, _i64(height * FLOAT_BYTES)))
                scalars = [_load(builder, _plus(builder, row, m * FLOAT_BYTES), _float) for m in range(height)]
                return _fma_rows(builder, state, scalars, vectors)

            zero = ir.Constant(_vector, [0.0] * LANES)
            sums = _loop(builder, depth, [zero] * (2 * height), step)
            for i, total in enumerate(sums):
                _store(builder, total, _plus(builder, out, i * VECTOR_BYTES))
            return context.get_dummy_value()

        return types.void(*[types.intp] * 5), emit

    return tile


def _gradient_tile(columns: int, width: int) -> Any:
    @intrinsic  # type: ignore[misc]
    def tile(typingctx, d, x, offsets, rows, row_bytes, pixels, step, keep, out):  # type: ignore[no-untyped-def]
        """out[j][0:width*LANES] = sum over p, q of d[p][q][...] * x[offsets[j] + p*row_bytes + q*step].

        d is [rows][pixels][width*LANES], without gaps; offsets and steps are in bytes. With `keep`
        the sum is added to what out holds.
        """

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            d, x, offsets, rows, row_bytes, pixels, step, keep, out = args
            at = [
                builder.add(x, _load(builder, _plus(builder, offsets, 8 * j), _i64)) for j in range(columns)
            ]
            places = [_plus(builder, out, i * VECTOR_BYTES) for i in range(columns * width)]
            d_row_bytes = builder.mul(pixels, _i64(width * VECTOR_BYTES))

            def row(p: Any, state: list[Any]) -> list[Any]:
                d_row = builder.add(d, builder.mul(p, d_row_bytes))
                x_row = builder.mul(p, row_bytes)

                def pixel(q: Any, state: list[Any]) -> list[Any]:
                    here = builder.add(d_row, builder.mul(q, _i64(width * VECTOR_BYTES)))
                    vectors = [
                        _load(builder, _plus(builder, here, v * VECTOR_BYTES), _vector) for v in range(width)
                    ]
                    column = builder.add(x_row, builder.mul(q, step))
                    scalars = [_load(builder, builder.add(base, column), _float) for base in at]
                    return _fma_rows(builder, state, scalars, vectors)

                return _loop(builder, pixels, state, pixel)

            # from zero, and the old sums last: a shorter chain of roundings than going on from them
            sums = _loop(builder, rows, [ir.Constant(_vector, [0.0] * LANES)] * len(places), row)
            with builder.if_else(builder.icmp_signed("!=", keep, _i64(0))) as (add, replace):
                with add:
                    for place, total in zip(places, sums, strict=True):
                        _store(builder, builder.fadd(_load(builder, place, _vector), total), place)
                with replace:
                    for place, total in zip(places, sums, strict=True):
                        _store(builder, total, place)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 9), emit

    return tile


conv_tile_high, conv_tile_middle, conv_tile_low = map(_convolution_tile, HEIGHTS)
gradient_tile_high, gradient_tile_middle, gradient_tile_low = (_gradient_tile(n, 2) for n in HEIGHTS)
gradient_slim_high, gradient_slim_middle, gradient_slim_low = (_gradient_tile(n, 1) for n in HEIGHTS)


def _mask_of(builder: Any, bits: Any) -> Any:
    return builder.bitcast(builder.trunc(bits, ir.IntType(LANES)), _mask)


def _masked_load(builder: Any, address: Any, mask: Any) -> Any:
    pointer = builder.inttoptr(address, _vector.as_pointer())
    kind = ir.FunctionType(_vector, [pointer.type, ir.IntType(32), _mask, _vector])
    load = builder.module.globals.get(f"llvm.masked.load.v{LANES}f32.p0")
    load = load or ir.Function(builder.module, kind, f"llvm.masked.load.v{LANES}f32.p0")
    zero = ir.Constant(_vector, [0.0] * LANES)
    return builder.call(load, [pointer, ir.IntType(32)(FLOAT_BYTES), mask, zero])


def _masked_store(builder: Any, value: Any, address: Any, mask: Any) -> None:
    pointer = builder.inttoptr(address, _vector.as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [_vector, pointer.type, ir.IntType(32), _mask])
    store = builder.module.globals.get(f"llvm.masked.store.v{LANES}f32.p0")
    store = store or ir.Function(builder.module, kind, f"llvm.masked.store.v{LANES}f32.p0")
    builder.call(store, [value, pointer, ir.IntType(32)(FLOAT_BYTES), mask])


@intrinsic  # type: ignore[misc]
def store_rows(typingctx, sums, rows, bias, relu, out, stride, bits):  # type: ignore[no-untyped-def]
    """out[m*stride][lane] = sums[m][lane] + bias[m], or its ReLU, for rows m and the lanes whose bit is set.

    sums is a tile, TILE_WIDTH floats to a row; stride is in bytes. NaN stays NaN.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sums, rows, bias, relu, out, stride, bits = args
        zero = ir.Constant(_vector, [0.0] * LANES)
        mask, rectify = _mask_of(builder, bits), builder.icmp_signed("!=", relu, _i64(0))

        def row(m: Any, state: list[Any]) -> list[Any]:
            at, to = state
            shift = _load(builder, builder.add(bias, builder.mul(m, _i64(FLOAT_BYTES))), _float)
            value = builder.fadd(_load(builder, at, _vector), _splat(builder, shift))
            cut = builder.select(builder.fcmp_ordered("<", value, zero), zero, value)
            _masked_store(builder, builder.select(rectify, cut, value), to, mask)
            return [_plus(builder, at, 2 * VECTOR_BYTES), builder.add(to, stride)]

        _loop(builder, rows, [sums, out], row)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 7), emit


@intrinsic  # type: ignore[misc]
def copy_lanes(typingctx, source, target, bits):  # type: ignore[no-untyped-def]
    """target[lane] = source[lane] for the lanes whose bit is set."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, target, bits = args
        mask = _mask_of(builder, bits)
        _masked_store(builder, _masked_load(builder, source, mask), target, mask)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 3), emit


@intrinsic  # type: ignore[misc]
def transpose(typingctx, source, stride, rows, bits, target, step, row_bits):  # type: ignore[no-untyped-def]
    """target[lane * step + row] = source[row * stride + lane], LANES x LANES, strides in bytes.

    Rows from `rows` on, and lanes whose bit is not set, are taken as zero and not read. Written are
    the set lanes, of each the rows whose bit is set in row_bits.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, stride, rows, bits, target, step, row_bits = args
        written = _mask_of(builder, row_bits)
        vectors = []
        for m in range(LANES):
            inside = builder.select(builder.icmp_signed("<", _i64(m), rows), bits, _i64(0))
            address = builder.add(source, builder.mul(stride, _i64(m)))
            vectors.append(_masked_load(builder, address, _mask_of(builder, inside)))
        for lane, vector in enumerate(_transposed(builder, vectors)):
            used = builder.icmp_signed("!=", builder.and_(bits, _i64(1 << lane)), _i64(0))
            with builder.if_then(used, likely=True):
                to = builder.add(target, builder.mul(step, _i64(lane)))
                _masked_store(builder, vector, to, written)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 7), emit


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


def _combine(builder: Any, row: list[float], values: list[Any]) -> Any:
    """The sum of row[i] * values[i], without what is zero."""
    total = None
    for factor, value in zip(row, values, strict=True):
        if factor == 0:
            continue
        term = value
        if abs(factor) != 1:
            term = builder.fmul(value, ir.Constant(_vector, [abs(factor)] * LANES), flags=("contract",))
        if total is None:
            total = term if factor > 0 else builder.fneg(term)
        else:
            add = builder.fadd if factor > 0 else builder.fsub
            total = add(total, term, flags=("contract",))
    return total


def sandwich(matrix: list[list[float]], finish: bool = False) -> Any:
    """An intrinsic: out = matrix @ square @ matrix.T, for LANES squares side by side.

    Entry (i, j) of a square is the vector at source + i*row_bytes + j*column_bytes; out likewise.
    With `finish`, the vector at `bias` is added to every entry, and `relu` rectifies it; else both are ignored.
    """
    size, out_size = len(matrix[0]), len(matrix)

    @intrinsic  # type: ignore[misc]
    def apply(typingctx, source, row_bytes, column_bytes, out, out_row, out_column, bias, relu):  # type: ignore[no-untyped-def]
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            source, row_bytes, column_bytes, out, out_row, out_column, bias, relu = args

            def place(base: Any, i: int, row: Any, j: int, column: Any) -> Any:
                down = builder.add(base, builder.mul(row, _i64(i)))
                return builder.add(down, builder.mul(column, _i64(j)))

            half = []  # half[j][i]: column j of matrix @ square
            for j in range(size):
                column = [
                    _load(builder, place(source, i, row_bytes, j, column_bytes), _vector) for i in range(size)
                ]
                half.append([_combine(builder, row, column) for row in matrix])
            shift = _load(builder, bias, _vector) if finish else None
            zero, rectify = ir.Constant(_vector, [0.0] * LANES), builder.icmp_signed("!=", relu, _i64(0))
            for i in range(out_size):
                for j in range(out_size):
                    value = _combine(builder, matrix[j], [column[i] for column in half])
                    if finish:
                        value = builder.fadd(value, shift)
                        cut = builder.select(builder.fcmp_ordered("<", value, zero), zero, value)
                        value = builder.select(rectify, cut, value)
                    _store(builder, value, place(out, i, out_row, j, out_column))
            return context.get_dummy_value()

        return types.void(*[types.intp] * 8), emit

    return apply


@intrinsic  # type: ignore[misc]
def all_below(typingctx, source, vectors, limit):  # type: ignore[no-untyped-def]
    """1 if the magnitudes of all floats of `vectors` (>= 1) vectors are below `limit`, else 0; NaN is not."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, vectors, limit = args
        bits = ir.VectorType(ir.IntType(32), LANES)
        most, sign = _splat(builder, limit), ir.Constant(bits, [0x7FFFFFFF] * LANES)

        def step(i: Any, state: list[Any]) -> list[Any]:
            value = _load(builder, builder.add(source, builder.mul(i, _i64(VECTOR_BYTES))), _vector)
            magnitude = builder.bitcast(builder.and_(builder.bitcast(value, bits), sign), _vector)
            return [builder.or_(state[0], builder.fcmp_unordered(">=", magnitude, most))]

        none = ir.Constant(_mask, [0] * LANES)
        found = builder.bitcast(_loop(builder, vectors, [none], step)[0], ir.IntType(LANES))
        return builder.zext(builder.icmp_signed("==", found, ir.IntType(LANES)(0)), _i64)

    return types.intp(types.intp, types.intp, types.float32), emit
