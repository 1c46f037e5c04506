"""Neighbouring layers done in one pass: what `Sequential` runs instead of one layer at a time.

The values are those of the layers one by one; only passes over memory are saved.
"""

from __future__ import annotations

import numpy as np

from gpuconv.nn.activation import _Activation
from gpuconv.nn.conv import Conv2d
from gpuconv.nn.layer import Layer
from gpuconv.nn.linear import Linear


class _Activated(Layer):
    """A convolution or linear layer whose activation is applied while its output is in the
    cache.
    """

    def __init__(self, layer: Conv2d | Linear, activation: str) -> None:
        super().__init__()
        self.layer, self.activation = layer, activation

    def forward(self, x: np.ndarray) -> np.ndarray:
        y = self.layer.forward_activated(x, self.activation)
        self.save(x, y)
        return y

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        x, y = self.saved()
        return self.layer.backward_through(dy, x, self.activation, y, need_dx)


def fuse(layers: list[Layer]) -> list[Layer]:
    """The layers in order, each convolution or linear layer joined with the activation after it."""
    steps: list[Layer] = []
    for layer in layers:
        before = steps[-1] if steps else None
        if isinstance(layer, _Activation) and isinstance(before, Conv2d | Linear):
            steps[-1] = _Activated(before, layer.name)
        else:
            steps.append(layer)
    return steps
