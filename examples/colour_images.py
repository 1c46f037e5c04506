"""A ResNet or a small VGG on a folder of colour images, with a whole recipe: augmentation, a
learning-rate schedule, label smoothing, averaged weights.

    python examples/photographs.py tiles            makes a set to try it on
    python examples/colour_images.py tiles          the ResNet; tiles/train and tiles/test
    python examples/colour_images.py tiles --model vgg --epochs 20 --seed 1

The folder holds train/ and test/, each with one subfolder of pictures for each class. The test
images are looked at once, at the end.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from gpuconv import Trainer, data, nn, optim

SIZE = 32


def resnet(classes: int, blocks: int = 3) -> nn.Sequential:
    """He et al. 2015, section 4.2, the network for 32x32 images: 6 * blocks + 2 layers, the way
    around by a 1x1 convolution where the shapes differ.
    """
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)]
    layers.append(nn.ReLU())
    before = 16
    for channels in (16, 32, 64):
        for number in range(blocks):
            stride = 2 if number == 0 and channels > 16 else 1
            layers += [_block(before, channels, stride), nn.ReLU()]
            before = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def _block(before: int, channels: int, stride: int) -> nn.Residual:
    body = nn.Sequential(
        nn.Conv2d(before, channels, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
    )
    if before == channels:
        return nn.Residual(body)
    around = nn.Conv2d(before, channels, 1, stride, bias=False)
    return nn.Residual(body, nn.Sequential(around, nn.BatchNorm2d(channels)))


def vgg(classes: int) -> nn.Sequential:
    """Simonyan and Zisserman 2015 in small: pairs of 3x3 convolutions and max-pools."""
    layers: list[nn.Module] = []
    before = 3
    for channels in (32, 64, 128):
        for _ in range(2):
            layers += [nn.Conv2d(before, channels, 3, padding=1), nn.BatchNorm2d(channels)]
            layers.append(nn.ReLU())
            before = channels
        layers.append(nn.MaxPool2d(2))
    head = nn.Flatten(), nn.Dropout(0.5), nn.Linear(128 * 4 * 4, classes)
    return nn.Sequential(*layers, *head)


MODELS = {"resnet": resnet, "vgg": vgg}


def train(
    folder: Path, model: str, epochs: int, seed: int, batch: int = 64, out: Path | None = None
) -> float:
    """Train on folder/train; the accuracy on folder/test."""
    images, unseen = (data.from_folder(folder / part, SIZE) for part in ("train", "test"))
    pixels = images.images / np.float32(255)
    scale = {"mean": pixels.mean((0, 2, 3)), "std": pixels.std((0, 2, 3))}
    network = MODELS[model](len(images.classes))
    nn.init.initialize(network, seed, {nn.Conv2d: nn.init.kaiming_normal_fan_out})
    augment = data.Compose([data.RandomCrop((SIZE, SIZE), padding=4), data.HorizontalFlip()])
    loader = data.Loader(images, batch, seed=seed, augment=augment, **scale)
    steps = epochs * len(loader)
    average = optim.EMA(network, decay=0.99)
    trainer = Trainer(
        network,
        nn.CrossEntropyLoss(label_smoothing=0.1),
        optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
        schedule=optim.OneCycleLR(0.1, total_steps=steps),
        average=average,
        out=out,
        seed=seed,
    )
    trainer.fit(loader, epochs=epochs, resume="auto" if out else False)
    with average.applied():
        result = trainer.evaluate(
            data.Loader(unseen, min(256, len(unseen)), shuffle=False, **scale)
        )
    accuracy: float = result["accuracy"]
    return accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("folder", type=Path, help="holds train/ and test/, a subfolder per class")
    parser.add_argument("--model", choices=MODELS, default="resnet")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="keep checkpoints and history in this folder")
    options = parser.parse_args()
    accuracy = train(options.folder, options.model, options.epochs, options.seed, out=options.out)
    print(f"test accuracy {accuracy:.2%} ({options.model}, seed {options.seed})")


if __name__ == "__main__":
    main()
