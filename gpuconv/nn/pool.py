"""Pooling layers."""

from __future__ import annotations

from typing import Any

from gpuconv.arguments import flag, pair
from gpuconv.autograd import Tensor
from gpuconv.nn import functional
from gpuconv.nn.module import Module
from gpuconv.shapes import window


class _Pool2d(Module):
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
        self.arguments = (kernel_size, stride, padding, dilation, ceil_mode)
        self.window = window(*self.arguments)

    def extra_repr(self) -> str:
        changed = self._changed(stride=None, padding=0, dilation=1, ceil_mode=False)
        return ", ".join([str(self.kernel_size), *changed])


class MaxPool2d(_Pool2d):
    """The largest value of each window. Arguments and semantics as torch.nn.MaxPool2d; source: the
    article.
    """

    def forward(self, x: Tensor) -> Tensor:
        return functional.max_pool2d(x, *self.arguments)


class SumPool2d(_Pool2d):
    """The sum of each window. Arguments as MaxPool2d; source: the article."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.sum_pool2d(x, *self.arguments)


class AvgPool2d(_Pool2d):
    """The mean of each window; count_include_pad says whether padding counts as zeros. As
    torch.nn.AvgPool2d.
    """

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
        self.count_include_pad = flag("AvgPool2d: count_include_pad", count_include_pad)

    def forward(self, x: Tensor) -> Tensor:
        kernel_size, stride, padding, dilation, ceil_mode = self.arguments
        return functional.avg_pool2d(
            x, kernel_size, stride, padding, ceil_mode, self.count_include_pad, dilation
        )

    def extra_repr(self) -> str:
        return ", ".join([super().extra_repr(), *self._changed(count_include_pad=True)])


class AdaptiveAvgPool2d(Module):
    """Means over as many parts of the image as `output_size` says, whatever the image's size.

    AdaptiveAvgPool2d(1) is global average pooling. As torch.nn.AdaptiveAvgPool2d.
    """

    def __init__(self, output_size: Any) -> None:
        super().__init__()
        self.size = pair("output_size", output_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(x, self.size)

    def extra_repr(self) -> str:
        return str(self.size)
