"""Adam Harley's network: the one behind the article's figures 18 to 20, with weights to load.

Source: A. W. Harley, "An interactive node-link visualization of convolutional neural networks",
2015; LeCun et al. 1998 for the connections and the activation.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from gpuconv import nn
from gpuconv.models.zoo import Common, model

# LeNet-5's table I: the six maps of the first pool, and which of the 16 filters see each
CONNECTIONS = [
    [int(mark == "x") for mark in row]
    for row in (
        "x...xxx..xxxx.xx",
        "xx...xxx..xxxx.x",
        "xxx...xxx..x.xxx",
        ".xxx..xxxx..x.xx",
        "..xxx..xxxx.xx.x",
        "...xxx..xxxx.xxx",
    )
]
SIDE = 5  # of a map before it is flattened


@model(size=32, weights=nn.init.lecun_normal)
def harley_lenet(
    num_classes: int = 10, in_channels: int = 1, **common: Unpack[Common]
) -> nn.Sequential:
    """6@5x5, pool, 16@5x5 (60 of 96 connections), pool, 120, 100, num_classes; 62,902 parameters.

    Max-pools; the activation is 1.7159 tanh(2x/3) everywhere, after the last layer too.
    forward: x (N, in_channels, 32, 32), as `harley_pixels` makes it -> scores (N, num_classes).
    """
    return nn.Sequential(
        conv1=nn.Conv2d(in_channels, 6, 5),
        act1=nn.ScaledTanh(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(6, 16, 5, connections=CONNECTIONS),
        act2=nn.ScaledTanh(),
        pool2=nn.MaxPool2d(2),
        flat=nn.Flatten(),
        fc1=nn.Linear(16 * SIDE * SIDE, 120),
        act3=nn.ScaledTanh(),
        fc2=nn.Linear(120, 100),
        act4=nn.ScaledTanh(),
        fc3=nn.Linear(100, num_classes),
        act5=nn.ScaledTanh(),
    )


def harley_pixels(images: np.ndarray, dtype: Any = np.float32) -> np.ndarray:
    """Images (N, 28, 28), uint8, as his network sees them: -0.1 to 1.175, with -0.1 as padding.

    Returns (N, 1, 32, 32).
    """
    if images.ndim != 3 or images.shape[1:] != (28, 28) or images.dtype != np.uint8:
        raise ValueError(
            f"harley_pixels: images must be uint8 (N, 28, 28), got {images.dtype} {images.shape}"
        )
    framed = np.full((len(images), 1, 32, 32), -0.1)
    framed[:, 0, 2:30, 2:30] = images / 255 * 1.275 - 0.1
    return framed.astype(dtype)


def harley_weights(path: Any) -> dict[str, np.ndarray]:
    """The state of `harley_lenet` from the JSON file of his page. ValueError for another file.

    His page flattens each map transposed, column by column; the first linear layer's weights are
    put into row order here, so that the network needs no layer of its own for it.
    """
    try:
        found = json.loads(Path(path).read_text())
        kernels = [np.asarray(each, np.float32) for each in found["conv_nodes"][1]]
        if not np.array_equal(found["keepers"], CONNECTIONS):
            raise ValueError("its connections are not LeNet-5's")
        fc1 = np.asarray(found["hidden_weights_1"], np.float32).reshape(120, 16, SIDE, SIDE)
        state = {
            "conv1.weight": np.asarray(found["conv_nodes"][0], np.float32)[:, None],
            "conv1.bias": found["conv_biases_1"],
            "conv2.weight": np.concatenate(kernels),
            "conv2.bias": found["conv_biases_2"],
            "fc1.weight": fc1.swapaxes(2, 3).reshape(120, -1),
            "fc1.bias": found["hidden_biases_1"],
            "fc2.weight": found["hidden_weights_2"],
            "fc2.bias": found["hidden_biases_2"],
            "fc3.weight": found["final_weights"],
            "fc3.bias": found["final_biases"],
        }
        return {name: np.asarray(value, np.float32) for name, value in state.items()}
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{path}: not the weights of Harley's network: {error}") from None
