"""The fully connected layer, and the flattening that comes before it."""

from __future__ import annotations

from typing import Any

from gpuconv.arguments import whole
from gpuconv.autograd import Tensor
from gpuconv.nn.functional import flatten, linear
from gpuconv.nn.module import Module
from gpuconv.nn.weighted import Weighted


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
        return f"{self.in_features}, {self.out_features}" + (
            "" if self.bias is not None else ", bias=False"
        )


class Flatten(Module):
    """(N, C, H, W) -> (N, C*H*W), in C order."""

    def forward(self, x: Tensor) -> Tensor:
        return flatten(x, 1)
