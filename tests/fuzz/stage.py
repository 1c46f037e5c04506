"""What the fuzzers change: small data sets, runs, checkpoints and pictures, made once by gpuconv.

Making them also imports and compiles what the forked processes use.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gpuconv import checkpoint, data, models, nn, train
from gpuconv.cli.main import main
from gpuconv.train import Callback, Interrupted

Files = dict[str, bytes]


@dataclass(frozen=True)
class Stage:
    """Files by their paths. digits: a folder of IDX files; shapes: one of pictures by class; runs:
    folders of training runs on them; others: checkpoints of other kinds; digit, photo: a picture.
    """

    digits: Files
    shapes: Files
    runs: dict[str, Files]
    others: Files
    digit: bytes
    photo: bytes


@functools.cache
def stage() -> Stage:
    """The stage, made at the first call."""
    with tempfile.TemporaryDirectory(prefix="gpuconv-fuzz-") as place, _inside(place):
        _make_digits()
        _make_shapes()
        with redirect_stdout(io.StringIO()):
            _make_runs()
            _warm_up()
        checkpoint.save(models.harley_lenet(), "harley.safetensors", classes=list("0123456789"))
        foreign = {"w": np.ones((2, 3), np.float16), "b": np.arange(4), "s": np.array(1.5)}
        checkpoint.save(foreign, "foreign.safetensors")
        own = nn.Sequential(
            nn.Conv2d(1, 4, 5, stride=2), nn.BatchNorm2d(4), nn.Residual(nn.Sequential(nn.Tanh())),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 10),
        )  # fmt: skip
        own.input_shape = (1, 28, 28)
        checkpoint.save(own, "own.safetensors")
        return Stage(
            _read("digits"),
            _read("shapes"),
            {name: _read(f"runs/{name}") for name in os.listdir("runs")},
            {
                name: Path(name).read_bytes()
                for name in ("harley.safetensors", "foreign.safetensors", "own.safetensors")
            },
            Path("digit.png").read_bytes(),
            Path("photo.png").read_bytes(),
        )


@contextmanager
def _inside(folder: str) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _read(folder: str) -> Files:
    return {str(path): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def _make_digits() -> None:
    os.mkdir("digits")
    for split, stem, count in (("train", "train", 40), ("test", "t10k", 20)):
        found = data.load("mnist", split)
        data.write_idx(f"digits/{stem}-images-idx3-ubyte", found.images[:count, 0])
        labels = found.labels[:count].astype(np.uint8)
        data.write_idx(f"digits/{stem}-labels-idx1-ubyte", labels)
    data.save_image("digit.png", found.images[0])


def _make_shapes() -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", 4), ("test", 2)):
        for name in ("cat", "dog"):
            os.makedirs(f"shapes/{part}/{name}")
            for number in range(count):
                pixels = rng.integers(0, 256, (3, 20 + number, 24), np.uint8)
                data.save_image(f"shapes/{part}/{name}/{number}.png", pixels)
    rows, columns = np.mgrid[:60, :90]
    Image.fromarray(np.stack([rows, columns, rows + columns], -1).astype(np.uint8)).save(
        "photo.png"
    )


class _StopAt(Callback):
    """Ends a run in the middle of an epoch, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_batch_end(self, trainer: Any) -> None:
        if trainer.state.step == self.step:
            trainer.interrupt()


def _make_runs() -> None:
    common = ["--batch", "4", "--validation", "0.25", "--threads", "1", "--device", "cpu"]
    for arguments in (
        ["--data", "digits", "--epochs", "1", "--out", "runs/done"],
        ["--data", "shapes", "--epochs", "1", "--out", "runs/colour", "--optimizer", "adam"],
    ):
        if code := main(["train", *arguments, *common]):
            raise RuntimeError(f"the stage's own run ended with code {code}")
    for name, settings in (("halfway", {}), ("averaged", {"optimizer": "adamw", "ema": 0.9})):
        config = train.run_config(
            data="digits", epochs=2, batch=16, validation=0.25, device="cpu", **settings
        )
        run = train.prepare(config)
        run.trainer.out = Path("runs", name)
        run.trainer.callbacks.append(_StopAt(3))
        try:
            run.fit()
        except Interrupted:
            continue
        raise RuntimeError("the stage's own run was not interrupted")


def _warm_up() -> None:
    """Every command once, so that its modules and compiled functions are there."""
    best = "runs/done/best.safetensors"
    for argv in (
        ["summary", best],
        ["evaluate", best, "--data", "digits", "--device", "cpu"],
        ["predict", best, "digit.png"],
        ["predict", "runs/colour/best.safetensors", "photo.png"],
        ["explain", best, "digit.png", "-o", "out.png"],
        ["filters", best, "-o", "out.png"],
        ["filters", "photo.png", "-o", "out.png"],
        ["patches", best, "--data", "digits", "-o", "out.png"],
        ["show", best, "--export", "out.html"],
    ):
        if code := main(argv):
            raise RuntimeError(f"gpuconv {' '.join(argv)} ended with code {code}")


# ---- safetensors, written without gpuconv -------------------------------------------------------

TYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16",
    "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


def opened(content: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the head's strings of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + length])
    head = entries.pop("__metadata__", {})
    names = {code: name for name, code in TYPES.items()}
    arrays = {}
    for name, entry in entries.items():
        begin, end = entry["data_offsets"]
        part = content[8 + length + begin : 8 + length + end]
        arrays[name] = np.frombuffer(part, names[entry["dtype"]]).reshape(entry["shape"])
    return arrays, head


def entries_of(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], bytes]:
    """The header's entries for arrays, and the bytes that follow."""
    entries: dict[str, Any] = {}
    parts, offset = [], 0
    for name, a in sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])):
        span = [offset, offset + a.nbytes]
        entries[name] = {"dtype": TYPES[a.dtype.name], "shape": a.shape, "data_offsets": span}
        parts.append(a.tobytes())
        offset += a.nbytes
    return entries, b"".join(parts)


def joined(entries: Any, tail: bytes) -> bytes:
    """A safetensors file of a header, whatever it is, and the bytes that follow."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + tail


def sealed(arrays: Mapping[str, np.ndarray], metadata: str, version: str = "1") -> bytes:
    """A checkpoint of gpuconv whose checksum is right, whatever its metadata say."""
    digest = hashlib.sha256(metadata.encode())
    for name in sorted(arrays):
        a = arrays[name]
        digest.update(f"\0{name}\0{a.dtype.name}\0{a.shape}\0".encode() + a.tobytes())
    head = {"gpuconv": metadata, "gpuconv_format": version, "sha256": digest.hexdigest()}
    entries, tail = entries_of(arrays)
    return joined({"__metadata__": head, **entries}, tail)
