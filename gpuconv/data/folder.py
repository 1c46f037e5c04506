"""Pictures: files to arrays and back, and a folder with one subfolder of pictures per class."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from gpuconv.arguments import pair
from gpuconv.data.dataset import Dataset
from gpuconv.data.errors import DataError
from gpuconv.files import write_atomically

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
Size = int | tuple[int, int] | None


def load_image(
    path: str | os.PathLike[str], grayscale: bool = False, size: Size = None
) -> np.ndarray:
    """A picture as its matrices of pixels: uint8 (C, H, W), 0 black to 255.

    C is 1 for a gray picture and with `grayscale`, else 3: red, green, blue, byte-equal to
    Pillow's planes. size: an int or (height, width); the picture is scaled to exactly that,
    bilinear, without keeping its aspect ratio; one that has the size already is left as it is.
    Gray is ITU-R 601 luma. A palette becomes colour, transparency lies on white, 16 bits round
    to 8, and the camera's orientation (EXIF) is applied; of an animation the first frame counts.
    Raises DataError where the file is no picture, damaged or of an unsupported kind, and OSError
    where it is missing or unreadable.

    >>> load_image("digit.png", grayscale=True, size=28).shape  # doctest: +SKIP
    (1, 28, 28)
    """
    with open(path, "rb") as file:
        return decode_image(file, path, grayscale, size)


def decode_image(
    file: BinaryIO, name: str | os.PathLike[str], grayscale: bool = False, size: Size = None
) -> np.ndarray:
    """`load_image` of an open file; name: what error messages call it."""
    try:
        with Image.open(file) as opened:
            image = _eight_bit(ImageOps.exif_transpose(opened), name)
    except DataError:
        raise
    except Image.UnidentifiedImageError:
        raise DataError(
            f"{name}: not a picture that Pillow can read; expected PNG, JPEG or "
            "another common format"
        ) from None
    except Exception as error:  # decoders raise a dozen kinds: OSError, SyntaxError, struct's
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{name}: damaged or unreadable picture ({reason}); replace or remove it"
        ) from None
    if grayscale and image.mode != "L":
        image = image.convert("L")
    if size is not None:
        height, width = pair("size", size, 1)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.array(image)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def save_image(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Write a picture, whole or not at all; the suffix says the format, and PNG loses nothing.

    array: (H, W), (1, H, W) gray or (3, H, W) colour; uint8, or float from 0 to 1, which is
    scaled to 0..255 and rounded. Raises ValueError for anything else, OSError on failure.

    >>> save_image("gray.png", np.zeros((28, 28), np.uint8))  # doctest: +SKIP
    """
    array = np.asarray(array)
    planes = array[None] if array.ndim == 2 else array
    if planes.ndim != 3 or planes.shape[0] not in (1, 3) or 0 in planes.shape:
        raise ValueError(
            f"{path}: an array of shape {array.shape} is no picture, expected "
            "(H, W), (1, H, W) or (3, H, W)"
        )
    if planes.dtype.kind == "f":
        if not ((planes >= 0) & (planes <= 1)).all():
            raise ValueError(
                f"{path}: float pixels must be from 0 to 1, got {planes.min():g} to "
                f"{planes.max():g}"
            )
        planes = np.rint(planes * 255).astype(np.uint8)
    if planes.dtype != np.uint8:
        raise ValueError(f"{path}: pixels of {planes.dtype}, expected uint8 or float")
    Image.init()
    suffix = Path(path).suffix.lower()
    form = Image.EXTENSION.get(suffix)
    if form not in Image.SAVE:
        raise ValueError(
            f"{path}: cannot write pictures as {suffix or 'a file without suffix'}; "
            "use .png or .jpg"
        )
    content = io.BytesIO()
    pixels = planes[0] if planes.shape[0] == 1 else planes.transpose(1, 2, 0)
    options: dict[str, Any] = {"quality": 95} if form == "JPEG" else {}
    Image.fromarray(np.ascontiguousarray(pixels)).save(content, form, **options)
    write_atomically(path, content.getvalue())


def from_folder(
    path: str | os.PathLike[str], size: Size = None, grayscale: bool = False
) -> Dataset:
    """The pictures of a folder with one subfolder per class: classes and files in sorted order.

    size, grayscale: as in `load_image`. Without `size` all pictures must have the same one. Where
    gray and colour pictures meet, all become colour. Pictures are found by suffix, at any
    depth of a class's folder; other files and hidden ones are passed over.
    Raises FileNotFoundError for no such folder; DataError for no class folders, a class without
    pictures, sizes that differ (naming two files) and a damaged picture (naming it).

    >>> from_folder("shapes", size=32, grayscale=True).classes  # doctest: +SKIP
    ('circle', 'square')
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder; expected one with a subfolder of pictures for each class"
        )
    classes = class_folders(folder)
    if not classes:
        raise DataError(
            f"{folder}: no class folders; expected a subfolder of pictures for each class"
        )
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        pictures = _pictures(folder / name)
        if not pictures:
            raise DataError(
                f"{folder / name}: no pictures ({', '.join(SUFFIXES)}); add some or "
                "remove the folder"
            )
        files += pictures
        labels += [label] * len(pictures)
    return Dataset(_read_all(files, size, grayscale), np.array(labels), classes, folder.name)


def class_folders(folder: Path) -> list[str]:
    """The names of the subfolders, sorted, hidden ones left out."""
    return sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".")
    )


def _pictures(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
    )


def _read_all(files: list[Path], size: Size, grayscale: bool) -> np.ndarray:
    pictures = []
    for file in files:
        pictures.append(load_image(file, grayscale, size))
        (height, width), (rows, columns) = pictures[0].shape[1:], pictures[-1].shape[1:]
        if (height, width) != (rows, columns):
            raise DataError(
                f"{files[0]} is {height}x{width} pixels but {file} is "
                f"{rows}x{columns}; give a size to scale all pictures to"
            )
    channels = max(len(picture) for picture in pictures)
    images = np.empty((len(pictures), channels, *pictures[0].shape[1:]), np.uint8)
    for index in reversed(range(len(pictures))):
        images[index] = pictures.pop()  # one gray plane fills three
    return images


def _eight_bit(image: Image.Image, path: object) -> Image.Image:
    """`image` decoded, as L or RGB."""
    mode = image.mode
    if mode == "F":
        raise DataError(f"{path}: 32-bit float pixels are not supported; save it with 8 or 16 bits")
    if mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise DataError(
                f"{path}: pixels from {wide.min()} to {wide.max()} are not supported; "
                "save it with 8 or 16 bits"
            )
        return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    if image.has_transparency_data:
        gray = mode in ("L", "LA", "La")
        solid = image.convert("RGBA")
        white = Image.new("RGBA", solid.size, "white")
        return Image.alpha_composite(white, solid).convert("L" if gray else "RGB")
    if mode == "1":
        return image.convert("L")
    if mode not in ("L", "RGB"):
        return image.convert("RGB")
    image.load()
    return image
