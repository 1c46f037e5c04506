"""LeNet, the article's and LeNet-5.

Sources: figures 18 to 20 of the article, after A. W. Harley's page; LeCun et al. 1998,
"Gradient-based learning applied to document recognition".
"""

from __future__ import annotations

from typing import Unpack

from gpuconv import nn
from gpuconv.models.zoo import Common, model


@model(size=32)
def lenet(num_classes: int = 10, in_channels: int = 1, **common: Unpack[Common]) -> nn.Sequential:
    """The article's LeNet: 6@5x5, pool, 16@5x5, pool, 120, 100, num_classes; 63,802 parameters.

    forward: x (N, in_channels, 32, 32), floats -> scores (N, num_classes).
    """
    return nn.Sequential(
        conv1=nn.Conv2d(in_channels, 6, 5),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(6, 16, 5),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        flat=nn.Flatten(),
        fc1=nn.Linear(16 * 5 * 5, 120),
        relu3=nn.ReLU(),
        fc2=nn.Linear(120, 100),
        relu4=nn.ReLU(),
        fc3=nn.Linear(100, num_classes),
    )


@model(size=32, weights=nn.init.xavier_uniform)
def lenet5(num_classes: int = 10, in_channels: int = 1, **common: Unpack[Common]) -> nn.Sequential:
    """6@5x5, 16@5x5, 120@5x5 with tanh and average pooling, 84, num_classes; 61,706 parameters.

    LeNet-5 as it is taught today, without its partial connections and Gaussian outputs.
    forward: x (N, in_channels, 32, 32), floats -> scores (N, num_classes).
    """
    return nn.Sequential(
        c1=nn.Conv2d(in_channels, 6, 5),
        a1=nn.Tanh(),
        s2=nn.AvgPool2d(2),
        c3=nn.Conv2d(6, 16, 5),
        a3=nn.Tanh(),
        s4=nn.AvgPool2d(2),
        c5=nn.Conv2d(16, 120, 5),
        a5=nn.Tanh(),
        flat=nn.Flatten(),
        f6=nn.Linear(120, 84),
        a6=nn.Tanh(),
        out=nn.Linear(84, num_classes),
    )
