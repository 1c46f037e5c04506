"""GoogLeNet as published.

Source: Szegedy et al. 2014, "Going deeper with convolutions", table 1 and section 5.
"""

from __future__ import annotations

from typing import Any, Unpack

from gpuconv import nn
from gpuconv.models.googlenet import BRANCHES, HEADS, InceptionAux
from gpuconv.models.zoo import Common, model
from gpuconv.nn.functional import cat


@model(size=224, weights=nn.init.xavier_uniform)
def googlenet_paper(
    num_classes: int = 1000,
    in_channels: int = 3,
    aux: bool = False,
    input_size: int = 224,
    **common: Unpack[Common],
) -> GoogLeNetPaper:
    """GoogLeNet with response normalisation and 5x5 branches; 6,998,552 parameters.

    aux: with the two auxiliary heads of training, 13,378,280 parameters, for `AuxiliaryLoss`; then
    forward gives a tuple in training. input_size: the heads and the last pool depend on it.
    The first weights, of which the paper says nothing, are Glorot's.
    forward: x (N, in_channels, input_size, input_size) -> scores (N, num_classes).
    """
    return GoogLeNetPaper(num_classes, in_channels, aux, input_size)


class GoogLeNetPaper(nn.Module):
    """The layers of table 1, and the two auxiliary heads of section 5 if asked."""

    def __init__(self, num_classes: int, in_channels: int, aux: bool, input_size: int) -> None:
        super().__init__()
        self.conv1 = ConvReLU(in_channels, 64, 7, stride=2, padding=3)
        self.p1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.n1 = nn.LocalResponseNorm(5)
        self.conv2r = ConvReLU(64, 64, 1)
        self.conv2 = ConvReLU(64, 192, 3, padding=1)
        self.n2 = nn.LocalResponseNorm(5)
        self.p2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.i3a = Inception(*BRANCHES["3a"])
        self.i3b = Inception(*BRANCHES["3b"])
        self.p3 = nn.MaxPool2d(3, 2, ceil_mode=True)
        side = nn.output_shape(
            nn.Sequential(*self.children()), (in_channels, input_size, input_size)
        )[1]
        self.i4a = Inception(*BRANCHES["4a"])
        self.aux1 = _head(HEADS["4a"], side, num_classes) if aux else None
        self.i4b = Inception(*BRANCHES["4b"])
        self.i4c = Inception(*BRANCHES["4c"])
        self.i4d = Inception(*BRANCHES["4d"])
        self.aux2 = _head(HEADS["4d"], side, num_classes) if aux else None
        self.i4e = Inception(*BRANCHES["4e"])
        self.p4 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.i5a = Inception(*BRANCHES["5a"])
        self.i5b = Inception(*BRANCHES["5b"])
        last = nn.output_shape(self.p4, (BRANCHES["5a"][0], side, side))[1]
        self.gap = nn.AvgPool2d(last, 1)
        self.drop = nn.Dropout(0.4)
        self.fc = nn.Linear(1024, num_classes)

    def forward(self, x: nn.Tensor) -> Any:
        x = self.n1(self.p1(self.conv1(x)))
        x = self.p2(self.n2(self.conv2(self.conv2r(x))))
        x = self.p3(self.i3b(self.i3a(x)))
        x = self.i4a(x)
        beside = [self.aux1(x)] if self.aux1 is not None and self.training else []
        x = self.i4d(self.i4c(self.i4b(x)))
        if self.aux2 is not None and self.training:
            beside.append(self.aux2(x))
        x = self.p4(self.i4e(x))
        x = self.gap(self.i5b(self.i5a(x)))
        scores = self.fc(self.drop(x.flatten(1)))
        return (scores, *beside) if beside else scores


class ConvReLU(nn.Sequential):
    """A convolution and ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__(nn.Conv2d(in_channels, out_channels, kernel, stride, padding), nn.ReLU())


class Inception(nn.Module):
    """Four branches: 1x1; 1x1 and 3x3; 1x1 and 5x5; pool and 1x1."""

    is_block = True

    def __init__(
        self, before: int, ones: int, to_three: int, three: int, to_five: int, five: int, pool: int
    ) -> None:
        super().__init__()
        self.b1 = ConvReLU(before, ones, 1)
        self.b2 = nn.Sequential(
            ConvReLU(before, to_three, 1), ConvReLU(to_three, three, 3, padding=1)
        )
        self.b3 = nn.Sequential(ConvReLU(before, to_five, 1), ConvReLU(to_five, five, 5, padding=2))
        self.b4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), ConvReLU(before, pool, 1))

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        return cat([self.b1(x), self.b2(x), self.b3(x), self.b4(x)])


def _head(in_channels: int, side: int, num_classes: int) -> InceptionAux:
    pool = nn.AvgPool2d(5, 3)
    _, height, width = nn.output_shape(pool, (in_channels, side, side))
    return InceptionAux(pool, ConvReLU(in_channels, 128, 1), height * width, num_classes)
