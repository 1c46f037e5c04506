"""Fully connected layers in a row: on a device, one kernel computes them where they are small.

Each layer is recorded by itself, so gradients, hooks and results are those of layers one by one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from gpuconv import autograd, ops
from gpuconv.arrays import device_of, is_device
from gpuconv.autograd import Array, Tensor, record
from gpuconv.autograd.operators import relu_backward
from gpuconv.ops import in_place, linear_launch
from gpuconv.ops.activation import ACTIVATIONS
from gpuconv.ops.linear import linear_chain


@dataclass(frozen=True)
class Layer:
    """x: the input, pending where it is the result of the layer before."""

    x: Tensor
    w: Tensor
    b: Tensor | None
    activation: str | None = None


class Chain:
    """Layers whose last result is pending (autograd.fusion.Chain)."""

    def __init__(self, *layers: Layer) -> None:
        self.layers = layers

    def activated(self) -> Chain:
        *before, last = self.layers
        return Chain(*before, replace(last, activation="relu"))

    def compute(self, activation: str | None) -> Tensor:
        *before, last = self.layers
        layers = [*before, last if activation is None else replace(last, activation=activation)]
        while len(layers) > 1 and any(layer.x._deferred is None for layer in layers[1:]):
            layers.pop(0)  # computed by itself meanwhile
        given = [
            (layer.w.data, None if layer.b is None else layer.b.data, layer.activation)
            for layer in layers
        ]
        x = layers[0].x.data
        ys = linear_chain(x, tuple(given)) if len(given) > 1 else (ops.linear(x, *given[0]),)
        for i, (layer, y) in enumerate(zip(layers, ys, strict=True)):
            name = "linear" if layer.activation is None else f"linear_{layer.activation}"
            kept = None if layer.activation is None else y
            saved = ops.linear_backward, layer.x.data, *given[i], kept, layer.x.requires_grad
            result = record(name, y, (layer.x, layer.w, layer.b), weighted_backward, *saved)
            if i + 1 < len(layers):
                autograd.give(layers[i + 1].x, result)
        return result


def serves(x: Tensor, w: Tensor) -> bool:
    """Whether a layer of these may begin a chain."""
    shape = x.data.shape
    if not is_device(device_of(x.data) or "cpu") or w.data.ndim != 2 or len(shape) != 2:
        return False
    return shape[1] == w.data.shape[1] and linear_launch.applies(len(x.data), w.data.shape[::-1])


def appended(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor | None:
    """The pending result of one more layer behind x, or None where x is no chain's, or the kernel
    does not apply.
    """
    chain = autograd.chain_of(x)
    if not isinstance(chain, Chain) or w.data.ndim != 2:
        return None
    layers = chain.layers
    features = layers[0].x.data.shape[1], *(len(layer.w.data) for layer in layers), len(w.data)
    fits = w.data.shape[1] == features[-2] and (b is None or b.data.shape == w.data.shape[:1])
    if not fits or not linear_launch.applies(len(layers[0].x.data), features):
        return None
    longer = Chain(*layers, Layer(x, w, b))
    return autograd.appended(x, longer, (w, b), tuple(ACTIVATIONS))


def weighted_backward(
    dy: Array, over: bool, run_backward: Any, *saved: Any, masked: bool = False, **more: Any
) -> Any:
    """The gradients of a convolution or linear layer by the operation `run_backward`; masked: dy is
    that before the ReLU already.
    """
    *others, activation, y, need_dx = saved
    if masked:
        activation, y = None, None
    elif over and activation == "relu" and in_place.can_overwrite(dy):
        dy, activation, y = relu_backward(dy, y, over), None, None
    return run_backward(dy, *others, activation, y, need_dx, **more)
