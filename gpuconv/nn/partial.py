"""A convolution whose filters see some of the channels only, by a table."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpuconv import ops
from gpuconv.arrays import device_of, to_device
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
        # As the operations take them: each link's pair, filter by filter; each pair's link or -1.
        self._places: Any = np.flatnonzero(table.T).astype(np.int32)
        self._table: Any = np.where(table.T, np.cumsum(table.T).reshape(table.T.shape) - 1, -1)
        self._table = self._table.astype(np.int32)
        shape = (len(self._places), *self.window.kernel_size)
        self.weight = Parameter(np.zeros(shape, np.float32))
        self.reset_parameters(np.random.default_rng(rng))

    def reset_parameters(self, rng: np.random.Generator) -> None:
        """Uniform in +-1/sqrt(fan in), the fan in being that of a filter with the mean of links."""
        fan = math.prod(self.weight.shape) / self.out_channels
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                parameter.data[...] = init.uniform(parameter.shape, rng, 1 / math.sqrt(fan))

    def filters(self) -> np.ndarray:
        self._table = to_device(self._table, device_of(self.weight.data) or "cpu")
        return self.run(ops.partial_filters, self.weight.data, self._table)

    def add_filters_grad(self, dw: np.ndarray) -> None:
        self._places = to_device(self._places, device_of(dw) or "cpu")
        self.weight.add_grad(self.run(ops.partial_filters_backward, dw, self._places))

    def multiply_adds(self, shape: Shape) -> int:
        return math.prod(self.output_shape(shape)[1:]) * self.weight.data.size

    def describe(self) -> str:
        return f"{super().describe()}, {len(self._places)} links"
