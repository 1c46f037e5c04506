"""ZF Net: AlexNet with smaller first filters and strides.

Source: Zeiler and Fergus 2014, figure 3.
"""

from __future__ import annotations

from typing import Unpack

from gpuconv import nn
from gpuconv.models.alexnet import fully_connected, last_convolutions
from gpuconv.models.zoo import Common, model


@model(size=224, weights=nn.init.small_normal)
def zfnet(
    num_classes: int = 1000, in_channels: int = 3, input_size: int = 224, **common: Unpack[Common]
) -> nn.Sequential:
    """ZF Net: conv1 7x7 with stride 2 and padding 1, pools with ceil_mode; 62,357,608 parameters.

    The contrast normalisation of the paper is AlexNet's response normalisation, after the pools.
    input_size: the first fully connected layer depends on it.
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
        **last_convolutions(groups=1),
    }
    return nn.Sequential(**layers, **fully_connected(layers, in_channels, input_size, num_classes))
