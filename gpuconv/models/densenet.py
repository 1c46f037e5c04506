"""DenseNet: every layer of a block takes the outputs of all layers before it.

Source: Huang et al. 2017, DenseNet-BC; torchvision.models.densenet.
"""

from __future__ import annotations

from typing import Unpack

from gpuconv import nn
from gpuconv.models.zoo import Common, model, stem_convolution

GROWTH = 32  # channels that each layer adds
BOTTLENECK = 4 * GROWTH


@model(size=224, weights={nn.Conv2d: nn.init.kaiming_normal, nn.Linear: nn.init.pytorch_uniform})
def densenet121(
    num_classes: int = 1000,
    in_channels: int = 3,
    stem: str = "imagenet",
    input_size: int = 224,
    **common: Unpack[Common],
) -> DenseNet:
    """DenseNet-121: blocks of 6, 12, 24 and 16 layers; 7,978,856 parameters.

    stem: "imagenet", a 7x7 convolution with stride 2 and a max-pool; "small", for images of 32x32
    or so, a 3x3 convolution with stride 1 alone. input_size: the size that the summary assumes.
    forward: x (N, in_channels, H, W) -> scores (N, num_classes).
    """
    return DenseNet((6, 12, 24, 16), num_classes, in_channels, stem)


class DenseNet(nn.Module):
    """A stem, dense blocks with transitions between them, the mean over the image, and a linear
    layer.
    """

    def __init__(
        self, counts: tuple[int, ...], num_classes: int, in_channels: int, stem: str
    ) -> None:
        super().__init__()
        channels = 2 * GROWTH
        features: dict[str, nn.Module] = {
            "conv0": stem_convolution(stem, in_channels),
            "norm0": nn.BatchNorm2d(channels),
            "relu0": nn.ReLU(),
        }
        if stem == "imagenet":
            features["pool0"] = nn.MaxPool2d(3, 2, padding=1)
        for number, count in enumerate(counts, 1):
            layers = {f"denselayer{i + 1}": DenseLayer(channels + i * GROWTH) for i in range(count)}
            features[f"denseblock{number}"] = nn.DenseBlock(GROWTH, **layers)
            channels += count * GROWTH
            if number < len(counts):
                features[f"transition{number}"] = Transition(channels)
                channels //= 2
        self.features = nn.Sequential(**features, norm5=nn.BatchNorm2d(channels))
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        x = self.relu(self.features(x))
        return self.classifier(self.avgpool(x).flatten(1))


class DenseLayer(nn.Sequential):
    """A 1x1 convolution to few channels and a 3x3, each after batch norm and ReLU."""

    is_block = True

    def __init__(self, in_channels: int) -> None:
        super().__init__(
            norm1=nn.BatchNorm2d(in_channels),
            relu1=nn.ReLU(),
            conv1=nn.Conv2d(in_channels, BOTTLENECK, 1, bias=False),
            norm2=nn.BatchNorm2d(BOTTLENECK),
            relu2=nn.ReLU(),
            conv2=nn.Conv2d(BOTTLENECK, GROWTH, 3, padding=1, bias=False),
        )


class Transition(nn.Sequential):
    """Half the channels, half the height and width."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(
            norm=nn.BatchNorm2d(in_channels),
            relu=nn.ReLU(),
            conv=nn.Conv2d(in_channels, in_channels // 2, 1, bias=False),
            pool=nn.AvgPool2d(2),
        )
