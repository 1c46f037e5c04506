"""`precision`: modules that store what passes between their functions in 16 bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from gpuconv.arrays import device_of, is_device
from gpuconv.autograd import tensor
from gpuconv.autograd.state import Array, state
from gpuconv.errors import require_known
from gpuconv.ops.cast import cast, uncast
from gpuconv.precision import NAMES, PRECISIONS, STORAGE, is_stored, rounded


@contextmanager
def precision(name: str, scale: Array = None) -> Iterator[None]:
    """Within, modules compute in a precision: "ieee", "tf32", "tf32-conv", "bf16" or "fp16".

    ieee: float32. tf32: convolutions and linear layers multiply with 10 bits of mantissa;
    tf32-conv: convolutions alone. Small layers, which tensor cores would not speed up, stay
    float32. A call of a module takes and returns float32; with bf16 and fp16 all between is stored
    in 16 bits, and so are its gradients, whenever backward runs. Weights are rounded as they are
    used. Sums, parameters and their gradients, statistics of batch norm and losses stay float32. On
    reference every result is rounded, which defines what sim and cuda compute; cpu has ieee alone.
    scale: one float32 where the module is, by which the gradient of what it returns is multiplied
    (see `optim.LossScaler`), or None for 1.

    Raises ValueError for an unknown name, and a module's call does on the device cpu; RuntimeError
    within a module's call.
    Source: Micikevicius et al. 2018, "Mixed precision training".

    >>> from gpuconv import nn
    >>> layer = nn.Linear(2, 1, bias=False).to("reference")
    >>> layer.weight.data[...] = 1
    >>> with precision("bf16"):
    ...     layer(np.float32([[1, 2**-9]])).numpy()
    array([[1.]], dtype=float32)
    """
    if state.depth:
        raise RuntimeError("precision: a module is being called already; set it around the call")
    before = state.precision, state.scale
    state.precision, state.scale = require_known("precision", name, PRECISIONS), scale
    try:
        yield
    finally:
        state.precision, state.scale = before


def entering(x: Any) -> Any:
    """A module's input as its functions take it in this precision. ValueError for float64."""
    if not isinstance(x, tensor.Tensor) or x.data.dtype.kind != "f":
        return x
    name, on = state.precision, device_of(x.data)
    if name not in STORAGE:
        return x
    if x.data.dtype != np.float32:
        raise ValueError(f"precision {name}: a module takes float32, got {x.data.dtype}")
    if is_device(on):
        return tensor.record("cast", cast(x.data, name), (x,), _uncast_backward)
    if not x.reference:
        return x
    return tensor.record("cast", rounded(x.data, name), (x,), lambda dy, over: (dy,))


def leaving(y: Any) -> Any:
    """What a module returns, as float32."""
    if isinstance(y, tuple):
        return tuple(map(leaving, y))
    if not isinstance(y, tensor.Tensor) or state.precision not in STORAGE:
        return y
    if is_stored(y.data):
        name = NAMES[y.data.dtype]
        return tensor.record("uncast", uncast(y.data), (y,), _cast_backward, name, state.scale)
    if y.reference:
        return tensor.record(
            "uncast", y.data, (y,), _rounded_backward, state.precision, state.scale
        )
    return y


def _uncast_backward(dy: Array, over: bool) -> tuple[Array]:
    return (uncast(dy),)


def _cast_backward(dy: Array, over: bool, name: str, scale: Array) -> tuple[Array]:
    return (cast(dy, name, scale),)


def _rounded_backward(dy: Array, over: bool, name: str, scale: Array) -> tuple[Array]:
    return (rounded(dy if scale is None else dy * scale, name),)
