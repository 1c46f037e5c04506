"""GoogLeNet as torchvision has it: batch norm instead of response normalisation.

Source: Szegedy et al. 2014, "Going deeper with convolutions"; torchvision.models.googlenet, whose
"5x5" branch is 3x3, whose fourth pool is 2x2 and whose batch norm has eps 1e-3.
"""

from __future__ import annotations

from typing import Any, Unpack

from gpuconv import nn
from gpuconv.models.zoo import Common, model

# The numbers of table 1. Channels in, 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection
BRANCHES = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}

HEADS = {"4a": 512, "4d": 528}  # the blocks that the auxiliary heads read, and their channels

WEIGHTS: nn.init.ByKind = {nn.Conv2d: nn.init.small_normal, nn.Linear: nn.init.small_normal}


@model(size=224, weights=WEIGHTS)
def googlenet(
    num_classes: int = 1000,
    in_channels: int = 3,
    aux: bool = False,
    input_size: int = 224,
    **common: Unpack[Common],
) -> GoogLeNet:
    """GoogLeNet, torchvision's: nine inception blocks; 6,624,904 parameters.

    aux: with the two auxiliary heads of training, 13,004,888 parameters; then forward gives a tuple
    in training, for `AuxiliaryLoss`. input_size: the size that the summary assumes. The biases of
    the linear layers begin at 0; torchvision's are random.
    forward: x (N, in_channels, H, W) -> scores (N, num_classes).
    """
    return GoogLeNet(num_classes, in_channels, aux)


class GoogLeNet(nn.Module):
    """The stem, nine inception blocks and the head, with two more heads on the way if asked."""

    def __init__(self, num_classes: int, in_channels: int, aux: bool) -> None:
        super().__init__()
        self.conv1 = BasicConv2d(in_channels, 64, 7, stride=2, padding=3)
        self.maxpool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2 = BasicConv2d(64, 64, 1)
        self.conv3 = BasicConv2d(64, 192, 3, padding=1)
        self.maxpool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.inception3a = Inception("3a")
        self.inception3b = Inception("3b")
        self.maxpool3 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.inception4a = Inception("4a")
        self.inception4b = Inception("4b")
        self.inception4c = Inception("4c")
        self.inception4d = Inception("4d")
        self.inception4e = Inception("4e")
        self.maxpool4 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.inception5a = Inception("5a")
        self.inception5b = Inception("5b")
        heads: list[Any] = [
            InceptionAux(nn.AdaptiveAvgPool2d(4), BasicConv2d(channels, 128, 1), 16, num_classes)
            if aux
            else None
            for channels in HEADS.values()
        ]
        self.aux1, self.aux2 = heads
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(1024, num_classes)

    def forward(self, x: nn.Tensor) -> Any:
        x = self.maxpool1(self.conv1(x))
        x = self.maxpool2(self.conv3(self.conv2(x)))
        x = self.maxpool3(self.inception3b(self.inception3a(x)))
        x = self.inception4a(x)
        beside = [self.aux1(x)] if self.aux1 is not None and self.training else []
        x = self.inception4d(self.inception4c(self.inception4b(x)))
        if self.aux2 is not None and self.training:
            beside.append(self.aux2(x))
        x = self.maxpool4(self.inception4e(x))
        x = self.avgpool(self.inception5b(self.inception5a(x)))
        scores = self.fc(self.dropout(x.flatten(1)))
        return (scores, *beside) if beside else scores


class BasicConv2d(nn.Sequential):
    """A convolution, batch norm and ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__(
            conv=nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False),
            bn=nn.BatchNorm2d(out_channels, eps=1e-3),
            relu=nn.ReLU(),
        )


class Inception(nn.Concat):
    """Four branches: 1x1; 1x1 and 3x3; 1x1 and 3x3 (`kernel` 5 in the paper); pool and 1x1.

    row: of the table. name: of a branch, before its number. conv: makes a convolution with what
    follows it.
    """

    def __init__(
        self, row: str, name: str = "branch", conv: Any = BasicConv2d, kernel: int = 3
    ) -> None:
        before, ones, to_three, three, to_five, five, pool = BRANCHES[row]
        branches = (
            conv(before, ones, 1),
            nn.Sequential(conv(before, to_three, 1), conv(to_three, three, 3, padding=1)),
            nn.Sequential(
                conv(before, to_five, 1), conv(to_five, five, kernel, padding=kernel // 2)
            ),
            nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(before, pool, 1)),
        )
        super().__init__(**{f"{name}{i}": branch for i, branch in enumerate(branches, 1)})


class InceptionAux(nn.Module):
    """An auxiliary head: scores from the middle of the network, for training.

    conv: gives 128 channels. pixels: of each after the pool.
    """

    def __init__(self, pool: nn.Module, conv: nn.Module, pixels: int, num_classes: int) -> None:
        super().__init__()
        self.pool = pool
        self.conv = conv
        self.fc1 = nn.Linear(128 * pixels, 1024)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(0.7)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        x = self.conv(self.pool(x)).flatten(1)
        return self.fc2(self.dropout(self.relu(self.fc1(x))))
