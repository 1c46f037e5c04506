"""GoogLeNet as torchvision has it: batch norm instead of response normalisation.

Source: Szegedy et al. 2014, "Going deeper with convolutions"; torchvision.models.googlenet, whose
"5x5" branch is 3x3, whose fourth pool is 2x2 and whose batch norm has eps 1e-3.
"""

from __future__ import annotations

from gpuconv.models.inception import BRANCHES, HEADS
from gpuconv.models.zoo import model
from gpuconv.nn import (
    AdaptiveAvgPool2d,
    AuxiliaryHeads,
    BatchNorm2d,
    Concat,
    Conv2d,
    Dropout,
    Flatten,
    Layer,
    Linear,
    MaxPool2d,
    ReLU,
    Sequential,
    init,
)

WEIGHTS: init.ByKind = {Conv2d: init.small_normal, Linear: init.small_normal}


@model(size=224, weights=WEIGHTS)
def googlenet(
    num_classes: int = 1000, in_channels: int = 3, aux: bool = False, input_size: int = 224
) -> Sequential:
    """GoogLeNet, torchvision's: nine inception blocks; 6,624,904 parameters.

    aux: with the two auxiliary heads of training, 13,004,888 parameters; then forward gives a tuple
    in training, for `AuxiliaryLoss`. input_size: what the summary assumes. The biases of the linear
    layers begin at 0, torchvision's are drawn.
    forward: x (N, in_channels, H, W) -> scores (N, num_classes).
    """
    layers: dict[str, Layer] = {
        "conv1": _conv(in_channels, 64, 7, stride=2, padding=3),
        "maxpool1": MaxPool2d(3, 2, ceil_mode=True),
        "conv2": _conv(64, 64, 1),
        "conv3": _conv(64, 192, 3, padding=1),
        "maxpool2": MaxPool2d(3, 2, ceil_mode=True),
    }
    for name, channels in BRANCHES.items():
        layers[f"inception{name}"] = _inception(*channels)
        if name == "3b":
            layers["maxpool3"] = MaxPool2d(3, 2, ceil_mode=True)
        if name == "4e":
            layers["maxpool4"] = MaxPool2d(2, 2, ceil_mode=True)
    heads = {f"aux{n}": f"inception{name}" for n, name in enumerate(HEADS, 1)} if aux else {}
    for head, name in zip(heads, HEADS, strict=False):
        layers[head] = _head(HEADS[name], num_classes)
    last = {"avgpool": AdaptiveAvgPool2d(1), "flat": Flatten(), "dropout": Dropout(0.2)}
    layers |= {**last, "fc": Linear(1024, num_classes)}
    return AuxiliaryHeads(heads, **layers) if aux else Sequential(**layers)


def _conv(before: int, after: int, kernel: int, stride: int = 1, padding: int = 0) -> Sequential:
    return Sequential(
        conv=Conv2d(before, after, kernel, stride, padding, bias=False),
        bn=BatchNorm2d(after, eps=1e-3),
        relu=ReLU(),
    )


def _inception(
    before: int, ones: int, to_three: int, three: int, to_five: int, five: int, pooled: int
) -> Concat:
    """Four branches: 1x1; 1x1 and 3x3; 1x1 and what the paper has 5x5; pool and 1x1."""
    return Concat(
        branch1=_conv(before, ones, 1),
        branch2=Sequential(_conv(before, to_three, 1), _conv(to_three, three, 3, padding=1)),
        branch3=Sequential(_conv(before, to_five, 1), _conv(to_five, five, 3, padding=1)),
        branch4=Sequential(MaxPool2d(3, 1, 1, ceil_mode=True), _conv(before, pooled, 1)),
    )


def _head(channels: int, num_classes: int) -> Sequential:
    return Sequential(
        pool=AdaptiveAvgPool2d(4),
        conv=_conv(channels, 128, 1),
        flat=Flatten(),
        fc1=Linear(128 * 4 * 4, 1024),
        relu=ReLU(),
        dropout=Dropout(0.7),
        fc2=Linear(1024, num_classes),
    )
