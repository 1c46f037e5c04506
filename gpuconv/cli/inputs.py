"""From data and pictures to what a network reads, as its checkpoint says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from gpuconv.checkpoint import Checkpoint
    from gpuconv.data import Dataset, Loader
    from gpuconv.nn import Sequential


def open_checkpoint(path: str, device: str) -> tuple[Checkpoint, Sequential]:
    """A checkpoint and its network, with its weights, in evaluation mode, on the device."""
    from gpuconv import checkpoint

    found = checkpoint.read(path)
    return found, found.build().to(device)  # type: ignore[return-value]


def field(model: Sequential) -> tuple[int, int]:
    """(height, width) of what the network reads. ValueError where it does not know."""
    if model.input_shape is None:
        raise ValueError("the network does not know how large its images are")
    _, height, width = model.input_shape
    return height, width


def load_data(
    name_or_path: str, split: str, size: tuple[int, int] | None, gray: bool, limit: int | None
) -> Dataset:
    """A data set, its first `limit` images where that is given; size and gray: for pictures."""
    from gpuconv import data

    dataset = data.load(name_or_path, split, size=size, grayscale=gray)
    return dataset.subset(slice(0, limit)) if limit is not None else dataset


def is_picture_folder(name_or_path: str) -> bool:
    """Whether that is a folder without IDX files: its pictures need a size to be scaled to."""
    folder = Path(name_or_path).expanduser()
    return folder.is_dir() and not any(folder.glob("*-ubyte*"))


def mean_and_std(dataset: Dataset) -> tuple[list[float], list[float]]:
    """Each channel's mean and standard deviation over all images, pixels counted from 0 to 1.

    Rounded to 4 digits; a channel of one value only has deviation 1.
    """
    import numpy as np

    means, deviations = [], []
    for channel in range(dataset.image_shape[0]):
        pixels = dataset.images[:, channel]
        if pixels.dtype == np.uint8:
            counts = sum(
                np.bincount(part.ravel(), minlength=256)
                for part in np.array_split(pixels, max(1, len(pixels) // 4096))
            )
            values, weights = np.arange(256) / 255, counts / pixels.size
        else:
            values, weights = (
                pixels.astype(np.float64).ravel(),
                np.full(pixels.size, 1 / pixels.size),
            )
        mean = float(values @ weights)
        deviation = float(((values - mean) ** 2 @ weights) ** 0.5)
        means.append(round(mean, 4))
        deviations.append(round(deviation, 4) or 1.0)
    return means, deviations


def dark_border(dataset: Dataset) -> bool:
    """Whether the images' outermost pixels are dark on average, as those of MNIST are."""
    import numpy as np

    some = dataset.images[:1000]
    border = np.concatenate(
        [some[..., 0, :], some[..., -1, :], some[..., 0], some[..., -1]], axis=-1
    )
    return bool(border.mean() < (64 if some.dtype == np.uint8 else 0.25))


class Input:
    """How a checkpoint's network wants its images.

    channels, height, width: of the images before padding. size, mean, std: as in `Loader`.
    """

    def __init__(self, metadata: Mapping[str, Any], model: Sequential) -> None:
        known = metadata.get("input") or {}
        self.size = field(model)
        shape: Sequence[int] = metadata.get("image_shape") or model.input_shape or ()
        self.mean, self.std = known.get("mean"), known.get("std")
        self.channels, self.height, self.width = shape
        self.dark_border = bool(metadata.get("dark_border"))

    def data(self, name_or_path: str, split: str, limit: int | None = None) -> Dataset:
        """A data set whose images are of this kind; a folder's pictures are scaled to it."""
        size = (self.height, self.width)
        return load_data(name_or_path, split, size, self.channels == 1, limit)

    def known_data(
        self, found: Checkpoint, name_or_path: str | None, split: str, limit: int | None = None
    ) -> Dataset:
        """The data set of that name, or without one what the network learned from."""
        settings = found.metadata.get("settings") or {}
        return self.data(name_or_path or settings.get("data", "mnist"), split, limit)

    def loader(self, dataset: Dataset, batch: int) -> Loader:
        """The data set in its own order."""
        from gpuconv.data import Loader

        batch = min(batch, len(dataset))
        return Loader(dataset, batch, shuffle=False, size=self.size, mean=self.mean, std=self.std)

    def pixels(self, x: np.ndarray) -> np.ndarray:
        """What the network reads as a picture again: (N, C, H, W) uint8."""
        import numpy as np

        scale = np.reshape(1.0 if self.std is None else self.std, (-1, 1, 1))
        offset = np.reshape(0.0 if self.mean is None else self.mean, (-1, 1, 1))
        return np.rint(np.clip(x * scale + offset, 0, 1) * 255).astype(np.uint8)

    def picture(self, path: str, invert: bool | None) -> tuple[np.ndarray, bool]:
        """A picture as one example, float32 (1, C, H, W), and whether it was inverted.

        It is scaled to fit, keeping its aspect ratio, in the middle of the network's image; what
        remains takes the colour of its border. invert None: where the network learned from images
        with a dark border and this one's is light.
        """
        from gpuconv.data import load_image

        fitted, inverted = self.fit(load_image(path, grayscale=self.channels == 1), invert)
        return self.to_float(fitted), inverted

    def to_float(self, pixels: np.ndarray) -> np.ndarray:
        """One image, uint8 (C, H, W), as the network reads it: float32 (1, C, *size)."""
        from gpuconv.data import to_float

        return to_float(pixels[None], self.size, self.mean, self.std)

    def fit(self, pixels: np.ndarray, invert: bool | None) -> tuple[np.ndarray, bool]:
        """`picture`'s scaling of uint8 pixels of any size: uint8 (C, H, W)."""
        import numpy as np
        from PIL import Image

        if len(pixels) != self.channels:
            pixels = np.broadcast_to(pixels, (self.channels, *pixels.shape[1:]))
        border = np.concatenate(
            [pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]], axis=1
        )
        around = np.median(border, axis=1).astype(np.uint8)
        inverted = bool(self.dark_border and around.mean() > 127) if invert is None else invert
        scale = min(self.height / pixels.shape[1], self.width / pixels.shape[2])
        height, width = (max(1, round(side * scale)) for side in pixels.shape[1:])
        fitted = np.empty((self.channels, self.height, self.width), np.uint8)
        fitted[:] = around[:, None, None]
        top, left = (self.height - height) // 2, (self.width - width) // 2
        for plane, source in zip(fitted, pixels, strict=True):
            image = Image.fromarray(np.ascontiguousarray(source))
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling.BILINEAR)
            plane[top : top + height, left : left + width] = np.asarray(image)
        if inverted:
            fitted = 255 - fitted
        return fitted, inverted
