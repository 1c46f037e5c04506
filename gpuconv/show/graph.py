"""A network as the page shows it: every simple layer a node that knows which nodes it reads."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from gpuconv import nn, ops
from gpuconv.nn.containers import Concat, Residual, Sequential
from gpuconv.nn.dense_block import DenseBlock
from gpuconv.nn.layer import Layer, Shape, join_names

MOST_VALUES = 100_000_000  # of all maps together, 400 MB; DenseNet-121 has the most of the zoo

KINDS: dict[type[Layer], str] = {
    nn.Conv2d: "conv",
    nn.PartialConv2d: "conv",
    nn.Linear: "linear",
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
    nn.ScaledTanh: "scaled_tanh",
    nn.Sigmoid: "sigmoid",
    nn.MaxPool2d: "max_pool",
    nn.AvgPool2d: "avg_pool",
    nn.SumPool2d: "sum_pool",
    nn.AdaptiveAvgPool2d: "adaptive_avg_pool",
    nn.BatchNorm2d: "batch_norm",
    nn.LocalResponseNorm: "response_norm",
    nn.Flatten: "flatten",
    nn.Dropout: "dropout",
    nn.Identity: "identity",
    nn.Softmax: "softmax",
}


@dataclass(frozen=True)
class Node:
    """One layer in the page. sources: the numbers of the nodes it reads. shape: of its output for
    one image. kind: a value of KINDS, "input", "add", "concat", or "other".
    """

    number: int
    name: str
    kind: str
    layer: Layer | None
    sources: tuple[int, ...]
    shape: Shape


class Graph:
    """The nodes of a network, the input first, each after those it reads.

    A network that does not end with softmax gets a node for it, called "probabilities". Auxiliary
    heads are left out, as they are in evaluation.
    Raises ValueError where the layers do not fit the shape, or there are too many values to show.

    >>> from gpuconv import models
    >>> [node.name for node in Graph(models.lenet())][:4]
    ['input', 'conv1', 'relu1', 'pool1']
    """

    def __init__(self, model: Layer, input_shape: Shape | None = None) -> None:
        shape = input_shape or getattr(model, "input_shape", None)
        if shape is None:
            raise ValueError("show: this network does not know its input; give its shape")
        self.model = model
        self.nodes: list[Node] = [Node(0, "input", "input", None, (), tuple(shape))]
        last = self._walk(model, 0, "")
        if self.nodes[last].kind != "softmax":
            if len(self.nodes[last].shape) != 1:
                raise ValueError(
                    f"show: the network must end with a score for each class, got "
                    f"{self.nodes[last].shape}"
                )
            self.scores = last
            self._append("probabilities", "softmax", None, (last,), self.nodes[last].shape)
        else:
            self.scores = self.nodes[last].sources[0]
        values = sum(math.prod(node.shape) for node in self.nodes)
        if values > MOST_VALUES:
            raise ValueError(
                f"show: the network has {values:,} values for one image, the page keeps at most "
                f"{MOST_VALUES:,}; show it on a smaller input"
            )
        self.values = values

    def __iter__(self):
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, number: int) -> Node:
        return self.nodes[number]

    @property
    def multiply_adds(self) -> int:
        """Of one picture's pass."""
        return sum(
            node.layer.multiply_adds(self.nodes[node.sources[0]].shape)
            for node in self.nodes
            if node.layer is not None
        )

    def outputs(self, x: np.ndarray) -> list[np.ndarray]:
        """Every node's output for one image, (1, C, H, W), each without the batch's axis.

        The layers run one by one, unfused, in evaluation mode, as the model's device does them.
        """
        on = self.model.device
        found: list[np.ndarray] = []
        for node in self.nodes:
            given = [found[source] for source in node.sources]
            if node.kind == "input":
                y = x
            elif node.layer is not None:
                y = node.layer.infer(given[0])
            elif node.kind == "add":
                y = ops.add.reference(*given) if on == "reference" else ops.add(*given)
            elif node.kind == "concat":
                y = np.concatenate(given, axis=1)
            else:
                y = ops.softmax.reference(given[0]) if on == "reference" else ops.softmax(given[0])
            found.append(y)
        return [y[0] for y in found]

    # ---- building ------------------------------------------------------------------------------

    def _append(
        self, name: str, kind: str, layer: Layer | None, sources: tuple[int, ...], shape: Shape
    ) -> int:
        self.nodes.append(Node(len(self.nodes), name, kind, layer, sources, tuple(shape)))
        return len(self.nodes) - 1

    def _walk(self, layer: Layer, source: int, name: str) -> int:
        """Append what is in the layer, reading node `source`; the number of its output's node."""
        if isinstance(layer, nn.AuxiliaryHeads):
            rows = [step for part, _ in layer._rows() for step in part]
            return self._row(rows, source, name)
        if isinstance(layer, Sequential):
            return self._row(layer.children().items(), source, name)
        if isinstance(layer, Residual):
            return self._residual(layer, source, name)
        if isinstance(layer, Concat):
            ends = [
                self._walk(branch, source, join_names(name, child))
                for child, branch in layer.children().items()
            ]
            return self._concat(ends, name)
        if isinstance(layer, DenseBlock):
            for child, step in layer.children().items():
                end = self._walk(step, source, join_names(name, child))
                source = self._concat([source, end], join_names(name, f"{child}.joined"))
            return source
        kind = KINDS.get(type(layer), "other")
        shape = layer.output_shape(self.nodes[source].shape)
        return self._append(name, kind, layer, (source,), shape)

    def _row(self, steps: Iterable[tuple[str, Layer]], source: int, name: str) -> int:
        for child, step in steps:
            source = self._walk(step, source, join_names(name, child))
        return source

    def _residual(self, layer: Residual, source: int, name: str) -> int:
        body = self._walk(layer.body, source, join_names(name, layer.names[0]))
        around = source
        if layer.shortcut is not None:
            around = self._walk(layer.shortcut, source, join_names(name, layer.names[1]))
        if self.nodes[body].shape != self.nodes[around].shape:
            raise ValueError(
                f"the branches' shapes differ: {self.nodes[body].shape} and "
                f"{self.nodes[around].shape}"
            )
        return self._append(join_names(name, "sum"), "add", None, (body, around), self[body].shape)

    def _concat(self, ends: list[int], name: str) -> int:
        if len(ends) == 1:
            return ends[0]
        shapes = [self.nodes[end].shape for end in ends]
        shape = (sum(each[0] for each in shapes), *shapes[0][1:])
        return self._append(name or "joined", "concat", None, tuple(ends), shape)
