"""CIFAR-10 and CIFAR-100, as their author publishes them: the Python and the binary version.

The Python version is pickled: it is read by a reader of pickles that can make nothing but numbers,
texts and arrays of bytes. Source: A. Krizhevsky 2009, "Learning Multiple Layers of Features from
Tiny Images", and the description beside the files.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpuconv.data.dataset import Dataset
from gpuconv.errors import DataError, one_line

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
TEN = "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck"


class _Version(NamedTuple):
    """A published form of a set: its folder's name, its files, and where labels and names are."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: str | int  # a key of the pickled dict, or a record's byte
    names: tuple[str, str]  # the file with the classes' names, and its key
    classes: int


_BATCHES = tuple(f"data_batch_{k}" for k in range(1, 6))
VERSIONS = (
    _Version("cifar-10-batches-py", _BATCHES, ("test_batch",), "labels",
             ("batches.meta", "label_names"), 10),
    _Version("cifar-10-batches-bin", tuple(f"{name}.bin" for name in _BATCHES),
             ("test_batch.bin",), 0, ("batches.meta.txt", ""), 10),
    _Version("cifar-100-python", ("train",), ("test",), "fine_labels",
             ("meta", "fine_label_names"), 100),
    _Version("cifar-100-binary", ("train.bin",), ("test.bin",), 1,
             ("fine_label_names.txt", ""), 100),
)  # fmt: skip


def find_cifar(folder: Path) -> tuple[Path, _Version] | None:
    """The folder with CIFAR's files, itself or one within it by its published name."""
    for version in VERSIONS:
        for place in (folder, folder / version.folder):
            if any((place / name).is_file() for name in (*version.train[:1], *version.test)):
                return place, version
    return None


def load_cifar(folder: Path, version: _Version, split: str) -> Dataset:
    """The images of a split, uint8 (N, 3, 32, 32), with the names of their classes.

    Raises FileNotFoundError for a file that is missing, DataError for a damaged one.
    """
    read = _pickled if isinstance(version.labels, str) else _records
    parts = []
    for name in version.train if split == "train" else version.test:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder}: {name} is missing; unpack the published files anew")
        parts.append(read(folder / name, version))
    images, labels = (np.concatenate(each) for each in zip(*parts, strict=True))
    name = f"{version.folder.rsplit('-', 1)[0].removesuffix('-batches')} {split}"
    return Dataset(images.reshape(-1, *SHAPE), labels, _classes(folder, version), name)


def _records(path: Path, version: _Version) -> tuple[np.ndarray, np.ndarray]:
    """The pixels and labels of a binary file: records of one or two labels and the pixels."""
    size = PIXELS + (1 if version.classes == 10 else 2)
    content = np.fromfile(path, np.uint8)
    if not content.size or content.size % size:
        raise DataError(f"{path}: {content.size:,} bytes, expected records of {size} bytes each")
    records = content.reshape(-1, size)
    return records[:, -PIXELS:], records[:, int(version.labels)].astype(np.int64)


def _pickled(path: Path, version: _Version) -> tuple[np.ndarray, np.ndarray]:
    found = _read(path)
    pixels, labels = found.get("data"), found.get(str(version.labels))
    if not isinstance(pixels, _Array) or not isinstance(labels, list):
        raise DataError(f"{path}: has no data and {version.labels}, expected a batch of CIFAR")
    if not all(type(label) is int and 0 <= label < version.classes for label in labels):
        raise DataError(f"{path}: a label is no integer below {version.classes}")
    images = pixels.bytes(path)
    if images.size != len(labels) * PIXELS or not labels:
        raise DataError(
            f"{path}: {images.size:,} bytes of pixels for {len(labels)} labels, expected {PIXELS} "
            "each"
        )
    return images.reshape(-1, PIXELS), np.array(labels, np.int64)


def _classes(folder: Path, version: _Version) -> list[str]:
    """The classes' names from the set's own file; without it CIFAR-10's, or numbers."""
    name, key = version.names
    path = folder / name
    names: Any = None
    if path.is_file():
        if key:
            names = _read(path).get(key)
        else:
            names = path.read_text("utf-8", "replace").split()
    if isinstance(names, list) and len(names) == version.classes:
        return [str(_text(name)) for name in names]
    return TEN.split(",") if version.classes == 10 else [str(k) for k in range(version.classes)]


# ---- pickles that make nothing but data ----------------------------------------------------------


class _Array:
    """An array as its pickle describes it."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def bytes(self, path: Path) -> np.ndarray:
        """As uint8 in one row. DataError for arrays of anything else."""
        try:
            _, _, kind, by_columns, content = self.state
            if _text(kind.name) != "u1" or by_columns:
                raise TypeError
            return np.frombuffer(content, np.uint8)
        except (TypeError, ValueError, AttributeError):
            raise DataError(f"{path}: its data are no array of bytes") from None


class _Kind:
    """A dtype as its pickle describes it."""

    def __init__(self, name: Any = "", *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like, which bytes do not have."""


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Kind,
    ("_codecs", "encode"): lambda text, how: text.encode("latin-1"),  # bytes, in old protocols
}


class _Reader(pickle._Unpickler):  # C's allocates what a file claims
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not read")
        return _KNOWN[module, name]


def _read(path: Path) -> dict[str, Any]:
    """The dict in a pickle of numbers, texts, lists and arrays of bytes."""
    try:
        found = _Reader(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except OSError:
        raise
    except Exception as error:  # a damaged one fails in many ways
        raise DataError(
            f"{path}: no file of CIFAR that can be read: {one_line(error)[:200]}"
        ) from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: holds a {type(found).__name__}, expected CIFAR's dict")
    return {_text(key): value for key, value in found.items()}


def _text(value: Any) -> Any:
    """A text of Python 2 was bytes."""
    return value.decode("latin-1") if isinstance(value, bytes) else value
