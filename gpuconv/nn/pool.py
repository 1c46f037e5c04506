"""Pooling layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuconv import ops
from gpuconv.nn.layer import Layer, Shape
from gpuconv.ops.op import Op
from gpuconv.shapes import pair, window


class _Pool2d(Layer):
    """A window of kernel_size slides by stride (None: kernel_size) over each channel by itself."""

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.dilation, self.ceil_mode = dilation, ceil_mode
        self.window = window(kernel_size, stride, padding, dilation, ceil_mode)

    @property
    def frees_output(self) -> bool:
        return True

    @property
    def arguments(self) -> tuple[Any, ...]:
        """As the operation takes them after its arrays."""
        return self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode

    def output_shape(self, shape: Shape) -> Shape:
        name = type(self).__name__
        if len(shape) != 3:
            raise ValueError(f"{name}: the input must be (channels, height, width), got {shape}")
        self.window.require(name, *shape[1:])
        return (shape[0], *self.window.output_size(*shape[1:]))

    def describe(self) -> str:
        defaults = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False}
        changed = [
            f"{name}={getattr(self, name)}"
            for name, usual in defaults.items()
            if getattr(self, name) != usual
        ]
        return ", ".join([str(self.kernel_size), *changed])


class MaxPool2d(_Pool2d):
    """The largest value of each window. Arguments and semantics as torch.nn.MaxPool2d; source: the
    article.
    """

    def forward(self, x: np.ndarray) -> np.ndarray:
        y, argmax = self.run(ops.max_pool2d, x, *self.arguments)
        self.save(argmax, x.shape)
        return y

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray:
        return self.run(ops.max_pool2d_backward, dy, *self.saved(), *self.arguments)


class SumPool2d(_Pool2d):
    """The sum of each window. Arguments as MaxPool2d; source: the article."""

    forward_op: Op = ops.sum_pool2d
    backward_op: Op = ops.sum_pool2d_backward

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.save(x.shape)
        return self.run(self.forward_op, x, *self.arguments)

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray:
        return self.run(self.backward_op, dy, *self.saved(), *self.arguments)


class AvgPool2d(SumPool2d):
    """The mean of each window; count_include_pad says whether padding counts as zeros. As
    torch.nn.AvgPool2d.
    """

    forward_op = ops.avg_pool2d
    backward_op = ops.avg_pool2d_backward

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        dilation: Any = 1,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode)
        self.count_include_pad = count_include_pad

    @property
    def arguments(self) -> tuple[Any, ...]:
        return (*super().arguments, self.count_include_pad)

    def describe(self) -> str:
        return super().describe() + ("" if self.count_include_pad else ", count_include_pad=False")


class AdaptiveAvgPool2d(Layer):
    """Means over as many parts of the image as `output_size` says, whatever the image's size.

    AdaptiveAvgPool2d(1) is global average pooling. As torch.nn.AdaptiveAvgPool2d.
    """

    def __init__(self, output_size: Any) -> None:
        super().__init__()
        self.size = pair("output_size", output_size, 1)

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.save(x.shape)
        return self.run(ops.adaptive_avg_pool2d, x, self.size)

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray:
        return self.run(ops.adaptive_avg_pool2d_backward, dy, *self.saved())

    @property
    def frees_output(self) -> bool:
        return True

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) != 3 or min(shape[1:]) < 1:
            raise ValueError(
                f"AdaptiveAvgPool2d: the input must be (channels, height, width), got {shape}"
            )
        return (shape[0], *self.size)

    def describe(self) -> str:
        return str(self.size)
