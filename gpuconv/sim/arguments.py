"""Packs kernel arguments into the bytes of the parameter space. Nothing is converted silently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpuconv.sim.info import Kernel
from gpuconv.sim.memory import Array
from gpuconv.sim.program import Variable
from gpuconv.sim.signature import plain_name

_FLOATS: dict[str, Any] = {"f16": np.float16, "f32": np.float32, "f64": np.float64}


def pack(kernel: Kernel, args: Sequence[Any]) -> np.ndarray:
    """The parameter bytes for `args`.

    Raises TypeError or ValueError, naming the argument that does not fit its parameter.
    """
    if len(args) != len(kernel.parameters):
        name = plain_name(kernel.name)
        raise TypeError(f"{name} takes {len(kernel.parameters)} arguments, got {len(args)}")
    space = bytearray(max(kernel.parameter_bytes, 1) + 16)
    for number, (parameter, value) in enumerate(zip(kernel.parameters, args, strict=True)):
        try:
            piece = _bytes(parameter, value)
        except (TypeError, ValueError) as error:
            name = plain_name(kernel.name)
            raise type(error)(f"{name}: argument {number} {error}") from None
        space[parameter.offset : parameter.offset + parameter.size] = piece
    return np.frombuffer(space, np.uint8)


def _bytes(parameter: Variable, value: Any) -> bytes:
    if parameter.array:
        return _structure(parameter, value)
    if isinstance(value, Array):
        if parameter.size != 8 or parameter.pointer is False or parameter.type in ("f64", "s64"):
            raise TypeError(f"is a number ({parameter.type}), got a sim array")
        if not value.contiguous:
            raise ValueError("is a transposed or sliced view, kernels read C order: use .copy()")
        return value.ptr.to_bytes(8, "little")
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError("got a NumPy array: bring it to the device with gpuconv.sim.asarray first")
    if parameter.pointer:
        raise TypeError(f"is a pointer: give a sim array, got {value!r} ({type(value).__name__})")
    if parameter.type in _FLOATS:
        return _float(parameter.type, value)
    return _integer(parameter, value)


def _structure(parameter: Variable, value: Any) -> bytes:
    """A structure: its bytes, or a tuple of its members, which are laid out as C++ does."""
    size = parameter.size
    if not isinstance(value, tuple | list):
        if isinstance(value, bytes) and len(value) == size:
            return value
        got = f"{len(value)} bytes" if isinstance(value, bytes) else type(value).__name__
        raise TypeError(
            f"is a structure: give its {size} bytes, or a tuple of its members, got {got}"
        )
    packed, most = b"", 1
    for number, member in enumerate(value):
        piece = _member(number, member)
        most = max(most, len(piece))
        packed += bytes(-len(packed) % len(piece)) + piece
    packed += bytes(-len(packed) % most)
    if len(packed) != size:
        raise TypeError(
            f"is a structure of {size} bytes, these members take {len(packed)}: an int counts as "
            f"numpy.int32, a float as numpy.float32"
        )
    return packed


def _member(number: int, value: Any) -> bytes:
    if isinstance(value, Array):
        return value.ptr.to_bytes(8, "little")
    if isinstance(value, np.integer | np.floating | np.bool_):  # a numpy.float64 is a float, too
        return value.tobytes()
    if isinstance(value, bool):
        return bytes([value])
    if isinstance(value, int):
        if not -(1 << 31) <= value < 1 << 32:
            raise ValueError(f"member {number}: {value} has more than 32 bits, use numpy.int64")
        return (value & 0xFFFFFFFF).to_bytes(4, "little")
    if isinstance(value, float):
        return np.float32(value).tobytes()
    raise TypeError(f"member {number}: give an array or a number, got {type(value).__name__}")


def _float(type_: str, value: Any) -> bytes:
    if isinstance(value, _FLOATS[type_]):
        return value.tobytes()
    if isinstance(value, bool | np.bool_) or not isinstance(
        value, int | float | np.integer | np.floating
    ):
        raise TypeError(f"is {type_}: give a number, got {value!r} ({type(value).__name__})")
    with np.errstate(over="ignore"):
        cast = _FLOATS[type_](value)
    if np.isinf(cast) and not np.isinf(float(value)):
        raise ValueError(f"is {type_}: {value!r} does not fit")
    return cast.tobytes()


def _integer(parameter: Variable, value: Any) -> bytes:
    if not isinstance(value, int | np.integer | np.bool_):
        raise TypeError(f"is an integer ({parameter.type}): got {value!r} ({type(value).__name__})")
    bits, number = parameter.size * 8, int(value)
    # PTX declares a C int as u32 too, so the ranges of both signs are accepted
    if not -(1 << bits - 1) <= number < 1 << bits:
        raise ValueError(f"has {bits} bits: {number} does not fit")
    return (number & ((1 << bits) - 1)).to_bytes(parameter.size, "little")
