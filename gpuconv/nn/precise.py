"""Which precision a convolution or linear layer computes in, and what runs it so."""

from __future__ import annotations

from functools import partial
from typing import Any

from gpuconv.autograd import Array, state
from gpuconv.ops.cast import cast, uncast
from gpuconv.ops.op import Op
from gpuconv.precision import NAMES, is_stored, rounded


def of(data: Array, reference: bool) -> str:
    """The precision for a layer's input."""
    if is_stored(data):
        return NAMES[data.dtype]
    return state.precision if reference and state.entered else "ieee"


def run(op: Op, reference: bool, precision: str) -> Any:
    """The operation in this precision, a function of its arguments: weights are float32, and
    rounded here.
    """
    if precision == "ieee":
        return op.reference if reference else op
    return partial(_rounding, op, reference, precision)


def _rounding(op: Op, reference: bool, precision: str, *arguments: Any, **more: Any) -> Any:
    place = list(op.parameters).index("w")
    w = arguments[place]
    w = rounded(w, precision) if reference else uncast(cast(w, precision))
    return (op.reference if reference else op.stored)(
        *arguments[:place], w, *arguments[place + 1 :], **more
    )
