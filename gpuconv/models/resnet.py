"""ResNet: blocks with a way around them.

Source: He et al. 2015, "Deep residual learning", in the form of version 1.5 (the stride of a
bottleneck is on its 3x3 convolution); torchvision.models.resnet.
"""

from __future__ import annotations

from collections.abc import Callable

from gpuconv.models.stems import require_stem
from gpuconv.models.zoo import model
from gpuconv.nn import (
    AdaptiveAvgPool2d,
    BatchNorm2d,
    Conv2d,
    Flatten,
    Layer,
    Linear,
    MaxPool2d,
    ReLU,
    Residual,
    Sequential,
    init,
)

WEIGHTS: init.ByKind = {Conv2d: init.kaiming_normal_fan_out}
CHANNELS = (64, 128, 256, 512)
Block = Callable[[int, int, int], Sequential]


@model(size=224, weights=WEIGHTS)
def resnet18(
    num_classes: int = 1000, in_channels: int = 3, stem: str = "imagenet", input_size: int = 224
) -> Sequential:
    """ResNet-18: two basic blocks at each of four sizes; 11,689,512 parameters.

    stem: "imagenet", a 7x7 convolution with stride 2 and a max-pool; "small", for images of 32x32
    or so, a 3x3 convolution with stride 1 alone. input_size: what the summary assumes.
    forward: x (N, in_channels, H, W) -> scores (N, num_classes).
    """
    return _resnet(_basic, 1, (2, 2, 2, 2), num_classes, in_channels, stem)


@model(size=224, weights=WEIGHTS)
def resnet34(
    num_classes: int = 1000, in_channels: int = 3, stem: str = "imagenet", input_size: int = 224
) -> Sequential:
    """ResNet-34: 3, 4, 6 and 3 basic blocks; 21,797,672 parameters; otherwise as resnet18."""
    return _resnet(_basic, 1, (3, 4, 6, 3), num_classes, in_channels, stem)


@model(size=224, weights=WEIGHTS)
def resnet50(
    num_classes: int = 1000, in_channels: int = 3, stem: str = "imagenet", input_size: int = 224
) -> Sequential:
    """ResNet-50: 3, 4, 6 and 3 bottlenecks; 25,557,032 parameters; otherwise as resnet18."""
    return _resnet(_bottleneck, 4, (3, 4, 6, 3), num_classes, in_channels, stem)


def _resnet(
    block: Block,
    growth: int,
    counts: tuple[int, ...],
    num_classes: int,
    in_channels: int,
    stem: str,
) -> Sequential:
    require_stem(stem)
    layers: dict[str, Layer] = {}
    if stem == "imagenet":
        layers["conv1"] = Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
    else:
        layers["conv1"] = Conv2d(in_channels, 64, 3, padding=1, bias=False)
    layers |= {"bn1": BatchNorm2d(64), "relu": ReLU()}
    if stem == "imagenet":
        layers["maxpool"] = MaxPool2d(3, 2, padding=1)
    before = 64
    for number, (channels, count) in enumerate(zip(CHANNELS, counts, strict=True), 1):
        blocks = []
        for place in range(count):
            blocks.append(block(before, channels, 2 if place == 0 and number > 1 else 1))
            before = channels * growth
        layers[f"layer{number}"] = Sequential(*blocks)
    layers |= {"avgpool": AdaptiveAvgPool2d(1), "flat": Flatten()}
    return Sequential(**layers, fc=Linear(before, num_classes))


def _basic(before: int, channels: int, stride: int) -> Sequential:
    """Two 3x3 convolutions, and the way around them."""
    body = Sequential(
        conv1=Conv2d(before, channels, 3, stride, padding=1, bias=False),
        bn1=BatchNorm2d(channels),
        relu=ReLU(),
        conv2=Conv2d(channels, channels, 3, padding=1, bias=False),
        bn2=BatchNorm2d(channels),
    )
    return _around(body, before, channels, stride)


def _bottleneck(before: int, channels: int, stride: int) -> Sequential:
    """A 1x1 convolution to fewer channels, a 3x3, a 1x1 to four times as many."""
    body = Sequential(
        conv1=Conv2d(before, channels, 1, bias=False),
        bn1=BatchNorm2d(channels),
        relu1=ReLU(),
        conv2=Conv2d(channels, channels, 3, stride, padding=1, bias=False),
        bn2=BatchNorm2d(channels),
        relu2=ReLU(),
        conv3=Conv2d(channels, 4 * channels, 1, bias=False),
        bn3=BatchNorm2d(4 * channels),
    )
    return _around(body, before, 4 * channels, stride)


def _around(body: Sequential, before: int, after: int, stride: int) -> Sequential:
    """relu(body(x) + x), with a 1x1 convolution on the way around where the shapes differ.

    The layers of the body are children of the block itself, as in torchvision.
    """
    shortcut = None
    if stride != 1 or before != after:
        shortcut = Sequential(Conv2d(before, after, 1, stride, bias=False), BatchNorm2d(after))
    return Sequential(**{"": Residual(body, shortcut, ("", "downsample")), "relu": ReLU()})
