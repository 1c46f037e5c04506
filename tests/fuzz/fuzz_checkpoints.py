"""Checkpoints: safetensors files with wrong headers and tensors, and wrong metadata with a right
checksum; each given to a command that reads it.
"""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
from harness import Case
from mutations import HUGE, NAMES, damaged, deep_json, mutated, odd_value
from stage import Stage, entries_of, joined, opened, sealed

DTYPES = (
    "F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F4", "I64", "I8", "U8", "U64", "BOOL",
    "C64", "f32", "", "\x1b[1m", "F32 ", "F128", 7, None, [],
)  # fmt: skip


def tensors(stage: Stage, number: int) -> Case:
    """A safetensors file with a change of its tensors, of its header, or of its bytes."""
    rng = random.Random(f"tensors {number}")
    name, content = _base(stage, rng)
    change = rng.choice((_of_arrays, _of_arrays, _of_entries, _of_entries, _of_bytes))
    return _case(stage, rng, f"tensors {number}", name, change(content, rng))


def metadata(stage: Stage, number: int) -> Case:
    """A checkpoint whose metadata are wrong and whose checksum is right."""
    rng = random.Random(f"metadata {number}")
    name, content = _base(stage, rng)
    arrays, head = opened(content)
    said = json.loads(head["gpuconv"])
    if "position" in said and rng.random() < 0.3:
        text = json.dumps(said | {"position": mutated(said["position"], rng)})
    elif rng.random() < 0.1:
        text = deep_json(said, rng)
    elif rng.random() < 0.05:
        text = rng.choice(("", "null", "[]", "{", '{"model":{}}{}', "\ufeff{}", '"x"', "{}", "NaN"))
    else:
        text = json.dumps(mutated(said, rng))
    version = rng.choice((*["1"] * 20, "2", "0", "", "1.0", "9" * 5000, "٣", "x"))
    return _case(stage, rng, f"metadata {number}", name, sealed(arrays, text, version))


def _base(stage: Stage, rng: random.Random) -> tuple[str, bytes]:
    """A checkpoint to change, and the run's folder that it is of, or ""."""
    if rng.random() < 0.15:
        return "", rng.choice(list(stage.others.values()))
    run = rng.choice(sorted(stage.runs))
    file = rng.choice(sorted(name for name in stage.runs[run] if name.endswith(".safetensors")))
    return file, stage.runs[run][file]


def _case(stage: Stage, rng: random.Random, name: str, file: str, content: bytes) -> Case:
    """The command that reads the changed checkpoint, with what else it needs."""
    if file.endswith("last.safetensors") and rng.random() < 0.7:
        run = file.split("/")[1]
        files = {**stage.runs[run], **stage.digits, **stage.shapes, file: content}
        argv = ["train", "--resume", f"runs/{run}", "--threads", "1"]
        if rng.random() < 0.2:
            argv += ["--epochs", "3"]
        return Case(name, files, argv, writes="runs/", encoding=_encoding(rng))
    path = file or "other.safetensors"
    colour = "colour" in path
    data, picture = ("shapes", "photo.png") if colour else ("digits", "digit.png")
    argv = rng.choice(
        (
            ["summary", path],
            ["evaluate", path, "--device", "cpu"],
            ["evaluate", path, "--data", data, "--device", "cpu"],
            ["predict", path, picture, "--device", "cpu"],
            ["explain", path, picture, "-o", "../out/x.png", "--device", "cpu"],
            ["explain", path, "--index", "3", "--data", data, "-o", "../out/x.png"],
            ["show", path],
            ["show", path, "--export", "../out/x.html"],
            ["filters", path, "-o", "../out/x.png"],
            ["patches", path, "--data", data, "-o", "../out/x.png"],
        )
    )
    files = {"digit.png": stage.digit, "photo.png": stage.photo, path: content}
    files |= stage.shapes if colour else stage.digits
    return Case(name, files, argv, encoding=_encoding(rng))


def _encoding(rng: random.Random) -> str:
    return "ascii" if rng.random() < 0.1 else "utf-8"


# ---- safetensors --------------------------------------------------------------------------------


