"""Recomputation, also called gradient checkpointing: memory for time.

Source: Chen et al. 2016, "Training deep nets with sublinear memory cost"; torch.utils.checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from gpuconv.arrays import device_of, to_device, to_numpy
from gpuconv.nn.activation import _Activation
from gpuconv.nn.containers import Concat, Residual, Sequential, _Container
from gpuconv.nn.dense_block import DenseBlock
from gpuconv.nn.layer import Layer, Row, Shape


class Recompute(Layer):
    """A layer of which training keeps only the input; backward runs it forward once more.

    Scores, gradients and running statistics are those of the layer itself, to the bit: the second
    run repeats the dropout of the first and leaves running statistics as they are. The names in the
    state are the layer's own. It costs the layer's forward pass a second time.

    >>> block = Recompute(Sequential(Layer(), Layer()))
    >>> [name for name, _ in block.layers()]
    ['', '', '0', '1']
    """

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        if not isinstance(layer, Layer):
            raise TypeError(f"Recompute: expected a Layer, got {type(layer).__name__}")
        self.layer = layer

    def children(self) -> dict[str, Layer]:
        return {"": self.layer}

    def forward(self, x: np.ndarray) -> np.ndarray:
        inside = [layer for _, layer in self.layer.layers()]
        drawn = [layer.generator_state() for layer in inside]
        y = self.layer.infer(x)
        self.save(x, drawn, [layer.training for layer in inside])
        return y

    def infer(self, x: np.ndarray) -> np.ndarray:
        self._saved = None
        return self.layer.infer(x)

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        self._again()
        return self.layer.backward(dy, need_dx)

    def backward_over(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        self._again()
        return self.layer.backward_over(dy, need_dx)

    def _again(self) -> None:
        with self._as_before(*self.saved()) as x:
            self.layer.forward(x)

    @contextmanager
    def _as_before(self, x: np.ndarray, drawn: list[Any], training: list[bool]) -> Iterator[Any]:
        """x, with generators and modes as they were at its forward pass; afterwards generators,
        modes and buffers are as they are now.
        """
        inside = [layer for _, layer in self.layer.layers()]
        now = [(layer.generator_state(), layer.training) for layer in inside]
        buffers = [
            (buffer, buffer.data, np.array(to_numpy(buffer.data)))
            for _, buffer in self.layer.named_buffers()
        ]
        _set(inside, list(zip(drawn, training, strict=True)))
        try:
            yield x
        finally:
            _set(inside, now)
            for buffer, data, values in buffers:
                if isinstance(data, np.ndarray):
                    data[...] = values
                    buffer.data = data
                else:
                    buffer.data = to_device(values, device_of(data) or "cpu")

    def output_shape(self, shape: Shape) -> Shape:
        return self.layer.output_shape(shape)

    def trace(self, shape: Shape, name: str, rows: list[Row]) -> Shape:
        return self.layer.trace(shape, name, rows)

    def describe(self) -> str:
        return repr(self.layer)


def _set(layers: list[Layer], states: list[tuple[Any, bool]]) -> None:
    for layer, (drawn, training) in zip(layers, states, strict=True):
        layer.training = training
        if drawn is not None:
            layer.load_generator_state(drawn)


def recompute_blocks(network: Layer) -> int:
    """Put every block of a network into a `Recompute`, in place; how many there were.

    Blocks are a Residual, with its activation where the two have a Sequential of their own, a
    Concat, and each layer of a DenseBlock. The network's state keeps its names.
    """
    count = 0
    if isinstance(network, _Container):
        for name, child in network._layers.items():
            if isinstance(network, DenseBlock) or _is_block(child):
                network._layers[name] = Recompute(child)
                count += 1
    return count + sum(
        recompute_blocks(child)
        for child in network.children().values()
        if not isinstance(child, Recompute)
    )


def _is_block(layer: Layer) -> bool:
    if isinstance(layer, Sequential) and len(layer):
        first, *others = layer
        return isinstance(first, Residual) and all(isinstance(o, _Activation) for o in others)
    return isinstance(layer, (Residual, Concat))
