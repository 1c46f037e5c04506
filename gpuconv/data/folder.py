"""Folders with one subfolder of pictures per class."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np

from gpuconv.data.dataset import Dataset, first_indices, split_indices
from gpuconv.data.picture import Size, load_image
from gpuconv.errors import DataError, Notice, one_line

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "valid", "validation", "dev", "eval"),
}
TRAINING = 0.8  # of the pictures, where a folder has no parts of its own
_FOREIGN = ("__macosx", "@eadir", "$recycle.bin")  # of other programs, some with small copies


def from_folder(
    path: str | os.PathLike[str],
    size: Size = None,
    grayscale: bool = False,
    resize: str = "stretch",
    skip_bad: bool = False,
) -> Dataset:
    """The pictures of a folder with one subfolder per class: classes and files in sorted order.

    size, grayscale, resize: as in `load_image`. Without `size` all pictures must have the same one.
    Where gray and colour pictures meet, all become colour. Pictures are found by suffix, at any
    depth of a class's folder; hidden files and folders are passed over, and so is what other
    programs leave behind (__MACOSX).
    skip_bad: pass over pictures that cannot be read; a Notice counts and names them.
    Raises FileNotFoundError for no such folder; DataError for no class folders, a class without
    pictures, sizes that differ (naming two files) and a picture that cannot be read (naming it).
    """
    folder = Path(path)
    files, labels, classes = _scan(folder)
    kept = np.arange(len(files))
    return _dataset(files, labels, classes, kept, folder.name, (size, grayscale, resize), skip_bad)


def load_folder(
    folder: Path,
    split: str,
    size: Size,
    grayscale: bool,
    resize: str,
    limit: int | None,
    skip_bad: bool,
    stratified: bool,
) -> Dataset:
    """`data.load` of a folder of pictures."""
    parts = _parts(folder)
    name = folder.name
    if parts:
        if split not in parts:
            (present,) = parts.values()
            raise FileNotFoundError(
                f"{folder}: has a subfolder {present.name} but none named {split}"
            )
        files, labels, classes = _scan(parts[split])
        others = {tuple(_class_folders(part)) for part in parts.values()} - {classes}
        if others:
            odd = sorted(set(classes) ^ set(others.pop()))
            raise DataError(
                f"{folder}: train and test have different classes ({', '.join(odd)}); "
                "give both the same subfolders"
            )
        kept, name = np.arange(len(files)), f"{name} {split}"
    else:
        files, labels, classes = _scan(folder)
        both = split_indices(labels, TRAINING, 0, name, stratified, every_class=stratified)
        kept = both[list(SPLITS).index(split)]
        alone = [classes[k] for k in np.flatnonzero(np.bincount(labels) == 1)]
        if alone and stratified:
            text = f"{name}: there is one picture of {_listed(alone)}, which only training sees"
            warnings.warn(text, Notice, stacklevel=4)
    if limit is not None:
        kept = kept[first_indices(labels[kept], limit, stratified)]
    return _dataset(files, labels, classes, kept, name, (size, grayscale, resize), skip_bad)


def _parts(folder: Path) -> dict[str, Path]:
    """The subfolders for training and for testing, by split; {} where all are classes.

    Beside other folders, only both parts with folders in them are parts: else, one is a class that
    happens to have such a name.
    """
    names = _class_folders(folder)
    alone = {name.lower() for name in names} <= {one for known in SPLITS.values() for one in known}
    parts = {}
    for split, known in SPLITS.items():
        own = [n for n in names if n.lower() in known and (alone or _class_folders(folder / n))]
        # Of test/ and val/ the first is for testing; the other one belongs to neither part.
        own.sort(key=lambda name: known.index(name.lower()))
        if len(own) > 1 and own[0].lower() == own[1].lower():
            raise DataError(f"{folder}: has both {own[0]} and {own[1]}; leave one of them")
        if own:
            parts[split] = folder / own[0]
    return parts if alone or len(parts) == len(SPLITS) else {}


def _class_folders(folder: Path) -> list[str]:
    """The names of the subfolders, sorted, without hidden and foreign ones."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and _is_ours(entry))


def _is_ours(path: Path) -> bool:
    return not path.name.startswith(".") and path.name.lower() not in _FOREIGN


def _scan(folder: Path) -> tuple[list[Path], np.ndarray, tuple[str, ...]]:
    """The pictures' files, their labels, and the classes' names."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder; expected one with a subfolder of pictures for each class"
        )
    classes = tuple(_class_folders(folder))
    if not classes:
        raise DataError(
            f"{folder}: no class folders; expected a subfolder of pictures for each class"
        )
    pictures = [sorted(_pictures(folder / name)) for name in classes]
    for name, found in zip(classes, pictures, strict=True):
        if not found:
            raise DataError(
                f"{folder / name}: no pictures ({', '.join(SUFFIXES)}); add some or "
                "remove the folder"
            )
    labels = np.repeat(np.arange(len(classes)), [len(found) for found in pictures])
    return [file for found in pictures for file in found], labels, classes


def _pictures(folder: Path) -> list[Path]:
    found, folders = [], [folder]
    while folders:
        for entry in filter(_is_ours, folders.pop().iterdir()):
            if entry.is_dir():
                folders += [] if entry.is_symlink() else [entry]  # a link may lead in a circle
            elif entry.suffix.lower() in SUFFIXES and entry.is_file():
                found.append(entry)
    return found


def _dataset(
    files: list[Path],
    labels: np.ndarray,
    classes: tuple[str, ...],
    kept: np.ndarray,
    name: str,
    how: tuple[Size, bool, str],
    skip_bad: bool,
) -> Dataset:
    """The pictures of the files that are kept."""
    size, grayscale, resize = how
    pictures: list[np.ndarray] = []
    read: list[int] = []
    bad: list[str] = []
    for k in kept:
        try:
            picture = load_image(files[k], grayscale, size, resize)
        except (DataError, OSError) as error:
            if not skip_bad:
                way = "; skip_bad (--skip-bad) passes over such pictures"
                raise type(error)(f"{one_line(error)}{way}") from None
            bad.append(one_line(error))
            continue
        pictures.append(picture)
        read.append(k)
        first, (rows, columns) = pictures[0].shape[1:], picture.shape[1:]
        if first != (rows, columns):
            raise DataError(
                f"{files[read[0]]} is {first[0]}x{first[1]} pixels but {files[k]} is "
                f"{rows}x{columns}; give a size to scale all pictures to"
            )
    if bad:
        text = f"{name}: passed over {len(bad):,} of {len(kept):,} pictures: {_listed(bad)}"
        if not pictures:
            raise DataError(text)
        warnings.warn(text, Notice, stacklevel=4)
    channels = max(len(picture) for picture in pictures)
    images = np.empty((len(pictures), channels, *pictures[0].shape[1:]), np.uint8)
    for index in reversed(range(len(pictures))):
        images[index] = pictures.pop()  # one gray plane fills three
    return Dataset(images, labels[read], classes, name, resize)


def _listed(names: list[str], most: int = 8) -> str:
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return "; ".join(names[:most] + more)
