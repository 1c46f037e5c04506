"""What a checkpoint's metadata may say: one schema, checked where a checkpoint is read.

A file with a right checksum may still be somebody's own making, or of a newer version. After
`parse`, the keys that gpuconv uses have the types that it relies on; other keys are the user's.

A schema is a `Kind`; a tuple of alternatives; a list [schema] of any number of such values, or
[schema, n] of n; or a dict of keys, where "key?" may be left out and "*" stands for all other keys.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """A value that is not nested: what to call it, and how to know it."""

    name: str
    holds: Callable[[Any], bool]


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
NEWER = Kind("nothing there: it is of a newer gpuconv; upgrade", lambda v: False)
# No network reads larger images; without a limit a few bytes could ask for gigabytes.
LARGEST_SIDE = 4096
SIDE = Kind(
    f"a whole number from 1 to {LARGEST_SIDE}", lambda v: type(v) is int and 1 <= v <= LARGEST_SIDE
)
CLASSES = Kind("a whole number up to a million", lambda v: type(v) is int and 1 <= v <= 10**6)
SCALE = (NOTHING, NUMBER, [NUMBER])


def _described(value: Any) -> bool:
    """Whether it is a network as nn/rebuild.py describes it, or one by name (see models/own.py)."""
    if not isinstance(value, dict) or isinstance(value.get("same_as"), str):
        return isinstance(value, dict)
    parts = value.get("arguments", {}), value.get("children", {})
    return (
        isinstance(value.get("name"), str)
        and all(isinstance(part, dict) for part in parts)
        and isinstance(value.get("sha256", ""), str)
        and WHOLE.holds(value.get("head", 1))
        and all(map(_described, parts[1].values()))
    )


NETWORK = Kind("a network's name, arguments and layers", _described)
PREPROCESSING = {
    "size?": (NOTHING, SIDE, [SIDE, 2]),
    "mean?": SCALE,
    "std?": SCALE,
    "input_shape?": (NOTHING, [SIDE]),
}
SETTINGS = {
    **dict.fromkeys(("model?", "data?", "optimizer?", "loss?", "schedule?"), TEXT),
    **dict.fromkeys(("augment?", "normalize?", "device?", "precision?"), TEXT),
    **dict.fromkeys(("epochs?", "batch?", "first_epoch?"), WHOLE),
    **dict.fromkeys(("lr?", "momentum?", "weight_decay?", "ema?", "clip?"), (NOTHING, NUMBER)),
    "validation?": (NOTHING, NUMBER),
    "label_smoothing?": NUMBER,
    "limit?": (NOTHING, WHOLE),
    "classes?": (NOTHING, CLASSES),
    "spec?": (NOTHING, NETWORK),
    "weights?": (NOTHING, TEXT),
    "freeze?": [TEXT],
    **dict.fromkeys(("gray?", "skip_bad?", "stratified?"), FLAG),
    "resize?": RESIZE,
    "size?": (NOTHING, [SIDE, 2]),
    "seed?": INTEGER,
}
STATE = {
    **dict.fromkeys(("epoch", "batch", "step", "images", "correct"), WHOLE),
    **dict.fromkeys(("loss_sum", "seconds", "rate?"), NUMBER),
    **dict.fromkeys(("best?", "best_loss?"), (NOTHING, NUMBER)),
    "best_epoch?": (NOTHING, WHOLE),
    "schedule_start?": WHOLE,
    "*": NEWER,
}
OPTIMIZER = {
    "name": TEXT,
    "steps": [WHOLE],
    "hyperparameters?": {},
    "param_groups?": [{"params": [WHOLE]}],
}
RECIPE = ("model", "loss", "optimizer", "schedule", "clip_norm", "average", "data", "validation")
TRAINING = {
    "recipe": dict.fromkeys(RECIPE, ANYTHING),
    "position": STATE,
    "optimizer": OPTIMIZER,
    "generators": {"*": [WHOLE, 2]},
    "threads": WHOLE,
    "history_lines": WHOLE,
    "epochs?": WHOLE,
    "loss_scale?": {"scale": NUMBER, "good": WHOLE},
}
EPOCH = {  # a line of a run's history.jsonl
    "epoch": WHOLE,
    **dict.fromkeys(("loss", "accuracy"), NUMBER),
    **dict.fromkeys(("validation_loss?", "validation_accuracy?", "lr?", "seconds?"), NUMBER),
    "loss_scale?": NUMBER,
}
METADATA = {
    "kind?": TEXT,
    "model?": (NOTHING, NETWORK),
    "input?": (NOTHING, PREPROCESSING),
    "classes?": (NOTHING, [TEXT]),
    "image_shape?": (NOTHING, [SIDE, 3]),
    **dict.fromkeys(("dark_border?", "stratified?"), (NOTHING, FLAG)),
    "resize?": (NOTHING, RESIZE),
    "settings?": (NOTHING, SETTINGS),
    "epoch?": (NOTHING, WHOLE),
    "result?": (NOTHING, {}),
    "seed?": (NOTHING, INTEGER),
    "version?": TEXT,
}


def parse(text: str | bytes, schema: dict[str, Any] = METADATA) -> dict[str, Any]:
    """The metadata of a file. ValueError, in one line, for what is no JSON object or does not
    follow the schema.
    """
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("its metadata are nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"its metadata are no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError("its metadata is no JSON object")
    try:
        problem = _problem(found, schema, "")
    except RecursionError:
        problem = "its metadata are nested too deeply"
    if not problem and schema is METADATA and found.get("kind") == "training":
        problem = _problem(found, TRAINING, "")
    if problem:
        raise ValueError(problem)
    return found


def _problem(value: Any, schema: Any, name: str) -> str | None:
    """What is wrong with a value, or None."""
    if isinstance(schema, Kind):
        return None if schema.holds(value) else _text(name, value, schema)
    if isinstance(schema, tuple):
        problems = [_problem(value, each, name) for each in schema]
        return None if None in problems else _text(name, value, schema)
    if not isinstance(value, type(schema)):
        return _text(name, value, schema)
    if isinstance(schema, list):
        of, *length = schema
        if length not in ([], [len(value)]):
            return _text(name, value, schema)
        found = (_problem(each, of, f"{name} item") for each in value)
    else:
        for key in schema:
            if key[-1] not in "?*" and key not in value:
                return f"its metadata lack {_joined(name, key)!r}"
        others = schema.get("*", ANYTHING)
        found = (
            _problem(each, schema.get(key, schema.get(f"{key}?", others)), _joined(name, key))
            for key, each in value.items()
        )
    return next(filter(None, found), None)


def _text(name: str, value: Any, schema: Any) -> str:
    shown = repr(value) if not isinstance(value, (dict, list)) else type(value).__name__
    shown = shown if len(shown) <= 40 else f"{shown[:37]}..."
    return f"its metadata say {name} is {shown}, expected {_describe(schema)}"


def _describe(schema: Any) -> str:
    if isinstance(schema, Kind):
        return schema.name
    if isinstance(schema, tuple):
        return " or ".join(map(_describe, schema))
    if isinstance(schema, list):
        return f"a list of {_describe(schema[0])}" + "".join(f" x {n}" for n in schema[1:])
    return "a dict"


def _joined(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
