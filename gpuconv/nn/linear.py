"""The fully connected layer, and the flattening that comes before it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpuconv import ops
from gpuconv.nn import init
from gpuconv.nn.layer import Fusible, Layer, Parameter, Shape
from gpuconv.ops.activation import ACTIVATIONS


class Linear(Fusible):
    """Every output sees every input: y = x w^T + b.

    rng: a generator or seed for the initial weights, uniform in +-1/sqrt(in_features) as PyTorch's
    are. forward: x (N, in_features) -> y (N, out_features). Source: the article; torch.nn.Linear.
    """

    fuses = tuple(ACTIVATIONS)

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, rng: Any = None
    ) -> None:
        super().__init__()
        if min(in_features, out_features) < 1:
            raise ValueError(
                f"Linear: features must be at least 1, got {in_features} and {out_features}"
            )
        self.in_features, self.out_features = in_features, out_features
        self.weight = Parameter(np.empty((out_features, in_features), np.float32))
        self.bias = Parameter(np.empty(out_features, np.float32)) if bias else None
        self.reset_parameters(np.random.default_rng(rng))

    def reset_parameters(self, rng: np.random.Generator) -> None:
        init.reset_as_pytorch(self.weight, self.bias, rng)

    def forward_activated(self, x: np.ndarray, activation: str | None) -> np.ndarray:
        b = None if self.bias is None else self.bias.data
        y = self.run(ops.linear, x, self.weight.data, b, activation)
        self.save(x, activation, None if activation is None else y)
        return y

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        x, activation, y = self.saved()
        b = None if self.bias is None else self.bias.data
        arguments = (dy, x, self.weight.data, b, activation, y, need_dx)
        dx, dw, db = self.run(ops.linear_backward, *arguments)
        self.weight.add_grad(dw)
        if self.bias is not None:
            self.bias.add_grad(db)
        return dx

    def output_shape(self, shape: Shape) -> Shape:
        if shape != (self.in_features,):
            raise ValueError(
                f"Linear: the input must be ({self.in_features},), got {shape}; "
                f"a Flatten may be missing"
            )
        return (self.out_features,)

    def multiply_adds(self, shape: Shape) -> int:
        return self.in_features * self.out_features

    def describe(self) -> str:
        return f"{self.in_features}, {self.out_features}" + (
            "" if self.bias is not None else ", bias=False"
        )


class Flatten(Layer):
    """(N, C, H, W) -> (N, C*H*W), in C order."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.save(x.shape)
        return x.reshape(len(x), math.prod(x.shape[1:]))

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray:
        (shape,) = self.saved()
        return dy.reshape(shape)

    def output_shape(self, shape: Shape) -> Shape:
        return (math.prod(shape),)
