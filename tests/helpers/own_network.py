"""A network with a forward of its own, as a user has it: the file, and how to run commands."""

FILE = """
from gpuconv import nn
from gpuconv.nn import functional as F
from own_blocks import Halve


class Net(nn.Module):
    def __init__(self, in_channels, num_classes, width=4):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 5)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.halve = Halve()
        self.fc = nn.Linear(width * 36, num_classes)

    def forward(self, x):
        y = self.halve(F.relu(self.conv1(x)))
        y = self.halve(F.relu(y + self.conv2(y)))
        return self.fc(y.flatten(1))


def build(in_channels=1, num_classes=10):
    return Net(in_channels, num_classes)


def plain(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(1, 4, 5), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(144, num_classes)
    )


def three():
    return Net(1, 3)


def number():
    return 3


def fails():
    return 1 / 0


def needs(width):
    return width


class Broken(Net):
    def forward(self, x):
        return self.conv3(x)


def broken():
    return Broken(1, 10)


NUMBER = 3
"""
BLOCKS = """
from gpuconv import nn


class Halve(nn.Module):
    def forward(self, x):
        return nn.functional.max_pool2d(x, 2)
"""


def write(folder):
    (folder / "mynet.py").write_text(FILE)
    (folder / "own_blocks.py").write_text(BLOCKS)
    return f"{folder / 'mynet.py'}:"
