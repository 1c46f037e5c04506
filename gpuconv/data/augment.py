"""Label-preserving data augmentation.

An augmentation is a callable `(images, rng) -> images`. images: (n, C, H, W) of uint8 or float32,
never changed in place. rng: a `CounterRNG`, which has random numbers for each image, so that the
result for an image does not depend on its batch. Pixels from outside the image are black (0).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from gpuconv.arguments import number, pair, whole
from gpuconv.data.rng import CounterRNG

Augment = Callable[[np.ndarray, CounterRNG], np.ndarray]


class Compose:
    """Several augmentations, one after the other.

    >>> rng = CounterRNG(0, 0, np.arange(5))
    >>> Compose([Shift(2), HorizontalFlip()])(np.ones((5, 1, 9, 9), np.uint8), rng).shape
    (5, 1, 9, 9)
    """

    def __init__(self, steps: Sequence[Augment]) -> None:
        self.steps = list(steps)

    def __call__(self, images: np.ndarray, rng: CounterRNG) -> np.ndarray:
        for step in self.steps:
            images = step(images, rng)
        return images


class Shift:
    """Translate every image by up to `pixels` rows and columns in either direction.

    Raises ValueError for a negative number.

    >>> Shift(1)(np.ones((5, 1, 3, 3), np.uint8), CounterRNG(0, 0, np.arange(5))).shape
    (5, 1, 3, 3)
    """

    def __init__(self, pixels: int) -> None:
        self.pixels = whole("Shift: pixels", pixels, 0)

    def __call__(self, images: np.ndarray, rng: CounterRNG) -> np.ndarray:
        return _random_windows(images, images.shape[2], images.shape[3], self.pixels, rng)


class RandomCrop:
    """Cut a window of `size` at a random position, after padding with `padding` black pixels.

    size: an int, or (height, width). Raises ValueError where it does not fit the padded images.
    Source: K. He et al., "Deep residual learning for image recognition" 2015, section 4.2.

    >>> RandomCrop(2)(np.ones((5, 1, 3, 3), np.uint8), CounterRNG(0, 0, np.arange(5))).shape
    (5, 1, 2, 2)
    """

    def __init__(self, size: int | tuple[int, int], padding: int = 0) -> None:
        self.size = pair("RandomCrop: size", size, 1)
        self.padding = whole("RandomCrop: padding", padding, 0)

    def __call__(self, images: np.ndarray, rng: CounterRNG) -> np.ndarray:
        return _random_windows(images, *self.size, self.padding, rng)


class HorizontalFlip:
    """Mirror left and right with the given probability. Not for digits: a mirrored 2 is not a 2.

    >>> rng = CounterRNG(0, 0, np.arange(1))
    >>> HorizontalFlip(1.0)(np.array([[[[1, 2]]]], np.uint8), rng).tolist()
    [[[[2, 1]]]]
    """

    def __init__(self, probability: float = 0.5) -> None:
        self.probability = number("HorizontalFlip: probability", probability, 0, 1)

    def __call__(self, images: np.ndarray, rng: CounterRNG) -> np.ndarray:
        flipped = rng.uniform() < self.probability
        images = images.copy()
        images[flipped] = images[flipped, ..., ::-1]
        return images


class Affine:
    """Rotate by up to `degrees` in either direction and scale by 1 - `scale` to 1 + `scale`.

    Both are about the image's centre. Interpolation is bilinear; uint8 is rounded to nearest.
    Raises ValueError for negative degrees, or a scale outside [0, 1).
    """

    def __init__(self, degrees: float = 10.0, scale: float = 0.1) -> None:
        self.degrees = number("Affine: degrees", degrees, 0)
        self.scale = number("Affine: scale", scale, 0, below=1)

    def __call__(self, images: np.ndarray, rng: CounterRNG) -> np.ndarray:
        from gpuconv.data.affine import warp  # Numba, which loading data alone does not need

        angle = np.deg2rad(rng.uniform(-self.degrees, self.degrees))
        scale = rng.uniform(1 - self.scale, 1 + self.scale)
        images = np.ascontiguousarray(images)
        out = np.empty_like(images)
        rounding = 0.5 if images.dtype == np.uint8 else 0.0
        warp(images, np.cos(angle) / scale, np.sin(angle) / scale, rounding, out)
        return out


def _random_windows(
    images: np.ndarray, rows: int, columns: int, padding: int, rng: CounterRNG
) -> np.ndarray:
    """A window at a random position of each image, which is padded with `padding` zeros."""
    count, channels, height, width = images.shape
    max_top, max_left = height + 2 * padding - rows, width + 2 * padding - columns
    if max_top < 0 or max_left < 0:
        raise ValueError(
            f"cannot crop {rows}x{columns} from {height}x{width} images with "
            f"padding {padding}; a crop is at most as large as the padded image"
        )
    shape = (count, channels, height + 2 * padding, width + 2 * padding)
    padded = np.zeros(shape, images.dtype)  # np.pad takes twice as long
    padded[:, :, padding : padding + height, padding : padding + width] = images
    windows = np.lib.stride_tricks.sliding_window_view(padded, (rows, columns), axis=(2, 3))
    top, left = rng.integers(0, max_top), rng.integers(0, max_left)
    return np.ascontiguousarray(windows[np.arange(count), :, top, left])
