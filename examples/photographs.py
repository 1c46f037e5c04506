"""Cuts photographs that two packages ship into a set of small colour images: which one is it of?

    pip install scikit-learn scikit-image
    python examples/photographs.py tiles        writes tiles/train/CLASS/*.png and tiles/test/...

Ten photographs are ten classes, 32x32 pixels the images. Each photograph is laid out in cells of
64x64 pixels, and every fourth cell, along the diagonals, is for testing: images are cut within a
cell, so that no training image shares a pixel with a test image. Images with hardly any contrast
(the black around a retina) are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from gpuconv import data

PHOTOGRAPHS = {
    "skimage": (
        "data/astronaut.png", "data/chelsea.png", "data/coffee.png", "data/hubble_deep_field.jpg",
        "data/ihc.png", "data/motorcycle_left.png", "data/retina.jpg", "data/rocket.jpg",
    ),
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
}  # fmt: skip
CELL, TILE, STEP = 64, 32, 16
CELLS = 48  # of each photograph, so that the classes have much the same number of images
CONTRAST = 4.0  # the least standard deviation of an image's pixels, of 255


def photographs() -> Iterator[tuple[str, np.ndarray]]:
    """(class, uint8 (3, H, W)) of each photograph, out of the packages' folders."""
    for package, files in PHOTOGRAPHS.items():
        found = find_spec(package)
        if found is None or found.origin is None:
            sys.exit(f"photographs: {package} is missing: pip install scikit-learn scikit-image")
        for file in files:
            yield Path(file).stem, data.load_image(Path(found.origin).parent / file)


def tiles(photograph: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """("train" or "test", uint8 (3, TILE, TILE)) of one photograph."""
    rows, columns = (side // CELL for side in photograph.shape[1:])
    for cell in rng.permutation(rows * columns)[:CELLS]:
        row, column = divmod(int(cell), columns)
        part = "test" if (row + column) % 4 == 0 else "train"
        inside = photograph[:, row * CELL :, column * CELL :][:, :CELL, :CELL]
        for top in range(0, CELL - TILE + 1, STEP):
            for left in range(0, CELL - TILE + 1, STEP):
                tile = inside[:, top : top + TILE, left : left + TILE]
                if tile.std() >= CONTRAST:
                    yield part, tile


def write(folder: Path) -> dict[str, int]:
    """Write the set and return how many images each part has."""
    rng, counts = np.random.default_rng(0), {"train": 0, "test": 0}
    for name, photograph in photographs():
        for part, tile in tiles(photograph, rng):
            place = folder / part / name
            place.mkdir(parents=True, exist_ok=True)
            data.save_image(place / f"{counts[part]:05d}.png", tile)
            counts[part] += 1
    return counts


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(write(Path(sys.argv[1])))
