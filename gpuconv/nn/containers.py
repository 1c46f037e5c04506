"""Containers: layers in a row, side by side, and with a way around them. They express every model
of the zoo.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from gpuconv import ops
from gpuconv.arrays import device_of, empty_images
from gpuconv.nn.fusion import fuse
from gpuconv.nn.layer import Fusible, Layer, Row, Shape, is_new, join_names
from gpuconv.ops.in_place import add_into, can_overwrite, relu_backward_into


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
    the zoo. fusing: whether neighbours that can share a pass over memory do.
    """

    input_shape: Shape | None = None
    spec: dict[str, Any] | None = None
    fusing = True

    def __init__(self, *layers: Layer, **named: Layer) -> None:
        super().__init__(*layers, **named)
        self._steps: list[Layer] = []

    def forward(self, x: np.ndarray) -> np.ndarray:
        return self._forward(x, False)

    def forward_over(self, x: np.ndarray) -> np.ndarray:
        return self._forward(x, True)

    def _forward(self, x: np.ndarray, ours: bool) -> np.ndarray:
        """ours: whether nobody else reads x, so that the next step may overwrite it."""
        self._steps = self._fused(self)
        for step in self._steps:
            y = step.forward_over(x) if ours else step.forward(x)
            ours = self._overwrites and step.frees_output and (ours or is_new(y, x))
            x = y
        return x

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        return self._backward(dy, need_dx, False)

    def backward_over(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        return self._backward(dy, need_dx, self._overwrites)

    def _backward(self, gradient: Any, need_dx: bool, ours: bool) -> np.ndarray | None:
        for number, step in reversed(list(enumerate(self._steps))):
            back = step.backward_over if ours else step.backward
            after = back(gradient, need_dx or number > 0)
            ours = self._overwrites and (ours or is_new(after, gradient))
            gradient = after
        return gradient

    @property
    def _overwrites(self) -> bool:
        """Not the reference, which keeps to the definitions, nor where layers are watched one by
        one.
        """
        return self.device == "cpu" and self.fusing

    @property
    def frees_output(self) -> bool:
        return self._overwrites and bool(self._steps) and self._steps[-1].frees_output

    def infer(self, x: np.ndarray) -> np.ndarray:
        for step in self._fused(self):
            x = step.infer(x)
        return x

    def _fused(self, layers: Iterable[Layer]) -> list[Layer]:
        apart = self.device == "reference" or not self.fusing
        return list(layers) if apart else fuse(list(layers))

    def trace(self, shape: Shape, name: str, rows: list[Row]) -> Shape:
        for child, layer in self._layers.items():
            shape = layer.trace(shape, join_names(name, child), rows)
        return shape


class Residual(Fusible):
    """body(x) + shortcut(x), the shortcut being x itself unless one is given (He et al. 2015).

    names: what the two are called among the children; "" gives that one's own children in its
    place.
    """

    fuses = ("relu",)

    def __init__(
        self,
        body: Layer,
        shortcut: Layer | None = None,
        names: tuple[str, str] = ("body", "shortcut"),
    ) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut
        self.names = names

    def children(self) -> dict[str, Layer]:
        parts = zip(self.names, (self.body, self.shortcut), strict=True)
        return {name: layer for name, layer in parts if layer is not None}

    def forward_activated(self, x: np.ndarray, activation: str | None) -> np.ndarray:
        around = x if self.shortcut is None else self.shortcut.forward(x)
        y = self.body.forward(x)
        if self._may_overwrite(y, self.body.frees_output, x, around):
            y = add_into(y, around, activation)
        else:
            y = self._add(y, around, activation)
        self.save(activation, None if activation is None else y)
        return y

    def infer_activated(self, x: np.ndarray, activation: str | None) -> np.ndarray:
        self._saved = None
        around = x if self.shortcut is None else self.shortcut.infer(x)
        return self._add(self.body.infer(x), around, activation)

    def _add(self, a: np.ndarray, b: np.ndarray, activation: str | None) -> np.ndarray:
        _same_shape(a.shape, b.shape)
        return self.run(ops.add, a, b, activation)

    def _may_overwrite(self, a: np.ndarray, free: bool, *others: np.ndarray) -> bool:
        """Whether `a`, free of readers, is no other's memory and the others' shape."""
        return (
            free
            and self.device == "cpu"
            and can_overwrite(a)
            and all(a.shape == other.shape for other in others[-1:])
            and all(is_new(a, other) for other in others)
        )

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        return self._backward(dy, need_dx, False)

    def backward_over(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        return self._backward(dy, need_dx, self.device == "cpu")

    def _backward(self, dy: np.ndarray, need_dx: bool, ours: bool) -> np.ndarray | None:
        activation, y = self.saved()
        if activation == "relu":
            if ours and can_overwrite(dy):
                dy = relu_backward_into(dy, y)
            else:
                dy, ours = self.run(ops.relu_backward, dy, y), self.device == "cpu"
            del y
        around = dy if self.shortcut is None else self.shortcut.backward(dy, need_dx)
        last = ours and (around is None or is_new(around, dy))  # then the body alone reads dy
        body = (self.body.backward_over if last else self.body.backward)(dy, need_dx)
        return _sum_gradients(self, body, around, dy)

    @property
    def frees_output(self) -> bool:
        return self._saved is None or self._saved[1] is None

    def trace(self, shape: Shape, name: str, rows: list[Row]) -> Shape:
        body = self.body.trace(shape, join_names(name, self.names[0]), rows)
        around = shape
        if self.shortcut is not None:
            around = self.shortcut.trace(shape, join_names(name, self.names[1]), rows)
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
        self._edges: list[int] = []

    def forward(self, x: np.ndarray) -> np.ndarray:
        return self._join([branch.forward(x) for branch in self])

    def infer(self, x: np.ndarray) -> np.ndarray:
        return self._join([branch.infer(x) for branch in self])

    def _join(self, outputs: list[np.ndarray]) -> np.ndarray:
        self._edges = [0, *accumulate(y.shape[1] for y in outputs)]
        if device_of(outputs[0]) == "cpu":
            return np.concatenate(outputs, axis=1)
        N, _, H, W = outputs[0].shape
        joined = empty_images((N, self._edges[-1], H, W), outputs[0])
        for y, (begin, end) in zip(outputs, pairwise(self._edges), strict=True):
            self.run(ops.assign, joined[:, begin:end], y)
        return joined

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        dx: np.ndarray | None = None
        for branch, (begin, end) in zip(self, pairwise(self._edges), strict=True):
            gradient = branch.backward(dy[:, begin:end], need_dx)
            dx = gradient if dx is None else _sum_gradients(self, dx, gradient, dy)
        return dx

    @property
    def frees_output(self) -> bool:
        return True

    def trace(self, shape: Shape, name: str, rows: list[Row]) -> Shape:
        shapes = [
            branch.trace(shape, join_names(name, child), rows)
            for child, branch in self._layers.items()
        ]
        for other in shapes[1:]:
            _same_shape(shapes[0][1:], other[1:])
        return (sum(each[0] for each in shapes), *shapes[0][1:])


def _sum_gradients(
    layer: Layer, a: np.ndarray | None, b: np.ndarray | None, dy: np.ndarray
) -> np.ndarray | None:
    """a + b of two branches' gradients; None without them.

    Into a's own memory where that is a's alone: a layer's backward gives a new array, or dy itself
    or a view of it.
    """
    if a is None or b is None:
        return None
    _same_shape(a.shape, b.shape)
    if device_of(a) != "cpu":
        return ops.add(a, b)
    if a.flags.writeable and not np.may_share_memory(a, dy) and not np.may_share_memory(a, b):
        return layer.run(ops.accumulate, a, b)
    return layer.run(ops.add, a, b)


def _same_shape(a: Shape, b: Shape) -> None:
    if a != b:
        raise ValueError(f"the branches' shapes differ: {a} and {b}")
