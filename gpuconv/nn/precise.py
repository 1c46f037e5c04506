"""Which precision a convolution or linear layer computes in, and what runs it so."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from gpuconv.arrays import device_of, is_device
from gpuconv.autograd import Array, state
from gpuconv.ops.cast import cast, uncast
from gpuconv.ops.op import Op
from gpuconv.precision import NAMES, STORAGE, is_stored, rounded


def of(data: Array, reference: bool, convolution: bool) -> str:
    """The precision for a layer's input."""
    if state.precision == "ieee" and isinstance(data, np.ndarray):  # at every call: quickly
        return "ieee"
    if is_stored(data):
        return NAMES[data.dtype]
    name = state.precision
    if name in STORAGE:
        return name if reference and state.entered else "ieee"
    if name == "tf32-conv":
        name = "tf32" if convolution else "ieee"
    there = reference or is_device(device_of(data))
    return name if there and data.dtype == np.float32 else "ieee"


def run(reference: bool, precision: str, *operations: Op) -> tuple[Any, ...]:
    """The operations in this precision, functions of their arguments."""
    if precision == "ieee":
        return tuple(op.reference for op in operations) if reference else operations
    run_one = _defined if reference else _on_tensor_cores
    return tuple(partial(run_one, op, precision) for op in operations)


def _defined(op: Op, precision: str, *arguments: Any, **more: Any) -> Any:
    """The definition over operands that are rounded: x, w and a gradient."""
    count = list(op.parameters).index("w") + 1
    operands = [rounded(a, precision) for a in arguments[:count]]
    return op.reference(*operands, *arguments[count:], **more)


def _on_tensor_cores(op: Op, precision: str, *arguments: Any, **more: Any) -> Any:
    try:
        return op.stored(*arguments, **more, precision=precision)
    except NotImplementedError:  # depthwise, huge windows, old cards: products of float32
        place = list(op.parameters).index("w")
        w = uncast(cast(arguments[place], precision))
        return op.stored(*arguments[:place], w, *arguments[place + 1 :], **more)
