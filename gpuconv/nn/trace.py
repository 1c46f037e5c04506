"""What a forward pass does, found by running it on shape-only arrays: no value is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuconv.arrays import ShapeOnly
from gpuconv.autograd import Tensor, no_grad, state
from gpuconv.nn.module import Module, Shape


@dataclass(frozen=True)
class Step:
    """One operation of a forward pass.

    name: the operation's. module: the dotted name of the innermost module that ran it. inputs: the
    numbers of the steps whose outputs it reads, None for weights and constants; step 0 is the
    network's input. shape: the output's, its first axis the batch. multiply_adds: of the batch.
    """

    name: str
    module: str
    inputs: tuple[int | None, ...]
    shape: Shape
    multiply_adds: int


@dataclass(frozen=True)
class Call:
    """One call of a module that has no modules inside: name, the module, the steps that give its
    input and its output, and the shapes of one example of them.
    """

    name: str
    module: Module
    source: int
    output: int
    input_shape: Shape
    output_shape: Shape
    multiply_adds: int


class Trace:
    """The steps of one forward pass, and the calls of its simple layers, in order.

    fusing: whether neighbouring functions are fused; then only steps are noted.
    outputs: the step that gives each module's output, by dotted name, "" for the network's; of a
    module that is called more than once, the last.
    """

    def __init__(self, network: Module, fusing: bool = False) -> None:
        self.fusing = fusing
        self.steps: list[Step] = []
        self.calls: list[Call] = []
        self.outputs: dict[str, int] = {}
        self._names = {id(module): name for name, module in network.named_modules()}
        self._inside: list[str] = []
        self._numbers: dict[int, int] = {}
        self._kept: list[Tensor] = []  # so that no id is used twice

    def begin(self, x: Tensor) -> None:
        self._add("input", (), x, 0)

    def record(self, name: str, inputs: Sequence[Tensor | None], y: Tensor) -> None:
        """Called for every operation that the forward pass records."""
        sources = tuple(None if x is None else self._numbers.get(id(x)) for x in inputs)
        self._add(name, sources, y, _multiply_adds(name, inputs, y))

    def same(self, x: Tensor, y: Tensor) -> None:
        """Called when y's data becomes that of x, which waited for it."""
        self._numbers[id(x)] = self._numbers[id(y)]
        self._kept.append(x)

    def _add(self, name: str, sources: Any, y: Tensor, multiply_adds: int) -> None:
        module = self._inside[-1] if self._inside else ""
        self._numbers[id(y)] = len(self.steps)
        self._kept.append(y)
        self.steps.append(Step(name, module, sources, tuple(y.data.shape), multiply_adds))

    def call(self, module: Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Called in place of `module.forward`."""
        name = self._names.get(id(module), "")
        self._inside.append(name)
        begin = len(self.steps)
        try:
            y = module.forward(*inputs, **options)
        finally:
            self._inside.pop()
        main = y[0] if isinstance(y, tuple) else y
        if self.fusing or not isinstance(main, Tensor):
            return y
        self.outputs[name] = self._numbers[id(main)]
        if not any(True for _ in module.children()):
            x = inputs[0]
            done = sum(step.multiply_adds for step in self.steps[begin:])
            links = getattr(module, "connections", None)
            if links is not None:
                done = done * int(links.sum()) // links.size
            self.calls.append(
                Call(
                    name,
                    module,
                    self._numbers[id(x)],
                    self._numbers[id(main)],
                    tuple(x.data.shape[1:]),
                    tuple(main.data.shape[1:]),
                    done // max(len(x.data), 1),
                )
            )
        return y


def trace(
    network: Module, input_shape: Shape, training: bool = False, fusing: bool = False
) -> Trace:
    """Run a network's forward on a shape-only image.

    input_shape: of one example, (C, H, W). training: in which mode; the network is left as it was.
    fusing: whether neighbouring functions are fused, as in a real pass. Raises ValueError where a
    layer does not fit; the exception's `trace` is what came before it.
    """
    found = Trace(network, fusing)
    try:
        _run(network, input_shape, training, found)
    except ValueError as error:
        error.trace = found  # type: ignore[attr-defined]
        raise
    return found


def output_shape(network: Module, input_shape: Shape) -> Shape:
    """The shape of one example's output, in evaluation mode, for one example's input."""
    y = _run(network, input_shape, False, Trace(network))
    return tuple(y.data.shape[1:])


def _run(network: Module, shape: Shape, training: bool, found: Trace) -> Any:
    dtype = next((p.data.dtype for p in network.parameters()), np.dtype(np.float32))
    x = Tensor(ShapeOnly((1, *shape), dtype), device=network.device)
    found.begin(x)
    with _mode(network, training), no_grad(), _tracing(found):
        return network(x)


@contextmanager
def _tracing(found: Trace) -> Any:
    before = state.trace, state.fusing
    state.trace, state.fusing = found, found.fusing
    try:
        yield
    finally:
        state.trace, state.fusing = before


@contextmanager
def _mode(network: Module, training: bool) -> Any:
    """Within, the network is in training or evaluation mode."""
    before = [(module, module.training) for module in network.modules()]
    network.train(training)
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


def _multiply_adds(name: str, inputs: Sequence[Tensor | None], y: Tensor) -> int:
    if not name.startswith(("conv2d", "linear")) or inputs[1] is None:
        return 0
    return y.data.size * math.prod(inputs[1].data.shape[1:])


def plan(network: Module, x: Any = None) -> str:
    """See `Module.plan`."""
    shape = x if isinstance(x, tuple) else tuple(x.shape[1:]) if x is not None else None
    shape = shape or getattr(network, "input_shape", None)
    if shape is None:
        raise ValueError("plan: this network does not know its input; give one, or (C, H, W)")
    steps = trace(network, shape, network.training, fusing=True).steps[1:]
    width = max((len(step.name) for step in steps), default=0)
    return "\n".join(f"{step.name:<{width}} {step.shape}" for step in steps)
