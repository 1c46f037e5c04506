"""An ONNX file as a network: its nodes, in order, as layers and functions of gpuconv."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from gpuconv.arrays import ShapeOnly
from gpuconv.autograd import Parameter, Tensor, no_grad
from gpuconv.errors import one_line
from gpuconv.nn import Module
from gpuconv.onnx.network import OnnxNetwork, Step
from gpuconv.onnx.on_host import MAX_VALUES
from gpuconv.onnx.operators import convert, fold
from gpuconv.onnx.package import example_shape, onnx_package


def load(path: Any, input_shape: tuple[int, ...] | None = None) -> OnnxNetwork:
    """The ConvNet of an ONNX file, with its weights, in evaluation mode.

    input_shape: one example's, (C, H, W), where the file leaves it open: then shapes are checked
    here and not when the network runs. Convolutions, fully connected layers and batch norms become
    layers: "conv1.weight" in the file is `network.conv1.weight`; weights of other names are found
    under their node's name. Everything can be trained further; a file does not tell which
    parameters were frozen.

    Needs the package onnx. Raises FileNotFoundError; ValueError, in one line, for a file that is
    no ONNX or does not fit together; NotImplementedError for the first operator, or the first use
    of one, that gpuconv does not have.
    """
    onnx = onnx_package()
    if input_shape is not None:
        input_shape = example_shape("load", input_shape)
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        file = onnx.load(path)
        if not file.graph.node:
            raise ValueError("it has no nodes")
    except Exception as error:  # protobuf's, onnx's, and of data beside the file
        raise ValueError(f"{path}: not a readable ONNX file: {one_line(error)[:200]}") from None
    try:
        return Reader(file, input_shape).read().eval()
    except NotImplementedError as error:
        raise NotImplementedError(f"{path}: {error}") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {one_line(error)}") from error
    except (ArithmeticError, AttributeError, LookupError, RecursionError) as error:
        what = f"{type(error).__name__}: {one_line(error)}"
        raise ValueError(f"{path}: its graph does not fit together ({what})") from error


class Reader:
    """Makes a network of a file, node by node, as the functions of operators.py say.

    shapes: where the input's shape is known, each value as a shape-only tensor or an array; so what
    does not fit is found here.
    """

    def __init__(self, file: Any, input_shape: tuple[int, ...] | None) -> None:
        graph, to_array = file.graph, onnx_package().numpy_helper.to_array
        self.graph = graph
        self.opset = max(
            (o.version for o in file.opset_import if o.domain in ("", "ai.onnx")), default=1
        )
        self.arrays = {one.name: _readable(to_array(one)) for one in graph.initializer}
        self.origin = {name: name for name in self.arrays}  # the file's name of what was folded
        self.host = set(self.arrays)  # values that are computed with NumPy
        self.merged: set[str] = set()  # outputs of nodes that became part of another one's step
        self.layers: dict[tuple[str, ...], str] = {}  # places of those that others may share
        self.padded: dict[str, tuple[str, Any]] = {}  # by value, before a layer that pads itself
        given = [one for one in graph.input if one.name not in self.arrays]
        self.outputs = [one.name for one in graph.output]
        self.network = OnnxNetwork([one.name for one in given], self.outputs)
        self.made = set(self.network.input_names)
        self.readers: dict[str, list[Any]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self.readers[name].append(node)
        for one in file.metadata_props:
            with suppress(ValueError):
                self.network.metadata[one.key] = json.loads(one.value)
        self.batch, shape = _declared(given[0]) if given else (None, None)
        shape = input_shape or shape
        self.shapes: dict[str, Any] | None = None
        if shape is not None and math.prod(shape) > MAX_VALUES:
            raise ValueError(f"an example of shape {shape} is too large")
        if len(given) == 1 and shape is not None:
            self.network.input_shape = shape
            dtype = onnx_package().helper.tensor_dtype_to_np_dtype(
                given[0].type.tensor_type.elem_type
            )
            whole = ShapeOnly((self.batch or 1, *shape), dtype)
            self.shapes = {given[0].name: Tensor(whole)}

    def read(self) -> OnnxNetwork:
        with no_grad():
            for node in self.graph.node:
                fold(self, node)
            for node in self.graph.node:
                if node.output[0] not in self.merged and node.output[0] not in self.arrays:
                    convert(self, node)
        self._require(self.outputs, "the graph's output")
        self._find_unread()
        return self.network

    def add(self, step: Step) -> None:
        """Append a step; what it reads of the stored arrays is put where `forward` finds it."""
        self._require(filter(None, step.inputs), f"{step.name}: the input")
        self.made.update(step.outputs)
        self.network._steps.append(step)
        if self.shapes is not None:
            values = {name: self._known(name) for name in step.inputs if name}
            self.network.run_step(step, values)
            self.shapes |= values

    def _require(self, names: Iterable[str], what: str) -> None:
        """Keep these values for `forward`. ValueError for one that nothing gives."""
        for name in names:
            if name not in self.made and name not in self.arrays:
                raise ValueError(f"{what} {name!r} is given by no node before")
            self.value(name)

    def _known(self, name: str) -> Any:
        network = self.network
        if name in network._stored:
            return network.part(network._stored[name])
        if name in network._constants:
            return network._constants[name]
        assert self.shapes is not None
        return self.shapes[name]

    def store(self, name: str, array: np.ndarray, origin: str | None) -> None:
        """Note an array that was computed here, from the one called `origin` in the file."""
        self.arrays[name] = _readable(array)
        self.origin[name] = self.origin.get(origin, name) if origin else name
        self.host.add(name)

    def value(self, name: str) -> None:
        """Keep a stored array for `forward`: numbers and integers as they are, other floats as a
        parameter.
        """
        network, array = self.network, self.arrays.get(name)
        if array is None or name in network._stored or name in network._constants:
            return
        if array.dtype.kind != "f":
            network._constants[name] = array
        elif array.size == 1:
            network._constants[name] = float(array.item())
        else:
            network._stored[name] = self.place(self.origin[name], Parameter(array))

    def place(self, name: str, part: Any) -> str:
        """Put a layer or parameter under a dotted name, or the nearest free one; returns that."""
        *path, last = (piece or "_" for piece in name.replace("/", ".").strip(".").split("."))
        holder, found = self.network, []
        for piece in path:
            while hasattr(holder, piece) and not isinstance(vars(holder).get(piece), Module):
                piece += "_"
            if not hasattr(holder, piece):
                setattr(holder, piece, Module())
            holder = getattr(holder, piece)
            found.append(piece)
        while hasattr(holder, last):
            last += "_"
        setattr(holder, last, part.eval() if isinstance(part, Module) else part)
        return ".".join([*found, last])

    def _find_unread(self) -> None:
        seen = set(self.outputs)
        unread: list[list[str]] = []
        for step in reversed(self.network._steps):
            names = {*step.inputs, *step.outputs} - seen
            seen |= names
            unread.append(sorted(names))
        self.network._unread = unread[::-1]


def _readable(array: np.ndarray) -> np.ndarray:
    """Half precision as float32."""
    narrow = array.dtype.itemsize < 4 and array.dtype.kind not in "iub"
    return array.astype(np.float32) if narrow else array


def _declared(value: Any) -> tuple[int | None, tuple[int, ...] | None]:
    """The batch that a file says, None for any, and one example's shape where that is known."""
    sizes: Iterable[Any] = value.type.tensor_type.shape.dim
    batch, *shape = [max(size.dim_value, 0) for size in sizes] or [0]
    return batch or None, tuple(shape) if shape and all(shape) else None
