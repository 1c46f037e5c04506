"""LeNet-5 as it is taught today. Source: LeCun et al. 1998, "Gradient-based learning applied to
document recognition", without its partial connections and Gaussian outputs.
"""

from __future__ import annotations

from gpuconv.models.zoo import model
from gpuconv.nn import AvgPool2d, Conv2d, Flatten, Linear, Sequential, Tanh, init


@model(size=32, weights=init.xavier_uniform)
def lenet5(
    num_classes: int = 10, in_channels: int = 1, *, seed: int | None = 0, recompute: bool = False
) -> Sequential:
    """6@5x5, 16@5x5, 120@5x5 with tanh and average pooling, 84, num_classes; 61,706 parameters.

    forward: x (N, in_channels, 32, 32), floats -> scores (N, num_classes).
    """
    return Sequential(
        c1=Conv2d(in_channels, 6, 5),
        a1=Tanh(),
        s2=AvgPool2d(2),
        c3=Conv2d(6, 16, 5),
        a3=Tanh(),
        s4=AvgPool2d(2),
        c5=Conv2d(16, 120, 5),
        a5=Tanh(),
        flat=Flatten(),
        f6=Linear(120, 84),
        a6=Tanh(),
        out=Linear(84, num_classes),
    )
