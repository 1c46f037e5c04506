"""DenseNet's block: every layer sees the outputs of all before it."""

from __future__ import annotations

import numpy as np

from gpuconv import ops
from gpuconv.arrays import empty_images
from gpuconv.nn.containers import _Container
from gpuconv.nn.layer import Row, Shape, join_names
from gpuconv.ops.in_place import can_overwrite


class DenseBlock(_Container):
    """x joined along the channels with layer 1's output for x, layer 2's for both, and so on.

    All of it lies in one array, so that each layer's input is the first channels of it and nothing
    is copied or kept twice. forward: x (N, C, H, W) -> y (N, C + the layers' channels, H, W).
    Source: Huang et al. 2017.
    """

    def forward(self, x: np.ndarray) -> np.ndarray:
        y, edges = self._begin(x)
        for layer, begin, end in zip(self, edges, edges[1:], strict=False):
            self.run(ops.assign, y[:, begin:end], layer.forward(y[:, :begin]))
        self.save(edges)
        return y

    def infer(self, x: np.ndarray) -> np.ndarray:
        self._saved = None
        y, edges = self._begin(x)
        for layer, begin, end in zip(self, edges, edges[1:], strict=False):
            self.run(ops.assign, y[:, begin:end], layer.infer(y[:, :begin]))
        return y

    def _begin(self, x: np.ndarray) -> tuple[np.ndarray, list[int]]:
        """The array for all outputs, x in its place, and where each layer's channels begin."""
        edges = [x.shape[1]]
        for layer in self:
            edges.append(edges[-1] + layer.output_shape((edges[-1], *x.shape[2:]))[0])
        y = empty_images((len(x), edges[-1], *x.shape[2:]), x)
        self.run(ops.assign, y[:, : edges[0]], x)
        return y, edges

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        return self._backward(self._copy(dy), need_dx)

    def backward_over(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        return self._backward(dy if can_overwrite(dy) else self._copy(dy), need_dx)

    def _copy(self, dy: np.ndarray) -> np.ndarray:
        copied: np.ndarray = self.run(ops.assign, empty_images(dy.shape, dy), dy)
        return copied

    def _backward(self, gradient: np.ndarray, need_dx: bool) -> np.ndarray | None:
        """gradient: of all outputs, and of nobody else; the inputs' gradients are added to it."""
        (edges,) = self.saved()
        steps = list(zip(self, edges, edges[1:], strict=False))
        for layer, begin, end in reversed(steps):
            first = layer is steps[0][0]
            part = layer.backward(gradient[:, begin:end], need_dx or not first)
            if part is not None:
                self.run(ops.accumulate, gradient[:, :begin], part)
        return gradient[:, : edges[0]] if need_dx else None

    def trace(self, shape: Shape, name: str, rows: list[Row]) -> Shape:
        for child, layer in self._layers.items():
            out = layer.trace(shape, join_names(name, child), rows)
            if out[1:] != shape[1:]:
                raise ValueError(f"DenseBlock: {child} changes the image's size, {shape} to {out}")
            shape = (shape[0] + out[0], *shape[1:])
        return shape
