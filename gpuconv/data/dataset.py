"""Labelled images in memory, and the batches a network reads from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpuconv.arguments import pair
from gpuconv.data.rng import CounterRNG
from gpuconv.errors import DataError
from gpuconv.interchange import bring

Scale = float | Sequence[float] | None
MAX_CLASSES = 100_000  # that are numbered; a larger label is a mistake, not a class
_CHUNK = 1024


class Dataset:
    """Images with a label each.

    images: (N, C, H, W), or (N, H, W) for one channel, of any library; uint8 0..255, kept as uint8
    and not copied, or float (kept as float32, usually in [0, 1]). labels: N integers, from 0 to one
    less than the number of classes; kept as int64. classes: the classes' names, in the order of
    their labels; None names them "0", "1", ... up to the largest label.
    name: the set's name in error messages. resize: how pictures were brought to one size, see
    `load_image`; None for images that are no pictures' files.
    Raises DataError for no images, counts that differ, a label out of range, or a NaN or
    infinite pixel (naming the first image), floats from 0 to 255, channels in the last axis, and
    for dtypes and shapes other than these.

    >>> Dataset(np.zeros((2, 1, 28, 28), np.uint8), np.array([3, 7])).batch([1], size=32).shape
    (1, 1, 32, 32)
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray | Sequence[int],
        classes: Sequence[str] | None = None,
        name: str = "dataset",
        resize: str | None = None,
    ) -> None:
        self.name, self.resize = name, resize
        self.images = _checked_images(np.asarray(bring(images, f"{name}: images")), name)
        labels = np.asarray(bring(labels, f"{name}: labels"))
        self.labels = _checked_labels(labels, len(self.images), name)
        if classes is None:
            classes = numbered_classes(int(self.labels.max()), name)
        self.classes = tuple(classes)
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= len(self.classes)))
        if len(wrong):
            raise DataError(
                f"{name}: image {wrong[0]} has label {self.labels[wrong[0]]}, expected 0 to "
                f"{len(self.classes) - 1} ({len(self.classes)} classes)"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name!r}, {len(self)} images of {self.image_shape}, "
            f"{len(self.classes)} classes)"
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def subset(self, indices: Sequence[int] | np.ndarray | slice, name: str = "") -> Dataset:
        """The images at `indices`, in that order. A slice shares memory, other indices copy.

        Raises ValueError for an index out of range, DataError for an empty result.
        """
        if not isinstance(indices, slice):
            indices = _checked_indices(indices, len(self), self.name)
        images, labels = self.images[indices], self.labels[indices]
        return Dataset(images, labels, self.classes, name or self.name, self.resize)

    def split(
        self, fraction: float, seed: int = 0, stratified: bool = True
    ) -> tuple[Dataset, Dataset]:
        """Two sets that share no image: a random `fraction` of the images, and the rest.

        Each keeps this set's order. The same seed gives the same split on every machine.
        stratified: take that fraction of every class, as far as whole images allow.
        Raises ValueError where either part would be empty.
        """
        first, rest = split_indices(self.labels, fraction, seed, self.name, stratified)
        return self.subset(first), self.subset(rest)

    def batch(
        self,
        indices: Sequence[int] | np.ndarray,
        size: int | tuple[int, int] | None = None,
        mean: Scale = None,
        std: Scale = None,
    ) -> np.ndarray:
        """The images at `indices` as a network reads them: float32 (n, C, H, W), see `to_float`."""
        chosen = _checked_indices(indices, len(self), self.name)
        return to_float(self.images[chosen], size, mean, std)


def numbered_classes(highest: int, name: str) -> list[str]:
    """ "0", "1", ... up to the largest label. DataError for one that can be no class."""
    if highest >= MAX_CLASSES:
        raise DataError(
            f"{name}: there is a label {highest:,}, expected labels below {MAX_CLASSES:,}; number "
            "the classes from 0"
        )
    return list(map(str, range(highest + 1)))


def first_indices(labels: np.ndarray, count: int, stratified: bool = True) -> np.ndarray:
    """The first `count` images; where these would lack a class, the first of each class in turn.

    stratified: False for the first images in any case. Returns indices in ascending order.
    """
    first = np.arange(min(count, len(labels)))
    if not stratified or len(np.unique(labels[first])) == min(len(np.unique(labels)), count):
        return first
    turns = np.empty(len(labels), np.int64)  # how many of its class come before each image
    for own in _by_class(labels, np.arange(len(labels))):
        turns[own] = np.arange(len(own))
    return np.sort(np.argsort(turns, kind="stable")[:count])


