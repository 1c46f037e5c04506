"""`Pass`: one forward pass through a network's graph, and ways back through it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gpuconv import ops
from gpuconv.arrays import to_device, to_numpy
from gpuconv.explain.graph import Graph
from gpuconv.nn import Layer, Parameter, ReLU

# What a ReLU makes of the signal dy that comes back to it, instead of its own gradient.
Rule = Callable[[Layer, Any], Any]


def guided(relu: Layer, dy: Any) -> Any:
    """Only what is positive passes, and only where the input was: Springenberg et al. 2014."""
    return relu.backward(relu.run(ops.relu, dy))


def deconvolved(relu: Layer, dy: Any) -> Any:
    """What is positive passes, wherever the input was positive: Zeiler and Fergus 2014."""
    return relu.run(ops.relu, dy)


class Pass:
    """A batch's forward pass in evaluation mode, with every layer's output.

    The network is only read: each layer runs as a copy of its own that shares the weights, so its
    mode, its parameters' gradients and what a training step has saved in it stay as they are, and
    backward may be called as often as one likes.

    x: floats (N, C, H, W), NumPy; what it returns is NumPy too, whatever the network's device.
    until: the layer to stop after, "" for the last. keep: False frees each output as soon as no
    layer reads it any more, but for the last one, and backward is not possible.
    Raises ValueError for an x that is no batch of images, and an unknown layer.

    >>> from gpuconv import models
    >>> x = np.random.default_rng(0).random((2, 1, 32, 32), np.float32)
    >>> run = Pass(models.lenet(), x)
    >>> run.output("pool2").shape
    (2, 16, 5, 5)
    >>> seed = np.zeros_like(run.output())
    >>> seed[:, 7] = 1
    >>> run.backward(seed).shape
    (2, 1, 32, 32)
    """

    def __init__(self, model: Layer, x: np.ndarray, until: str = "", keep: bool = True) -> None:
        if getattr(x, "ndim", 0) != 4:
            shape = getattr(x, "shape", type(x).__name__)
            raise ValueError(f"explain: x must be a batch of images (N, C, H, W), got {shape}")
        self.graph = Graph(model)
        self.last = self.graph.find(until)
        self._layers: dict[int, Layer] = {}
        self._outputs: dict[int, Any] = {0: to_device(x, model.device)}
        needed = self._ancestors(self.last)
        final_use = {source: i for i in sorted(needed) for source in self.graph.nodes[i].inputs}
        for i in sorted(needed - {0}):
            self._forward(i, keep)
            for source in set(self.graph.nodes[i].inputs):
                if not keep and final_use[source] == i:
                    del self._outputs[source]

    def output(self, name: str | None = None) -> np.ndarray:
        """A layer's output, (N, C, P, Q) or (N, features); None for the last that was run.

        Raises ValueError for a layer that is unknown, or not among those that were run and kept.
        """
        return to_numpy(self._outputs[self._kept(name, self.last)])

    @property
    def numbers(self) -> set[int]:
        """The numbers of the nodes whose outputs are kept."""
        return set(self._outputs)

    def shape(self, number: int) -> tuple[int, ...]:
        """The shape of a node's output, which was run and kept."""
        return tuple(self._outputs[number].shape)

    def backward(
        self, dy: np.ndarray, at: str | None = None, to: str | None = None, rule: Rule | None = None
    ) -> np.ndarray:
        """The gradient at layer `to`'s output of sum(dy * output of layer `at`).

        at: None for the last layer that was run; to: None for the input. rule: what ReLU layers do
        instead of their gradient; every other layer goes backward as in training.
        Raises ValueError for a dy of another shape than that output's, and layers that are unknown
        or not among those that were run; RuntimeError for a pass that kept nothing.
        """
        start, stop = self._kept(at, self.last), self._kept(to, 0)
        if start and start not in self._layers:
            raise RuntimeError("explain: make the pass with keep=True to go backward through it")
        expected = self.shape(start)
        if np.shape(dy) != expected:
            raise ValueError(f"explain: dy must have shape {expected}, got {np.shape(dy)}")
        between = self._descendants(stop)
        gradients: dict[int, Any] = {start: to_device(dy, self.graph.device)}
        for i in range(start, stop, -1):
            if i in gradients and i in between:
                self._backward(i, gradients, between, rule)
        if stop not in gradients:
            return np.zeros_like(to_numpy(self._outputs[stop]))
        return to_numpy(gradients[stop])

    def _kept(self, name: str | None, default: int) -> int:
        """The number of a node whose output is here."""
        number = default if name is None else self.graph.find(name)
        if number not in self._outputs:
            raise ValueError(
                f"explain: the output of layer {name!r} is not in this pass: it was freed, or "
                "the last layer does not depend on it"
            )
        return number

    def _forward(self, i: int, keep: bool) -> None:
        node = self.graph.nodes[i]
        inputs = tuple(self._outputs[source] for source in node.inputs)
        layer = _apart(node.layer)  # type: ignore[arg-type]
        self._outputs[i] = layer.forward(inputs if len(inputs) > 1 else inputs[0])  # type: ignore[arg-type]
        if keep:
            self._layers[i] = layer

    def _backward(
        self, i: int, gradients: dict[int, Any], between: set[int], rule: Rule | None
    ) -> None:
        """Take node i's gradient to those it reads, adding to what they have."""
        layer, inputs = _apart(self._layers[i]), self.graph.nodes[i].inputs
        dy = gradients.pop(i)
        ruled = rule is not None and isinstance(layer, ReLU)
        dx: Any = rule(layer, dy) if ruled else layer.backward(dy)  # type: ignore[misc]
        for source, part in zip(inputs, dx if len(inputs) > 1 else (dx,), strict=True):
            if source in between:
                known = gradients.get(source)
                gradients[source] = part if known is None else layer.run(ops.add, known, part)

    def _ancestors(self, number: int) -> set[int]:
        """The nodes that node `number` depends on, itself included."""
        found = {0, number}
        for i in range(number, 0, -1):
            if i in found:
                found.update(self.graph.nodes[i].inputs)
        return found

    def _descendants(self, number: int) -> set[int]:
        """The nodes that depend on node `number`, itself included."""
        found = {number}
        for i in range(number + 1, len(self.graph.nodes)):
            if found.intersection(self.graph.nodes[i].inputs):
                found.add(i)
        return found


def activations(
    model: Layer, x: np.ndarray, layers: list[str] | None = None
) -> Mapping[str, np.ndarray]:
    """The outputs of layers by name, of all of them where none are named.

    x: floats (N, C, H, W). Returns each layer's (N, C, P, Q) or (N, features); the network is left
    as it was. Raises ValueError for an unknown layer.

    >>> from gpuconv import models
    >>> found = activations(models.lenet(), np.zeros((1, 1, 32, 32), np.float32))
    >>> found["conv2"].shape
    (1, 16, 10, 10)
    """
    run = Pass(model, x)
    return {name: run.output(name) for name in layers or filter(None, run.graph.names)}


def _apart(layer: Layer) -> Layer:
    """A copy of a simple layer that shares its arrays and nothing else: the gradients it collects
    and what it saves are its own; what the given one has saved, it has too.
    """
    apart = copy.copy(layer)
    apart.training = False
    for key, value in vars(layer).items():
        if isinstance(value, Parameter):
            setattr(apart, key, Parameter(value.data))
    return apart
