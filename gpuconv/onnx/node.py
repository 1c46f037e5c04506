"""A node of an ONNX file, as the functions of operators.py read it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.nn import Buffer, Module, Parameter, init
from gpuconv.onnx.network import Step
from gpuconv.onnx.package import onnx_package
from gpuconv.shapes import Window

if TYPE_CHECKING:
    from gpuconv.onnx.load import Reader

# Names of weights: "conv1.weight", "conv1_w_0"; and those that only an exporter's counter gave.
WEIGHT = re.compile(r"[._/](weight|weights|w|kernel|scale|gamma|s)(_\d+)?(:\d+)?$")
GENERATED = re.compile(r"onnx::|val_|constant|\d|.*/Constant", re.IGNORECASE)
LOWEST = -3e38  # what exporters pad with before a max-pool
# Where layers take a padding that stands before them, and its value.
PADDED = {"Conv": 0.0, "AveragePool": 0.0, "MaxPool": -np.inf}


class Node:
    """A node. reads: the inputs that its step reads; a function takes out what it keeps itself."""

    def __init__(self, reader: Reader, proto: Any) -> None:
        self.reader, self.proto, self.op = reader, proto, proto.op_type
        self.name = f"{proto.op_type} {proto.name or proto.output[0]!r}"
        self.inputs, self.reads = list(proto.input), list(proto.input)
        self.outputs: tuple[str, ...] = tuple(proto.output)
        self.merged = ""  # the stored bias of a node that became part of this one
        value = onnx_package().helper.get_attribute_value
        self.attributes = {one.name: value(one) for one in proto.attribute}

    # ---- what the file says --------------------------------------------------------------------

    def attribute(self, name: str, default: Any) -> Any:
        found = self.attributes.get(name, default)
        return found.decode() if isinstance(found, bytes) else found

    def has(self, i: int) -> bool:
        """Whether there is an input of that number."""
        return len(self.inputs) > i and self.inputs[i] != ""

    def array(self, i: int, what: str) -> np.ndarray:
        """A stored input, which the step does not read. NotImplementedError for a computed one."""
        found = self.reader.arrays.get(self.inputs[i]) if self.has(i) else None
        if found is None:
            raise NotImplementedError(f"{self.name}: {what} must be stored in the file")
        self._keep(i)
        return found

    def constant(self, i: int, name: str, default: Any) -> Any:
        """A stored input, or an attribute in files of older opsets."""
        return self.array(i, name) if self.has(i) else self.attribute(name, default)

    def _keep(self, i: int) -> None:
        self.reads = [name for name in self.reads if name != self.inputs[i]]

    def shape(self, i: int) -> tuple[int, ...] | None:
        """The shape of an input's value, None where it is not known here."""
        known = self.reader.shapes
        return tuple(known[self.inputs[i]].shape) if known and self.inputs[i] in known else None

    def ndim(self, i: int) -> int | None:
        shape = self.shape(i)
        return None if shape is None else len(shape)

    # ---- windows and padding -------------------------------------------------------------------

    def window(self, kernel: Sequence[int]) -> tuple[Any, Any, Any]:
        """(stride, padding, dilation) of a window, with the padding of a node before it."""
        if len(kernel) != 2:
            raise NotImplementedError(
                f"{self.name}: only windows over height and width are supported"
            )
        stride, dilation = (_short(self.attribute(n, (1, 1))) for n in ("strides", "dilations"))
        auto = self.attribute("auto_pad", "NOTSET")
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            padding: Any = "same"
            if auto == "SAME_LOWER":
                shape = self.shape(0)
                if shape is None:
                    raise NotImplementedError(f"{self.name}: SAME_LOWER needs a known image size")
                pads = Window(tuple(kernel), stride, "same", dilation).pads(*shape[2:])
                padding = tuple(pad[::-1] for pad in pads)
            return stride, padding, dilation
        given = (0, 0, 0, 0) if auto == "VALID" else tuple(self.attribute("pads", (0, 0, 0, 0)))
        self.inputs[0], before = self.reader.padded.get(self.inputs[0], (self.inputs[0], None))
        self.reads[0] = self.inputs[0]
        around = tuple((given[i], given[i + 2]) for i in (0, 1))
        if before is not None:
            around = tuple((a + c, b + d) for (a, b), (c, d) in zip(around, before, strict=True))
        (top, bottom), (left, right) = around
        padding = _short((top, left)) if top == bottom and left == right else around
        return stride, padding, dilation

    def padding(self) -> tuple[tuple[int, int], ...] | None:
        """Of a Pad: ((top, bottom), (left, right)), None where other axes are padded too."""
        pads = [int(n) for n in self.constant(1, "pads", ())]
        half = len(pads) // 2
        axes = [int(a) % 4 for a in self.constant(3, "axes", range(half))]
        found = dict(zip(axes, zip(pads[:half], pads[half:], strict=True), strict=True))
        if any(any(pad) for axis, pad in found.items() if axis < 2) or min(pads, default=0) < 0:
            return None
        return found.get(2, (0, 0)), found.get(3, (0, 0))

    def joins_what_follows(self, pads: Any, value: float) -> bool:
        """Whether a Pad is done by the one layer that reads it; then that is noted."""
        (output,), reader = self.outputs, self.reader
        readers = reader.readers[output]
        if len(readers) != 1 or output in reader.outputs or readers[0].op_type not in PADDED:
            return False
        follower = Node(reader, readers[0])
        if follower.op == "MaxPool":
            fits = value <= LOWEST
        else:
            fits = value == 0 and (
                follower.op == "Conv" or follower.attribute("count_include_pad", 0)
            )
        if not fits or follower.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            return False
        reader.padded[output] = self.inputs[0], pads
        return True

    # ---- layers --------------------------------------------------------------------------------

    def bias_that_follows(self, channels: int, pixels: bool) -> np.ndarray | None:
        """The stored numbers that the next node adds to each channel; that node is merged into this
        one. None where there are none.
        """
        output, reader = self.outputs[0], self.reader
        readers = reader.readers[output]
        if len(readers) != 1 or output in reader.outputs or readers[0].op_type != "Add":
            return None
        (other,) = [name for name in readers[0].input if name != output] or [""]
        found = reader.arrays.get(other)
        if found is None or found.size != channels or found.ndim < (3 if pixels else 1):
            return None
        if found.shape[-3 if pixels else -1] != channels:
            return None
        self.outputs, self.merged = tuple(readers[0].output), other
        reader.merged.add(self.outputs[0])
        return found.reshape(-1)

    def layer(self, make: Callable[[], Module], **arrays: np.ndarray | None) -> None:
        """Add a step that calls a layer with these arrays as its parameters and buffers."""
        with init.deferred(shapes_only=True):
            layer = make()
        for name, array in arrays.items():
            holder: Parameter | Buffer | None = getattr(layer, name)
            if holder is not None and array is not None:
                if tuple(holder.data.shape) != array.shape:
                    raise ValueError(f"{self.name}: {name} has shape {array.shape}")
                holder.data = np.array(array, order="C")
        key = (self.op, repr(layer), repr(self.attributes), *self.inputs[1:], self.merged)
        if not arrays or key not in self.reader.layers:
            self.reader.layers[key] = self.reader.place(self._path(), layer)
        name = self.reader.layers[key]
        self.reader.add(Step(self.name, (self.inputs[0],), self.outputs, None, name))

    def _path(self) -> str:
        """Where a layer goes: its weight's name says it, or the node's, or its output's."""
        weight = self.reader.origin.get(self.inputs[1], "") if self.has(1) else ""
        if weight and not GENERATED.match(weight):
            return WEIGHT.sub("", weight)
        *parts, last = self.proto.name.strip("/").split("/")
        if not (parts and last.startswith(self.op)):
            parts.append(last)
        path = ""
        for part in parts:  # PyTorch's /layer1/layer1.0/conv1/Conv is layer1.0.conv1
            path = part if not path or part.startswith(f"{path}.") else f"{path}.{part}"
        return path or self.outputs[0]

    def around(self, function: Callable[..., Any]) -> None:
        """Let a step run on the first input before this node's, which reads its result."""
        value = f"{self.outputs[0]}/before"
        self.reader.add(Step(self.name, (self.inputs[0],), (value,), function))
        self.inputs[0] = value

    def after(self, function: Callable[..., Any]) -> None:
        """Let a step run on what this node's gave."""
        self.reader.add(Step(self.name, self.outputs, self.outputs, function))


def _short(pair: Sequence[int]) -> Any:
    """Two equal numbers as one."""
    return pair[0] if pair[0] == pair[1] else tuple(pair)
