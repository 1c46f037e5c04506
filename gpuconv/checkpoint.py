"""Checkpoints: one safetensors file with the weights, the optimiser's arrays and JSON metadata.

A file appears whole or not at all: it is written beside its place, fsynced, renamed over the old
one, and the folder is fsynced. A sha256 over metadata and tensors tells a damaged file. Nothing is
unpickled. Any safetensors reader opens the file; the weights have the model's own names, all that
belongs to the optimiser begins with "optimizer/".
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from gpuconv.files import write_atomically
from gpuconv.nn import Module

FORMAT_VERSION = 1
_OPTIMIZER = "optimizer/"
_TYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16",
    "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


@dataclass
class Checkpoint:
    """What a file holds: the model's arrays, the optimiser's arrays, and metadata that is JSON.

    The metadata keys gpuconv itself uses: "model" (the model's `spec`: name and arguments, or
    None), "input" and "classes" (preprocessing and class names, if they were given), and in
    training checkpoints what `gpuconv.train` keeps.
    """

    weights: dict[str, np.ndarray]
    metadata: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, np.ndarray] = field(default_factory=dict)
    path: str = "the checkpoint"

    def build(self) -> Module:
        """The model that the file describes, with its weights, in evaluation mode.

        Raises: ValueError if the file names no model of gpuconv.models, or its weights do not fit.
        """
        spec = self.metadata.get("model")
        if not spec:
            raise ValueError(
                f"{self.path}: names no model of gpuconv.models; build your own and call"
                " model.load_state_dict(gpuconv.checkpoint.read(path).weights)"
            )
        from gpuconv import models  # models save and load through this module

        model: Module = models.build(spec)
        self.load_into(model)
        return model.eval()

    def load_into(self, model: Module) -> None:
        """Copy the weights into a model. ValueError that names what does not fit."""
        try:
            model.load_state_dict(self.weights)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None


def save(model_or_state: Module | Mapping[str, np.ndarray], path: Any, **metadata: Any) -> None:
    """Save a model's weights, or a dict of arrays, as safetensors.

    A model of `gpuconv.models` is saved with its name and arguments, so that `load` can rebuild
    it. metadata: what JSON can hold, such as classes=[...]; `read(path).metadata` has it again.

    Raises: TypeError for arrays or metadata the format cannot hold; OSError, in one line, if the
    file cannot be written: then an older file of that name is untouched.

    >>> save({"weight": np.ones((2, 2))}, "example.safetensors")  # doctest: +SKIP
    """
    if isinstance(model_or_state, Module):
        metadata = {"model": getattr(model_or_state, "spec", None), **metadata}
        weights = model_or_state.state_dict()
    else:
        weights = dict(model_or_state)
    write(path, Checkpoint(weights, metadata))


def load(path: Any) -> Module:
    """The model saved at `path`, rebuilt with its weights and in evaluation mode.

    Raises: FileNotFoundError; ValueError, in one line, for a file that is damaged, truncated, not
    safetensors, of a newer format, of another architecture, or without a model's name.
    """
    return read(path).build()


def write(path: Any, checkpoint: Checkpoint) -> None:
    """Write a checkpoint so that a kill at any moment leaves the old file or the new one, whole.

    Raises: TypeError for what the format cannot hold, OSError in one line naming the path.
    """
    arrays = dict(checkpoint.weights)
    arrays.update({_OPTIMIZER + name: a for name, a in checkpoint.optimizer.items()})
    # safetensors ignores strides: another layout would be saved as other numbers.
    arrays = {name: np.ascontiguousarray(a).reshape(np.shape(a)) for name, a in arrays.items()}
    try:
        text = json.dumps(checkpoint.metadata)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{path}: the metadata must be what JSON can hold: {error}") from None
    head = {
        "gpuconv": text,
        "gpuconv_format": str(FORMAT_VERSION),
        "sha256": _digest(text, arrays),
    }

    def content(file: BinaryIO) -> None:
        order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))  # keeps alignment
        file.write(_header(head, [(name, arrays[name]) for name in order]))
        for name in order:
            file.write(_bytes(arrays[name]))

    write_atomically(path, content)


def read(path: Any) -> Checkpoint:
    """Read any safetensors file; one that gpuconv wrote is checked against its sha256.

    Raises: FileNotFoundError; ValueError, in one line, for a file that is damaged, truncated, not
    safetensors, or of a newer format.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file")
    _check_shape_of_file(path)
    try:
        with safe_open(path, framework="np") as file:
            head = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: damaged safetensors file: {_line(error)}") from None
    weights = {name: a for name, a in arrays.items() if not name.startswith(_OPTIMIZER)}
    if "gpuconv" not in head and "sha256" not in head:
        return Checkpoint(weights, path=str(path))  # somebody else's safetensors
    metadata = _checked_metadata(path, head, arrays)
    optimizer = {n.removeprefix(_OPTIMIZER): a for n, a in arrays.items() if n not in weights}
    return Checkpoint(weights, metadata, optimizer, str(path))


def _header(head: dict[str, str], arrays: Iterable[tuple[str, np.ndarray]]) -> bytes:
    """The safetensors header: 8 bytes of length, then JSON, padded with spaces to 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": head}
    offset = 0
    for name, a in arrays:
        if a.dtype.name not in _TYPES or not a.dtype.isnative:
            raise TypeError(f"safetensors cannot hold {name}, which is {a.dtype.str}")
        span = [offset, offset + a.nbytes]
        entries[name] = {"dtype": _TYPES[a.dtype.name], "shape": a.shape, "data_offsets": span}
        offset += a.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _check_shape_of_file(path: Path) -> None:
    """Tell a truncated file and one that never was safetensors apart, in plain words."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise ValueError(f"{path}: cannot read: {error.strerror}") from None
    length = int.from_bytes(start[:8], "little")
    if len(start) < 9 and (len(start) < 8 or 0 < length < 1 << 27):
        raise ValueError(f"{path}: truncated: {size} bytes are too few for a safetensors file")
    if start[8:9] != b"{" or length > 1 << 27:
        raise ValueError(f"{path}: not a safetensors file")
    if 8 + length > size:
        raise ValueError(f"{path}: truncated: its header alone has {length} bytes, it has {size}")


def _checked_metadata(
    path: Path, head: dict[str, str], arrays: dict[str, np.ndarray]
) -> dict[str, Any]:
    version = head.get("gpuconv_format", "")
    if version.isdigit() and int(version) > FORMAT_VERSION:
        raise ValueError(
            f"{path}: written by a newer gpuconv (format {version}, this one reads up to"
            f" {FORMAT_VERSION}); upgrade gpuconv"
        )
    text = head.get("gpuconv", "")
    if version != str(FORMAT_VERSION) or head.get("sha256") != _digest(text, arrays):
        raise ValueError(f"{path}: damaged or altered: its contents do not match its checksum")
    metadata = json.loads(text)
    if not isinstance(metadata, dict):
        raise ValueError(f"{path}: its metadata is no JSON object")
    return metadata


def _digest(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        a = np.ascontiguousarray(arrays[name])
        digest.update(f"\0{name}\0{a.dtype.name}\0{np.shape(arrays[name])}\0".encode())
        digest.update(_bytes(a))
    return digest.hexdigest()


def _bytes(contiguous: np.ndarray) -> memoryview:
    return contiguous.reshape(-1).view(np.uint8).data


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
