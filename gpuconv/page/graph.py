"""A network as the page shows it: every simple layer a node that knows which nodes it reads."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gpuconv import nn, ops
from gpuconv.explain.graph import Graph as Layout
from gpuconv.explain.graph import Join, Sum
from gpuconv.nn.layer import Layer, Shape

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
    """The nodes of a network, the input first, each after those it reads, as `explain.graph` lays
    them out, with their shapes.

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
        self._layout = Layout(model, strict=False)
        for node in self._layout.nodes[1:]:
            assert node.layer is not None
            self._add(node.name, node.layer, node.inputs)
        last = self._layout.output
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

    def layer_name(self, number: int) -> str | None:
        """By which name `gpuconv.explain` knows a node's output; None where it cannot reach it."""
        known = self.explainable and number < len(self.nodes)
        return self._layout.name_of(number) if known else None

    @property
    def explainable(self) -> bool:
        """Whether `gpuconv.explain` can go back through the network: it knows every container."""
        return not any(node.layer is not None and node.layer.children() for node in self)

    def _append(
        self, name: str, kind: str, layer: Layer | None, sources: tuple[int, ...], shape: Shape
    ) -> None:
        self.nodes.append(Node(len(self.nodes), name, kind, layer, sources, tuple(shape)))

    def _add(self, name: str, layer: Layer, sources: tuple[int, ...]) -> None:
        """A node of the layout: sums and joins are the page's own, without a layer."""
        shapes = [self.nodes[source].shape for source in sources]
        if isinstance(layer, Sum):
            if shapes[0] != shapes[1]:
                raise ValueError(f"the branches' shapes differ: {shapes[0]} and {shapes[1]}")
            self._append(name, "add", None, sources, shapes[0])
        elif isinstance(layer, Join):
            channels = sum(shape[0] for shape in shapes)
            self._append(name, "concat", None, sources, (channels, *shapes[0][1:]))
        else:
            kind = KINDS.get(type(layer), "other")
            self._append(name, kind, layer, sources, layer.output_shape(shapes[0]))
