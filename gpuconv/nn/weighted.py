"""`Weighted`: what the convolution and the fully connected layer share."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuconv.nn import init
from gpuconv.nn.layer import Fusible, Parameter, Shape
from gpuconv.ops.activation import ACTIVATIONS
from gpuconv.ops.in_place import can_overwrite, relu_backward_into
from gpuconv.ops.op import Op


class Weighted(Fusible):
    """A layer with a weight and perhaps a bias, and the pair of operations that use them."""

    fuses = tuple(ACTIVATIONS)
    forward_op: Op
    backward_op: Op

    def __init__(self, shape: Shape, bias: bool, rng: Any) -> None:
        super().__init__()
        self.weight = Parameter(np.zeros(shape, np.float32))
        self.bias = Parameter(np.zeros(shape[0], np.float32)) if bias else None
        self.reset_parameters(np.random.default_rng(rng))

    def reset_parameters(self, rng: np.random.Generator) -> None:
        init.reset_as_pytorch(self.weight, self.bias, rng)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What the operations take between their arrays and the activation."""
        return ()

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray | None]:
        """(weight, bias), as the operations take them."""
        return self.filters(), None if self.bias is None else self.bias.data

    def filters(self) -> np.ndarray:
        """What the operations take for the weight."""
        return self.weight.data

    def add_filters_grad(self, dw: np.ndarray) -> None:
        """Add the gradient of `filters()` to the weight's."""
        self.weight.add_grad(dw)

    def forward_activated(self, x: np.ndarray, activation: str | None) -> np.ndarray:
        y = self.run(self.forward_op, x, *self.arrays, *self.arguments, activation)
        self.save(x, activation, None if activation is None else y)
        return y

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        x, *activated = self.saved()
        given = (dy, x, *self.arrays, *self.arguments, *activated, need_dx)
        return self.take_gradients(*self.run(self.backward_op, *given))

    def backward_over(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        """The ReLU's gradient takes dy's memory."""
        if self._saved is not None and self._saved[1] == "relu" and self.device == "cpu":
            x, _, y = self._saved
            if can_overwrite(dy) and dy.shape == y.shape:
                dy = relu_backward_into(dy, y)
                self._saved = x, None, None
        return self.backward(dy, need_dx)

    @property
    def frees_output(self) -> bool:
        return self._saved is None or self._saved[1] is None

    def take_gradients(
        self, dx: np.ndarray | None, dw: np.ndarray, db: np.ndarray | None
    ) -> np.ndarray | None:
        """Add dw and db to the parameters' gradients; returns dx."""
        self.add_filters_grad(dw)
        if self.bias is not None and db is not None:
            self.bias.add_grad(db)
        return dx
