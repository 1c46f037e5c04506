"""GoogLeNet as published.

Source: Szegedy et al. 2014, "Going deeper with convolutions", table 1 and section 5.
"""

from __future__ import annotations

from typing import Any, Unpack

from gpuconv import nn
from gpuconv.models.googlenet import BRANCHES, HEADS, Inception, InceptionAux
from gpuconv.models.zoo import Common, model


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
        self.i3a = Inception("3a", *PAPER)
        self.i3b = Inception("3b", *PAPER)
        self.p3 = nn.MaxPool2d(3, 2, ceil_mode=True)
        side = nn.output_shape(
            nn.Sequential(*self.children()), (in_channels, input_size, input_size)
        )[1]
        self.i4a = Inception("4a", *PAPER)
        self.aux1 = _head(HEADS["4a"], side, num_classes) if aux else None
        self.i4b = Inception("4b", *PAPER)
        self.i4c = Inception("4c", *PAPER)
        self.i4d = Inception("4d", *PAPER)
        self.aux2 = _head(HEADS["4d"], side, num_classes) if aux else None
        self.i4e = Inception("4e", *PAPER)
        self.p4 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.i5a = Inception("5a", *PAPER)
        self.i5b = Inception("5b", *PAPER)
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


PAPER = ("b", ConvReLU, 5)  # how the inception blocks differ from torchvision's


def _head(in_channels: int, side: int, num_classes: int) -> InceptionAux:
    pool = nn.AvgPool2d(5, 3)
    _, height, width = nn.output_shape(pool, (in_channels, side, side))
    return InceptionAux(pool, ConvReLU(in_channels, 128, 1), height * width, num_classes)
