"""A row of layers with auxiliary heads beside it, as GoogLeNet has for training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gpuconv import ops
from gpuconv.nn.containers import Sequential
from gpuconv.nn.layer import Layer, Row, Shape, join_names


class AuxiliaryHeads(Sequential):
    """Layers in a row, some of which are heads: each reads the output of one layer of the row.

    heads: which layer each head reads, {"aux1": "inception4a", ...}, in the order in which the row
    reaches them; the named layers, heads too, are given in the order of the state.
    forward: in training the tuple (scores, then each head's scores); in evaluation scores alone,
    the heads being left out. backward takes what forward gave the shape of, as `AuxiliaryLoss`
    does. Source: Szegedy et al. 2014, section 5.
    """

    def __init__(self, heads: Mapping[str, str], **named: Layer) -> None:
        super().__init__(**named)
        self._heads = dict(heads)
        self._ran: list[tuple[list[Layer], Layer | None]] = []

    def _rows(self) -> list[tuple[list[tuple[str, Layer]], str | None]]:
        """The row cut after every layer that a head reads, each part with that head's name."""
        parts: list[tuple[list[tuple[str, Layer]], str | None]] = []
        part: list[tuple[str, Layer]] = []
        reads = {layer: head for head, layer in self._heads.items()}
        for name, layer in self._layers.items():
            if name not in self._heads:
                part.append((name, layer))
            if name in reads:
                parts.append((part, reads[name]))
                part = []
        return [*parts, (part, None)]

    def forward(self, x: np.ndarray) -> Any:
        self._ran, scores = [], []
        for part, name in self._rows():
            steps = self._fused(layer for _, layer in part)
            for step in steps:
                x = step.forward(x)
            head = self._layers[name] if name is not None and self.training else None
            if head is not None:
                scores.append(head.forward(x))
            self._ran.append((steps, head))
        return (x, *scores) if scores else x

    def backward(self, dy: Any, need_dx: bool = True) -> np.ndarray | None:
        gradient, *others = dy if isinstance(dy, tuple) else (dy,)
        for number, (steps, head) in reversed(list(enumerate(self._ran))):
            if head is not None:
                gradient = self._sum(gradient, head.backward(others.pop()))
            for place, step in reversed(list(enumerate(steps))):
                gradient = step.backward(gradient, need_dx or number + place > 0)
        self._ran = []
        return gradient

    def _sum(self, a: np.ndarray, b: np.ndarray | None) -> np.ndarray:
        return self.run(ops.add, a, b)

    def infer(self, x: np.ndarray) -> Any:
        scores = []
        for part, name in self._rows():
            for step in self._fused(layer for _, layer in part):
                x = step.infer(x)
            if name is not None and self.training:
                scores.append(self._layers[name].infer(x))
        return (x, *scores) if scores else x

    def trace(self, shape: Shape, name: str, rows: list[Row]) -> Shape:
        for part, head in self._rows():
            for child, layer in part:
                shape = layer.trace(shape, join_names(name, child), rows)
            if head is not None:
                self._layers[head].trace(shape, join_names(name, head), rows)
        return shape
