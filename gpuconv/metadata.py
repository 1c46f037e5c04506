"""What a checkpoint's metadata may say: one schema, checked where a checkpoint is read.

A file with a right checksum may still be somebody's own making, or of a newer version. After
`checked`, the keys that gpuconv uses have the types that it relies on; other keys are the user's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """A value that is not nested: what to call it, and how to know it."""

    name: str
    holds: Callable[[Any], bool]


class Record(NamedTuple):
    """A dict with these keys; the optional ones may be left out. others: whether it may have keys
    that are not named here; else they are a newer version's.
    """

    required: Mapping[str, Any]
    optional: Mapping[str, Any] = {}
    others: bool = True


class ListOf(NamedTuple):
    """A list of such values; length: how many, or None for any number."""

    of: Any
    length: int | None = None


class MapOf(NamedTuple):
    """A dict of any keys with such values."""

    of: Any


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


TEXT = Kind("a string", lambda v: isinstance(v, str))
# Whole numbers fit in 64 bits: beyond that NumPy's and other libraries' conversions fail.
WHOLE = Kind("a whole number from 0 to 2^63 - 1", lambda v: type(v) is int and 0 <= v < 2**63)
INTEGER = Kind("a whole number of at most 64 bits", lambda v: type(v) is int and abs(v) < 2**63)
NUMBER = Kind("a finite number", _is_number)
FLAG = Kind("true or false", lambda v: isinstance(v, bool))
NOTHING = Kind("null", lambda v: v is None)
ANYTHING = Kind("anything", lambda v: True)
RESIZE = Kind("a way to resize", lambda v: v in ("stretch", "fit", "centre-crop"))
DICT = Record({})

# No network reads larger images; without a limit a few bytes could ask for gigabytes.
SIDE = Kind("a whole number from 1 to 4096", lambda v: type(v) is int and 1 <= v <= 4096)

# A tuple lists alternatives.
SHAPE = ListOf(SIDE, 3)
SCALE = (NOTHING, NUMBER, ListOf(NUMBER))
PREPROCESSING = Record(
    {},
    {
        "size": (NOTHING, SIDE, ListOf(SIDE, 2)),
        "mean": SCALE,
        "std": SCALE,
        "input_shape": (NOTHING, ListOf(SIDE)),
    },
)
SETTINGS = Record(
    {},
    {
        **dict.fromkeys(("model", "data", "optimizer", "loss", "schedule"), TEXT),
        **dict.fromkeys(("augment", "normalize", "device"), TEXT),
        **dict.fromkeys(("epochs", "batch", "first_epoch"), WHOLE),
        **dict.fromkeys(("lr", "momentum", "weight_decay", "ema", "clip"), (NOTHING, NUMBER)),
        "validation": (NOTHING, NUMBER),
        "label_smoothing": NUMBER,
        "limit": (NOTHING, WHOLE),
        **dict.fromkeys(("gray", "skip_bad", "stratified"), FLAG),
        "resize": RESIZE,
        "size": (NOTHING, ListOf(SIDE, 2)),
        "seed": INTEGER,
    },
)
STATE = Record(
    {
        "epoch": WHOLE, "batch": WHOLE, "step": WHOLE, "images": WHOLE, "loss_sum": NUMBER,
        "correct": WHOLE, "seconds": NUMBER,
    },
    {
        "best": (NOTHING, NUMBER), "best_loss": (NOTHING, NUMBER), "best_epoch": (NOTHING, WHOLE),
        "rate": NUMBER, "schedule_start": WHOLE,
    },
    others=False,
)  # fmt: skip
OPTIMIZER = Record(
    {"name": TEXT, "steps": ListOf(WHOLE)},
    {"hyperparameters": DICT, "param_groups": ListOf(Record({"params": ListOf(WHOLE)}))},
)
RECIPE = Record(
    dict.fromkeys(
        ("model", "loss", "optimizer", "schedule", "clip_norm", "average", "data", "validation"),
        ANYTHING,
    )
)
TRAINING = Record(
    {
        "recipe": RECIPE,
        "position": STATE,
        "optimizer": OPTIMIZER,
        "generators": MapOf(ListOf(WHOLE, 2)),
        "threads": WHOLE,
        "history_lines": WHOLE,
    },
    {"epochs": WHOLE},
)
EPOCH = Record(  # a line of a run's history.jsonl
    {"epoch": WHOLE, "loss": NUMBER, "accuracy": NUMBER},
    dict.fromkeys(("validation_loss", "validation_accuracy", "lr", "seconds"), NUMBER),
)
METADATA = Record(
    {},
    {
        "kind": TEXT,
        "model": (NOTHING, Record({"name": TEXT}, {"arguments": DICT})),
        "input": (NOTHING, PREPROCESSING),
        "classes": (NOTHING, ListOf(TEXT)),
        "image_shape": (NOTHING, SHAPE),
        **dict.fromkeys(("dark_border", "stratified"), (NOTHING, FLAG)),
        "resize": (NOTHING, RESIZE),
        "settings": (NOTHING, SETTINGS),
        "epoch": (NOTHING, WHOLE),
        "result": (NOTHING, DICT),
        "seed": (NOTHING, INTEGER),
        "version": TEXT,
    },
)


def parse(text: str) -> dict[str, Any]:
    """The metadata of a file. ValueError, in one line, for what is no JSON object or does not
    follow the schema.
    """
    metadata = _parse(text, METADATA)
    if metadata.get("kind") == "training" and (problem := _problem(metadata, TRAINING, "")):
        raise ValueError(problem)
    return metadata


def parse_history_line(line: str | bytes) -> dict[str, Any]:
    """A record of a run's history. ValueError as `parse`."""
    return _parse(line, EPOCH)


