"""The convolution layer."""

from __future__ import annotations

import math
from typing import Any

from gpuconv import ops
from gpuconv.nn.layer import Shape
from gpuconv.nn.weighted import Weighted
from gpuconv.shapes import pair, window


class Conv2d(Weighted):
    """out_channels filters of in_channels/groups x kernel_size weights slide over the image.

    kernel_size, stride, dilation: an int or (vertical, horizontal). padding: those, ((top,
    bottom), (left, right)), "same", "valid" (the article's narrow convolution) or "full" (its wide
    one). rng: a generator or seed for the initial weights, uniform in +-1/sqrt(fan in) as
    PyTorch's are. forward: x (N, in_channels, H, W) -> y (N, out_channels, P, Q). Source: the
    article; torch.nn.Conv2d.
    """

    forward_op, backward_op = ops.conv2d, ops.conv2d_backward

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
        rng: Any = None,
    ) -> None:
        if (
            min(in_channels, out_channels, groups) < 1
            or in_channels % groups
            or out_channels % groups
        ):
            raise ValueError(
                f"Conv2d: groups={groups} must divide in_channels={in_channels} "
                f"and out_channels={out_channels}"
            )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.window = window(pair("kernel_size", kernel_size, 1), stride, padding, dilation)
        self.stride, self.padding, self.dilation = stride, padding, dilation
        shape = (out_channels, in_channels // groups, *self.window.kernel_size)
        super().__init__(shape, bias, rng)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """stride, padding, dilation, groups: as the operation takes them after its arrays."""
        return self.stride, self.padding, self.dilation, self.groups

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) != 3 or shape[0] != self.in_channels:
            raise ValueError(
                f"Conv2d: the input must be (channels, height, width) with {self.in_channels} "
                f"channels, got {shape}"
            )
        self.window.require("Conv2d", *shape[1:])
        return (self.out_channels, *self.window.output_size(*shape[1:]))

    def multiply_adds(self, shape: Shape) -> int:
        return math.prod(self.output_shape(shape)) * math.prod(self.weight.shape[1:])

    def describe(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, {_short(self.window.kernel_size)}"]
        defaults = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
        parts += [
            f"{name}={getattr(self, name)}"
            for name, usual in defaults.items()
            if getattr(self, name) != usual
        ]
        if self.bias is None:
            parts.append("bias=False")
        return ", ".join(parts)


def _short(size: tuple[int, int]) -> str:
    return str(size[0]) if size[0] == size[1] else str(size)
