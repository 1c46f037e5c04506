"""GoogLeNet as published.

Source: Szegedy et al. 2014, "Going deeper with convolutions", table 1 and section 5.
"""

from __future__ import annotations

from gpuconv.models.inception import BRANCHES, HEADS
from gpuconv.models.zoo import model
from gpuconv.nn import (
    AuxiliaryHeads,
    AvgPool2d,
    Concat,
    Conv2d,
    Dropout,
    Flatten,
    Layer,
    Linear,
    LocalResponseNorm,
    MaxPool2d,
    ReLU,
    Sequential,
    init,
)


@model(size=224, weights=init.xavier_uniform)
def googlenet_paper(
    num_classes: int = 1000, in_channels: int = 3, aux: bool = False, input_size: int = 224
) -> Sequential:
    """GoogLeNet with response normalisation and 5x5 branches; 6,998,552 parameters.

    aux: with the two auxiliary heads of training, 13,378,280 parameters, for `AuxiliaryLoss`; then
    forward gives a tuple in training. input_size: the heads and the last pool depend on it.
    The first weights, of which the paper says nothing, are Glorot's.
    forward: x (N, in_channels, input_size, input_size) -> scores (N, num_classes).
    """
    layers: dict[str, Layer] = {
        "conv1": _conv(in_channels, 64, 7, stride=2, padding=3),
        "p1": MaxPool2d(3, 2, ceil_mode=True),
        "n1": LocalResponseNorm(5),
        "conv2r": _conv(64, 64, 1),
        "conv2": _conv(64, 192, 3, padding=1),
        "n2": LocalResponseNorm(5),
        "p2": MaxPool2d(3, 2, ceil_mode=True),
    }
    shape = Sequential(**layers).output_shape((in_channels, input_size, input_size))
    heads: dict[str, str] = {}
    for name, channels in BRANCHES.items():
        layers[f"i{name}"] = block = _inception(*channels)
        shape = block.output_shape(shape)
        if aux and name in HEADS:
            heads[f"aux{len(heads) + 1}"] = f"i{name}"
            layers[f"aux{len(heads)}"] = _head(shape, num_classes)
        if name in ("3b", "4e"):
            layers["p3" if name == "3b" else "p4"] = pool = MaxPool2d(3, 2, ceil_mode=True)
            shape = pool.output_shape(shape)
    layers |= {"gap": AvgPool2d(shape[1], 1), "flat": Flatten(), "drop": Dropout(0.4)}
    layers["fc"] = Linear(1024, num_classes)
    return AuxiliaryHeads(heads, **layers) if aux else Sequential(**layers)


def _conv(before: int, after: int, kernel: int, stride: int = 1, padding: int = 0) -> Sequential:
    return Sequential(Conv2d(before, after, kernel, stride, padding), ReLU())


def _inception(
    before: int, ones: int, to_three: int, three: int, to_five: int, five: int, pooled: int
) -> Concat:
    """Four branches: 1x1; 1x1 and 3x3; 1x1 and 5x5; pool and 1x1."""
    return Concat(
        b1=_conv(before, ones, 1),
        b2=Sequential(_conv(before, to_three, 1), _conv(to_three, three, 3, padding=1)),
        b3=Sequential(_conv(before, to_five, 1), _conv(to_five, five, 5, padding=2)),
        b4=Sequential(MaxPool2d(3, 1, 1), _conv(before, pooled, 1)),
    )


def _head(shape: tuple[int, ...], num_classes: int) -> Sequential:
    pool, conv, flat = AvgPool2d(5, 3), _conv(shape[0], 128, 1), Flatten()
    (features,) = Sequential(pool, conv, flat).output_shape(shape)
    return Sequential(
        pool=pool,
        conv=conv,
        flat=flat,
        fc1=Linear(features, 1024),
        relu=ReLU(),
        drop=Dropout(0.7),
        fc2=Linear(1024, num_classes),
    )
