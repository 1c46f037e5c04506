"""The description of a run in its checkpoints, which a resumed run must repeat."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.nn import Module

if TYPE_CHECKING:
    from gpuconv.train.trainer import Trainer


def describe_run(
    trainer: Trainer, hyperparameters: dict[str, Any], train: Any, validation: Any
) -> dict[str, Any]:
    """A checkpoint's metadata that stay the same through a run.

    "recipe" is what a resumed run must agree with; "input" and "classes" are what it takes to feed
    the model a picture and to read its answer. hyperparameters: the optimiser's, from before a
    schedule changed them.
    """
    recipe = {
        "model": describe_model(trainer.model),
        "loss": describe(trainer.loss),
        "optimizer": {"name": type(trainer.optimizer).__name__, **hyperparameters},
        "schedule": None if trainer.schedule is None else describe(trainer.schedule),
        "clip_norm": trainer.clip_norm,
        "average": None if trainer.average is None else trainer.average.decay,
        "seed": trainer.seed,
        "data": describe_loader(train),
        "validation": describe_loader(validation),
    }
    names = ("size", "mean", "std", "input_shape")
    described: dict[str, Any] = plain(
        {
            "model": getattr(trainer.model, "spec", None),
            "recipe": recipe,
            "input": {name: getattr(train, name, None) for name in names},
            "classes": getattr(getattr(train, "dataset", None), "classes", None),
            "seed": trainer.seed,
            **trainer.metadata,
        }
    )
    return described


def describe_model(model: Module) -> dict[str, Any]:
    """What must agree between a run and its continuation, besides the arrays' names and shapes."""
    spec = getattr(model, "spec", None) or {"name": type(model).__name__}
    parameter = next(iter(model.parameters()), None)
    dtype = None if parameter is None else str(parameter.data.dtype)
    return {**spec, "device": model.device, "dtype": dtype}


def describe_loader(loader: Any) -> dict[str, Any] | None:
    """What decides the batches: the loader's arguments and which data it reads."""
    if loader is None:
        return None
    names = ("batch_size", "shuffle", "seed", "drop_last", "size", "mean", "std", "augment")
    described = {name: getattr(loader, name) for name in names if hasattr(loader, name)}
    dataset = getattr(loader, "dataset", None)
    if dataset is None:
        return {**described, "batches": len(loader)}
    described["images"] = len(dataset)
    if isinstance(labels := getattr(dataset, "labels", None), np.ndarray):
        described["labels_crc32"] = zlib.crc32(np.ascontiguousarray(labels).tobytes())
    return described


def describe(thing: Any) -> dict[str, Any]:
    """An object's class and public attributes: a loss, a schedule, an augmentation."""
    if hasattr(thing, "describe") and isinstance(told := thing.describe(), dict):
        return told
    name = getattr(thing, "__qualname__", type(thing).__name__)
    return {"name": name, **{k: v for k, v in _public(thing).items() if not k.startswith("_")}}


def _public(thing: Any) -> dict[str, Any]:
    slots = getattr(type(thing), "__slots__", ())
    return {**{k: getattr(thing, k) for k in slots}, **getattr(thing, "__dict__", {})}


def plain(value: Any) -> Any:
    """The value in what JSON can hold, as JSON gives it back; other objects by class and name."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return plain(describe(value))


def differences(theirs: Any, ours: Any, name: str = "") -> list[str]:
    """What differs between two recipes, one text for each setting."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        keys = [*theirs, *(key for key in ours if key not in theirs)]
        parts = [
            differences(theirs.get(key), ours.get(key), f"{name}.{key}".lstrip(".")) for key in keys
        ]
        return [line for part in parts for line in part]
    if theirs == ours:
        return []
    return [f"{name} was {_short(theirs)}, is now {_short(ours)}"]


def _short(value: Any) -> str:
    if isinstance(value, dict) and "name" in value:
        return str(value["name"])
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