def _of_arrays(content: bytes, rng: random.Random) -> bytes:
    """Other tensors, with a right checksum where the file had one."""
    arrays, head = opened(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        name = rng.choice(sorted(arrays))
        _change_array(arrays, name, rng)
        if not arrays:
            break
    if "gpuconv" not in head:
        entries, tail = entries_of(arrays)
        return joined(entries, tail)
    return sealed(arrays, head["gpuconv"])


def _change_array(arrays: dict[str, np.ndarray], name: str, rng: random.Random) -> None:
    a = arrays[name]
    kind = rng.randrange(9)
    if kind == 0:
        del arrays[name]
    elif kind == 1:
        arrays[rng.choice([n for n in NAMES if not _surrogates(n)])] = arrays.pop(name)
    elif kind == 2:
        arrays[rng.choice((f"{name}.x", f"module.{name}", f"optimizer/{name}", "extra"))] = a
    elif kind == 3:
        types = ("float64", "float16", "int64", "uint8", "bool", "int8", "uint64")
        with np.errstate(all="ignore"):
            arrays[name] = a.astype(rng.choice(types))
    elif kind == 4:
        shapes = [(a.size,), (1, *a.shape), (*a.shape, 1), a.shape[::-1], (a.size, 1, 1, 1)]
        arrays[name] = a.reshape(rng.choice(shapes))
    elif kind == 5:
        empty = rng.choice([(0,), (), (0, 3), (5, 0, 2**40), (1,) * 40, (0, 2**63 - 1)])
        try:
            arrays[name] = np.zeros(empty, a.dtype)
        except ValueError:  # beyond what NumPy can hold; `_of_entries` writes such shapes
            arrays[name] = np.zeros(0, a.dtype)
    elif kind == 6 and a.dtype.kind == "f":
        values = (np.nan, np.inf, -np.inf, 3e38, 1e-40, 0.0)
        arrays[name] = changed = a.copy()
        with np.errstate(over="ignore"):  # in float16
            changed.reshape(-1)[:: rng.choice((1, 7, 1000))] = rng.choice(values)
    elif kind == 7 and a.ndim:
        arrays[name] = np.concatenate([a, a]) if rng.random() < 0.5 else a[:-1].copy()
    else:
        other = rng.choice(sorted(arrays))
        arrays[name], arrays[other] = arrays[other], arrays[name]


def _surrogates(name: str) -> bool:
    return any(0xD800 <= ord(c) < 0xE000 for c in name)


def _of_entries(content: bytes, rng: random.Random) -> bytes:
    """A header that does not describe its tensors, or is none."""
    length = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + length])
    tail = content[8 + length :]
    if rng.random() < 0.5:  # somebody else's: there is no checksum to say that it was changed
        entries.pop("__metadata__", None)
    if rng.random() < 0.08:
        return joined(deep_json(entries, rng).encode(), tail)
    spans = {n: e["data_offsets"] for n, e in entries.items() if n != "__metadata__"}
    for _ in range(rng.choice((1, 1, 2, 4))):
        names = [name for name in entries if isinstance(entries[name], dict)]
        if not names:
            break
        name = rng.choice(names)
        _change_entry(entries, name, spans.get(name, [0, 4]), rng)
    text = json.dumps(entries).encode()
    if rng.random() < 0.1:
        text = rng.choice(
            (text[:-1], text + b"{}", text.replace(b'"', b"'"), b"\xff\xfe" + text, text + text)
        )
    return joined(text, tail)


def _change_entry(entries: dict[str, Any], name: str, span: list[int], rng: random.Random) -> None:
    (begin, end), entry = span, entries[name]
    kind = rng.randrange(7)
    if kind == 0:
        entry["dtype"] = rng.choice(DTYPES)
    elif kind == 1:
        sides = (0, 1, 3, -1, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 1.5, "3", None)
        entry["shape"] = [rng.choice(sides) for _ in range(rng.choice((0, 1, 2, 4, 40)))]
    elif kind == 2:
        entry["data_offsets"] = rng.choice(
            ([end, begin], [begin, begin], [begin + 4, end + 4], [0, end], [-begin, end], [begin],
             [begin, rng.choice(HUGE)], [0, 0], None, "0", [float(begin), end], [begin, end, end])
        )  # fmt: skip
    elif kind == 3:
        entries[rng.choice(NAMES)] = entries.pop(name)
    elif kind == 4:
        entries[name] = mutated(entry, rng, 1)
    elif kind == 5:
        entries[rng.choice(NAMES)] = rng.choice((entry, odd_value(rng)))
    else:
        entries.pop(name)


def _of_bytes(content: bytes, rng: random.Random) -> bytes:
    """Bytes that are wrong, mostly in the header."""
    kind = rng.randrange(4)
    length = int.from_bytes(content[:8], "little")
    if kind == 0:
        other = rng.choice(
            (0, 1, length - 1, length + 8, len(content), 2**27, 2**40, 2**63, 2**64 - 1)
        )
        return other.to_bytes(8, "little") + content[8:]
    if kind == 1:
        return content[: rng.choice((0, 4, 8, 9, length, 8 + length, len(content) - 1))]
    if kind == 2:
        return damaged(content[: 8 + length], rng) + content[8 + length :]
    return damaged(content, rng)
