"""A network as an ONNX file: the operations of one forward pass, recorded on shapes alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpuconv import ops
from gpuconv.arrays import ShapeOnly, to_numpy
from gpuconv.autograd import Tensor, no_grad
from gpuconv.files import write_atomically
from gpuconv.nn import Module
from gpuconv.nn.trace import Recording, Step, run
from gpuconv.onnx.nodes import NODES, one_node
from gpuconv.onnx.package import example_shape, onnx_package

OPSET, IR_VERSION = 20, 10  # those of PyTorch's exporter
BATCH = 11  # images of the recorded pass: a length that other axes rarely have


def export(
    model: Module,
    path: Any,
    input_shape: tuple[int, ...] | None = None,
    *,
    input_name: str = "x",
    output_names: Sequence[str] | None = None,
    **metadata: Any,
) -> None:
    """Write a network's forward pass in evaluation mode as an ONNX file of opset 20.

    model: of gpuconv's layers and functions, with any `forward` of one tensor that returns one or
    several; it is left as it was. input_shape: one example's, (C, H, W); may be left out for a
    model that knows its own. The batch stays free, the image's size is fixed. output_names: as many
    as there are outputs; without them an output is named after its last function ("linear_2"), as
    by PyTorch's exporter. Weights have their names of `state_dict`. metadata: what JSON can hold,
    such as classes=[...]; the file's metadata_props have it.

    Needs the package onnx. Raises ValueError, in one line, where the layers do not fit the shape,
    where a forward depends on values or mixes the images of a batch, and for what ONNX lacks.
    """
    onnx = onnx_package()
    if not isinstance(model, Module):
        raise TypeError(f"export: a Module is expected, got {type(model).__name__}")
    if input_shape is None and model.input_shape is None:
        raise ValueError("export: this network does not know its input; give its input_shape")
    shape = example_shape("export", input_shape or model.input_shape)
    try:
        kept = {name: json.dumps(value) for name, value in metadata.items()}
    except (TypeError, ValueError) as error:
        raise TypeError(f"export: the metadata must be what JSON can hold: {error}") from None
    recorded = Recording(model)
    outputs = _record(model, shape, recorded)
    graph = Graph(model, recorded, input_name)
    names = graph.build(outputs, output_names)
    kind = onnx.helper.np_dtype_to_tensor_dtype(recorded.tensors[0].dtype)
    described = [
        onnx.helper.make_tensor_value_info(name, kind, ["batch", *y.shape[1:]])
        for name, y in zip(names, outputs, strict=True)
    ]
    given = onnx.helper.make_tensor_value_info(input_name, kind, ["batch", *shape])
    stored = [onnx.numpy_helper.from_array(a, name) for name, a in graph.arrays.items()]
    made = onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, type(model).__name__, [given], described, stored),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="gpuconv",
    )
    onnx.helper.set_model_props(made, kept)
    write_atomically(path, made.SerializeToString())


def _record(model: Module, shape: tuple[int, ...], recorded: Recording) -> list[Tensor]:
    """The outputs of a pass over a batch of shapes."""
    dtype = next((p.data.dtype for p in model.parameters()), np.dtype(np.float32))
    try:
        with no_grad():
            y = run(model, ShapeOnly((BATCH, *shape), dtype), False, recorded)
    except (TypeError, NotImplementedError) as error:
        where = recorded.failed or "the network"
        raise ValueError(
            f"export: the forward of {where} depends on more than shapes: {error}"
        ) from error
    outputs = list(y) if isinstance(y, tuple | list) else [y]
    for x in outputs:
        if not isinstance(x, Tensor):
            raise ValueError(f"export: the network must return tensors, got {type(x).__name__}")
        _ = x.data
    return outputs


class Graph:
    """The nodes and stored arrays of an ONNX graph, made from a recorded pass.

    Steps that do not depend on the input are stored as the arrays they gave.
    """

    def __init__(self, model: Module, recorded: Recording, input_name: str) -> None:
        self.recorded = recorded
        self.nodes: list[Any] = []
        self.arrays: dict[str, np.ndarray] = {}
        holders: list[tuple[str, Any]] = [*model.named_parameters(), *model.named_buffers()]
        self.names = {id(x): name for name, x in holders}
        self.names |= {id(x.data): name for name, x in holders}
        state = model.state_dict()
        if not input_name or input_name in state:
            raise ValueError(f"export: input_name must be a new name, got {input_name!r}")
        self.used = {input_name, *state}
        self.values = {0: input_name}  # by step, of what depends on the input
        self.step = recorded.steps[0]

    def build(self, outputs: list[Tensor], output_names: Sequence[str] | None) -> list[str]:
        """Make the nodes that the outputs need; returns the outputs' names."""
        numbers = list(map(self.recorded.number, outputs))
        needed = self._needed(numbers)
        for number, step in enumerate(self.recorded.steps):
            if number in needed and self._depends(number, step):
                self._convert(number, step)
        names: list[str] = []
        for number, y in zip(numbers, outputs, strict=True):
            name = self.name(y)
            if number == 0 or name in (*names, *self.arrays):
                self.step = Step("identity", "", (), y.shape, 0)
                name = self.node("Identity", name)
            names.append(name)
        return names if output_names is None else self._rename(names, list(output_names))

    def _needed(self, numbers: Sequence[int | None]) -> set[int]:
        needed, waiting = {0}, list(numbers)
        while waiting:
            number = waiting.pop()
            if number is not None and number not in needed:
                needed.add(number)
                waiting += self.recorded.steps[number].inputs
        return needed

    def _depends(self, number: int, step: Step) -> bool:
        """Whether a step depends on the input. ValueError where that cannot be told."""
        if number == 0 or not isinstance(self.recorded.tensors[number].data, ShapeOnly):
            return False
        where = step.module or "the network"
        if step.name == "unknown":
            raise ValueError(f"export: {where} has values that no function of nn.functional gave")
        if step.shape[:1] != (BATCH,):
            raise ValueError(f"export: {step.name} of {where} mixes the images of a batch")
        return True

    def _convert(self, number: int, step: Step) -> None:
        node = NODES.get(step.name)
        if node is None and getattr(getattr(ops, step.name, None), "onnx", None):
            node = one_node
        if node is None:
            where = f" of {step.module}" if step.module else ""
            raise ValueError(f"export: {step.name}{where} has no form in ONNX")
        self.step = step
        self.values[number] = node(self, *self.recorded.read[number])

    def _rename(self, names: list[str], wanted: list[str]) -> list[str]:
        others = self.used - set(names)
        if len(wanted) != len(names) or len({*wanted} - others) != len(names):
            raise ValueError(f"export: output_names must be {len(names)} new names, got {wanted}")
        new = dict(zip(names, wanted, strict=True))
        for node in self.nodes:
            node.input[:] = [new.get(name, name) for name in node.input]
            node.output[:] = [new.get(name, name) for name in node.output]
        return wanted

    # ---- for the functions of nodes.py ---------------------------------------------------------

    def name(self, x: Any) -> str:
        """The name of a tensor's value, or of a stored array of these numbers."""
        if not isinstance(x, Tensor):
            return self._stored(self.names.get(id(x)) or self.unique("constant"), x)
        number = self.recorded.number_of(x)
        if number in self.values:
            return self.values[number]
        if id(x) not in self.names:
            source = x.data
            if number is not None and self.recorded.steps[number].name == "linked":
                source = self.recorded.read[number][0][0]  # the weight of a layer with connections
            self.names[id(x)] = self.names.get(id(source)) or self.unique("constant")
        return self._stored(self.names[id(x)], x.data)

    def _stored(self, name: str, array: Any) -> str:
        if name not in self.arrays:
            self.arrays[name] = np.asarray(to_numpy(array), order="C")
        return name

    def node(self, op: str, *inputs: Any, **attributes: Any) -> str:
        """Add a node of tensors, arrays and names; returns the name of its output."""
        given = [x if isinstance(x, str) else self.name(x) for x in inputs]
        output = self.unique(self.step.name)
        place = self.step.module.replace(".", "/")
        made = onnx_package().helper.make_node(
            op, given, [output], self.unique(f"/{place}/{op}" if place else f"/{op}"), **attributes
        )
        self.nodes.append(made)
        return output

    def unique(self, name: str) -> str:
        """The name itself, or with the first free number behind it."""
        count, found = 0, name
        while found in self.used:
            count += 1
            found = f"{name}_{count}"
        self.used.add(found)
        return found
