"""What a linear classifier reaches on a folder of colour images: the floor for colour_images.py.

    python examples/photographs.py tiles
    python examples/linear_baseline.py tiles

Logistic regression on the same pixels, normalised the same way. It tells several weight decays and
the test accuracy of each: the best of them flatters it, having been chosen on the test images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from gpuconv import Trainer, data, nn, optim

SIZE = 32
DECAYS = (0.0, 1e-2, 1e-1, 1.0)  # AdamW's: each step, the rate times this off every weight


def train(folder: Path, decay: float, epochs: int, seed: int, batch: int = 64) -> float:
    """Train one linear layer on folder/train; the accuracy on folder/test."""
    images, unseen = (data.from_folder(folder / part, SIZE) for part in ("train", "test"))
    pixels = images.images / np.float32(255)
    scale = {"mean": pixels.mean((0, 2, 3)), "std": pixels.std((0, 2, 3))}
    network = nn.Sequential(nn.Flatten(), nn.Linear(pixels[0].size, len(images.classes)))
    nn.init.initialize(network, seed)
    loader = data.Loader(images, batch, seed=seed, **scale)
    trainer = Trainer(
        network,
        nn.CrossEntropyLoss(),
        optim.AdamW(network.parameters(), weight_decay=decay),
        schedule=optim.OneCycleLR(1e-3, total_steps=epochs * len(loader)),
        seed=seed,
        progress=False,
    )
    trainer.fit(loader, epochs=epochs)
    test = data.Loader(unseen, min(256, len(unseen)), shuffle=False, **scale)
    accuracy: float = trainer.evaluate(test)["accuracy"]
    return accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("folder", type=Path, help="holds train/ and test/, a subfolder per class")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = []
    for decay in DECAYS:
        found.append(train(options.folder, decay, options.epochs, options.seed))
        print(f"weight decay {decay:g}: {found[-1]:.2%}", flush=True)
    print(f"test accuracy {max(found):.2%} (linear, seed {options.seed})")


if __name__ == "__main__":
    main()
