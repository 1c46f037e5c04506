"""Containers: layers in a row, side by side, and with a way around them. They express every model
of the zoo.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gpuconv import ops
from gpuconv.nn.fusion import fuse
from gpuconv.nn.layer import Layer, Row, Shape


class _Container(Layer):
    """Layers by name: positional ones are "0", "1", ..., as PyTorch numbers them."""

    def __init__(self, *layers: Layer, **named: Layer) -> None:
        super().__init__()
        if layers and named:
            raise TypeError(f"{type(self).__name__}: give layers by position or by name, not both")
        self._layers = {str(i): layer for i, layer in enumerate(layers)} or dict(named)
        for name, layer in self._layers.items():
            if not isinstance(layer, Layer):
                raise TypeError(
                    f"{type(self).__name__}: {name} must be a Layer, got {type(layer).__name__}"
                )

    def children(self) -> dict[str, Layer]:
        return self._layers

    def __iter__(self) -> Iterator[Layer]:
        return iter(self._layers.values())

    def __len__(self) -> int:
        return len(self._layers)

    def __getitem__(self, key: int | str) -> Layer:
        return self._layers[key] if isinstance(key, str) else list(self._layers.values())[key]

    def describe(self) -> str:
        return ", ".join(f"{name}={layer!r}" for name, layer in self._layers.items())

    def output_shape(self, shape: Shape) -> Shape:
        return self.trace(shape, "", [])


class Sequential(_Container):
    """Layers one after another: Sequential(Conv2d(1, 6, 5), ReLU()) or Sequential(conv=...,
    relu=...).

    input_shape: one example's (C, H, W), and spec: how to build it again; known of the models of
    the zoo.
    """

    input_shape: Shape | None = None
    spec: dict[str, Any] | None = None

    def __init__(self, *layers: Layer, **named: Layer) -> None:
        super().__init__(*layers, **named)
        self._steps: list[Layer] = []

    def forward(self, x: np.ndarray) -> np.ndarray:
        self._steps = self._fused()
        for step in self._steps:
            x = step.forward(x)
        return x

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        gradient: np.ndarray | None = dy
        for number, step in reversed(list(enumerate(self._steps))):
            gradient = step.backward(gradient, need_dx or number > 0)  # type: ignore[arg-type]
        return gradient

    def infer(self, x: np.ndarray) -> np.ndarray:
        for step in self._fused():
            x = step.infer(x)
        return x

    def _fused(self) -> list[Layer]:
        return list(self) if self.device == "reference" else fuse(list(self))

    def trace(self, shape: Shape, name: str, rows: list[Row]) -> Shape:
        for child, layer in self._layers.items():
            shape = layer.trace(shape, _join_names(name, child), rows)
        return shape


class Residual(Layer):
    """body(x) + shortcut(x), the shortcut being x itself unless one is given (He et al. 2015)."""

    def __init__(self, body: Layer, shortcut: Layer | None = None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: np.ndarray) -> np.ndarray:
        around = x if self.shortcut is None else self.shortcut.forward(x)
        return _sum(self.body.forward(x), around)

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        around = dy if self.shortcut is None else self.shortcut.backward(dy, need_dx)
        body = self.body.backward(dy, need_dx)
        return _sum(body, around) if body is not None and around is not None else None

    def infer(self, x: np.ndarray) -> np.ndarray:
        around = x if self.shortcut is None else self.shortcut.infer(x)
        return _sum(self.body.infer(x), around)

    def trace(self, shape: Shape, name: str, rows: list[Row]) -> Shape:
        body = self.body.trace(shape, _join_names(name, "body"), rows)
        around = shape
        if self.shortcut is not None:
            around = self.shortcut.trace(shape, _join_names(name, "shortcut"), rows)
        _same_shape(body, around)
        return body

    def output_shape(self, shape: Shape) -> Shape:
        return self.trace(shape, "", [])

    def describe(self) -> str:
        return f"{self.body!r}" + ("" if self.shortcut is None else f", shortcut={self.shortcut!r}")


class Concat(_Container):
    """Branches side by side on the same x, their outputs joined along the channels (Szegedy et al.
    2014).
    """

    def __init__(self, *layers: Layer, **named: Layer) -> None:
        super().__init__(*layers, **named)
        if not self._layers:
            raise ValueError("Concat: at least one branch is needed")
        self._channels: list[int] = []

    def forward(self, x: np.ndarray) -> np.ndarray:
        return self._join([branch.forward(x) for branch in self])

    def infer(self, x: np.ndarray) -> np.ndarray:
        return self._join([branch.infer(x) for branch in self])

    def _join(self, outputs: list[np.ndarray]) -> np.ndarray:
        self._channels = [y.shape[1] for y in outputs]
        return np.concatenate(outputs, axis=1)

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        parts = np.split(dy, np.cumsum(self._channels)[:-1], axis=1)
        dx: np.ndarray | None = None
        for branch, part in zip(self, parts, strict=True):
            gradient = branch.backward(part, need_dx)
            dx = gradient if dx is None or gradient is None else _sum(dx, gradient)
        return dx

    def trace(self, shape: Shape, name: str, rows: list[Row]) -> Shape:
        shapes = [
            branch.trace(shape, _join_names(name, child), rows)
            for child, branch in self._layers.items()
        ]
        for other in shapes[1:]:
            _same_shape(shapes[0][1:], other[1:])
        return (sum(each[0] for each in shapes), *shapes[0][1:])


def _sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    _same_shape(a.shape, b.shape)
    return a + b if isinstance(a, np.ndarray) else ops.add(a, b)


def _same_shape(a: Shape, b: Shape) -> None:
    if a != b:
        raise ValueError(f"the branches' shapes differ: {a} and {b}")


def _join_names(outer: str, inner: str) -> str:
    return f"{outer}.{inner}" if outer else inner
