"""LeNet. Source: figures 18 to 20 of the article, after A. W. Harley's page; LeCun et al. 1998."""

from __future__ import annotations

from gpuconv.models.zoo import model
from gpuconv.nn import Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sequential


@model(size=32)
def lenet(
    num_classes: int = 10, in_channels: int = 1, *, seed: int | None = 0, recompute: bool = False
) -> Sequential:
    """The article's LeNet: 6@5x5, pool, 16@5x5, pool, 120, 100, num_classes; 63,802 parameters.

    forward: x (N, in_channels, 32, 32), floats -> scores (N, num_classes).
    """
    return Sequential(
        conv1=Conv2d(in_channels, 6, 5),
        relu1=ReLU(),
        pool1=MaxPool2d(2),
        conv2=Conv2d(6, 16, 5),
        relu2=ReLU(),
        pool2=MaxPool2d(2),
        flat=Flatten(),
        fc1=Linear(16 * 5 * 5, 120),
        relu3=ReLU(),
        fc2=Linear(120, 100),
        relu4=ReLU(),
        fc3=Linear(100, num_classes),
    )
