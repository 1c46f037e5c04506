"""The network that an ONNX file becomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

from gpuconv.autograd import Tensor
from gpuconv.errors import one_line
from gpuconv.nn import Module


@dataclass(frozen=True)
class Step:
    """One node: `function` of the inputs' values, or the layer of that name, gives its outputs. An
    input called "" is None.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    function: Callable[..., Any] | None = None
    layer: str = ""


class OnnxNetwork(Module):
    """The network of an ONNX file. forward: one tensor for each of the file's inputs -> one tensor,
    or a tuple of them. input_names, output_names: the file's. metadata: of its metadata_props those
    that are JSON, as `export` writes them.
    """

    def __init__(self, input_names: list[str], output_names: list[str]) -> None:
        super().__init__()
        self.input_names, self.output_names = input_names, output_names
        self.metadata: dict[str, Any] = {}
        self._steps: list[Step] = []
        self._constants: dict[str, Any] = {}  # by value
        self._stored: dict[str, str] = {}  # the parameter that a value is, by dotted name
        self._unread: list[list[str]] = []  # the values that nobody reads after each step

    def forward(self, *inputs: Tensor) -> Any:
        if len(inputs) != len(self.input_names):
            names = ", ".join(self.input_names)
            raise TypeError(f"the network takes {names}, got {len(inputs)} inputs")
        values = dict(zip(self.input_names, inputs, strict=True)) | self._constants
        values |= {value: self.part(name) for value, name in self._stored.items()}
        for step, unread in zip(self._steps, self._unread, strict=True):
            self.run_step(step, values)
            for name in unread:
                values.pop(name, None)
        found = tuple(values[name] for name in self.output_names)
        return found if len(found) > 1 else found[0]

    def run_step(self, step: Step, values: dict[str, Any]) -> None:
        """Put what a step gives for these values beside them."""
        function = step.function or self.part(step.layer)
        try:
            found = function(*(values[name] if name else None for name in step.inputs))
        except (TypeError, ValueError, NotImplementedError) as error:
            raise type(error)(f"{step.name}: {one_line(error)}") from error
        found = found if isinstance(found, tuple) else (found,)
        values |= dict(zip(step.outputs, found, strict=False))

    def part(self, name: str) -> Any:
        """The layer or parameter of a dotted name."""
        return reduce(getattr, name.split("."), self)

    def extra_repr(self) -> str:
        return f"{len(self._steps)} nodes"
