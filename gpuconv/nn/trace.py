"""What a forward pass does: its operations in order, found by running it on a shape-only array, or
on images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuconv.arguments import pair
from gpuconv.arrays import ShapeOnly, to_device
from gpuconv.autograd import Tensor, no_grad, state
from gpuconv.nn.module import Module, Shape, in_mode
from gpuconv.shapes import Window, window


@dataclass(frozen=True)
class Step:
    """One operation of a forward pass.

    name: the operation's. module: the dotted name of the innermost module that ran it. inputs: the
    numbers of the steps whose outputs it reads, None for weights and constants; step 0 is the
    network's input. shape: the output's, its first axis the batch. multiply_adds: of the batch.
    window: of a convolution or pooling, else None; count_include_pad: what an average counts.

    An output that no function of nn.functional gave is a step named "unknown", without inputs.
    """

    name: str
    module: str
    inputs: tuple[int | None, ...]
    shape: Shape
    multiply_adds: int
    window: Window | None = None
    count_include_pad: bool = True


@dataclass(frozen=True)
class Call:
    """One call of a module that has no modules inside: name, the module, the steps that give its
    input and its output, and the shapes of one example of them. Its own steps are those from
    `begin` to `output`, none where it returns what it was given.
    """

    name: str
    module: Module
    source: int
    output: int
    begin: int
    input_shape: Shape
    output_shape: Shape
    multiply_adds: int


class Trace:
    """The steps of one forward pass, and the calls of its simple layers, in order.

    outputs: the step that gives each module's output, by dotted name, "" for the network's; of one
    that is called more than once the last. tensors: each step's output; without values, unless the
    pass ran on images. fusing: whether neighbouring functions are fused; then only steps are noted.
    failed: the innermost module whose forward raised, None without.
    """

    def __init__(self, network: Module, fusing: bool = False) -> None:
        self.fusing = fusing
        self.steps: list[Step] = []
        self.calls: list[Call] = []
        self.outputs: dict[str, int] = {}
        self.failed: str | None = None
        self._names = {id(module): name for name, module in network.named_modules()}
        self._inside: list[str] = []
        self._numbers: dict[int, int] = {}
        self.tensors: list[Tensor] = []
        self._held: list[Tensor] = []  # so that no id is used twice

    def begin(self, x: Tensor) -> None:
        self._add("input", (), x, 0)

    def record(
        self, name: str, inputs: Sequence[Tensor | None], y: Tensor, saved: Sequence[Any]
    ) -> None:
        """Called for every operation that the forward pass records."""
        sources = tuple(None if x is None else self._numbers.get(id(x)) for x in inputs)
        options = _OPTIONS[name](saved) if name in _OPTIONS else ()
        self._add(name, sources, y, _multiply_adds(name, inputs, y), *options)

    def same(self, x: Tensor, y: Tensor) -> None:
        """Called when y's data becomes that of x, which waited for it."""
        self._numbers[id(x)] = self._numbers[id(y)]
        self._held.append(x)

    def _add(self, name: str, sources: Any, y: Tensor, multiply_adds: int, *options: Any) -> None:
        module = self._inside[-1] if self._inside else ""
        self._numbers[id(y)] = len(self.steps)
        self.tensors.append(y)
        shape = tuple(y.data.shape)
        self.steps.append(Step(name, module, sources, shape, multiply_adds, *options))

    def _number(self, x: Tensor) -> int:
        """The step that gave a tensor."""
        _ = x.data
        if id(x) not in self._numbers:
            self._add("unknown", (), x, 0)
        return self._numbers[id(x)]

    def call(self, module: Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Called in place of `module.forward`."""
        name = self._names.get(id(module), "")
        given = [x for x in (*inputs, *options.values()) if isinstance(x, Tensor)]
        source = self._number(given[0]) if given and not self.fusing else None
        self._inside.append(name)
        begin = len(self.steps)
        try:
            y = module.forward(*inputs, **options)
            main = y[0] if isinstance(y, tuple | list) and y else y
            if isinstance(main, Tensor) and not self.fusing:
                self.outputs[name] = self._number(main)
        except Exception:
            self.failed = name if self.failed is None else self.failed
            raise
        finally:
            self._inside.pop()
        if self.fusing or not isinstance(main, Tensor):
            return y
        if source is not None and not any(True for _ in module.children()):
            done = sum(step.multiply_adds for step in self.steps[begin:])
            links = getattr(module, "connections", None)
            if links is not None:
                done = done * int(links.sum()) // links.size
            self.calls.append(
                Call(
                    name,
                    module,
                    source,
                    self.outputs[name],
                    begin,
                    self.steps[source].shape[1:],
                    tuple(main.data.shape[1:]),
                    done // max(len(main.data), 1),
                )
            )
        return y


class Recording(Trace):
    """A trace that also keeps what each step read: its tensors, and what it saved."""

    def __init__(self, network: Module) -> None:
        super().__init__(network)
        self.read: dict[int, tuple[Sequence[Tensor | None], Sequence[Any]]] = {}

    def record(
        self, name: str, inputs: Sequence[Tensor | None], y: Tensor, saved: Sequence[Any]
    ) -> None:
        self.read[len(self.steps)] = inputs, saved
        super().record(name, inputs, y, saved)

    def number(self, x: Tensor) -> int:
        """The step that gave a tensor."""
        return self._number(x)

    def number_of(self, x: Tensor) -> int | None:
        """As `number`; None for weights and constants."""
        return self._numbers.get(id(x))


def trace(network: Module, given: Any, training: bool = False, fusing: bool = False) -> Trace:
    """The steps of a network's forward pass, without gradients and without the network's hooks.

    given: the shape of one example, (C, H, W), and nothing is computed; or images, (N, C, H, W),
    and the trace's `tensors` have their values. training: in which mode; the network is left as it
    was. fusing: whether neighbouring functions are fused, as in a real pass. Raises ValueError
    where a layer does not fit, and TypeError where the shapes alone do not tell what it does; the
    exception's `trace` is what came before it.

    >>> from gpuconv import models
    >>> [step.name for step in trace(models.lenet(), (1, 32, 32)).steps][:4]
    ['input', 'conv2d', 'relu', 'max_pool2d']
    """
    found = Trace(network, fusing)
    try:
        with no_grad():
            run(network, given, training, found)
    except (ValueError, TypeError) as error:
        error.trace = found  # type: ignore[union-attr]
        raise
    return found


def output_shape(network: Module, input_shape: Shape) -> Shape:
    """The shape of one example's output, in evaluation mode, for one example's input.

    Where the shapes alone do not tell what the network does, it is run on zeros.
    NotImplementedError where its output is not one tensor.
    """
    with no_grad():
        try:
            y = run(network, input_shape, False, Trace(network))
        except TypeError:
            y = run(network, zeros(network, input_shape), False, Trace(network))
    if not isinstance(y, Tensor):
        raise NotImplementedError(
            f"{type(network).__name__} gives a {type(y).__name__}, expected one tensor"
        )
    return tuple(y.data.shape[1:])


def zeros(network: Module, input_shape: Shape) -> Any:
    """One example of zeros, in the type and on the device of a network's parameters."""
    dtype = next((p.data.dtype for p in network.parameters()), np.dtype(np.float32))
    return to_device(np.zeros((1, *input_shape), dtype), network.device)


def run(network: Module, given: Any, training: bool, found: Trace) -> Any:
    """The network's output for images, or for the shape of one; `found` notes the steps."""
    if isinstance(given, tuple | list):
        dtype = next((p.data.dtype for p in network.parameters()), np.dtype(np.float32))
        given = ShapeOnly((1, *given), dtype)
    x = Tensor(given, device=network.device)
    found.begin(x)
    before = state.trace, state.fusing
    state.trace, state.fusing = found, found.fusing
    try:
        with in_mode(network, training):
            return network(x)
    finally:
        state.trace, state.fusing = before


# A step's further values, from what the operation saved for its gradient (see nn/functional.py).
_OPTIONS: dict[str, Callable[[Sequence[Any]], tuple[Any, ...]]] = {
    "conv2d": lambda saved: (window(pair("kernel_size", saved[2].shape[2:], 1), *saved[4:7]),),
    "max_pool2d": lambda saved: (window(*saved[-5:]),),
    "sum_pool2d": lambda saved: (window(*saved[-5:]),),
    "avg_pool2d": lambda saved: (window(*saved[-6:-1]), saved[-1]),
}


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
