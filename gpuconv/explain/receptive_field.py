"""Receptive fields: which pixels of the image a unit of a layer can see.

For each row of a layer's maps, the first and last row of the image that it depends on, and alike
for columns: what a window reads is the union of what its taps read. Nothing is approximated at the
border, for paddings of two sizes, ceil_mode, dilation, or where branches meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpuconv.explain.observe import steps_of
from gpuconv.nn import Module
from gpuconv.nn.trace import Step
from gpuconv.shapes import Window

Box = tuple[int, int, int, int]
_NONE = np.iinfo(np.int64).max  # the first pixel of a span that has none
# Operations whose outputs each read the same place of every input.
_PLACE_BY_PLACE = (
    "add", "append_channels", "batch_norm", "cat", "divide", "linked", "local_response_norm",
    "multiply", "power", "relu", "scale", "scaled_tanh", "sigmoid", "softmax", "subtract", "tanh",
)  # fmt: skip
_WHOLE = ("linear", "matmul", "reshape", "sum")  # each output may read everything


# For each place along one axis of a layer's maps the first pixel that it sees and the one after the
# last, int64 (places, 2). Where it sees none, but padding, _NONE and 0.
Spans = np.ndarray
_Field = tuple[Spans, Spans]


@dataclass(frozen=True)
class ReceptiveField:
    """What the units of one layer see. rows, columns: for each row and column of its maps the first
    pixel and the one after the last, int64 (P, 2) and (Q, 2); one of each for a layer without maps.

    size: the height and width of the largest box; of all boxes that no border cuts.
    """

    layer: str
    rows: Spans
    columns: Spans

    @property
    def size(self) -> tuple[int, int]:
        height, width = (int((a[:, 1] - a[:, 0]).max()) for a in (self.rows, self.columns))
        return (height, width) if min(height, width) > 0 else (0, 0)

    def box(self, p: int = 0, q: int = 0) -> Box:
        """(top, bottom, left, right) of unit (p, q): rows top to bottom - 1 of the image, columns
        left to right - 1; (0, 0, 0, 0) where it sees padding alone.
        """
        (top, bottom), (left, right) = self.rows[p].tolist(), self.columns[q].tolist()
        empty = top >= bottom or left >= right
        return (0, 0, 0, 0) if empty else (top, bottom, left, right)


def receptive_field(
    model: Module, layer: str, input_shape: Sequence[int] | None = None
) -> ReceptiveField:
    """The pixels of the image that each unit of a layer can depend on.

    layer: a layer or container, by its dotted name. input_shape: one image's (C, H, W); may be
    left out for a model that knows its own.
    It follows the operations of one forward pass, whatever the layers are called that run them.
    Raises ValueError for an unknown layer, windows that do not fit the image, no input shape, and
    a forward pass that needs values; NotImplementedError where an operation, such as indexing, does
    not say which pixels it reads.
    Source: Araujo, Norris and Sim 2019, "Computing receptive fields of convolutional neural
    networks", for the rule of one window.

    >>> from gpuconv import models
    >>> field = receptive_field(models.lenet(), "pool2")
    >>> field.size, field.box(0, 0), field.box(4, 4)
    ((16, 16), (0, 16, 0, 16), (16, 32, 16, 32))
    """
    shape = input_shape or getattr(model, "input_shape", None)
    if shape is None or len(shape) != 3:
        raise ValueError(
            f"receptive_field: input_shape must be (channels, height, width), got {shape}"
        )
    steps, _, last = steps_of(model, shape, layer)
    rows, columns = (np.arange(size)[:, None] + [0, 1] for size in shape[1:])
    found: list[_Field | None] = [(rows, columns)]
    for step in steps[1 : last + 1]:
        inputs = [found[source] for source in step.inputs if source is not None]
        found.append(_through(step, [field for field in inputs if field is not None]))
    field = found[last]
    if field is None:
        raise ValueError(f"receptive_field: layer {layer} does not depend on the image")
    return ReceptiveField(layer, *field)


def _through(step: Step, inputs: list[_Field]) -> _Field | None:
    """What a step's rows and columns see, from what its inputs' do; None for a constant."""
    where = step.module or "the network"
    if step.name == "unknown":
        raise NotImplementedError(
            f"receptive_field: {where} has values that no function of nn.functional gave; which "
            "pixels they depend on is not known"
        )
    if not inputs:
        return None
    if step.window is None and step.name not in (*_PLACE_BY_PLACE, *_WHOLE, "adaptive_avg_pool2d"):
        raise NotImplementedError(
            f"receptive_field: {where} runs {step.name}; which pixels that reads is not known"
        )
    return _along(step, inputs, 0), _along(step, inputs, 1)


def _along(step: Step, inputs: list[_Field], axis: int) -> Spans:
    length = step.shape[2 + axis] if len(step.shape) == 4 else 1
    spans = [field[axis] for field in inputs]
    if step.name in (*_PLACE_BY_PLACE, *_WHOLE):
        whole = step.name in _WHOLE  # else a single place is broadcast
        read = np.stack([
            _union(one, [np.arange(len(one))] * length) if whole or len(one) != length else one
            for one in spans
        ])  # fmt: skip
        return np.stack([read[..., 0].min(axis=0), read[..., 1].max(axis=0)], axis=1)
    if step.window is None:
        size = len(spans[0])  # of an adaptive pooling: each output averages its own places
        ends = [(p * size // length, -(-(p + 1) * size // length)) for p in range(length)]
        return _union(spans[0], [np.arange(*each) for each in ends])
    rows, columns = inputs[0]
    return _union(spans[0], _taps(step.window, (len(rows), len(columns)), axis))


def _union(spans: Spans, groups: Sequence[np.ndarray]) -> Spans:
    """What places see that each read a group of the places of `spans`."""
    found = [
        (spans[group, 0].min(initial=_NONE), spans[group, 1].max(initial=0)) for group in groups
    ]
    return np.array(found, np.int64)


def _taps(window: Window, size: tuple[int, int], axis: int) -> list[np.ndarray]:
    """For each output along an axis, the places that its window reads within the image."""
    start = window.pads(*size)[axis][0]
    reach = np.arange(window.kernel_size[axis]) * window.dilation[axis] - start
    outputs = window.output_size(*size)[axis]
    read = [output * window.stride[axis] + reach for output in range(outputs)]
    return [places[(places >= 0) & (places < size[axis])] for places in read]