def split_indices(
    labels: np.ndarray,
    fraction: float,
    seed: int,
    name: str,
    stratified: bool = True,
    every_class: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """`Dataset.split` of the images with these labels: the indices of both parts, ascending.

    every_class: put each class of two images or more into both parts, whatever the fraction, and
    one of one image into the first.
    """
    count = round(len(labels) * fraction) if 0 < fraction < 1 else 0
    count = min(count, len(labels) - 1) if every_class else count
    if not 0 < count < len(labels):
        raise ValueError(
            f"{name}: cannot split {len(labels)} images at {fraction:g}: expected a fraction "
            "between 0 and 1 that leaves an image on both sides"
        )
    order = CounterRNG(seed, 0, np.arange(len(labels)), stream=1).permutation()
    if stratified:
        # The class with the largest share still to come goes first, each image in its turn.
        place = np.empty(len(labels))
        for own in _by_class(labels, order):
            place[own] = (np.arange(len(own)) + 0.5) / len(own)
        order = order[np.argsort(place[order], kind="stable")]
    in_first = np.zeros(len(labels), bool)
    in_first[order[:count]] = True
    for own in _by_class(labels, order) if every_class else ():
        in_first[own[-1]] = False
        in_first[own[0]] = True
    if in_first.all():
        raise ValueError(f"{name}: cannot split classes of one image each; add images")
    return np.flatnonzero(in_first), np.flatnonzero(~in_first)


def _by_class(labels: np.ndarray, order: np.ndarray) -> list[np.ndarray]:
    """The indices of each class's images, in the given order."""
    order = order[np.argsort(labels[order], kind="stable")]
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def to_float(
    pixels: np.ndarray,
    size: int | tuple[int, int] | None = None,
    mean: Scale = None,
    std: Scale = None,
) -> np.ndarray:
    """A batch of images as a network reads it: float32 (n, C, *size), C-contiguous, new.

    pixels: (n, C, H, W); uint8 is divided by 255, floats are taken as they are.
    size: one int, or (height, width). The images are padded with black (0) to it, equally on all
    sides; an odd row or column goes to the bottom or right.
    mean, std: one number, or one for each channel; the result is (x - mean) / std. Padding comes
    first, so that the padding has the value of a black pixel and the network sees no frame.
    Raises ValueError for a size smaller than the images and for scales that do not fit.
    Source: Y. LeCun et al. 1998, section II.B: LeNet-5 reads 28x28 digits in a 32x32 field.

    >>> to_float(np.full((1, 1, 1, 1), 255, np.uint8), size=2, mean=0.5, std=0.5).tolist()
    [[[[1.0, -1.0], [-1.0, -1.0]]]]
    """
    count, channels, height, width = pixels.shape
    rows, columns = (height, width) if size is None else pair("size", size, 1)
    top, left = (rows - height) // 2, (columns - width) // 2
    if top < 0 or left < 0:
        raise ValueError(
            f"size {rows}x{columns} is smaller than the images, {height}x{width}: "
            "images are padded to it, never cut; resize or crop them first"
        )
    padded = (rows, columns) != (height, width)
    x = (np.zeros if padded else np.empty)((count, channels, rows, columns), np.float32)
    inner = x[:, :, top : top + height, left : left + width]
    if pixels.dtype == np.uint8:
        np.divide(pixels, np.float32(255), out=inner, dtype=np.float32)
    else:
        inner[...] = pixels
    if mean is not None:
        x -= _per_channel("mean", mean, channels)
    if std is not None:
        x /= _per_channel("std", std, channels)
    return x


def _per_channel(what: str, value: Any, channels: int) -> np.ndarray:
    values = np.asarray(value, np.float32)
    if values.shape not in ((), (1,), (channels,)):
        raise ValueError(f"{what} has {values.size} numbers, expected 1 or {channels} (channels)")
    if not np.isfinite(values).all() or (what == "std" and not (values > 0).all()):
        kind = "positive and finite" if what == "std" else "finite"
        raise ValueError(f"{what} must be {kind}, got {value!r}")
    return values.reshape(-1, 1, 1)


def channels_last_images(shape: tuple[int, ...]) -> bool:
    """Whether (N, ...) can only be images of (H, W, C): three axes that end with 1, 3 or 4."""
    return len(shape) == 4 and shape[3] in (1, 3, 4) and min(shape[1:3]) > 4


def to_255(x: np.ndarray) -> bool:
    """Whether floats are pixels from 0 to 255, neither scaled to 1 nor standardised."""
    return bool(x.size and x.min() >= 0 and 64 <= x.max() <= 255)


def _checked_images(images: np.ndarray, name: str) -> np.ndarray:
    if images.ndim == 3:
        images = images[:, None]
    if channels_last_images(images.shape):
        raise DataError(
            f"{name}: images of shape {images.shape} are channels last (NHWC), expected "
            "(N, C, H, W): images.transpose(0, 3, 1, 2)"
        )
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise DataError(
            f"{name}: images of shape {images.shape}, expected (N, C, H, W) or (N, H, W)"
        )
    if not len(images):
        raise DataError(f"{name}: there are no images, expected at least one")
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind != "f":
        raise DataError(
            f"{name}: images of {images.dtype}, expected floats from 0 to 1, or uint8 from 0 to "
            "255: images.astype(np.uint8)"
        )
    if to_255(images):
        raise DataError(
            f"{name}: floats from 0 to 255, expected uint8, or floats from 0 to 1: images / 255"
        )
    for begin in range(0, len(images), _CHUNK):  # in chunks: no mask as large as the images
        finite = np.isfinite(images[begin : begin + _CHUNK]).all(axis=(1, 2, 3))
        if not finite.all():
            raise DataError(
                f"{name}: image {begin + int(np.argmin(finite))} holds NaN or an "
                "infinite number; mend or remove it"
            )
    return images.astype(np.float32, copy=False)


def _checked_labels(labels: np.ndarray, count: int, name: str) -> np.ndarray:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{name}: labels of {labels.dtype} with shape {labels.shape}, expected "
            f"({count},) integers, the index of each image's class"
        )
    if len(labels) != count:
        raise DataError(f"{name}: {count} images but {len(labels)} labels, expected as many")
    return labels.astype(np.int64, copy=False)


def _checked_indices(indices: Any, count: int, name: str) -> np.ndarray:
    chosen = np.asarray(indices)
    if chosen.size == 0:
        chosen = chosen.astype(np.int64)
    if chosen.ndim != 1 or chosen.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: indices must be a list of integers, got {chosen.dtype} of "
            f"shape {chosen.shape}"
        )
    wrong = chosen[(chosen < 0) | (chosen >= count)]
    if len(wrong):
        raise ValueError(f"{name}: there is no image {wrong[0]}, expected 0 to {count - 1}")
    return chosen
