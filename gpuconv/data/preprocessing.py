"""From pictures of any size to what a network reads, and back, as its checkpoint's metadata say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from gpuconv.data.dataset import Dataset, Scale, to_float
from gpuconv.data.loader import Loader
from gpuconv.data.named import SHA256, load
from gpuconv.data.picture import load_image

LOW_CONTRAST = 8  # of 255: the pixels of a sheet of paper differ by as much
MAX_LIGHT_SHARE = 0.05  # of training images with a light border where dark ones are the rule


class Picture(NamedTuple):
    """A picture as one image of a network. pixels: uint8 (C, H, W). inverted: whether light and
    dark changed places. blank: whether it has one colour, or hardly any contrast: what a network
    says of it means nothing.
    """

    pixels: np.ndarray
    inverted: bool
    blank: bool


@dataclass(frozen=True)
class Preprocessing:
    """The image format of a network: how pictures become its input, in training and after it.

    image_shape: (C, H, W) of a picture before padding. size: (height, width) of the network's
    input, to which pictures are padded. mean, std: as in `to_float`. dark_border: whether the
    training images have a dark border, as MNIST's have; then a picture with a light one is
    inverted. resize: how a picture is brought to image_shape, see `load_image`. stratified,
    skip_bad: how a folder of pictures is read, see `load`.
    """

    image_shape: tuple[int, int, int]
    size: tuple[int, int]
    mean: Scale = None
    std: Scale = None
    dark_border: bool = False
    resize: str = "fit"
    stratified: bool = True
    skip_bad: bool = False

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
        settings = metadata.get("settings") or {}
        channels, height, width = metadata.get("image_shape") or input_shape or ()
        resize = metadata.get("resize") or "fit"
        if "resize" not in metadata and (height, width) == size:
            # Version 0.1 stretched the pictures of a folder to the network's size.
            resize = "fit" if settings.get("data", "mnist") in SHA256 else "stretch"
        return cls(
            (channels, height, width),
            size,
            scale.get("mean"),
            scale.get("std"),
            bool(metadata.get("dark_border")),
            resize,
            bool(metadata.get("stratified")),
            bool(settings.get("skip_bad")),
        )

    @property
    def grayscale(self) -> bool:
        """Whether pictures have one channel."""
        return self.image_shape[0] == 1

    def load(
        self, name_or_path: str, split: str, limit: int | None = None, skip_bad: bool = False
    ) -> Dataset:
        """A data set whose images have this format: `data.load`, with a folder's pictures prepared
        as `picture` does it.
        """
        dataset = load(
            name_or_path,
            split,
            size=self.image_shape[1:],
            grayscale=self.grayscale,
            resize=self.resize,
            limit=limit,
            skip_bad=skip_bad or self.skip_bad,
            stratified=self.stratified,
        )
        return self.prepared(dataset)

    def prepared(self, dataset: Dataset) -> Dataset:
        """A folder's pictures in the network's colours, and inverted where their border is light; a
        set that comes from no pictures' files as it is.
        """
        if dataset.resize is None:
            return dataset
        images = self._in_colour(dataset.images)
        if self.dark_border and (light := _light_borders(images)).any():
            images = images.copy()
            images[light] = 255 - images[light]
        return Dataset(images, dataset.labels, dataset.classes, dataset.name, dataset.resize)

    def loader(self, dataset: Dataset, batch: int) -> Loader:
        """The data set in its own order."""
        return Loader(dataset, batch, shuffle=False, size=self.size, mean=self.mean, std=self.std)

    def to_float(self, pixels: np.ndarray) -> np.ndarray:
        """Images as the network reads them: (C, H, W) or (N, C, H, W) to float32 (N, C, *size)."""
        pixels = pixels[None] if pixels.ndim == 3 else pixels
        return to_float(pixels, self.size, self.mean, self.std)

    def to_pixels(self, x: np.ndarray) -> np.ndarray:
        """The inverse of `to_float`, but for the padding: (N, C, H, W) uint8."""
        scale = np.reshape(1.0 if self.std is None else self.std, (-1, 1, 1))
        offset = np.reshape(0.0 if self.mean is None else self.mean, (-1, 1, 1))
        return np.rint(np.clip(x * scale + offset, 0, 1) * 255).astype(np.uint8)

    def picture(
        self, file: str | Path | BinaryIO, invert: bool | None = None, name: str = ""
    ) -> Picture:
        """A picture's file, by its path or opened, as one image of the network.

        invert: None where the training images have a dark border and this picture has a light one.
        name: what error messages call an opened file. Raises as `load_image` does.
        """
        size = self.image_shape[1:]
        pixels = load_image(file, self.grayscale, size, self.resize, name=name)
        pixels = np.ascontiguousarray(self._in_colour(pixels))
        blank = bool((np.ptp(pixels, axis=(1, 2)) < LOW_CONTRAST).all())
        if invert is None:
            invert = self.dark_border and bool(_light_borders(pixels[None])[0])
        return Picture(255 - pixels if invert else pixels, invert, blank)

    def _in_colour(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (..., C, H, W) with the network's number of channels: gray ones fill them all."""
        *rest, channels, height, width = pixels.shape
        if channels not in (1, self.image_shape[0]):
            raise ValueError(
                f"the network reads images of {self.image_shape[0]} channels, pictures have 1 or 3"
            )
        return np.broadcast_to(pixels, (*rest, self.image_shape[0], height, width))


def image_size(input_shape: Sequence[int] | None) -> tuple[int, int]:
    """(height, width) of a network's `input_shape`. ValueError for None: it is not known."""
    if input_shape is None:
        raise ValueError(
            "the network does not know how large its images are; set its input_shape = (C, H, W)"
        )
    _, height, width = input_shape
    return height, width


def mean_and_std(dataset: Dataset) -> tuple[list[float], list[float]]:
    """Each channel's mean and standard deviation over all images, pixels scaled to 0..1.

    Rounded to 4 digits; a constant channel has deviation 1.
    """
    images = dataset.images
    top = 255 if images.dtype == np.uint8 else 1
    near = images[:1].mean(axis=(2, 3), keepdims=True, dtype=np.float64)  # so that no digits cancel
    total = squares = np.zeros(images.shape[1])
    for part in np.array_split(images, -(-len(images) // 256)):  # no float copy of all images
        x = part - near
        total = total + x.sum(axis=(0, 2, 3))
        squares = squares + np.square(x).sum(axis=(0, 2, 3))
    mean = total / images[:, 0].size
    variance = np.maximum(squares / images[:, 0].size - mean**2, 0)
    deviation = (np.sqrt(variance) / top).round(4)
    mean = ((near.ravel() + mean) / top).round(4)
    return mean.tolist(), np.where(deviation, deviation, 1).tolist()


def has_dark_border(dataset: Dataset) -> bool:
    """Whether a dark border is the rule among the images, as it is in MNIST."""
    border = _borders(dataset.images)
    darkest = 64 if border.dtype == np.uint8 else 0.25
    light = _light_borders(dataset.images)
    return bool(border.mean() < darkest and light.mean() <= MAX_LIGHT_SHARE)


def _light_borders(images: np.ndarray) -> np.ndarray:
    """Which images (N, C, H, W) have a light border: in most of its pixels, booleans (N,)."""
    border = _borders(images)
    half = 127 if images.dtype == np.uint8 else 0.5
    return np.median(border, axis=2).mean(axis=1) > half


def _borders(images: np.ndarray) -> np.ndarray:
    """The outermost pixels, (N, C, all of them)."""
    edges = [images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]]
    return np.concatenate(edges, axis=-1)
