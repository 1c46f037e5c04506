"""Neighbouring layers done in one pass: what `Sequential` runs instead of one layer at a time.

The values are those of the layers one by one; only passes over memory are saved.
"""

from __future__ import annotations

import numpy as np

from gpuconv import ops
from gpuconv.nn.activation import _Activation
from gpuconv.nn.conv import Conv2d
from gpuconv.nn.layer import Fusible, Layer
from gpuconv.nn.pool import MaxPool2d


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

    def backward_over(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        return self.layer.backward_over(dy, need_dx)

    @property
    def frees_output(self) -> bool:
        return self.layer.frees_output


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
    """The layers in order, each that can be joined with the activation after it, and a convolution
    with ReLU with the max-pool after that.
    """
    steps: list[Layer] = []
    for layer in layers:
        before = steps[-1] if steps else None
        name = layer.name if isinstance(layer, _Activation) else ""
        if isinstance(before, Fusible) and name in before.fuses:
            steps[-1] = _Activated(before, name)
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
