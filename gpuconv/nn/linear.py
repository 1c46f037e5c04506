"""The fully connected layer, and the flattening that comes before it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpuconv.arguments import flag, whole
from gpuconv.autograd import Parameter, Tensor
from gpuconv.nn import init
from gpuconv.nn.functional import flatten, linear
from gpuconv.nn.module import Module, Shape


class Weighted(Module):
    """A layer with a weight and perhaps a bias: a convolution or a fully connected one."""

    holds = ("weight", "bias")

    def __init__(self, shape: Shape, bias: bool, rng: Any) -> None:
        super().__init__()
        weight, drawn = init.empty_weight(shape)
        self.weight = Parameter(weight)
        bias = flag(f"{type(self).__name__}: bias", bias)
        self.bias = Parameter(init.empty_weight(shape[:1])[0]) if bias else None
        if drawn:
            self.reset_parameters(init.generator(rng))

    def reset_parameters(self, rng: np.random.Generator) -> None:
        """PyTorch's default for Conv2d and Linear: uniform in +-1/sqrt(fan in)."""
        bound = 1 / math.sqrt(init.fans(self.weight.shape)[0])
        for holder in (self.weight, self.bias):
            if holder is not None:
                drawn = init.uniform(holder.shape, rng, bound)
                holder.data = drawn.astype(holder.dtype, copy=False)


class Linear(Weighted):
    """Every output depends on every input: y = x w^T + b.

    rng: a generator or seed for the initial weights, uniform in +-1/sqrt(in_features) as PyTorch's
    are. forward: x (N, in_features) -> y (N, out_features). Source: the article; torch.nn.Linear.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, rng: Any = None
    ) -> None:
        self.in_features = whole("Linear: in_features", in_features)
        self.out_features = whole("Linear: out_features", out_features)
        super().__init__((self.out_features, self.in_features), bias, rng)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        bias = "" if self.bias is not None else ", bias=False"
        return f"{self.in_features}, {self.out_features}{bias}"


class Flatten(Module):
    """(N, C, H, W) -> (N, C*H*W), in C order."""

    def forward(self, x: Tensor) -> Tensor:
        return flatten(x, 1)
