"""DenseNet: every layer of a block sees the outputs of all before it.

Source: Huang et al. 2017, DenseNet-BC; torchvision.models.densenet.
"""

from __future__ import annotations

from gpuconv.models.stems import require_stem
from gpuconv.models.zoo import model
from gpuconv.nn import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    DenseBlock,
    Flatten,
    Layer,
    Linear,
    MaxPool2d,
    ReLU,
    Sequential,
    init,
)

GROWTH = 32  # channels that each layer adds
BOTTLENECK = 4 * GROWTH


@model(size=224, weights={Conv2d: init.kaiming_normal, Linear: init.pytorch_uniform})
def densenet121(
    num_classes: int = 1000, in_channels: int = 3, stem: str = "imagenet", input_size: int = 224
) -> Sequential:
    """DenseNet-121: blocks of 6, 12, 24 and 16 layers; 7,978,856 parameters.

    stem: "imagenet", a 7x7 convolution with stride 2 and a max-pool; "small", for images of 32x32
    or so, a 3x3 convolution with stride 1 alone. input_size: what the summary assumes.
    forward: x (N, in_channels, H, W) -> scores (N, num_classes).
    """
    features, channels = _stem(stem, in_channels), 2 * GROWTH
    for number, count in enumerate((6, 12, 24, 16), 1):
        layers = [_layer(channels + i * GROWTH) for i in range(count)]
        names = [f"denselayer{i + 1}" for i in range(count)]
        features[f"denseblock{number}"] = DenseBlock(**dict(zip(names, layers, strict=True)))
        channels += count * GROWTH
        if number < 4:
            features[f"transition{number}"] = _transition(channels)
            channels //= 2
    features["norm5"] = BatchNorm2d(channels)
    return Sequential(
        features=Sequential(**features, relu5=ReLU()),
        avgpool=AdaptiveAvgPool2d(1),
        flat=Flatten(),
        classifier=Linear(channels, num_classes),
    )


def _stem(stem: str, in_channels: int) -> dict[str, Layer]:
    require_stem(stem)
    channels = 2 * GROWTH
    after: dict[str, Layer] = {"norm0": BatchNorm2d(channels), "relu0": ReLU()}
    if stem == "small":
        return {"conv0": Conv2d(in_channels, channels, 3, padding=1, bias=False), **after}
    conv0 = Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False)
    return {"conv0": conv0, **after, "pool0": MaxPool2d(3, 2, padding=1)}


def _layer(channels: int) -> Sequential:
    return Sequential(
        norm1=BatchNorm2d(channels),
        relu1=ReLU(),
        conv1=Conv2d(channels, BOTTLENECK, 1, bias=False),
        norm2=BatchNorm2d(BOTTLENECK),
        relu2=ReLU(),
        conv2=Conv2d(BOTTLENECK, GROWTH, 3, padding=1, bias=False),
    )


def _transition(channels: int) -> Sequential:
    """Half the channels, half the height and width."""
    return Sequential(
        norm=BatchNorm2d(channels),
        relu=ReLU(),
        conv=Conv2d(channels, channels // 2, 1, bias=False),
        pool=AvgPool2d(2),
    )
