"""The fully connected layer, and the flattening that comes before it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpuconv import ops
from gpuconv.arrays import contiguous
from gpuconv.nn.layer import Layer, Shape
from gpuconv.nn.weighted import Weighted


class Linear(Weighted):
    """Every output sees every input: y = x w^T + b.

    rng: a generator or seed for the initial weights, uniform in +-1/sqrt(in_features) as PyTorch's
    are. forward: x (N, in_features) -> y (N, out_features). Source: the article; torch.nn.Linear.
    """

    forward_op, backward_op = ops.linear, ops.linear_backward

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, rng: Any = None
    ) -> None:
        if min(in_features, out_features) < 1:
            raise ValueError(
                f"Linear: features must be at least 1, got {in_features} and {out_features}"
            )
        self.in_features, self.out_features = in_features, out_features
        super().__init__((out_features, in_features), bias, rng)

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
        return contiguous(x).reshape(len(x), math.prod(x.shape[1:]))

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray:
        (shape,) = self.saved()
        return contiguous(dy).reshape(shape)

    @property
    def frees_output(self) -> bool:
        return True

    def output_shape(self, shape: Shape) -> Shape:
        return (math.prod(shape),)
