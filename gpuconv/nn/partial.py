"""A convolution whose filters see some of the channels only, by a table."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpuconv.nn import init
from gpuconv.nn.conv import Conv2d
from gpuconv.nn.layer import Parameter, Shape


class PartialConv2d(Conv2d):
    """A convolution with a weight only where the table links an input channel to a filter.

    connections: (in_channels, out_channels), nonzero where they are linked: any subset, which
    groups cannot express. weight: (links, R, S), filter after filter, each filter's channels in
    order; it is as many parameters, and what is not linked can never learn. Otherwise as Conv2d
    without groups. Source: LeCun et al. 1998, table I: LeNet-5's C3.
    """

    def __init__(
        self,
        connections: Any,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        bias: bool = True,
        rng: Any = None,
    ) -> None:
        table = np.asarray(connections) != 0
        if table.ndim != 2 or not table.any(0).all():
            raise ValueError(
                "PartialConv2d: connections must be (in_channels, out_channels) "
                f"with a link for every filter, got shape {table.shape}"
            )
        with init.deferred():
            super().__init__(
                table.shape[0], table.shape[1], kernel_size, stride, padding, dilation, 1, bias
            )
        self.links = np.nonzero(table.T)
        shape = (len(self.links[0]), *self.window.kernel_size)
        self.weight = Parameter(np.zeros(shape, np.float32))
        self.reset_parameters(np.random.default_rng(rng))

    def reset_parameters(self, rng: np.random.Generator) -> None:
        """Uniform in +-1/sqrt(fan in), the fan in being that of a filter with the mean of links."""
        fan = math.prod(self.weight.shape) / self.out_channels
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                parameter.data[...] = init.uniform(parameter.shape, rng, 1 / math.sqrt(fan))

    def filters(self) -> np.ndarray:
        shape = (self.out_channels, self.in_channels, *self.window.kernel_size)
        w = np.zeros(shape, self.weight.data.dtype)
        w[self.links] = self.weight.data
        return w

    def add_filters_grad(self, dw: np.ndarray) -> None:
        self.weight.add_grad(dw[self.links])

    def multiply_adds(self, shape: Shape) -> int:
        return math.prod(self.output_shape(shape)[1:]) * self.weight.data.size

    def describe(self) -> str:
        return f"{super().describe()}, {len(self.links[0])} links"
