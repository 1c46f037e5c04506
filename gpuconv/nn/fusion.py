"""Neighbouring layers done in one pass: what `Sequential` runs instead of one layer at a time.

The values are those of the layers one by one; only passes over memory are saved.
"""

from __future__ import annotations

import numpy as np

from gpuconv.nn.activation import _Activation
from gpuconv.nn.layer import Fusible, Layer


class _Activated(Layer):
    """A layer whose activation is applied while its output is in the cache."""

    def __init__(self, layer: Fusible, activation: str) -> None:
        super().__init__()
        self.layer, self.activation = layer, activation

    def forward(self, x: np.ndarray) -> np.ndarray:
        return self.layer.forward_activated(x, self.activation)

    def infer(self, x: np.ndarray) -> np.ndarray:
        return self.layer.infer_activated(x, self.activation)

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        return self.layer.backward(dy, need_dx)


def fuse(layers: list[Layer]) -> list[Layer]:
    """The layers in order, each that can be joined with the activation after it."""
    steps: list[Layer] = []
    for layer in layers:
        before = steps[-1] if steps else None
        name = layer.name if isinstance(layer, _Activation) else ""
        if isinstance(before, Fusible) and name in before.fuses:
            steps[-1] = _Activated(before, name)
        else:
            steps.append(layer)
    return steps
