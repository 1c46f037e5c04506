"""The article's LeNet on MNIST or Fashion-MNIST: augmentation, a one-cycle rate, a test at the end.

    python examples/lenet.py                      MNIST, which gpuconv brings along
    python examples/lenet.py fashion-mnist        apt install dataset-fashion-mnist, or downloaded
    python examples/lenet.py fashion-mnist --epochs 20 --out runs/fashion

With --out the run can be stopped and started again: it goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gpuconv import Trainer, data, models, nn, optim

RATE, BATCH, SIZE = 3e-3, 64, 32
# A digit is the same digit two pixels further on; a shoe is one in the mirror too.
AUGMENT: dict[str, data.Augment] = {
    "mnist": data.Shift(2),
    "fashion-mnist": data.Compose([data.Shift(1), data.HorizontalFlip()]),
}


def train(
    name: str, epochs: int, seed: int = 0, limit: int | None = None, out: Path | None = None
) -> float:
    """Train on the set's training images; the accuracy on its test images, looked at once."""
    images, unseen = (data.load(name, part).subset(slice(0, limit)) for part in ("train", "test"))
    pixels = images.images / 255
    scale = {"size": SIZE, "mean": pixels.mean(), "std": pixels.std()}
    network = models.lenet(num_classes=len(images.classes), seed=seed)
    loader = data.Loader(images, BATCH, seed=seed, augment=AUGMENT[name], **scale)
    trainer = Trainer(
        network,
        nn.CrossEntropyLoss(),
        optim.Adam(network.parameters()),
        schedule=optim.OneCycleLR(RATE, total_steps=epochs * len(loader)),
        out=out,
        seed=seed,
    )
    trainer.fit(loader, epochs=epochs, resume="auto" if out else False)
    result = trainer.evaluate(data.Loader(unseen, min(500, len(unseen)), shuffle=False, **scale))
    accuracy: float = result["accuracy"]
    return accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("data", nargs="?", choices=AUGMENT, default="mnist")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="only the first images, to try it out")
    parser.add_argument("--out", type=Path, help="keep checkpoints and history in this folder")
    options = parser.parse_args()
    accuracy = train(options.data, options.epochs, options.seed, options.limit, options.out)
    print(f"test accuracy {accuracy:.2%} ({options.data}, seed {options.seed})")


if __name__ == "__main__":
    main()
