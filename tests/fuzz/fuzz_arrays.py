"""NumPy's files and CIFAR's: damaged headers, archives, pickles; arrays of odd types and shapes."""

from __future__ import annotations

import io
import pickle
import random
import zipfile
from typing import Any

import numpy as np
from harness import Case
from mutations import damaged
from stage import Stage

from gpuconv.data.idx import parse_idx

BOMB = 600 << 20  # bytes that a bomb of half a megabyte becomes
ODD_TYPES = ("f2", "f4", "f8", ">f4", "i8", "u4", "c8", "?", "S3", "U2", "O", "M8[s]", "i1,f4")
ODD_SHAPES = ((0,), (), (10, 0, 28, 28), (10, 784), (10, 28, 28, 1), (1, 1, 1, 1, 1), (1 << 40, 2))


def arrays(stage: Stage, number: int) -> Case:
    """A data set with a changed file, and a command that reads it."""
    rng = random.Random(f"arrays {number}")
    files = {**stage.runs["done"], "digit.png": stage.digit}
    form = rng.choice(("npz", "npz", "npy", "cifar-10-batches-py", "cifar-10-batches-bin"))
    held = 0
    if form.startswith("cifar"):
        files |= _cifar(form, rng)
    else:
        of_npy, held = _npy_files(stage, rng, BOMB if form == "npz" else BOMB // 100)
        if form == "npz":
            content = _zipped(of_npy, rng)
            files["set.npz"] = damaged(content, rng) if rng.random() < 0.4 else content
        else:
            files |= {f"npy/{name}": content for name, content in of_npy.items()}
    data = {"npz": "set.npz", "npy": "npy"}.get(form, form)
    best = "runs/done/best.safetensors"
    argv = rng.choice(
        (
            ["evaluate", best, "--data", data, "--device", "cpu"],
            ["explain", best, "--index", "3", "--data", data, "-o", "../out/x.png"],
            ["train", "--data", data, "--epochs", "1", "--out", "../out/run", "--threads", "1",
             "--device", "cpu"],
        )
    )  # fmt: skip
    return Case(f"arrays {number}", files, argv, held)


def _npy_files(stage: Stage, rng: random.Random, most: int) -> tuple[dict[str, bytes], int]:
    """Files of images and labels by name, one of them changed; and what a large one holds: `most`
    bytes or a tenth.
    """
    stems = {"images": "train-images-idx3-ubyte", "labels": "train-labels-idx1-ubyte"}
    own = {name: parse_idx(stage.digits[f"digits/{stem}"], "") for name, stem in stems.items()}
    files = {f"{name}.npy": _npy(array) for name, array in own.items()}
    name = rng.choice(sorted(own))
    array, kind, held = own[name], rng.randrange(8), 0
    if kind == 0:
        files[f"{name}.npy"] = damaged(files[f"{name}.npy"], rng)
    elif kind == 1:
        files[f"{name}.npy"] = files[f"{name}.npy"][: rng.randrange(200)]
    elif kind == 2:  # another type, by value or by its bytes
        with np.errstate(all="ignore"):
            files[f"{name}.npy"] = _npy(array.astype(np.dtype(rng.choice(ODD_TYPES[:-2]))))
    elif kind == 3:  # a header that claims something else
        head = io.BytesIO()
        about = {"descr": rng.choice(("|u1", "<f8", "|O", "<U9")), "fortran_order": False}
        np.lib.format.write_array_header_1_0(head, {**about, "shape": rng.choice(ODD_SHAPES)})
        files[f"{name}.npy"] = head.getvalue() + array.tobytes()
    elif kind == 4:
        files[f"{name}.npy"] = pickle.dumps(array)
    elif kind == 5:
        files[f"{rng.choice(('x', 'y', 'x_test', 'classes', 'ü', ' '))}.npy"] = _npy(array)
    elif kind == 6:
        held = rng.choice((most, *[most // 10] * 7))
        files[f"{name}.npy"] = _npy(np.zeros((held >> 10, 1, 32, 32), np.uint8))
    return files, held


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _zipped(files: dict[str, bytes], rng: random.Random) -> bytes:
    archive = io.BytesIO()
    how = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    how = zipfile.ZIP_DEFLATED if max(map(len, files.values())) > 1 << 20 else how
    with zipfile.ZipFile(archive, "w", how) as target:
        for name, content in files.items():
            target.writestr(name, content)
    return archive.getvalue()


def _cifar(form: str, rng: random.Random) -> dict[str, bytes]:
    """A set of 12 images, in which one file may be damaged or hold something else."""
    binary = form.endswith("bin")
    names = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
    files = {}
    for k, name in enumerate(names):
        pixels, labels = rng.randbytes(2 * 3072), [k % 3, (k + 1) % 3]
        if binary:
            rows = (bytes([y]) + pixels[3072 * i : 3072 * (i + 1)] for i, y in enumerate(labels))
            files[f"{form}/{name}.bin"] = b"".join(rows)
        else:
            rows = np.frombuffer(pixels, np.uint8).reshape(2, -1)
            files[f"{form}/{name}"] = _batch(rows, labels, rng.choice((2, 4)))
    target = rng.choice(sorted(files))
    kind = rng.randrange(5)
    if kind < 2:
        files[target] = damaged(files[target], rng)
    elif kind == 2:
        odd: Any = rng.choice(({}, [], {"data": 1}, {"data": np.ones(3), "labels": [[]]}, Odd()))
        files[target] = pickle.dumps(odd, rng.choice((0, 2, 4)))
    elif kind == 3:
        del files[target]
    return files


def _batch(rows: np.ndarray, labels: list[int], protocol: int) -> bytes:
    return pickle.dumps({b"data": rows, b"labels": labels}, protocol)


class Odd:
    """What runs code when it is unpickled: it would leave a folder, which the harness sees."""

    def __reduce__(self) -> Any:
        import os

        return os.mkdir, ("ran",)
