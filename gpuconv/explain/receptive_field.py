"""Receptive fields: which pixels of the image a unit of a layer can see.

For each row of a layer's maps, the first and last row of the image that it depends on, and alike
for columns: what a window reads is the union of what its taps read. Nothing is approximated at the
border, for paddings of two sizes, ceil_mode, dilation, or where branches meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpuconv.explain.graph import Graph, Join, Sum
from gpuconv.nn import (
    AdaptiveAvgPool2d,
    BatchNorm2d,
    Conv2d,
    Dropout,
    Flatten,
    Identity,
    Layer,
    Linear,
    LocalResponseNorm,
    Softmax,
)
from gpuconv.nn.activation import _Activation
from gpuconv.nn.pool import _Pool2d
from gpuconv.shapes import Window

Box = tuple[int, int, int, int]
_NONE = np.iinfo(np.int64).max  # the first pixel of a span that has none
_POINTWISE = (_Activation, BatchNorm2d, Dropout, Identity, LocalResponseNorm, Softmax)


@dataclass(frozen=True)
class Spans:
    """For each place along one axis of a layer's maps, the pixels it sees: first[i] to end[i] - 1.

    Where it sees none, but padding, end is 0 and first larger than any size.
    """

    first: np.ndarray
    end: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    def union(self, other: Spans) -> Spans:
        """What either sees, place by place."""
        return Spans(np.minimum(self.first, other.first), np.maximum(self.end, other.end))

    def of(self, groups: Sequence[np.ndarray]) -> Spans:
        """Spans of places that each read a group of these ones."""
        first = [self.first[group].min(initial=_NONE) for group in groups]
        end = [self.end[group].max(initial=0) for group in groups]
        return Spans(np.array(first, np.int64), np.array(end, np.int64))


@dataclass(frozen=True)
class ReceptiveField:
    """What the units of one layer see. rows, columns: `Spans` along the two axes of its maps; of
    one place each for a layer without maps.

    size: the height and width of the largest box; of all boxes that no border cuts.
    """

    layer: str
    rows: Spans
    columns: Spans

    @property
    def size(self) -> tuple[int, int]:
        height, width = (int((a.end - a.first).max()) for a in (self.rows, self.columns))
        return (height, width) if min(height, width) > 0 else (0, 0)

    def box(self, p: int = 0, q: int = 0) -> Box:
        """(top, bottom, left, right) of unit (p, q): rows top to bottom - 1 of the image, columns
        left to right - 1; (0, 0, 0, 0) where it sees padding alone.
        """
        top, bottom = int(self.rows.first[p]), int(self.rows.end[p])
        left, right = int(self.columns.first[q]), int(self.columns.end[q])
        empty = top >= bottom or left >= right
        return (0, 0, 0, 0) if empty else (top, bottom, left, right)


def receptive_field(
    model: Layer, layer: str, input_shape: Sequence[int] | None = None
) -> ReceptiveField:
    """The pixels of the image that each unit of a layer can depend on.

    layer: a layer or container, by its dotted name. input_shape: one image's (C, H, W); may be
    left out for a model that knows its own.
    Raises ValueError for an unknown layer, windows that do not fit the image, and no input shape;
    NotImplementedError for a layer that is none of gpuconv's.
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
    graph = Graph(model)
    last = graph.find(layer)
    found = [(_pixels(shape[1]), _pixels(shape[2]))]
    for node in graph.nodes[1 : last + 1]:
        inputs = [found[source] for source in node.inputs]
        found.append(_through(node.layer, inputs, node.name))  # type: ignore[arg-type]
    return ReceptiveField(layer, *found[last])


def _pixels(size: int) -> Spans:
    return Spans(np.arange(size), np.arange(size) + 1)


def _through(layer: Layer, inputs: list[tuple[Spans, Spans]], name: str) -> tuple[Spans, Spans]:
    """What a layer's rows and columns see, from what its inputs' do."""
    rows, columns = inputs[0]
    if isinstance(layer, Sum | Join):
        for other_rows, other_columns in inputs[1:]:
            rows, columns = rows.union(other_rows), columns.union(other_columns)
        return rows, columns
    if isinstance(layer, _POINTWISE):
        return rows, columns
    if isinstance(layer, Flatten | Linear):
        return rows.of([np.arange(len(rows))]), columns.of([np.arange(len(columns))])
    if isinstance(layer, AdaptiveAvgPool2d):
        P, Q = layer.size
        return rows.of(_bins(len(rows), P)), columns.of(_bins(len(columns), Q))
    if isinstance(layer, Conv2d | _Pool2d):
        layer.window.require(name, len(rows), len(columns))
        taps = [_taps(layer.window, (len(rows), len(columns)), axis) for axis in (0, 1)]
        return rows.of(taps[0]), columns.of(taps[1])
    raise NotImplementedError(
        f"receptive_field: {name} is a {type(layer).__name__}, whose window is not known"
    )


def _taps(window: Window, size: tuple[int, int], axis: int) -> list[np.ndarray]:
    """For each output along an axis, the places that its window reads within the image."""
    start = window.pads(*size)[axis][0]
    reach = np.arange(window.kernel_size[axis]) * window.dilation[axis] - start
    outputs = window.output_size(*size)[axis]
    read = [output * window.stride[axis] + reach for output in range(outputs)]
    return [places[(places >= 0) & (places < size[axis])] for places in read]


def _bins(size: int, outputs: int) -> list[np.ndarray]:
    """The places that each output of an adaptive pooling averages."""
    return [np.arange(p * size // outputs, -(-(p + 1) * size // outputs)) for p in range(outputs)]
