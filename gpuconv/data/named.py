"""Data sets by name or by path, wherever they are on this machine, else downloaded and checked."""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import tempfile
import urllib.request
import warnings
from pathlib import Path

from gpuconv.data.array_files import has_arrays, load_arrays
from gpuconv.data.cifar import find_cifar, load_cifar
from gpuconv.data.dataset import Dataset, first_indices, numbered_classes
from gpuconv.data.folder import SPLITS, load_folder
from gpuconv.data.idx import parse_idx, read_content, read_idx, unpacked
from gpuconv.data.picture import Size
from gpuconv.errors import DataError, Notice, one_line, require_known, unknown
from gpuconv.files import write_atomically

EMBEDDED = Path(__file__).parent
SYSTEM = Path("/usr/share/datasets")
_STEMS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}

# sha256 of the decompressed files, in the order of _STEMS. MNIST's are the originals';
# Fashion-MNIST's are those of Debian's package dataset-fashion-mnist, built from the publisher's
# repository.
_SUMS = {
    "mnist": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    "fashion-mnist": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}
SHA256 = {
    name: dict(zip(_STEMS["train"] + _STEMS["test"], sums, strict=True))
    for name, sums in _SUMS.items()
}
TIMEOUT = 30.0  # seconds without an answer
MAX_DOWNLOAD = 64 << 20  # twice the largest file: a wrong server cannot fill the memory
MIRRORS: dict[str, tuple[str, ...]] = {
    "mnist": ("https://storage.googleapis.com/cvdf-datasets/mnist/",),
    "fashion-mnist": (
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
}
FASHION = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
CLASSES = {"mnist": tuple("0123456789"), "fashion-mnist": tuple(FASHION.split(","))}


def load(
    name_or_path: str | os.PathLike[str],
    split: str = "train",
    root: str | os.PathLike[str] | None = None,
    size: Size = None,
    grayscale: bool = False,
    resize: str = "stretch",
    limit: int | None = None,
    skip_bad: bool = False,
    stratified: bool = True,
) -> Dataset:
    """A data set by its name, "mnist" or "fashion-mnist", or from a path.

    split: "train" or "test". A named set is a folder of that name: in `root` where that is given,
    else in $GPUCONV_DATA, the cache ($XDG_CACHE_HOME or ~/.cache, gpuconv), /usr/share/datasets
    or this package (which holds MNIST); otherwise it is downloaded to the cache. Its files are
    checked by sha256 each time. Write ./mnist for a folder of your own.
    A path is a folder with IDX files of the usual names (train-images-idx3-ubyte, ...; gzipped
    or not), an IDX file of images beside its labels (whatever `split` is); CIFAR-10's or
    CIFAR-100's folder, of the Python or the binary version; an .npz file, or a folder of .npy
    files, with arrays such as x_train and y_train, or images and labels, which are then split like
    a folder's pictures; or a folder of pictures as `from_folder` reads it, for which `size`,
    `grayscale`, `resize` and `skip_bad` are. Arrays of images are (N, C, H, W), (N, H, W) or
    (N, H, W, C), uint8 or floats.
    A folder of pictures has subfolders for both splits, train or training and test, testing or
    val, in any case; or else it is split here, four images of each class for training to one for
    testing.
    limit: only the first images; where these would lack a class, the first of each class in turn.
    stratified: False splits and limits as version 0.1 did, whatever the classes are.
    Raises ValueError for an unknown name or split, FileNotFoundError for a missing path, DataError
    for corrupt data, OSError where a download fails; each says what was tried and what to do.
    """
    require_known("split", split, SPLITS)
    path = Path(os.path.expanduser(name_or_path))
    if isinstance(name_or_path, str) and name_or_path in SHA256:
        dataset = _named(name_or_path, split, root)
    elif path.suffix in (".npz", ".npy") and path.is_file():
        dataset = load_arrays(path, split, stratified)
    elif path.is_file():
        dataset = _idx_pair(path)
    elif not path.is_dir():
        raise _missing(name_or_path, path)
    elif any(_find(path, stem) for stems in _STEMS.values() for stem in stems):
        dataset = _idx_folder(path, split)
    elif (cifar := find_cifar(path)) is not None:
        dataset = load_cifar(*cifar, split)
    elif has_arrays(path):
        dataset = load_arrays(path, split, stratified)
    else:
        return load_folder(path, split, size, grayscale, resize, limit, skip_bad, stratified)
    if limit is None:
        return dataset
    kept = first_indices(dataset.labels, limit, stratified)
    return dataset.subset(slice(limit) if kept[-1] == len(kept) - 1 else kept)


def _missing(name: str | os.PathLike[str], path: Path) -> Exception:
    if isinstance(name, str) and path.name == name and not path.suffix:
        error = unknown("data set", name, SHA256)
        return ValueError(f"{error}, nor is there a folder of that name")
    return FileNotFoundError(
        f"{path}: no such file or folder; expected IDX files, CIFAR's, .npz, .npy, a folder of "
        f"pictures per class, or a name ({', '.join(SHA256)})"
    )


def installed() -> dict[str, Path | None]:
    """The folder of each data set that is known by name; None where it is not on this machine.

    >>> installed()["mnist"].name
    'mnist'
    """
    folders = {}
    for name in SHA256:
        holding = (folder for folder in _places(name, None) if any(folder.glob("train-images*")))
        folders[name] = next(holding, None)
    return folders


def cache_folder() -> Path:
    """Where downloads are kept: $XDG_CACHE_HOME/gpuconv, else ~/.cache/gpuconv; for a user without
    a home folder the system's folder for temporary files. Their checksums are checked when read.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return (caches if caches.is_absolute() else Path(tempfile.gettempdir())) / "gpuconv"


def _named(name: str, split: str, root: str | os.PathLike[str] | None) -> Dataset:
    stems = _STEMS[split]
    folders = _places(name, root)
    for folder in folders:
        files = [_find(folder, stem) for stem in stems]
        if all(files):
            contents = [read_content(file) for file in files if file]
            for stem, file, content in zip(stems, files, contents, strict=True):
                _check(content, name, stem, file)
            break
    else:
        if root is not None:
            raise FileNotFoundError(
                f"{name}: no {stems[0]}[.gz] with {stems[1]}[.gz] in "
                f"{' or '.join(map(str, folders))}; put them there, or leave "
                "out root to have them looked for elsewhere"
            )
        contents = [_download(name, stem, folders) for stem in stems]
    images, labels = (
        parse_idx(content, stem) for content, stem in zip(contents, stems, strict=True)
    )
    return Dataset(images, labels, CLASSES[name], f"{name} {split}")


def _places(name: str, root: str | os.PathLike[str] | None) -> list[Path]:
    if root is not None:
        folder = Path(os.path.expanduser(root))
        return [folder / name, folder]
    asked = os.environ.get("GPUCONV_DATA")
    first = [Path(os.path.expanduser(asked))] if asked else []
    return [folder / name for folder in (*first, cache_folder(), SYSTEM, EMBEDDED)]


def _find(folder: Path, stem: str) -> Path | None:
    """The file of that name in `folder`, gzipped or not; some copies write .idx for -idx."""
    for name in (stem, f"{stem}.gz", stem.replace("-idx", ".idx")):
        if (folder / name).is_file():
            return folder / name
    return None


def _check(content: bytearray, name: str, stem: str, file: object) -> None:
    digest, expected = hashlib.sha256(content).hexdigest(), SHA256[name][stem]
    if digest != expected:
        raise DataError(
            f"{file}: not the published {name} file: sha256 {digest[:16]}..., expected "
            f"{expected[:16]}...; delete or replace it (for data of your own "
            "give the folder's path, not the name)"
        )


def _download(name: str, stem: str, tried: list[Path]) -> bytearray:
    """The file from the first mirror that has it, decompressed; as it came it goes to the cache."""
    target = cache_folder() / name / f"{stem}.gz"
    reasons = []
    for mirror in MIRRORS[name]:
        try:
            packed = _answer(f"{mirror}{stem}.gz")
            content = unpacked(io.BytesIO(packed), "it", MAX_DOWNLOAD)
            _check(content, name, stem, "it")
            break
        except (DataError, OSError, http.client.HTTPException) as error:
            wrapped = getattr(error, "reason", None)  # in an URLError, what the network said
            cause = wrapped if isinstance(wrapped, OSError) else error
            reasons.append(f"{mirror}{stem}.gz: {one_line(cause)}")
    else:
        raise OSError(
            f"{name}: not in {', '.join(map(str, tried))}, and no download: {'; '.join(reasons)}; "
            f"get {stem}.gz from {MIRRORS[name][-1]} by hand and put it into {target.parent}, or "
            f"set GPUCONV_DATA to the folder that holds {name}/"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, packed)
    except OSError as error:
        warnings.warn(
            f"{target} could not be kept ({error.strerror}); the next run downloads it again",
            Notice,
            stacklevel=4,
        )
    return content


def _answer(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
        content: bytes = answer.read(MAX_DOWNLOAD + 1)
        length = answer.headers.get("Content-Length")
    if len(content) > MAX_DOWNLOAD:
        raise DataError(f"more than {MAX_DOWNLOAD} bytes came; this is not the file")
    if length is not None and len(content) < int(length):
        raise DataError(f"the connection ended after {len(content)} of {length} bytes")
    return content


def _idx_folder(folder: Path, split: str) -> Dataset:
    images, labels = (_find(folder, stem) for stem in _STEMS[split])
    if images is None or labels is None:
        missing = _STEMS[split][0 if images is None else 1]
        raise FileNotFoundError(f"{folder}: there is no {missing}[.gz] for the split {split!r}")
    others = [_find(folder, stems[1]) for stems in _STEMS.values()]
    numbers = [read_idx(file) for file in others if file]  # both splits need the same classes
    highest = max((int(labels.max()) for labels in numbers if labels.size), default=0)
    classes = numbered_classes(highest, str(folder))
    return Dataset(read_idx(images), read_idx(labels), classes, f"{folder.name} {split}")


def _idx_pair(images: Path) -> Dataset:
    if images.suffix in (".tar", ".tgz", ".zip") or images.name.endswith(".tar.gz"):
        raise DataError(f"{images}: an archive; unpack it and give the folder that comes out of it")
    named = images.name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")
    labels = images.with_name(named)
    if named == images.name or not labels.is_file():
        raise FileNotFoundError(
            f"{images}: the labels are not beside it; expected an IDX file "
            "named ...images... and one named ...labels... in one folder"
        )
    return Dataset(read_idx(images), read_idx(labels), None, images.name)
