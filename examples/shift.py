"""Does pooling make a network robust to small translations, as the article says?

    python examples/shift.py
    python examples/shift.py --seeds 0 1 2 3 4 --train 60000 --test 10000 --epochs 5

The article's LeNet is trained with its max-pools, with average pools, with subsampling instead
(every second pixel: as small, but nothing is pooled) and without any of these, each with every
seed. Training images are not translated. Then test images are translated by 1, 2 and 3 pixels in
eight directions within a field of 32x32, which hardly any of MNIST's ink leaves (0.015% at 3
pixels, none before).

The tables show the accuracy, the share of predictions that stay the same, and the relative change
of the features that enter the first fully connected layer: the mean over the seeds, and the
smallest and the largest in brackets.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gpuconv import Trainer, data, nn, optim, to_device

FIELD = 32  # pixels of LeNet's input
BATCH = 64
POOLS: dict[str, Callable[[], nn.Module]] = {
    "max-pool": lambda: nn.MaxPool2d(2),
    "average pool": lambda: nn.AvgPool2d(2),
    "every second pixel": lambda: nn.MaxPool2d(1, stride=2),
    "no pooling": nn.Identity,
}


@dataclass(frozen=True)
class Result:
    """One network's results on images translated by 0, 1, 2, ... pixels.

    accuracy, same: means over the directions of a distance. change: |f(moved) - f(in place)| /
    |f(in place)| of the features f, the mean over images and directions.
    """

    pooling: str
    seed: int
    parameters: int
    accuracy: tuple[float, ...]
    same: tuple[float, ...]
    change: tuple[float, ...]


class LeNet(nn.Module):
    """The article's LeNet with `POOLS[pooling]` in the place of its pools.

    `features` computes what enters the first fully connected layer, `scores` the rest.
    """

    def __init__(self, pooling: str, channels: int, classes: int, seed: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv1=nn.Conv2d(channels, 6, 5),
            relu1=nn.ReLU(),
            pool1=POOLS[pooling](),
            conv2=nn.Conv2d(6, 16, 5),
            relu2=nn.ReLU(),
            pool2=POOLS[pooling](),
            flat=nn.Flatten(),
        )
        entering = math.prod(nn.output_shape(self.features, (channels, FIELD, FIELD)))
        self.scores = nn.Sequential(
            fc1=nn.Linear(entering, 120),
            relu3=nn.ReLU(),
            fc2=nn.Linear(120, 100),
            relu4=nn.ReLU(),
            fc3=nn.Linear(100, classes),
        )
        nn.init.initialize(self, seed)

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        scores: nn.Tensor = self.scores(self.features(x))
        return scores


def translated(images: np.ndarray, down: int, right: int) -> np.ndarray:
    """Images (N, C, H, W) in the middle of a black 32x32 field, translated within it."""
    count, channels, height, width = images.shape
    room = max(abs(down), abs(right))
    field = np.zeros((count, channels, FIELD + 2 * room, FIELD + 2 * room), images.dtype)
    top, left = (FIELD - height) // 2 + room + down, (FIELD - width) // 2 + room + right
    field[:, :, top : top + height, left : left + width] = images
    return field[:, :, room : room + FIELD, room : room + FIELD]


def directions(distance: int) -> list[tuple[int, int]]:
    """(down, right) of the eight translations by `distance` along rows, columns and diagonals."""
    if distance == 0:
        return [(0, 0)]
    steps = (-distance, 0, distance)
    return [(down, right) for down in steps for right in steps if down or right]


def run(
    network: LeNet, test: data.Dataset, down: int = 0, right: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The features and the predicted class of every test image, translated."""
    network.eval()
    features, predictions = [], []
    for begin in range(0, len(test), 250):
        x = data.to_float(translated(test.images[begin : begin + 250], down, right))
        with nn.no_grad():
            entering = network.features(to_device(x, network.device))
            scores = network.scores(entering)
        features.append(entering.numpy())
        predictions.append(scores.numpy().argmax(axis=1))
    return np.concatenate(features), np.concatenate(predictions)


def measure(network: LeNet, test: data.Dataset, pooling: str, seed: int, farthest: int) -> Result:
    """Test a network on images translated by 0 to `farthest` pixels."""
    in_place, first = run(network, test)
    norms = np.linalg.norm(in_place.astype(np.float64), axis=1)
    rows = []
    for distance in range(farthest + 1):
        found = []
        for down, right in directions(distance):
            features, predictions = run(network, test, down, right)
            moved = np.linalg.norm((features - in_place).astype(np.float64), axis=1)
            change = np.mean(moved / np.maximum(norms, 1e-12))
            found.append(
                (np.mean(predictions == test.labels), np.mean(predictions == first), change)
            )
        rows.append(tuple(map(float, np.mean(found, axis=0))))
    accuracy, same, change = zip(*rows, strict=True)
    count = sum(parameter.data.size for parameter in network.parameters())
    return Result(pooling, seed, count, accuracy, same, change)


def train(pooling: str, images: data.Dataset, seed: int, epochs: int, device: str) -> LeNet:
    """A LeNet with that pooling, trained by Adam with rate 1e-3."""
    network = LeNet(pooling, images.image_shape[0], len(images.classes), seed)
    network.to(device)
    loader = data.Loader(images, min(BATCH, len(images)), seed=seed, size=FIELD)
    optimizer = optim.Adam(network.parameters(), lr=1e-3)
    trainer = Trainer(network, "cross_entropy", optimizer, seed=seed, progress=False)
    trainer.fit(loader, epochs=epochs)
    return network


def table(
    title: str, results: Sequence[Result], values: Callable[[Result], Sequence[float]]
) -> str:
    """Rows of poolings, columns of distances."""
    rows = [[title, *(f"{distance} px" for distance in range(len(values(results[0]))))]]
    for pooling in POOLS:
        columns = zip(*(values(one) for one in results if one.pooling == pooling), strict=True)
        rows.append([pooling, *map(spread, columns)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *aligned]))
    return "\n" + "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """The mean, the smallest and the largest in percent."""
    mean = sum(values) / len(values)
    return f"{100 * mean:.1f}% ({100 * min(values):.1f} to {100 * max(values):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train", type=int, default=10000, help="training images")
    parser.add_argument("--test", type=int, default=2000, help="test images")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--data", default="mnist", help="light figures on black, at most 32x32")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    images = data.load(options.data, "train").subset(slice(0, options.train))
    test = data.load(options.data, "test").subset(slice(0, options.test))
    print(
        f"{images.name}: {len(images):,} images, {options.epochs} epochs, Adam 1e-3; "
        f"tested on {len(test):,}; seeds {', '.join(map(str, options.seeds))}",
        flush=True,
    )
    results = []
    for seed in options.seeds:
        for pooling in POOLS:
            network = train(pooling, images, seed, options.epochs, options.device)
            results.append(measure(network, test, pooling, seed, farthest=3))
            print(
                f"  seed {seed}, {pooling}: {results[-1].parameters:,} parameters, "
                f"accuracy {results[-1].accuracy[0]:.2%}",
                flush=True,
            )
    print(table("accuracy", results, lambda one: one.accuracy))
    print(table("predictions that stay the same", results, lambda one: one.same))
    print(table("relative change of the features", results, lambda one: one.change))


if __name__ == "__main__":
    main()
