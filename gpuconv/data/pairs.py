"""Labelled examples one by one, as PyTorch's datasets give them, gathered into a `Dataset`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpuconv.data.dataset import Dataset
from gpuconv.errors import DataError
from gpuconv.interchange import bring


def from_pairs(
    pairs: Any,
    classes: Sequence[str] | None = None,
    name: str = "pairs",
) -> Dataset:
    """A `Dataset` of (image, label) pairs, all of them in memory.

    pairs: a list, an iterator, or a sequence such as torchvision's datasets. image: an array of any
    library, (C, H, W) or (H, W), uint8 or floats; or a picture of Pillow. label: an integer.
    classes: as in `Dataset`; by default those that `pairs` itself has.
    Raises DataError for no pairs, for shapes or types that differ, and as `Dataset` does.

    >>> from_pairs([(np.zeros((1, 28, 28), np.uint8), 3)]).image_shape
    (1, 28, 28)
    """
    each = pairs if hasattr(pairs, "__iter__") else (pairs[k] for k in range(len(pairs)))
    images: list[np.ndarray] = []
    labels = []
    for number, pair in enumerate(each):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise DataError(
                f"{name}: example {number} is a {type(pair).__name__}, expected (image, label)"
            )
        image, label = _image(pair[0], f"{name}: image {number}"), np.asarray(bring(pair[1]))
        if label.shape or label.dtype.kind not in "iu":
            raise DataError(
                f"{name}: example {number} has a label of {label.dtype} with shape {label.shape}, "
                "expected one integer"
            )
        if images and (image.shape, image.dtype) != (images[0].shape, images[0].dtype):
            raise DataError(
                f"{name}: image {number} is {image.dtype} of {image.shape}, the first is "
                f"{images[0].dtype} of {images[0].shape}; bring all to one size and type"
            )
        images.append(image)
        labels.append(int(label))
    if not images:
        raise DataError(f"{name}: there are no pairs, expected at least one")
    known = getattr(pairs, "classes", None) if classes is None else classes
    return Dataset(np.stack(images), labels, known, name)


def _image(image: Any, what: str) -> np.ndarray:
    """An image as (C, H, W) or (H, W)."""
    array = np.asarray(bring(image, what))
    is_picture = hasattr(image, "getbands")  # Pillow's, whose channels come last
    return array.transpose(2, 0, 1) if is_picture and array.ndim == 3 else array