def _parse(text: str | bytes, schema: Record) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("its metadata are nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"its metadata are no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError("its metadata is no JSON object")
    if problem := _problem(found, schema, ""):
        raise ValueError(problem)
    return found


def _problem(value: Any, schema: Any, name: str) -> str | None:
    """What is wrong with a value, or None."""
    if isinstance(schema, Record):
        return _problem_of_record(value, schema, name)
    if isinstance(schema, MapOf):
        if not isinstance(value, dict):
            return _text(name, value, schema)
        found = (_problem(v, schema.of, _joined(name, k)) for k, v in value.items())
        return next(filter(None, found), None)
    if isinstance(schema, ListOf):
        if not isinstance(value, list) or schema.length not in (None, len(value)):
            return _text(name, value, schema)
        return next(filter(None, (_problem(v, schema.of, f"{name} item") for v in value)), None)
    if isinstance(schema, Kind):
        return None if schema.holds(value) else _text(name, value, schema)
    problems = [_problem(value, each, name) for each in schema]
    return None if None in problems else _text(name, value, schema)


def _problem_of_record(value: Any, schema: Record, name: str) -> str | None:
    if not isinstance(value, dict):
        return _text(name, value, schema)
    for key in schema.required:
        if key not in value:
            return f"its metadata lack {_joined(name, key)!r}"
    known = {**schema.required, **schema.optional}
    for key, inner in value.items():
        if key not in known:
            if not schema.others:
                return f"its metadata have {_joined(name, key)!r}, of a newer gpuconv; upgrade"
        elif problem := _problem(inner, known[key], _joined(name, key)):
            return problem
    return None


def _text(name: str, value: Any, schema: Any) -> str:
    shown = repr(value) if not isinstance(value, (dict, list)) else type(value).__name__
    shown = shown if len(shown) <= 40 else f"{shown[:37]}..."
    return f"its metadata say {name} is {shown}, expected {_describe(schema)}"


def _describe(schema: Any) -> str:
    if isinstance(schema, (Record, MapOf)):
        return "a dict"
    if isinstance(schema, ListOf):
        return f"a list of {_describe(schema.of)}" + (
            f" x {schema.length}" if schema.length else ""
        )
    if isinstance(schema, Kind):
        return schema.name
    return " or ".join(map(_describe, schema))


def _joined(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
