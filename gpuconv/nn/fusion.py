"""Neighbouring layers done in one pass: what `Sequential` runs instead of one layer at a time.

The values are those of the layers one by one; only passes over memory are saved.
"""

from __future__ import annotations

import numpy as np

from gpuconv import ops
from gpuconv.nn.activation import _Activation
from gpuconv.nn.conv import Conv2d
from gpuconv.nn.layer import Layer
from gpuconv.nn.pool import MaxPool2d
from gpuconv.nn.weighted import Weighted


class _Activated(Layer):
    """A convolution or linear layer whose activation is applied while its output is in the
    cache.
    """

    def __init__(self, layer: Weighted, activation: str) -> None:
        super().__init__()
        self.layer, self.activation = layer, activation

    def forward(self, x: np.ndarray) -> np.ndarray:
        y = self.layer.forward_activated(x, self.activation)
        self.save(x, y)
        return y

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        x, y = self.saved()
        return self.layer.backward_activated(dy, x, self.activation, y, need_dx)


class _Pooled(Layer):
    """A convolution, its ReLU and a max-pool: the convolution's own output is never kept."""

    def __init__(self, conv: Conv2d, pool: MaxPool2d) -> None:
        super().__init__()
        self.conv, self.pool = conv, pool

    def forward(self, x: np.ndarray) -> np.ndarray:
        arguments = (*self.conv.arrays, *self.conv.arguments, self.pool.arguments)
        y, argmax = self.run(ops.conv2d_relu_max_pool2d, x, *arguments)
        self.save(x, y, argmax)
        return y

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        x, y, argmax = self.saved()
        given = (dy, y, argmax, x, *self.conv.arrays, *self.conv.arguments, self.pool.arguments)
        gradients = self.run(ops.conv2d_relu_max_pool2d_backward, *given, need_dx)
        return self.conv.take_gradients(*gradients)


def fuse(layers: list[Layer]) -> list[Layer]:
    """The layers in order, each convolution or linear layer joined with the activation after it,
    and a convolution with ReLU with the max-pool after that.
    """
    steps: list[Layer] = []
    for layer in layers:
        before = steps[-1] if steps else None
        if isinstance(layer, _Activation) and isinstance(before, Weighted):
            steps[-1] = _Activated(before, layer.name)
        elif isinstance(layer, MaxPool2d) and _is_conv_relu(before):
            steps[-1] = _Pooled(before.layer, layer)  # type: ignore[union-attr]
        else:
            steps.append(layer)
    return steps


def _is_conv_relu(step: Layer | None) -> bool:
    return (
        isinstance(step, _Activated)
        and isinstance(step.layer, Conv2d)
        and step.activation == "relu"
    )
