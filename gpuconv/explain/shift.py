"""The article's claim that pooling makes a network bear small shifts, as an experiment.

The article's LeNet is trained as it is, and with something else in the place of its two max-pools.
Then digits it has not seen are moved by a few pixels, in eight directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gpuconv.data import Dataset, Loader, to_float
from gpuconv.nn import AvgPool2d, Identity, Layer, MaxPool2d, Sequential, init
from gpuconv.nn.summary import summary
from gpuconv.optim import Adam
from gpuconv.train import Trainer

FIELD = 32  # pixels of LeNet's image
POOLS: dict[str, Callable[[], Layer]] = {
    "max-pool": lambda: MaxPool2d(2),
    "average pool": lambda: AvgPool2d(2),
    "every second pixel": lambda: MaxPool2d(1, stride=2),  # as small, but nothing is pooled
    "no pooling": Identity,
}


@dataclass(frozen=True)
class Shifted:
    """What one network makes of digits moved by 0, 1, 2, ... pixels.

    parameters: how many it has. accuracy: the share of right answers for each distance, the mean
    of its directions. same: the share of answers that stay what they are for the digit in its
    place. change: by how much the features move that enter the first fully connected layer,
    |f(moved) - f(in place)| / |f(in place)|, the mean over digits and directions.
    """

    pooling: str
    seed: int
    parameters: int
    accuracy: tuple[float, ...]
    same: tuple[float, ...]
    change: tuple[float, ...]


def shift_experiment(
    train: Dataset,
    test: Dataset,
    seeds: Sequence[int] = (0, 1, 2),
    poolings: Sequence[str] = tuple(POOLS),
    distances: Sequence[int] = (1, 2, 3),
    epochs: int = 3,
    batch: int = 64,
    device: str = "cpu",
) -> Iterator[Shifted]:
    """Train and test one network after the other; yields each one's result.

    train, test: pictures of at most 32x32 pixels with a black (0) ground; training never moves
    them. seeds: of the weights and of the order of the images. poolings: names of `POOLS`.
    Adam with rate 1e-3 and cross-entropy. The same seeds, machine and threads give the same bits.
    Raises ValueError for an unknown pooling and pictures that do not fit.

    >>> from gpuconv import data
    >>> digits = data.load("mnist", "test").subset(slice(0, 64))
    >>> found = next(shift_experiment(digits, digits, epochs=1))
    >>> found.pooling, found.parameters, len(found.accuracy), found.same[0]
    ('max-pool', 63802, 4, 1.0)
    """
    from gpuconv.errors import unknown

    for pooling in poolings:
        if pooling not in POOLS:
            raise unknown("pooling", pooling, POOLS)
    for seed in seeds:
        for pooling in poolings:
            network = lenet_with(pooling, train.image_shape[0], len(train.classes), seed)
            network.to(device)
            optimizer = Adam(network.parameters(), lr=1e-3)
            loader = Loader(train, min(batch, len(train)), seed=seed, size=FIELD)
            trainer = Trainer(network, "cross_entropy", optimizer, seed=seed, progress=False)
            trainer.fit(loader, epochs=epochs)
            yield _measured(network, test, pooling, seed, (0, *distances))


def lenet_with(pooling: str, channels: int, classes: int, seed: int) -> Sequential:
    """The article's LeNet with `POOLS[pooling]` in the place of its pools; the first fully
    connected layer is as large as what then enters it.
    """
    from gpuconv.nn import Conv2d, Flatten, Linear, ReLU

    features = Sequential(
        conv1=Conv2d(channels, 6, 5),
        relu1=ReLU(),
        pool1=POOLS[pooling](),
        conv2=Conv2d(6, 16, 5),
        relu2=ReLU(),
        pool2=POOLS[pooling](),
        flat=Flatten(),
    )
    entering = math.prod(features.output_shape((channels, FIELD, FIELD)))
    scores = Sequential(
        fc1=Linear(entering, 120),
        relu3=ReLU(),
        fc2=Linear(120, 100),
        relu4=ReLU(),
        fc3=Linear(100, classes),
    )
    network = Sequential(features=features, scores=scores)
    init.initialize(network, seed)
    return network


def moved(images: np.ndarray, down: int, right: int) -> np.ndarray:
    """Images (N, C, H, W) in the middle of a black 32x32 field, then moved; what leaves the field
    is lost. Returns (N, C, 32, 32) of their dtype. ValueError for images larger than the field.
    """
    count, channels, height, width = images.shape
    if max(height, width) > FIELD:
        raise ValueError(f"shift: images of {height}x{width} do not fit a field of {FIELD} pixels")
    room = max(abs(down), abs(right))
    field = np.zeros((count, channels, FIELD + 2 * room, FIELD + 2 * room), images.dtype)
    top, left = (FIELD - height) // 2 + room + down, (FIELD - width) // 2 + room + right
    field[:, :, top : top + height, left : left + width] = images
    return field[:, :, room : room + FIELD, room : room + FIELD]


def directions(distance: int) -> list[tuple[int, int]]:
    """(down, right) of the eight moves by `distance` along rows, columns and diagonals."""
    if distance == 0:
        return [(0, 0)]
    steps = (-distance, 0, distance)
    return [(down, right) for down in steps for right in steps if down or right]


def _measured(
    network: Sequential, test: Dataset, pooling: str, seed: int, distances: tuple[int, ...]
) -> Shifted:
    still, answers = _run(network, test, 0, 0)
    norms = np.sqrt((still.astype(np.float64) ** 2).sum(axis=1))
    accuracy, same, change = [], [], []
    for distance in distances:
        right, stayed, far = [], [], []
        for move in directions(distance):
            features, found = _run(network, test, *move)
            right.append(np.mean(found == test.labels))
            stayed.append(np.mean(found == answers))
            apart = np.sqrt(((features - still).astype(np.float64) ** 2).sum(axis=1))
            far.append(np.mean(apart / np.maximum(norms, 1e-12)))
        accuracy.append(float(np.mean(right)))
        same.append(float(np.mean(stayed)))
        change.append(float(np.mean(far)))
    shape = (test.image_shape[0], FIELD, FIELD)
    count = summary(network, shape).parameters
    return Shifted(pooling, seed, count, tuple(accuracy), tuple(same), tuple(change))


def _run(network: Sequential, test: Dataset, down: int, right: int) -> tuple[np.ndarray, ...]:
    """The features of every test image, and the answers."""
    from gpuconv.arrays import to_device, to_numpy

    network.eval()
    features, answers = [], []
    for begin in range(0, len(test), 250):
        pixels = moved(test.images[begin : begin + 250], down, right)
        found = network["features"].infer(to_device(to_float(pixels), network.device))
        features.append(to_numpy(found))
        answers.append(to_numpy(network["scores"].infer(found)).argmax(axis=1))
    return np.concatenate(features), np.concatenate(answers)
