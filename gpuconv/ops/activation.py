"""Activations by name, for operations that apply one to their result."""

from __future__ import annotations

import numpy as np

from gpuconv.errors import unknown
from gpuconv.ops.op import Op
from gpuconv.ops.relu import relu, relu_backward
from gpuconv.ops.sigmoid import sigmoid, sigmoid_backward
from gpuconv.ops.tanh import scaled_tanh, scaled_tanh_backward, tanh, tanh_backward

ACTIVATIONS: dict[str, tuple[Op, Op]] = {
    "relu": (relu, relu_backward),
    "tanh": (tanh, tanh_backward),
    "scaled_tanh": (scaled_tanh, scaled_tanh_backward),
    "sigmoid": (sigmoid, sigmoid_backward),
}


def require_activation(activation: str | None) -> None:
    """ValueError unless it is None or a known name."""
    if activation is not None and activation not in ACTIVATIONS:
        raise unknown("activation", activation, ACTIVATIONS)


def activate(x: np.ndarray, activation: str | None, reference: bool = False) -> np.ndarray:
    """The activation of x; x itself for None."""
    if activation is None:
        return x
    forward = ACTIVATIONS[activation][0]
    return forward.definition(x) if reference else forward(x)


def activation_backward(
    dy: np.ndarray, y: np.ndarray | None, activation: str | None, reference: bool = False
) -> np.ndarray:
    """The gradient before the activation, from the one after it and the activation's output y."""
    if activation is None:
        return dy
    backward = ACTIVATIONS[activation][1]
    return backward.definition(dy, y) if reference else backward(dy, y)
