"""ResNet: blocks with shortcut connections.

Source: He et al. 2015, "Deep residual learning", in the form of version 1.5 (the stride of a
bottleneck is on its 3x3 convolution); torchvision.models.resnet.
"""

from __future__ import annotations

from typing import Unpack

from gpuconv import nn
from gpuconv.models.zoo import Common, model, stem_convolution

WEIGHTS: nn.init.ByKind = {nn.Conv2d: nn.init.kaiming_normal_fan_out}


@model(size=224, weights=WEIGHTS)
def resnet18(
    num_classes: int = 1000,
    in_channels: int = 3,
    stem: str = "imagenet",
    input_size: int = 224,
    **common: Unpack[Common],
) -> ResNet:
    """ResNet-18: two basic blocks at each of four sizes; 11,689,512 parameters.

    stem: "imagenet", a 7x7 convolution with stride 2 and a max-pool; "small", for images of 32x32
    or so, a 3x3 convolution with stride 1 alone. input_size: the size that the summary assumes.
    forward: x (N, in_channels, H, W) -> scores (N, num_classes).
    """
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, in_channels, stem)


@model(size=224, weights=WEIGHTS)
def resnet34(
    num_classes: int = 1000,
    in_channels: int = 3,
    stem: str = "imagenet",
    input_size: int = 224,
    **common: Unpack[Common],
) -> ResNet:
    """ResNet-34: 3, 4, 6 and 3 basic blocks; 21,797,672 parameters; otherwise as resnet18."""
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes, in_channels, stem)


@model(size=224, weights=WEIGHTS)
def resnet50(
    num_classes: int = 1000,
    in_channels: int = 3,
    stem: str = "imagenet",
    input_size: int = 224,
    **common: Unpack[Common],
) -> ResNet:
    """ResNet-50: 3, 4, 6 and 3 bottlenecks; 25,557,032 parameters; otherwise as resnet18."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, in_channels, stem)


class ResNet(nn.Module):
    """A stem, four stages of residual blocks, the mean over the image, and a linear layer."""

    def __init__(
        self, block: Block, counts: tuple[int, ...], num_classes: int, in_channels: int, stem: str
    ) -> None:
        super().__init__()
        self.conv1 = stem_convolution(stem, in_channels)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if stem == "imagenet" else nn.Identity()
        self.layer1 = _stage(block, 64, 64, counts[0], stride=1)
        self.layer2 = _stage(block, 64 * block.expansion, 128, counts[1], stride=2)
        self.layer3 = _stage(block, 128 * block.expansion, 256, counts[2], stride=2)
        self.layer4 = _stage(block, 256 * block.expansion, 512, counts[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * block.expansion, num_classes)

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, and x added to their output."""

    is_block = True
    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _downsample(in_channels, channels, stride)

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + self.downsample(x))


class Bottleneck(nn.Module):
    """A 1x1 convolution to fewer channels, a 3x3, a 1x1 to four times as many, and x added."""

    is_block = True
    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.relu = nn.ReLU()
        self.downsample = _downsample(in_channels, 4 * channels, stride)

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + self.downsample(x))


Block = type[BasicBlock] | type[Bottleneck]


def _stage(block: Block, in_channels: int, channels: int, count: int, stride: int) -> nn.Sequential:
    """`count` blocks, of which the first may halve the image."""
    first = block(in_channels, channels, stride)
    others = [block(channels * block.expansion, channels, 1) for _ in range(count - 1)]
    return nn.Sequential(first, *others)


def _downsample(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """What brings x to the shape of a block's output."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))
