"""What the convolution and the fully connected layer share."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuconv.arguments import flag
from gpuconv.autograd import Parameter
from gpuconv.nn import init
from gpuconv.nn.module import Module, Shape


class Weighted(Module):
    """A layer with a weight and perhaps a bias."""

    holds = ("weight", "bias")

    def __init__(self, shape: Shape, bias: bool, rng: Any) -> None:
        super().__init__()
        weight, drawn = init.empty_weight(shape)
        self.weight = Parameter(weight)
        bias = flag(f"{type(self).__name__}: bias", bias)
        self.bias = Parameter(init.empty_weight(shape[:1])[0]) if bias else None
        if drawn:
            self.reset_parameters(np.random.default_rng(rng))

    def reset_parameters(self, rng: np.random.Generator) -> None:
        init.reset_as_pytorch(self.weight, self.bias, rng)
