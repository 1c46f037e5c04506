"""AlexNet, as published and in the one-GPU form that torchvision's weights have, and ZF Net.

Sources: Krizhevsky, Sutskever and Hinton 2012; Krizhevsky 2014, "One weird trick for parallelizing
convolutional neural networks"; torchvision.models.alexnet.
"""

from __future__ import annotations

from typing import Unpack

from gpuconv import nn
from gpuconv.models.zoo import Common, model

ONES = dict.fromkeys(("conv2", "conv4", "conv5", "fc6", "fc7"), 1.0)  # the paper's first biases


@model(size=224)
def alexnet(
    num_classes: int = 1000, in_channels: int = 3, input_size: int = 224, **common: Unpack[Common]
) -> nn.Sequential:
    """Torchvision's AlexNet: 64 first filters, no normalisation; 61,100,840 parameters.

    forward: x (N, in_channels, H, W), H and W at least 63 -> scores (N, num_classes).
    """
    return nn.Sequential(
        features=nn.Sequential(
            nn.Conv2d(in_channels, 64, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
        ),
        avgpool=nn.AdaptiveAvgPool2d(6),
        flat=nn.Flatten(),
        classifier=nn.Sequential(
            nn.Dropout(),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, num_classes),
        ),
    )


@model(size=227, weights=nn.init.small_normal, biases=ONES)
def alexnet_2012(
    num_classes: int = 1000,
    in_channels: int = 3,
    groups: int = 2,
    lrn: str = "torch",
    input_size: int = 227,
    **common: Unpack[Common],
) -> nn.Sequential:
    """AlexNet as published: overlapping pools, response normalisation, two groups; 60,965,224
    parameters.

    groups: 2, as on the paper's two GPUs, or 1: 62,378,344 parameters. lrn: the convention of
    `LocalResponseNorm`'s alpha 1e-4, "torch" or the "paper"'s own. input_size: 227, which is the
    size that the paper's 224 must have been; the first fully connected layer depends on it.
    forward: x (N, in_channels, input_size, input_size) -> scores (N, num_classes).
    """
    layers = {
        "conv1": nn.Conv2d(in_channels, 96, 11, stride=4),
        "relu1": nn.ReLU(),
        "norm1": nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0, lrn),
        "pool1": nn.MaxPool2d(3, 2),
        "conv2": nn.Conv2d(96, 256, 5, padding=2, groups=groups),
        "relu2": nn.ReLU(),
        "norm2": nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0, lrn),
        "pool2": nn.MaxPool2d(3, 2),
        **_last_convolutions(groups),
    }
    return nn.Sequential(**layers, **_fully_connected(layers, in_channels, input_size, num_classes))


@model(size=224, weights=nn.init.small_normal)
def zfnet(
    num_classes: int = 1000, in_channels: int = 3, input_size: int = 224, **common: Unpack[Common]
) -> nn.Sequential:
    """ZF Net: conv1 7x7 with stride 2 and padding 1, pools with ceil_mode; 62,357,608 parameters.

    The contrast normalisation of the paper is AlexNet's response normalisation, after the pools.
    input_size: the first fully connected layer depends on it. Source: Zeiler and Fergus 2014,
    figure 3.
    forward: x (N, in_channels, input_size, input_size) -> scores (N, num_classes).
    """
    layers = {
        "conv1": nn.Conv2d(in_channels, 96, 7, stride=2, padding=1),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(3, 2, ceil_mode=True),
        "norm1": nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0),
        "conv2": nn.Conv2d(96, 256, 5, stride=2),
        "relu2": nn.ReLU(),
        "pool2": nn.MaxPool2d(3, 2, ceil_mode=True),
        "norm2": nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0),
        **_last_convolutions(groups=1),
    }
    return nn.Sequential(**layers, **_fully_connected(layers, in_channels, input_size, num_classes))


def _last_convolutions(groups: int) -> dict[str, nn.Module]:
    """Layers 3 to 5 of AlexNet, which ZF Net shares."""
    return {
        "conv3": nn.Conv2d(256, 384, 3, padding=1),
        "relu3": nn.ReLU(),
        "conv4": nn.Conv2d(384, 384, 3, padding=1, groups=groups),
        "relu4": nn.ReLU(),
        "conv5": nn.Conv2d(384, 256, 3, padding=1, groups=groups),
        "relu5": nn.ReLU(),
    }


def _fully_connected(
    before: dict[str, nn.Module], in_channels: int, input_size: int, num_classes: int
) -> dict[str, nn.Module]:
    """AlexNet's last pooling and layers 6 to 8, which ZF Net shares, for what `before` gives."""
    pool5, flat = nn.MaxPool2d(3, 2), nn.Flatten()
    shape = (in_channels, input_size, input_size)
    (features,) = nn.output_shape(nn.Sequential(**before, pool5=pool5, flat=flat), shape)
    return {
        "pool5": pool5,
        "flat": flat,
        "fc6": nn.Linear(features, 4096),
        "relu6": nn.ReLU(),
        "drop6": nn.Dropout(),
        "fc7": nn.Linear(4096, 4096),
        "relu7": nn.ReLU(),
        "drop7": nn.Dropout(),
        "fc8": nn.Linear(4096, num_classes),
    }
