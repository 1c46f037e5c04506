"""Fully connected layers in a row: on a device, one kernel computes them where they are small.

Each layer is recorded by itself, so gradients, hooks and results are those of layers one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpuconv import autograd, ops
from gpuconv.arrays import device_of, is_device
from gpuconv.autograd import Array, Tensor, record
from gpuconv.autograd.operators import relu_backward
from gpuconv.ops import in_place, linear_launch
from gpuconv.ops.activation import ACTIVATIONS
from gpuconv.ops.linear import linear_chain
from gpuconv.ops.op import Op


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
            saved = ops.linear_backward, layer.x.data, *given[i]
            inputs = layer.x, layer.w, layer.b
            result = record_weighted(ops.linear, inputs, y, layer.activation, saved)
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


def record_weighted(
    op: Op[..., Any],
    inputs: Sequence[Tensor | None],
    y: Array,
    activation: str | None,
    saved: tuple[Any, ...],
) -> Tensor:
    """The result y of a convolution or linear layer; saved: the operation of its gradients and
    what that takes between dy and the activation.
    """
    name = op.__name__ if activation is None else f"{op.__name__}_{activation}"
    kept, x = None if activation is None else y, inputs[0]
    assert x is not None
    return record(name, y, inputs, _backward, *saved, kept, x.requires_grad)


def _backward(dy: Array, over: bool, run_backward: Any, *saved: Any) -> Any:
    *rest, activation, y, need_dx = saved
    if over and activation == "relu" and in_place.can_overwrite(dy):
        dy, activation, y = relu_backward(dy, y, over), None, None
    return run_backward(dy, *rest, activation, y, need_dx)
