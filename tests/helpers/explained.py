"""Small networks to explain: a chain with every awkward window, and every container."""

import numpy as np

from gpuconv import nn
from gpuconv.nn import init

CHAIN_SHAPE, BLOCKS_SHAPE = (2, 9, 8), (2, 6, 5)


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
        first=nn.Sequential(norm=nn.BatchNorm2d(4), relu=nn.ReLU(), conv=nn.Conv2d(4, 2, 1)),
        second=nn.Sequential(relu=nn.ReLU(), conv=nn.Conv2d(6, 2, 3, padding=1)),
    )
    body = nn.Sequential(conv1=nn.Conv2d(4, 4, 3, 1, 1, bias=False), bn1=nn.BatchNorm2d(4))
    return nn.Sequential(
        stem=nn.Sequential(
            conv=nn.Conv2d(2, 4, 3, padding=1), bn=nn.BatchNorm2d(4), relu=nn.ReLU()
        ),
        block=nn.Sequential(
            **{"": nn.Residual(body, nn.Conv2d(4, 4, 1), ("", "down")), "relu": nn.ReLU()}
        ),
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


def made(build, device="reference", dtype=np.float64, seed=4):
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


def images(shape, count=2, dtype=np.float64, seed=1):
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(dtype)
