"""Safetensors files: a header of JSON and the tensors' bytes.

The safetensors package checks a file and reads what NumPy has types for. What it lacks is done
here: brain floats (BF16) become float32, other types are named, and writing takes a stream.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from gpuconv.errors import one_line

Arrays = dict[str, np.ndarray]
TYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16",
    "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
RESERVED = "__metadata__"
MAX_HEADER = 1 << 27


def read(path: Path) -> tuple[Arrays, dict[str, str]]:
    """The tensors and the metadata of any safetensors file; BF16 as float32.

    Raises: FileNotFoundError; ValueError, in one line, for a file that is damaged, truncated or not
    safetensors, and for a tensor of a type that NumPy lacks.
    """
    if not path.exists():
        last = path.with_name("last.safetensors")  # a run's folder may have it alone
        other = f"; {last.name} is there" if last.exists() else ""
        raise FileNotFoundError(f"{path}: there is no such file{other}")
    entries, start = _entries(path)
    brain = _brain_floats(path, entries)
    try:
        with safe_open(path, framework="np") as file:
            head = file.metadata() or {}
            names = [name for name in file.keys() if name not in brain]  # noqa: SIM118
            arrays = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: damaged safetensors file: {one_line(error)}") from None
    for name in brain:  # the package has checked their places
        begin, _ = entries[name]["data_offsets"]
        shape = entries[name]["shape"]
        count = int(np.prod(shape, dtype=np.int64))
        halves = np.fromfile(path, "<u2", count, offset=start + begin)
        arrays[name] = (halves.astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return arrays, head


def header(
    head: dict[str, str], arrays: Iterable[tuple[str, np.ndarray]], brain: Collection[str] = ()
) -> bytes:
    """The header of a file: 8 bytes of length, then JSON, padded with spaces to 8 bytes.

    brain: names of uint16 arrays that hold the bits of bf16.
    Raises TypeError for a tensor of a type that the format lacks, ValueError for a name that it
    reserves.
    """
    entries: dict[str, Any] = {RESERVED: head}
    offset = 0
    for name, a in arrays:
        if name == RESERVED:
            raise ValueError(f"a tensor cannot be called {name}: safetensors keeps that name")
        if a.dtype.name not in TYPES or not a.dtype.isnative:
            raise TypeError(f"safetensors cannot hold {name}, which is {a.dtype.str}")
        span = [offset, offset + a.nbytes]
        kind = "BF16" if name in brain else TYPES[a.dtype.name]
        entries[name] = {"dtype": kind, "shape": a.shape, "data_offsets": span}
        offset += a.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _entries(path: Path) -> tuple[dict[str, Any], int]:
    """The header's entries, {} where they are no JSON, and where the tensors begin.

    A truncated file and one that never was safetensors are told apart in plain words.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(start[:8], "little")
            if len(start) < 9 and (len(start) < 8 or 0 < length < MAX_HEADER):
                few = f"{size} bytes are too few for a safetensors file"
                raise ValueError(f"{path}: truncated: {few}")
            if start[8:9] != b"{" or length > MAX_HEADER:
                raise ValueError(f"{path}: not a safetensors file")
            if 8 + length > size:
                long = f"its header alone has {length} bytes, it has {size}"
                raise ValueError(f"{path}: truncated: {long}")
            text = start[8:] + file.read(length - 1)
    except OSError as error:
        raise ValueError(f"{path}: cannot read: {error.strerror}") from None
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        entries = None  # the package says what is wrong with it
    return entries if isinstance(entries, dict) else {}, 8 + length


def _brain_floats(path: Path, entries: dict[str, Any]) -> list[str]:
    """The names of the BF16 tensors. ValueError for types that NumPy lacks."""
    found = []
    for name, entry in entries.items():
        kind = entry.get("dtype") if isinstance(entry, dict) and name != RESERVED else None
        if kind == "BF16":
            found.append(name)
        elif isinstance(kind, str) and kind not in TYPES.values():
            raise ValueError(
                f"{path}: {name!r} is of type {kind}, which is not supported; convert it to float32"
            )
    return found
