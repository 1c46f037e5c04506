"""One forward pass with the outputs of some layers, and the gradients between them; or its steps.

Every explanation is made of this. Forward hooks keep what the layers give; a gradient at a layer is
what a hook on its output sees in the backward pass. The network is left as it was: its modes, the
gradients and flags of its parameters, its running statistics and its hooks, also where something
raises.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from gpuconv import ops
from gpuconv.arrays import contiguous, to_device, to_numpy
from gpuconv.autograd import Node, Tensor, enable_grad, keep_all, no_grad, nodes_of
from gpuconv.nn import Module, trace
from gpuconv.nn.module import in_mode
from gpuconv.nn.trace import Step

# Changes how a ReLU, a node of the tape, passes the gradient back.
Rule = Callable[[Node], None]


def guided(relu: Node) -> None:
    """Only what is positive passes, and only where the input was: Springenberg et al. 2014."""
    relu.hooks.append(lambda dy: _positive(relu, dy))


def deconvolved(relu: Node) -> None:
    """What is positive passes, wherever the input was positive: Zeiler and Fergus 2014."""
    relu.backward = lambda dy, over, *saved: (_positive(relu, dy),)


def _positive(relu: Node, dy: Any) -> Any:
    return (ops.relu.reference if relu.reference else ops.relu)(contiguous(dy))


class Observation:
    """What a forward pass gave. outputs: each observed layer's, a tensor, in the order of their
    first calls.
    """

    def __init__(self, x: Tensor, device: str) -> None:
        self.outputs: dict[str, Tensor] = {}
        self._x, self._device = x, device

    def output(self, layer: str = "") -> np.ndarray:
        """A layer's output, (N, C, P, Q) or (N, features)."""
        return self.outputs[layer].numpy()

    def gradient(
        self, dy: np.ndarray, of: str = "", at: str | None = None, rule: Rule | None = None
    ) -> np.ndarray | None:
        """The gradient of sum(dy * output of layer `of`) at the output of layer `at`; once only.

        at: None for the input. rule: is applied to every ReLU on the way, be it a layer or a call
        of functional.relu; all else goes backward as in training. Returns an array of that output's
        shape; None where `of` does not depend on it.
        """
        y, target = self.outputs[of], self._x if at is None else self.outputs[at]
        if not (y.requires_grad and target.requires_grad):
            return None
        found: list[Any] = []
        target.register_hook(found.append)
        for node in () if rule is None else nodes_of(y):
            if node.name == "relu":
                rule(node)  # type: ignore[misc]
        y.backward(to_device(dy, self._device))
        return to_numpy(found[0]) if found else None


class Observer:
    """Forward passes of a network in evaluation mode that keep the outputs of some layers.

    layers: their dotted names, "" for the network itself. Of a layer that a pass calls more than
    once, the last call counts. From the second pass on, each ends as soon as it has what is needed.
    Raises ValueError, with the nearest known name, for an unknown layer.
    """

    def __init__(self, model: Module, layers: Sequence[str] = ("",)) -> None:
        self._model = model
        self._modules = {name: model.get_submodule(name) for name in layers}
        self._calls: Counter[str] | None = None  # of each layer, in a whole pass

    def run(self, x: np.ndarray, gradients: bool = True, all_of_them: bool = True) -> Observation:
        """Run images, floats (N, C, H, W), NumPy.

        gradients: whether they will be asked for. all_of_them: raise ValueError for a layer that
        the pass does not call, such as an auxiliary head. Also raises ValueError for an x that is
        no batch of images.
        """
        if getattr(x, "ndim", 0) != 4:
            shape = getattr(x, "shape", type(x).__name__)
            raise ValueError(f"explain: x must be a batch of images (N, C, H, W), got {shape}")
        device = self._model.device
        leaf = Tensor(to_device(x, device), requires_grad=gradients, device=device)
        found, calls = Observation(leaf, device), Counter[str]()
        with ExitStack() as stack:
            stack.enter_context(_left_as_it_was(self._model, fusing=not gradients))
            stack.enter_context(enable_grad() if gradients else no_grad())
            stack.enter_context(keep_all())
            for name, module in self._modules.items():
                handle = module.register_forward_hook(self._keep(name, found, calls))
                stack.callback(handle.remove)
            try:
                self._model(leaf)
            except _Enough:
                return found
            except ValueError:  # a later layer may not fit the image
                if len(calls) < len(self._modules):
                    raise
        self._calls = calls
        for name in self._modules if all_of_them else ():
            if name not in calls:
                raise ValueError(f"explain: in evaluation, the network does not run layer {name}")
        return found

    def _keep(self, name: str, found: Observation, calls: Counter[str]) -> Callable[..., None]:
        def keep(module: Module, inputs: Any, output: Any) -> None:
            found.outputs[name] = output[0] if isinstance(output, tuple) else output
            calls[name] += 1
            if calls == self._calls:
                raise _Enough

        return keep


class _Enough(Exception):
    """All that was to be observed has been."""


@contextmanager
def _left_as_it_was(model: Module, fusing: bool) -> Iterator[None]:
    """Within, the network is in evaluation mode, its parameters want no gradients, and functions
    are fused or not.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    fused = vars(model).get("fusing")
    try:
        model.requires_grad_(False)
        if not fusing:
            model.fusing = False
        with in_mode(model, False):
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad = flag
        if fused is not None:
            model.fusing = fused
        else:
            vars(model).pop("fusing", None)


def activations(
    model: Module, x: np.ndarray, layers: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """The outputs of layers by name; where none are named, of all that the network runs.

    x: floats (N, C, H, W). Returns each layer's (N, C, P, Q) or (N, features); the network is left
    as it was. Raises ValueError for an unknown layer, and one that the network does not run in
    evaluation.

    >>> from gpuconv import models
    >>> found = activations(models.lenet(), np.zeros((1, 1, 32, 32), np.float32))
    >>> found["conv2"].shape
    (1, 16, 10, 10)
    """
    names = [name for name, _ in model.named_modules() if name] if layers is None else layers
    observed = Observer(model, names).run(x, gradients=False, all_of_them=layers is not None)
    return {name: observed.output(name) for name in observed.outputs}


def steps_of(
    model: Module, input_shape: Sequence[int], layer: str
) -> tuple[list[Step], dict[int, str], int]:
    """The steps of a forward pass for images of that shape, the shortest name of the layer whose
    output each gives, where it has one, and the number of the step that gives layer `layer`'s.

    A layer after that one may not fit the images. Raises ValueError for an unknown layer, one that
    is not run in evaluation, one that does not fit, and a forward pass that needs values.
    """
    model.get_submodule(layer)
    try:
        found = trace(model, tuple(input_shape))
    except (ValueError, TypeError) as error:
        found = error.trace  # type: ignore[union-attr]
        if layer not in found.outputs:
            where = found.failed or "the network"
            if isinstance(error, TypeError):
                where = f"explain: the forward pass of {where} needs more than shapes"
            raise ValueError(f"{where}: {error}") from error
    if layer not in found.outputs:
        raise ValueError(f"explain: in evaluation, the network does not run layer {layer}")
    names: dict[int, str] = {}
    for name, number in found.outputs.items():
        if name and (number not in names or len(name) < len(names[number])):
            names[number] = name
    return found.steps, names, found.outputs[layer]
