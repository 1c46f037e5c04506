"""Small networks to explain: a chain with every awkward window, and every container."""

import numpy as np

from gpuconv import nn, no_grad
from gpuconv.nn import init

CHAIN_SHAPE, BLOCKS_SHAPE = (2, 9, 8), (2, 6, 5)


class Block(nn.Module):
    """relu(bn1(conv1(x)) + down(x))."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.down = nn.Conv2d(4, 4, 1)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.bn1(self.conv1(x)) + self.down(x))


def scores(network, x):
    """A forward pass in evaluation mode, as a NumPy array."""
    with no_grad():
        return network.eval()(x).numpy()


def chain():
    return nn.Sequential(
        conv1=nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=((1, 0), (0, 1)), groups=2),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d((2, 3), (1, 2), padding=(0, 1), ceil_mode=True),
        conv2=nn.Conv2d(4, 3, 2, dilation=(1, 2), padding="same"),
        relu2=nn.ReLU(),
        flat=nn.Flatten(),
        drop=nn.Dropout(0.5),
        fc1=nn.Linear(45, 9),
        relu3=nn.ReLU(),
        fc2=nn.Linear(9, 4),
    )


def blocks():
    """Batch norm with ReLU, convolution with ReLU and pool, residual, concatenation, dense."""
    dense = nn.DenseBlock(
        2,
        first=nn.Sequential(norm=nn.BatchNorm2d(4), relu=nn.ReLU(), conv=nn.Conv2d(4, 2, 1)),
        second=nn.Sequential(relu=nn.ReLU(), conv=nn.Conv2d(6, 2, 3, padding=1)),
    )
    return nn.Sequential(
        stem=nn.Sequential(
            conv=nn.Conv2d(2, 4, 3, padding=1), bn=nn.BatchNorm2d(4), relu=nn.ReLU()
        ),
        block=Block(),
        wide=nn.Concat(
            one=nn.Sequential(conv=nn.Conv2d(4, 2, 1), relu=nn.ReLU()),
            two=nn.Sequential(pool=nn.MaxPool2d(3, 1, 1), conv=nn.Conv2d(4, 2, 1), relu=nn.ReLU()),
        ),
        dense=dense,
        joined=nn.Sequential(conv=nn.Conv2d(8, 6, 2), relu=nn.ReLU(), pool=nn.MaxPool2d(2)),
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        fc=nn.Linear(6, 3),
    )


def made(build, device="reference", dtype=np.float64, seed=5):
    """A network with random weights, biases and running statistics, in training mode."""
    network = build()
    init.initialize(network, seed)
    rng = np.random.default_rng(seed)
    for _, parameter in network.named_parameters():
        parameter.data[...] += 0.1 * rng.standard_normal(parameter.shape)
    for name, buffer in network.named_buffers():
        if "running" in name:
            low = -0.5 if "mean" in name else 0.5
            buffer.data[...] = rng.uniform(low, low + 1, buffer.data.shape)
    return network.to(device, dtype)


def images(shape, count=2, dtype=np.float64, seed=5):
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(dtype)
