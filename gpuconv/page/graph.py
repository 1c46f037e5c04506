"""A network as the page shows it: a node for each simple layer and each function between layers."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuconv import nn, ops

MAX_VALUES = 100_000_000  # of all maps together, 400 MB; DenseNet-121 has the most of the zoo

# Layers that have weights or settings to show, or nothing to do; others are what they call.
KINDS: dict[type[nn.Module], str] = {
    nn.Conv2d: "conv",
    nn.Linear: "linear",
    nn.BatchNorm2d: "batch_norm",
    nn.LocalResponseNorm: "response_norm",
    nn.Dropout: "dropout",
    nn.Identity: "identity",
}
# Functions that need nothing of a layer, by the name of their step.
FUNCTIONS = {
    **{name: name for name in ("relu", "tanh", "scaled_tanh", "sigmoid", "softmax")},
    **{name: name for name in ("add", "multiply")},
    **{f"{name}_pool2d": f"{name}_pool" for name in ("max", "avg", "sum", "adaptive_avg")},
    "reshape": "flatten",
    "cat": "concat",
    "append_channels": "concat",
}
NAMES = {"add": "sum", "multiply": "product", "concat": "joined", "flatten": "flat"}


@dataclass(frozen=True)
class Node:
    """A layer, or a function that a `forward` calls itself.

    sources: the numbers of the nodes it reads. shape: of its output for one image. kind: a value of
    KINDS or FUNCTIONS, "input", or "other". type: what the layer or the function is called in code.
    layer: None for a function. step: the number of the trace's step that gives its output,
    None for the softmax that the page adds. window, count_include_pad: of a convolution or pooling.
    """

    number: int
    name: str
    kind: str
    type: str
    layer: nn.Module | None
    sources: tuple[int, ...]
    shape: tuple[int, ...]
    step: int | None
    window: Any = None
    count_include_pad: bool = True
    multiply_adds: int = 0


class Graph(list[Node]):
    """The nodes of a network, the input first, each after those it reads, as `nn.trace` finds them.

    A network that does not end with softmax gets a node for it, called "probabilities". What
    evaluation leaves out, such as auxiliary heads, is left out here.
    Raises ValueError where the layers do not fit the shape, where a layer cannot be shown, and
    where there are too many values to show.

    >>> from gpuconv import models
    >>> [node.name for node in Graph(models.lenet())][:4]
    ['input', 'conv1', 'relu1', 'pool1']
    """

    def __init__(self, model: nn.Module, input_shape: tuple[int, ...] | None = None) -> None:
        shape = input_shape or model.input_shape
        if shape is None:
            raise ValueError("show: this network does not know its input; give its shape")
        self.model = model
        traced = _traced(model, tuple(shape))
        self._steps = [(step.name, step.module, step.shape) for step in traced.steps]
        nodes, self._names = _Builder(traced).build()
        super().__init__(nodes)
        scores = nodes[-1]
        if len(scores.shape) != 1:
            raise ValueError(
                f"show: the network must end with a score for each class, got {scores.shape}"
            )
        self.ends_with_softmax = scores.kind == "softmax"
        self.scores = scores.sources[0] if self.ends_with_softmax else scores.number
        if not self.ends_with_softmax:
            name, sources = "probabilities", (self.scores,)
            self.append(
                Node(len(self), name, "softmax", "softmax", None, sources, scores.shape, None)
            )
        self.values = sum(math.prod(node.shape) for node in self)
        if self.values > MAX_VALUES:
            raise ValueError(
                f"show: the network has {self.values:,} values for one image, the page keeps at "
                f"most {MAX_VALUES:,}; show it on a smaller input"
            )
        self.multiply_adds = sum(node.multiply_adds for node in self)

    def outputs(self, x: np.ndarray) -> list[np.ndarray]:
        """Every node's output for one image, (1, C, H, W), each without the batch's axis.

        The functions run one by one, unfused, in evaluation mode, on the model's device.
        ValueError where they are not those of the graph: a `forward` may ask for values.
        """
        traced = nn.trace(self.model, x)
        if [(step.name, step.module, step.shape) for step in traced.steps] != self._steps:
            raise ValueError(
                "show: the network runs other layers for this picture than for a black one"
            )
        tensors = traced.tensors
        found = [tensors[node.step].data[0] for node in self if node.step is not None]
        if not self.ends_with_softmax:
            softmax = ops.softmax.reference if self.model.device == "reference" else ops.softmax
            found.append(softmax(found[self.scores][None])[0])
        return found

    def layer_name(self, number: int) -> str:
        """The shortest name of a layer or container that gives a node's output, as
        `gpuconv.explain` knows it; "" where none does.
        """
        step = self[number].step
        return "" if step is None else self._names.get(step, "")


def _traced(model: nn.Module, shape: tuple[int, ...]) -> nn.Trace:
    """The steps of one forward pass: of the shape alone, or of zeros where it asks for values."""
    try:
        return nn.trace(model, shape)
    except TypeError:
        dtype = next((p.data.dtype for p in model.parameters()), np.float32)
        try:
            return nn.trace(model, np.zeros((1, *shape), dtype))
        except TypeError as error:
            where = error.trace.failed or "the network"  # type: ignore[attr-defined]
            raise ValueError(
                f"show: the page cannot follow the forward of {where}: {error}"
            ) from error


class _Builder:
    """Makes nodes of the steps of a trace: one of each call of a simple layer, with whatever steps
    it has, and one of each step between.
    """

    def __init__(self, traced: nn.Trace) -> None:
        self.traced = traced
        self.nodes: list[Node] = []
        self.node_of: dict[int, int] = {}  # by step; without those that no image reaches
        self.used: Counter[str] = Counter()
        self.names: dict[int, str] = {}
        for name, step in traced.outputs.items():
            if name and (step not in self.names or len(name) < len(self.names[step])):
                self.names[step] = name

    def build(self) -> tuple[list[Node], dict[int, str]]:
        """The nodes up to the network's output, and the names of layers by the steps they give."""
        steps, number = self.traced.steps, 1
        self._add("input", "input", (), 0, 0)
        for call in self.traced.calls:
            self._functions(number, call.begin)
            self._call(call)
            number = max(call.begin, call.output + 1)
        self._functions(number, len(steps))
        last = self.traced.outputs[""]
        if last not in self.node_of:
            raise ValueError("show: the network's output does not depend on its input")
        return self.nodes[: self.node_of[last] + 1], self.names

    def _call(self, call: Any) -> None:
        steps = self.traced.steps[call.begin : call.output + 1]
        kind = KINDS.get(type(call.module), "other" if steps else "identity")
        if kind == "other" and len(steps) == 1:
            kind = self._kind(call.output)
        if kind == "other" and self._shows_all(call.begin, call.output + 1):
            self._functions(call.begin, call.output + 1)
            return
        if kind == "batch_norm" and call.module.running_mean is None:  # the batch's are used
            kind = "other"
        read = [n for step in steps for n in step.inputs]
        if not steps or any(step.name == "unknown" for step in steps):
            read = [call.source, *read]  # values that no function gave come from its input
        outside = [n for n in read if n is not None and n < call.begin]
        sources = self._sources(outside)
        if kind not in FUNCTIONS.values():  # a sum may read one map twice
            sources = tuple(dict.fromkeys(sources))
        if sources:
            self._add(call.name, kind, sources, call.output, call.multiply_adds, call.module)

    def _shows_all(self, begin: int, end: int) -> bool:
        """Whether the page can compute every step of a layer of the user's own, from maps that are
        shown.
        """
        before = dict(self.node_of)
        try:
            for number in range(begin, end):
                if self._kind(number) == "other":
                    return False
                self.node_of[number] = -1  # shown, if all are
            return True
        finally:
            self.node_of = before

    def _functions(self, begin: int, end: int) -> None:
        for number in range(begin, end):
            step = self.traced.steps[number]
            if step.name == "unknown":
                raise ValueError(
                    f"show: {step.module or 'the network'} has values that no function of "
                    "nn.functional gave; the page cannot show where they come from"
                )
            sources = self._sources(step.inputs)
            if step.name == "append_channels" and len(step.inputs) == 1:
                self.node_of[number] = sources[0]
            elif sources:
                kind = self._kind(number)
                name = self._function_name(number, kind)
                self._add(name, kind, sources, number, step.multiply_adds)

    def _kind(self, number: int) -> str:
        """The kind of a step that is shown by itself; "other" for what the page cannot compute."""
        step = self.traced.steps[number]
        kind = FUNCTIONS.get(step.name, "other")
        given = [self.traced.steps[n].shape if n in self.node_of else None for n in step.inputs]
        if None in given:  # a constant has part in it
            return "other"
        if kind in ("add", "multiply") and given != [step.shape, step.shape]:
            return "other"
        if kind in ("flatten", "softmax") and len(step.shape) != 2:
            return "other"
        return kind

    def _function_name(self, number: int, kind: str) -> str:
        step = self.traced.steps[number]
        if kind == "concat" and self.names.get(number) == step.module:
            return step.module
        word = NAMES.get(kind, step.name)
        name = f"{step.module}.{word}" if step.module else word
        self.used[name] += 1
        return name if self.used[name] == 1 else f"{name}{self.used[name]}"

    def _sources(self, steps: Any) -> tuple[int, ...]:
        return tuple(self.node_of[n] for n in steps if n in self.node_of)

    def _add(
        self, name: str, kind: str, sources: Any, number: int, work: int, layer: Any = None
    ) -> None:
        step = self.traced.steps[number]
        if step.shape[:1] != (1,) or len(step.shape) not in (2, 4):
            raise ValueError(
                f"show: {name} gives values of shape {step.shape}; the page shows maps, (1, C, H, "
                "W), and vectors, (1, features)"
            )
        self.node_of[number] = len(self.nodes)
        code = step.name if layer is None else type(layer).__name__
        self.nodes.append(
            Node(
                len(self.nodes), name, kind, code, layer, sources, step.shape[1:], number,
                step.window, step.count_include_pad, work,
            )
        )  # fmt: skip
