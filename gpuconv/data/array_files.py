"""NumPy's files: an .npz with images and labels, or .npy files of both beside each other.

Which array is which is known by its name: x, images, data and y, labels, targets, with or without
train or test: x_train, train_images, Xtrain. Nothing is unpickled.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpuconv.data.dataset import Dataset, channels_last_images, split_indices, to_255
from gpuconv.data.folder import SPLITS, TRAINING
from gpuconv.data.idx import MAX_RATIO, MAX_UNPACKED
from gpuconv.errors import DataError, one_line

ROLES = {
    "images": ("x", "images", "image", "imgs", "data", "inputs", "pixels", "arr0"),
    "labels": ("y", "labels", "label", "targets", "target", "arr1"),
    "classes": ("classes", "classnames", "labelnames"),
}
_PARTS = {word: split for split, words in SPLITS.items() for word in words}


class _Key(NamedTuple):
    """What an array's name says. word: "train", "val", ... or "" for the whole set."""

    role: str
    word: str


def load_arrays(path: Path, split: str, stratified: bool) -> Dataset:
    """`data.load` of an .npz file, of an .npy file of images, or of a folder of .npy files."""
    if path.suffix == ".npz":
        keys, read = _zipped(path)
    else:
        folder = path if path.is_dir() else path.parent
        files = {file.stem: file for file in sorted(folder.glob("*.npy"))}
        keys = list(files)

        def read(key: str) -> np.ndarray:
            return _array(files[key])

    known = {name: key for name in keys if (key := _known(name))}
    word = known[path.stem].word if path.is_file() and path.stem in known else None
    names = _chosen(path, known, split, word)
    images, labels = _images(read(names["images"])), _labels(read(names["labels"]))
    classes = read(names["classes"]) if "classes" in names else None
    if classes is not None and (classes.ndim != 1 or classes.dtype.kind not in "US"):
        classes = None
    whole = Dataset(images, labels, None if classes is None else list(map(str, classes)), path.name)
    if known[names["images"]].word:
        return whole
    parts = split_indices(whole.labels, TRAINING, 0, path.name, stratified, every_class=stratified)
    return whole.subset(parts[list(SPLITS).index(split)], f"{path.name} {split}")


def has_arrays(folder: Path) -> bool:
    """Whether a folder has .npy files of images."""
    keys = map(_known, (file.stem for file in folder.glob("*.npy")))
    return any(key and key.role == "images" for key in keys)


def _known(name: str) -> _Key | None:
    """The role and part of an array's name: ("images", "train") of train_x, XTrain and x_train."""
    text = re.sub(r"[^a-z0-9]", "", name.lower())
    for word in ("", *sorted(_PARTS, key=len, reverse=True)):
        if word and not (text.startswith(word) or text.endswith(word)):
            continue
        rest = text.removeprefix(word) if text.startswith(word) else text.removesuffix(word)
        for role, names in ROLES.items():
            if rest in names:
                return _Key(role, word)
    return None


def _chosen(path: Path, known: dict[str, _Key], split: str, word: str | None) -> dict[str, str]:
    """The names of a split's arrays by role. word: of the part that was asked for by a file."""
    words = SPLITS[split] if word is None else (word,)
    present = {key.word for key in known.values() if key.role == "images"}
    part = next((w for w in words if w in present), "" if "" in present else None)
    found: dict[str, str] = {}
    for name, key in known.items():
        if key.word == part or key.role == "classes":
            if key.role in found:
                raise DataError(
                    f"{path}: both {found[key.role]} and {name} may be the {key.role}; rename one"
                )
            found[key.role] = name
    for role in ("images", "labels"):
        if role not in found:
            what = f"{role} of the split {split!r}" if present - {""} else role
            raise FileNotFoundError(
                f"{path}: no array is known as the {what}; expected names such as x_train and "
                f"y_train, or images and labels, found {_listed(known)}"
            )
    return found


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:8]) or "none"


def _images(array: np.ndarray) -> np.ndarray:
    """As (N, C, H, W) or (N, H, W): of other programs' files the layout is changed, and whole
    numbers from 0 to 255 that were stored as floats are bytes again.
    """
    if channels_last_images(array.shape):
        array = array.transpose(0, 3, 1, 2)
    if array.dtype.kind == "f" and to_255(array) and not (array % 1).any():
        array = array.astype(np.uint8)
    return array


def _labels(array: np.ndarray) -> np.ndarray:
    """As (N,): a single column is a row, and rows with a single 1 are its place."""
    if array.ndim == 2 and array.shape[1] == 1:
        return array[:, 0]
    one_hot = array.ndim == 2 and ((array == 0) | (array == 1)).all() and (array.sum(1) == 1).all()
    return array.argmax(1) if one_hot else array


def _array(path: Path) -> np.ndarray:
    try:
        return np.array(np.load(path, mmap_mode="r"))  # mapped: a header cannot claim more
    except OSError:
        raise
    except Exception as error:  # a damaged header fails in many ways
        raise DataError(f"{path}: no .npy file that can be read: {one_line(error)[:200]}") from None


def _zipped(path: Path) -> tuple[list[str], Callable[[str], np.ndarray]]:
    """The names of an .npz file's arrays, and what reads one of them."""
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise DataError(f"{path}: no .npz file that can be read: {one_line(error)[:200]}") from None
    most = max(MAX_UNPACKED, MAX_RATIO * path.stat().st_size)

    def read(key: str) -> np.ndarray:
        size = sizes[f"{key}.npy"]
        try:
            with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
                claimed = _claimed(file)
            if max(claimed, size) > most:
                raise ValueError(f"more than {most >> 20} MB once decompressed, too much for it")
            with np.load(path) as arrays:
                found: np.ndarray = arrays[key]
        except MemoryError:
            raise
        except Exception as error:
            raise DataError(f"{path}: {key} cannot be read: {one_line(error)[:200]}") from None
        return found

    return [name.removesuffix(".npy") for name in sizes if name.endswith(".npy")], read


def _claimed(file: Any) -> int:
    """The bytes that an array has by its header."""
    version = np.lib.format.read_magic(file)
    headers = np.lib.format
    read = headers.read_array_header_1_0 if version[0] == 1 else headers.read_array_header_2_0
    shape, _, dtype = read(file)
    return math.prod(shape) * dtype.itemsize
