"""`Weighted`: what the convolution and the fully connected layer share."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuconv.nn import init
from gpuconv.nn.layer import Layer, Parameter, Shape


class Weighted(Layer):
    """A layer with a weight and perhaps a bias, that can apply an activation in the same pass."""

    def __init__(self, shape: Shape, bias: bool, rng: Any) -> None:
        super().__init__()
        self.weight = Parameter(np.empty(shape, np.float32))
        self.bias = Parameter(np.empty(shape[0], np.float32)) if bias else None
        self.reset_parameters(np.random.default_rng(rng))

    def reset_parameters(self, rng: np.random.Generator) -> None:
        init.reset_as_pytorch(self.weight, self.bias, rng)

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.save(x)
        return self.forward_activated(x, None)

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        (x,) = self.saved()
        return self.backward_activated(dy, x, None, None, need_dx)

    def forward_activated(self, x: np.ndarray, activation: str | None) -> np.ndarray:
        """`forward` with an activation in the same pass; nothing is saved."""
        raise NotImplementedError

    def backward_activated(
        self,
        dy: np.ndarray,
        x: np.ndarray,
        activation: str | None,
        y: np.ndarray | None,
        need_dx: bool,
    ) -> np.ndarray | None:
        """The backward pass of `forward_activated(x)`, y being what it gave."""
        raise NotImplementedError

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray | None]:
        """(weight, bias), as operations take them."""
        return self.weight.data, None if self.bias is None else self.bias.data

    def take_gradients(
        self, dx: np.ndarray | None, dw: np.ndarray, db: np.ndarray | None
    ) -> np.ndarray | None:
        """Add dw and db to the parameters' gradients; returns dx."""
        self.weight.add_grad(dw)
        if self.bias is not None and db is not None:
            self.bias.add_grad(db)
        return dx
