"""SIMD building blocks: what LLVM does not find by itself in a compiled loop.

Numba vectorises a simple loop, but does not keep a 12 x 32 tile of sums in registers, which is what
lets a matrix product run near the processor's peak. The intrinsics of simd_*.py emit such code as
LLVM vectors of LANES floats, which LLVM lowers to the instructions of the processor at hand.
Addresses and strides are integers, in bytes: the callers walk scratch memory in ways that array
views do not express.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding
import numba
import numba.extending
from llvmlite import ir
from numba import types

Heights = tuple[tuple[int, int], ...]


def _registers() -> tuple[str, int, Heights]:
    """(instruction set, floats in a vector register, register tile heights) of this processor.

    The heights, of tiles of 1, 2, ... vectors, are of full ones and of those for the rest of a
    matrix. A tile holds height x vectors sums, and its inner loop needs a few registers more: 12 x
    2, 8 x 3 and 6 x 4 fit into 32, 6 x 2 into 16. Of its products a wide tile makes more with an
    instruction: 6 x 4 takes 37 a step, 12 x 2 47, and where another program has the same core
    (Intel Xeon, Emerald Rapids) it computes 116 GFLOP/s in place of 107.
    """
    features = _features()
    many, few = ((12, 4), (12, 4), (8, 2), (6, 2)), ((6, 2), (6, 2))
    if "avx512f" in features:
        return "AVX-512", 16, many
    if "avx" in features or "avx2" in features:
        return "AVX2" if "avx2" in features else "AVX", 8, few
    return ("NEON", 4, many) if "neon" in features else ("SSE", 4, few)


def _features() -> set[str]:
    """What Numba compiles for: NUMBA_CPU_FEATURES ("+avx2,+fma") where it is set."""
    given = getattr(numba.config, "CPU_FEATURES", None)
    if given is not None:
        return {name[1:] for name in given.split(",") if name.startswith("+")}
    return {name for name, has in llvmlite.binding.get_host_cpu_features().items() if has}


# untyped: mypy would count the first parameter of an intrinsic, which is Numba's own
intrinsic: Any = numba.extending.intrinsic


def on_addresses(emit: Callable[..., None]) -> Any:
    """An intrinsic without a result of emit(builder, *values), which writes its code. Integers are
    of 64 bits; floats, and tuples of such integers, come as they are.
    """

    @functools.wraps(emit)  # Numba reads the parameters' names
    def typed(typingctx: Any, *arguments: Any) -> Any:
        def lowered(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            emit(builder, *values)
            return context.get_dummy_value()

        kinds = [types.intp if isinstance(a, types.Integer) else a for a in arguments]
        return types.void(*kinds), lowered

    return intrinsic(typed)


INSTRUCTION_SET, LANES, TILE_HEIGHTS = _registers()
FLOAT_BYTES = 4
VECTOR_BYTES = LANES * FLOAT_BYTES
PAIR = 2 * LANES
HIGHEST, LOWEST = TILE_HEIGHTS[0]  # a multiple of LOWEST is one of the others' lowest too

i64 = ir.IntType(64)
FLOAT = ir.FloatType()
VECTOR = ir.VectorType(FLOAT, LANES)
ZERO = ir.Constant(VECTOR, [0.0] * LANES)
MASK = ir.VectorType(ir.IntType(1), LANES)
SIZES = {FLOAT: FLOAT_BYTES, VECTOR: VECTOR_BYTES, ir.DoubleType(): 8, i64: 8}


def load(builder: Any, address: Any, kind: Any) -> Any:
    """The value of type `kind` at an address, aligned to a float only."""
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=FLOAT_BYTES)


def element(builder: Any, array: Any, index: Any, kind: Any) -> Any:
    """Number `index` of the values of type `kind` that follow one another from an address on."""
    return load(builder, builder.add(array, builder.mul(index, i64(SIZES[kind]))), kind)


def load_row(builder: Any, address: Any, kind: Any, count: int) -> list[Any]:
    """`count` values that follow one another from an address on."""
    return [load(builder, plus(builder, address, i * SIZES[kind]), kind) for i in range(count)]


def store(builder: Any, value: Any, address: Any) -> None:
    """Write a value to an address, aligned to a float only."""
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=FLOAT_BYTES)


def plus(builder: Any, address: Any, offset: int) -> Any:
    """address + offset; no instruction for 0."""
    return builder.add(address, i64(offset)) if offset else address


def prefetch(builder: Any, address: Any) -> None:
    """Fetch the cache line at an address, which need not exist, into the L2 cache."""
    i32, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [pointer, i32, i32, i32])
    name = "llvm.prefetch.p0"
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    builder.call(function, [builder.inttoptr(address, pointer), i32(0), i32(2), i32(1)])


def splat(builder: Any, scalar: Any) -> Any:
    """A vector with `scalar` in every lane."""
    nothing = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
    one = builder.insert_element(nothing, scalar, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(one, nothing, zeros)


def loop(
    builder: Any, count: Any, state: list[Any], body: Callable[[Any, list[Any]], list[Any]]
) -> list[Any]:
    """`state = body(i, state)` for i in range(count), count >= 1; the state lives in registers."""
    before = builder.block
    block = builder.append_basic_block("tile")
    after = builder.append_basic_block("done")
    builder.branch(block)
    builder.position_at_end(block)
    index = builder.phi(i64)
    phis = [builder.phi(value.type) for value in state]
    result = body(index, list(phis))
    following = builder.add(index, i64(1))
    for phi, first, again in zip(
        [index, *phis], [i64(0), *state], [following, *result], strict=True
    ):
        phi.add_incoming(first, before)
        phi.add_incoming(again, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, count), block, after)
    builder.position_at_end(after)
    return result


def when(
    builder: Any, condition: Any, state: list[Any], emit: Callable[[list[Any]], list[Any]]
) -> list[Any]:
    """emit(state) where the condition holds at run time, else the state."""
    before = builder.block
    with builder.if_then(condition):
        changed = emit(state)
        inside = builder.block
    phis = [builder.phi(value.type) for value in state]
    for phi, new, old in zip(phis, changed, state, strict=True):
        phi.add_incoming(new, inside)
        phi.add_incoming(old, before)
    return phis


def switch(builder: Any, value: Any, cases: Sequence[int], emit: Callable[[int], None]) -> None:
    """The code of emit(case) for the case that `value`, an integer, equals at run time."""
    first, *others = cases
    if not others:
        emit(first)
        return
    with builder.if_else(builder.icmp_signed("==", value, i64(first))) as (then, otherwise):
        with then:
            emit(first)
        with otherwise:
            switch(builder, value, others, emit)


def mask_of(builder: Any, bits: Any) -> Any:
    """The low LANES bits of an integer as a mask."""
    return builder.bitcast(builder.trunc(bits, ir.IntType(LANES)), MASK)


def masked_load(builder: Any, address: Any, mask: Any, kind: Any = VECTOR) -> Any:
    """A vector of the lanes whose mask is set, zero in the others; memory there is not touched."""
    pointer = builder.inttoptr(address, kind.as_pointer())
    arguments = [pointer, ir.IntType(32)(FLOAT_BYTES), mask, kind(None)]
    return _masked(builder, "load", kind, arguments)


def masked_gather(builder: Any, address: Any, mask: Any, kind: Any, step: Any) -> Any:
    """As masked_load, of values that lie `step` bytes apart."""
    lanes = ir.Constant(ir.VectorType(i64, LANES), list(range(LANES)))
    places = builder.add(splat(builder, address), builder.mul(splat(builder, step), lanes))
    pointers = builder.inttoptr(places, ir.VectorType(kind.element.as_pointer(), LANES))
    arguments = [pointers, ir.IntType(32)(FLOAT_BYTES), mask, kind(None)]
    return _masked(builder, "gather", kind, arguments)


def masked_store(builder: Any, value: Any, address: Any, mask: Any) -> None:
    """Write the lanes of a vector whose mask is set; memory of others is not touched."""
    pointer = builder.inttoptr(address, value.type.as_pointer())
    align = 1 if value.type.element == ir.IntType(8) else FLOAT_BYTES
    _masked(builder, "store", value.type, [value, pointer, ir.IntType(32)(align), mask])


def _masked(builder: Any, what: str, moved: Any, arguments: list[Any]) -> Any:
    places = f"v{LANES}p0" if what == "gather" else "p0"
    name = f"llvm.masked.{what}.v{LANES}{moved.element.intrinsic_name}.{places}"
    result = ir.VoidType() if what == "store" else moved
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, arguments)
