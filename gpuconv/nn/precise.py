"""Which precision a convolution or linear layer computes in, and what runs it so."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from gpuconv.arrays import device_of
from gpuconv.autograd import Array, state
from gpuconv.ops.op import Op
from gpuconv.precision import NAMES, is_stored, require_precision, rounded


def of(data: Array, reference: bool, tf32: bool) -> str:
    """The precision for an input's array; tf32: whether "tf32-conv" means it."""
    if is_stored(data):
        return NAMES[data.dtype]
    name, on = state.precision, device_of(data) or "cpu"
    if name == "ieee" or on == "meta" or data.dtype != np.float32:
        return "ieee"
    require_precision("precision", name, "reference" if reference else on)
    if name == "tf32-conv":
        return "tf32" if tf32 else "ieee"
    return name if name == "tf32" or state.entered else "ieee"


def run(op: Op, reference: bool, precision: str) -> Any:
    """The operation in this precision, a function of its arguments."""
    if precision == "ieee":
        return op.reference if reference else op
    if reference:
        return partial(_rounding, op, precision)
    if "precision" in op.parameters:
        return partial(op, precision=precision)
    return op.stored


def _rounding(op: Op, precision: str, *arguments: Any, **more: Any) -> Any:
    """The definition over operands that are rounded: (x, w), or (dy, x, w)."""
    count = 3 if op.__name__.endswith("_backward") else 2
    operands = [rounded(a, precision) for a in arguments[:count]]
    return op.reference(*operands, *arguments[count:], **more)
