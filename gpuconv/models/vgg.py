"""VGG: blocks of 3x3 convolutions, each followed by a max-pool.

Source: Simonyan and Zisserman 2015, configurations D and E; torchvision.models.vgg.
"""

from __future__ import annotations

from typing import Unpack

from gpuconv import nn
from gpuconv.models.zoo import Common, model

CHANNELS = (64, 128, 256, 512, 512)
WEIGHTS: nn.init.ByKind = {
    nn.Conv2d: nn.init.kaiming_normal_fan_out,
    nn.Linear: nn.init.small_normal,
}


@model(size=224, weights=WEIGHTS)
def vgg16(
    num_classes: int = 1000, in_channels: int = 3, input_size: int = 224, **common: Unpack[Common]
) -> nn.Sequential:
    """VGG-16: 13 convolutions and 3 fully connected layers; 138,357,544 parameters.

    forward: x (N, in_channels, H, W), H and W at least 32 -> scores (N, num_classes).
    """
    return _vgg((2, 2, 3, 3, 3), False, num_classes, in_channels)


@model(size=224, weights=WEIGHTS)
def vgg16_bn(
    num_classes: int = 1000, in_channels: int = 3, input_size: int = 224, **common: Unpack[Common]
) -> nn.Sequential:
    """VGG-16 with batch norm after every convolution; 138,365,992 parameters; as vgg16."""
    return _vgg((2, 2, 3, 3, 3), True, num_classes, in_channels)


@model(size=224, weights=WEIGHTS)
def vgg19(
    num_classes: int = 1000, in_channels: int = 3, input_size: int = 224, **common: Unpack[Common]
) -> nn.Sequential:
    """VGG-19: 16 convolutions and 3 fully connected layers; 143,667,240 parameters; as vgg16."""
    return _vgg((2, 2, 4, 4, 4), False, num_classes, in_channels)


def _vgg(blocks: tuple[int, ...], norm: bool, num_classes: int, in_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    before = in_channels
    for channels, convolutions in zip(CHANNELS, blocks, strict=True):
        for _ in range(convolutions):
            layers.append(nn.Conv2d(before, channels, 3, padding=1))
            layers += [nn.BatchNorm2d(channels), nn.ReLU()] if norm else [nn.ReLU()]
            before = channels
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(
        features=nn.Sequential(*layers),
        avgpool=nn.AdaptiveAvgPool2d(7),
        flat=nn.Flatten(),
        classifier=nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, num_classes),
        ),
    )
