"""The convolution layer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpuconv import ops
from gpuconv.arguments import pair, whole
from gpuconv.arrays import device_of, to_device
from gpuconv.autograd import Tensor, record
from gpuconv.nn import init
from gpuconv.nn.functional import conv2d
from gpuconv.nn.linear import Weighted
from gpuconv.shapes import window


class Conv2d(Weighted):
    """out_channels filters of in_channels/groups x kernel_size weights slide over the image.

    kernel_size, stride, dilation: an int or (vertical, horizontal). padding: those, ((top, bottom),
    (left, right)), "same", "valid" (the article's narrow convolution) or "full" (its wide one).
    connections: a table (in_channels, out_channels), nonzero where a filter uses a channel; the
    other weights stay 0 and are not counted, as in LeNet-5's C3 (LeCun et al. 1998, table I). rng:
    a generator or seed for the initial weights, uniform in +-1/sqrt(fan in) as PyTorch's are.
    forward: x (N, in_channels, H, W) -> y (N, out_channels, P, Q). Source: the article;
    torch.nn.Conv2d.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        connections: Any = None,
        rng: Any = None,
    ) -> None:
        in_channels = whole("Conv2d: in_channels", in_channels)
        out_channels = whole("Conv2d: out_channels", out_channels)
        groups = whole("Conv2d: groups", groups)
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"Conv2d: groups={groups} must divide in_channels={in_channels} "
                f"and out_channels={out_channels}"
            )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.window = window(pair("kernel_size", kernel_size, 1), stride, padding, dilation)
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.connections = None if connections is None else self._table(connections)
        shape = (out_channels, in_channels // groups, *self.window.kernel_size)
        super().__init__(shape, bias, rng)

    def _table(self, connections: Any) -> np.ndarray:
        """The table as booleans (out_channels, in_channels), as the weight has its axes."""
        table = np.asarray(connections) != 0
        if table.shape != (self.in_channels, self.out_channels) or not table.any(0).all():
            raise ValueError(
                f"Conv2d: connections must be ({self.in_channels}, {self.out_channels}), "
                f"(in_channels, out_channels), with a link for every filter, got {table.shape}"
            )
        if self.groups != 1:
            raise ValueError("Conv2d: connections and groups exclude each other")
        return table.T

    @property
    def weights_used(self) -> int:
        """How many values of the weight are linked: all, without `connections`."""
        if self.connections is None:
            return self.weight.size
        return int(self.connections.sum()) * math.prod(self.window.kernel_size)

    def reset_parameters(self, rng: np.random.Generator) -> None:
        """PyTorch's default; with `connections` the fan in is that of a filter's mean of links."""
        if self.connections is None:
            super().reset_parameters(rng)
            return
        bound = 1 / math.sqrt(self.weights_used / self.out_channels)
        links = init.uniform((int(self.connections.sum()), *self.window.kernel_size), rng, bound)
        self.weight.data[...] = self._spread(links)
        if self.bias is not None:
            self.bias.data[...] = init.uniform(self.bias.shape, rng, bound)

    def _spread(self, links: np.ndarray) -> np.ndarray:
        """Weights (links, R, S), filter by filter, as (K, C, R, S) with zeros between."""
        assert self.connections is not None
        weight = np.zeros((*self.connections.shape, *links.shape[1:]), links.dtype)
        weight[self.connections] = links
        return weight

    def convert_state(self, state: dict[str, Any], prefix: str) -> None:
        """Version 0.1 kept the linked weights alone. What is not linked is 0, whatever came."""
        name = f"{prefix}weight"
        if self.connections is None or name not in state:
            return
        weight = np.asarray(state[name])
        links = int(self.connections.sum())
        if weight.shape == (links, *self.window.kernel_size):
            state[name] = self._spread(weight)
        elif weight.shape == self.weight.shape:
            state[name] = np.where(self.connections[:, :, None, None], weight, 0)

    def _linked(self) -> Tensor:
        """The weight where something is linked, 0 elsewhere."""
        w = self.weight
        mask = to_device(self.mask(w.dtype), device_of(w.data) or "cpu", weights=True)
        return record(
            "linked", ops.multiply(w.data, mask), (w,), lambda dw, over: (ops.multiply(dw, mask),)
        )

    def constrain(self) -> None:
        if self.connections is not None:
            self.weight.data *= self.mask(self.weight.dtype)

    def mask(self, dtype: Any) -> np.ndarray:
        """1 where the weight is linked, 0 elsewhere, in the weight's shape."""
        assert self.connections is not None
        links = self.connections[:, :, None, None]
        return np.ascontiguousarray(np.broadcast_to(links, self.weight.shape), dtype)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.connections is None else self._linked()
        return conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        size = self.window.kernel_size
        short = size[0] if size[0] == size[1] else size
        parts = [f"{self.in_channels}, {self.out_channels}, {short}"]
        parts += self._changed(stride=1, padding=0, dilation=1, groups=1)
        if self.bias is None:
            parts.append("bias=False")
        if self.connections is not None:
            parts.append(f"{int(self.connections.sum())} links")
        return ", ".join(parts)
