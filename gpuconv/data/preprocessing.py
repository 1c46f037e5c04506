"""From pictures of any size to what a network reads, and back, as its checkpoint's metadata say."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gpuconv.data.dataset import Dataset, Scale, to_float
from gpuconv.data.folder import Size, load_image
from gpuconv.data.loader import Loader
from gpuconv.data.named import load


@dataclass(frozen=True)
class Preprocessing:
    """The image format of a network: how pictures become its input.

    image_shape: (C, H, W) of a picture before padding. size: (height, width) of the network's
    input, to which pictures are padded. mean, std: as in `to_float`. dark_border: whether the
    training images have a dark border, as MNIST's have; then a picture with a light one is
    inverted.
    """

    image_shape: tuple[int, int, int]
    size: tuple[int, int]
    mean: Scale = None
    std: Scale = None
    dark_border: bool = False

    @classmethod
    def from_metadata(
        cls, metadata: Mapping[str, Any], input_shape: Sequence[int] | None
    ) -> Preprocessing:
        """From a checkpoint's metadata; input_shape: (C, H, W) of what its network reads.

        Raises ValueError for an input_shape of None.

        >>> found = Preprocessing.from_metadata({"image_shape": [1, 28, 28]}, (1, 32, 32))
        >>> found.image_shape, found.size
        ((1, 28, 28), (32, 32))
        """
        size = image_size(input_shape)
        scale = metadata.get("input") or {}
        channels, height, width = metadata.get("image_shape") or input_shape or ()
        dark_border = bool(metadata.get("dark_border"))
        shape = (channels, height, width)
        return cls(shape, size, scale.get("mean"), scale.get("std"), dark_border)

    @property
    def grayscale(self) -> bool:
        """Whether pictures have one channel."""
        return self.image_shape[0] == 1

    def load(self, name_or_path: str, split: str, limit: int | None = None) -> Dataset:
        """A data set whose images have this format: `data.load`, a folder's pictures scaled.

        limit: only the first images.
        """
        return load_limited(name_or_path, split, limit, self.image_shape[1:], self.grayscale)

    def loader(self, dataset: Dataset, batch: int) -> Loader:
        """The data set in its own order."""
        batch = min(batch, len(dataset))
        return Loader(dataset, batch, shuffle=False, size=self.size, mean=self.mean, std=self.std)

    def to_float(self, pixels: np.ndarray) -> np.ndarray:
        """One image, uint8 (C, H, W), as the network reads it: float32 (1, C, *size)."""
        return to_float(pixels[None], self.size, self.mean, self.std)

    def to_pixels(self, x: np.ndarray) -> np.ndarray:
        """The inverse of `to_float`, but for the padding: (N, C, H, W) uint8."""
        scale = np.reshape(1.0 if self.std is None else self.std, (-1, 1, 1))
        offset = np.reshape(0.0 if self.mean is None else self.mean, (-1, 1, 1))
        return np.rint(np.clip(x * scale + offset, 0, 1) * 255).astype(np.uint8)

    def picture(self, path: str, invert: bool | None = None) -> tuple[np.ndarray, bool]:
        """A picture file as one example, float32 (1, C, *size), and whether it was inverted.

        See `fit`. Raises as `load_image` does.
        """
        fitted, inverted = self.fit(load_image(path, grayscale=self.grayscale), invert)
        return self.to_float(fitted), inverted

    def fit(self, pixels: np.ndarray, invert: bool | None = None) -> tuple[np.ndarray, bool]:
        """A picture of any size, uint8 (C, H, W), as one of `image_shape`; whether it was inverted.

        It is scaled to fit, keeping its aspect ratio, and centred; the rest takes the median colour
        of its border. invert None: where the training images have a dark border and this picture
        has a light one.
        """
        channels, height, width = self.image_shape
        if len(pixels) != channels:
            pixels = np.broadcast_to(pixels, (channels, *pixels.shape[1:]))
        edges = [pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]]
        background = np.median(np.concatenate(edges, axis=1), axis=1).astype(np.uint8)
        if invert is None:
            invert = bool(self.dark_border and background.mean() > 127)
        scale = min(height / pixels.shape[1], width / pixels.shape[2])
        rows, columns = (max(1, round(side * scale)) for side in pixels.shape[1:])
        fitted = np.empty(self.image_shape, np.uint8)
        fitted[:] = background[:, None, None]
        top, left = (height - rows) // 2, (width - columns) // 2
        for plane, source in zip(fitted, pixels, strict=True):
            plane[top : top + rows, left : left + columns] = _resized(source, rows, columns)
        return (255 - fitted if invert else fitted), invert


def image_size(input_shape: Sequence[int] | None) -> tuple[int, int]:
    """(height, width) of a network's `input_shape`. ValueError for None: it is not known."""
    if input_shape is None:
        raise ValueError("the network does not know how large its images are")
    _, height, width = input_shape
    return height, width


def load_limited(
    name_or_path: str, split: str, limit: int | None, size: Size = None, grayscale: bool = False
) -> Dataset:
    """`load`, and of that the first `limit` images; None for all."""
    dataset = load(name_or_path, split, size=size, grayscale=grayscale)
    return dataset if limit is None else dataset.subset(slice(0, limit))


def is_picture_folder(name_or_path: str) -> bool:
    """Whether `load` would read a folder of pictures there, which need a size to be scaled to."""
    folder = Path(os.path.expanduser(name_or_path))
    return folder.is_dir() and not any(folder.glob("*-ubyte*"))


def mean_and_std(dataset: Dataset) -> tuple[list[float], list[float]]:
    """Each channel's mean and standard deviation over all images, pixels scaled to 0..1.

    Rounded to 4 digits; a constant channel has deviation 1.
    """
    means, deviations = [], []
    for channel in range(dataset.image_shape[0]):
        pixels = dataset.images[:, channel]
        if pixels.dtype == np.uint8:  # by a histogram: no float copy of all images
            counts = sum(
                np.bincount(part.ravel(), minlength=256)
                for part in np.array_split(pixels, max(1, len(pixels) // 4096))
            )
            values, weights = np.arange(256) / 255, counts / pixels.size
        else:
            values = pixels.astype(np.float64).ravel()
            weights = np.full(pixels.size, 1 / pixels.size)
        mean = float(values @ weights)
        deviation = float(((values - mean) ** 2 @ weights) ** 0.5)
        means.append(round(mean, 4))
        deviations.append(round(deviation, 4) or 1.0)
    return means, deviations


def has_dark_border(dataset: Dataset) -> bool:
    """Whether the images' outermost pixels are dark on average, as those of MNIST are."""
    some = dataset.images[:1000]
    edges = [some[..., 0, :], some[..., -1, :], some[..., 0], some[..., -1]]
    border = np.concatenate(edges, axis=-1)
    return bool(border.mean() < (64 if some.dtype == np.uint8 else 0.25))


def _resized(plane: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """A plane of uint8 at another size, bilinear."""
    image = Image.fromarray(np.ascontiguousarray(plane))
    if image.size != (columns, rows):
        image = image.resize((columns, rows), Image.Resampling.BILINEAR)
    return np.asarray(image)
