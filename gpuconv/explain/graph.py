"""A network as a graph of its simple layers, so that its activations and gradients can be seen
anywhere.

The containers' own passes join neighbouring layers and keep nothing by name; here every simple
layer is a node by itself. The nodes hold the network's own layers and are never run: `Pass` runs
copies of them that share their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuconv import ops
from gpuconv.arrays import device_of
from gpuconv.errors import unknown
from gpuconv.nn import AuxiliaryHeads, Concat, DenseBlock, Layer, Residual, Sequential
from gpuconv.nn.layer import join_names


class Sum(Layer):
    """a + b, as `Residual` adds them. forward: (a, b) -> y; backward: dy -> (dy, dy)."""

    def forward(self, x: Any) -> np.ndarray:
        return self.run(ops.add, *x)

    def backward(self, dy: Any, need_dx: bool = True) -> Any:
        return dy, dy


class Join(Layer):
    """Arrays joined along the channels, as `Concat` and `DenseBlock` do; backward parts dy."""

    def forward(self, x: Any) -> np.ndarray:
        if (device := device_of(x[0])) != "cpu":
            raise NotImplementedError(f"explain: works on NumPy arrays, not on {device}'s; use cpu")
        self.save([part.shape[1] for part in x])
        return np.concatenate(x, axis=1)

    def backward(self, dy: Any, need_dx: bool = True) -> Any:
        (channels,) = self.saved()
        return tuple(np.split(dy, np.cumsum(channels)[:-1], axis=1))


@dataclass(frozen=True)
class Node:
    """A simple layer, a `Sum` or a `Join`, and the numbers of the nodes whose outputs it reads.

    layer: None for the input, node 0.
    """

    name: str
    layer: Layer | None
    inputs: tuple[int, ...]


class Graph:
    """The nodes of a network in evaluation mode, each after those it reads.

    names: for every layer and container by its dotted name, and "" for the network itself, the
    number of the node that gives its output. Where two have one name, as ResNet's two `relu` of a
    block, it is the later one's. Auxiliary heads are left out, as evaluation leaves them out.
    Raises NotImplementedError for a container that is none of gpuconv's, unless `EXPANSIONS` has
    been taught it; strict=False takes it as one node, whose inside stays unseen.

    >>> from gpuconv import models
    >>> graph = Graph(models.lenet())
    >>> [node.name for node in graph.nodes][:4]
    ['input', 'conv1', 'relu1', 'pool1']
    """

    def __init__(self, model: Layer, strict: bool = True) -> None:
        self.device, self.strict = model.device, strict
        self.nodes: list[Node] = [Node("input", None, ())]
        self.names: dict[str, int] = {}
        self.output = self.expand(model, "", 0)

    def expand(self, layer: Layer, name: str, source: int) -> int:
        """Add the nodes of a layer or container that reads node `source`; its output's number."""
        found = _expansion(layer)
        if found is not None:
            output = found(self, layer, name, source)
        elif layer.children() and self.strict:
            raise NotImplementedError(
                f"explain: {name or 'the network'} is a {type(layer).__name__}, a container that "
                "explain does not know; add how its layers are connected to "
                "gpuconv.explain.graph.EXPANSIONS"
            )
        else:
            output = self.add(name, layer, (source,))
        self.names[name] = output
        return output

    def add(self, name: str, layer: Layer, inputs: Iterable[int]) -> int:
        """Add one node; returns its number."""
        self.nodes.append(Node(name, layer, tuple(inputs)))
        return len(self.nodes) - 1

    def find(self, name: str) -> int:
        """The number of the node that gives a layer's output, "" for the network's. ValueError,
        with the nearest known name, for an unknown one.
        """
        if name not in self.names:
            raise unknown("layer", name, filter(None, self.names))
        return self.names[name]

    def name_of(self, number: int) -> str | None:
        """The shortest name of the layer or container whose output a node gives, if it has one."""
        names = [name for name, found in self.names.items() if found == number and name]
        return min(names, key=len, default=None)

    def join(self, name: str, sources: list[int]) -> int:
        """The sources joined along the channels; a single one as it is."""
        return self.add(name, self._here(Join()), sources) if len(sources) > 1 else sources[0]

    def sum(self, name: str, a: int, b: int) -> int:
        """The sum of two nodes."""
        return self.add(name, self._here(Sum()), (a, b))

    def _here(self, layer: Layer) -> Layer:
        layer.device = self.device
        return layer


def _sequential(graph: Graph, layer: Any, name: str, source: int) -> int:
    for child, inner in layer.children().items():
        source = graph.expand(inner, join_names(name, child), source)
    return source


def _without_heads(graph: Graph, layer: Any, name: str, source: int) -> int:
    for part, _ in layer._rows():
        for child, inner in part:
            source = graph.expand(inner, join_names(name, child), source)
    return source


def _residual(graph: Graph, layer: Any, name: str, source: int) -> int:
    body_name, around_name = layer.names
    around = source
    if layer.shortcut is not None:
        around = graph.expand(layer.shortcut, join_names(name, around_name), source)
    body = graph.expand(layer.body, join_names(name, body_name), source)
    return graph.sum(join_names(name, "sum"), body, around)


def _concat(graph: Graph, layer: Any, name: str, source: int) -> int:
    branches = layer.children().items()
    outputs = [graph.expand(each, join_names(name, child), source) for child, each in branches]
    return graph.join(name or "joined", outputs)


def _dense_block(graph: Graph, layer: Any, name: str, source: int) -> int:
    parts = [source]
    for child, inner in layer.children().items():
        seen = graph.join(join_names(name, f"{child}.joined"), parts)
        parts.append(graph.expand(inner, join_names(name, child), seen))
    return graph.join(name or "joined", parts)


Expansion = Callable[[Graph, Any, str, int], int]
# How each container connects its layers. A container of one's own adds its entry.
EXPANSIONS: dict[type[Layer], Expansion] = {
    Sequential: _sequential,
    AuxiliaryHeads: _without_heads,
    Residual: _residual,
    Concat: _concat,
    DenseBlock: _dense_block,
}


def _expansion(layer: Layer) -> Expansion | None:
    """How to expand a container; None for what has no entry, or a forward pass of its own."""
    for kind in type(layer).__mro__:
        if kind in EXPANSIONS:
            own = type(layer)
            same = all(
                getattr(own, name, None) is getattr(kind, name, None)
                for name in ("forward", "forward_activated")
            )
            return EXPANSIONS[kind] if same else None
    return None
