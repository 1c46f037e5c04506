"""The description of a run in its checkpoints, which a resumed run must repeat."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

import gpuconv
from gpuconv.arrays import to_numpy
from gpuconv.data import Dataset
from gpuconv.data.preprocessing import has_dark_border
from gpuconv.nn import Module, rebuild

if TYPE_CHECKING:
    from gpuconv.train.trainer import Trainer

BORDERS_READ = 10_000  # images whose borders tell whether they are dark: of any number, soon


def describe_run(
    trainer: Trainer, hyperparameters: list[dict[str, Any]], train: Any, validation: Any
) -> dict[str, Any]:
    """A checkpoint's metadata that stay the same through a run.

    "recipe" holds the settings that a resumed run must repeat; "input" and "classes" are what it
    takes to feed the model a picture and to read its answer. hyperparameters: the optimiser's, from
    before a schedule changed them.
    """
    recipe: dict[str, Any] = {
        "model": describe_model(trainer.model),
        "loss": describe(trainer.loss),
        "optimizer": describe_optimizer(trainer.optimizer, hyperparameters),
        "schedule": None if trainer.schedule is None else describe(trainer.schedule),
        "clip_norm": trainer.clip_norm,
        "average": None if trainer.average is None else trainer.average.decay,
        "seed": trainer.seed,
        "data": describe_loader(train),
        "validation": describe_loader(validation),
    }
    if trainer.precision != "ieee":
        recipe["precision"] = trainer.precision
    if trainer.precision == "fp16":
        recipe["scale_growth"] = trainer.scale_growth
    names = ("size", "mean", "std", "input_shape")
    source = getattr(train, "source", train)
    described: dict[str, Any] = plain(
        {
            "model": trainer.model.spec or rebuild.describe(trainer.model),
            "recipe": recipe,
            "input": {name: getattr(train, name, None) for name in names},
            "classes": getattr(getattr(source, "dataset", None), "classes", None),
            "stratified": True,
            **_describe_images(getattr(source, "dataset", None)),
            "seed": trainer.seed,
            "version": gpuconv.__version__,
            **trainer.metadata,
        }
    )
    return described


def _describe_images(dataset: Any) -> dict[str, Any]:
    """How a picture becomes one of a data set's images, as `Preprocessing` reads it."""
    if not isinstance(dataset, Dataset):
        return {}
    some = dataset.subset(slice(0, BORDERS_READ))
    return {
        "image_shape": dataset.image_shape,
        "resize": dataset.resize,
        "dark_border": has_dark_border(some),
    }


def describe_model(model: Module) -> dict[str, Any]:
    """What must agree between a run and its continuation, besides the arrays' names and shapes."""
    spec = dict(model.spec or {"name": type(model).__name__})
    spec.pop("children", None)  # the arrays' names and shapes tell
    parameter = next(iter(model.parameters()), None)
    dtype = None if parameter is None else str(parameter.data.dtype)
    return {**spec, "device": model.device, "dtype": dtype}


def describe_optimizer(optimizer: Any, hyperparameters: list[dict[str, Any]]) -> dict[str, Any]:
    """Its name and settings, those of each group where there are several."""
    name = {"name": type(optimizer).__name__}
    if len(hyperparameters) == 1:
        return name | hyperparameters[0]
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    groups = [{"parameters": n, **h} for n, h in zip(sizes, hyperparameters, strict=True)]
    return {**name, "groups": groups}


def describe_loader(loader: Any) -> dict[str, Any] | None:
    """What decides the batches: the loader's arguments and which data it reads."""
    if loader is None:
        return None
    loader = getattr(loader, "source", loader)
    names = ("batch_size", "shuffle", "seed", "drop_last", "size", "mean", "std", "augment")
    described = {name: getattr(loader, name) for name in names if hasattr(loader, name)}
    dataset = getattr(loader, "dataset", None)
    if dataset is None or not hasattr(dataset, "__len__"):
        if isinstance(loader, (list, tuple)):
            arrays = (to_numpy(array) for batch in loader for array in batch)
            return {**described, "batches": len(loader), "crc32": crc32(*arrays)}
        return described
    described["images"] = len(dataset)
    for name in ("labels", "images"):
        if isinstance(array := getattr(dataset, name, None), np.ndarray):
            described[f"{name}_crc32"] = crc32(array)
    return described


def crc32(*arrays: np.ndarray) -> int:
    """A checksum over the values of arrays, in C order; about a second for a gigabyte."""
    checksum = 0
    for array in map(np.atleast_1d, arrays):
        for start in range(0, len(array), 1024):  # a view may need a copy
            part = np.ascontiguousarray(array[start : start + 1024])
            checksum = zlib.crc32(part.data, checksum)
    return checksum


# Attributes of every module, which say nothing of a loss.
_OF_MODULES = frozenset(vars(Module()))


def describe(thing: Any) -> dict[str, Any]:
    """An object's class and public attributes: a loss, a schedule, an augmentation."""
    if hasattr(thing, "describe") and isinstance(own := thing.describe(), dict):
        return own
    name = getattr(thing, "__qualname__", type(thing).__name__)
    slots = {key: getattr(thing, key) for key in getattr(type(thing), "__slots__", ())}
    hidden = _OF_MODULES if isinstance(thing, Module) else frozenset()
    attributes = {**slots, **getattr(thing, "__dict__", {})}
    public = {k: v for k, v in attributes.items() if k not in hidden and k[0] != "_"}
    return {"name": name, **public}


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


def differences(stored: Mapping[str, Any], ours: dict[str, Any]) -> list[str]:
    """What differs between the run of a checkpoint's metadata and ours, a text for each setting."""
    theirs, ours = ({"precision": "ieee", **recipe} for recipe in (stored["recipe"], ours))
    if "version" not in stored:  # 0.1: losses had a device; what it did not store is not compared
        theirs = {**theirs, "loss": _without_device(theirs["loss"])}
        return _differences(theirs, ours, known_only=True)
    return _without_numbers(_differences(theirs, ours))


def _without_numbers(texts: list[str]) -> list[str]:
    """Checksums, counts and means of images, and a network's file, that changed, as words."""
    if any(text.startswith("model.sha256 ") for text in texts):
        texts = [text for text in texts if not text.startswith("model.sha256 ")]
        texts.append("model: the file that builds it is not what it was; more --epochs take it")
    for part in ("data", "validation"):
        of_images = (f"{part}.images", f"{part}.labels")
        if any(text.startswith(of_images) for text in texts):
            numbers = (*of_images, f"{part}.mean", f"{part}.std")
            texts = [text for text in texts if not text.startswith(numbers)]
            texts.append(f"{part}: the images or labels are not those of that run")
    return texts


def _without_device(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {k: _without_device(v) for k, v in value.items() if k != "device"}


def _differences(theirs: Any, ours: Any, name: str = "", known_only: bool = False) -> list[str]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        keys = [*theirs, *(key for key in ours if key not in theirs and not known_only)]
        return [
            text
            for key in keys
            for text in _differences(
                theirs.get(key), ours.get(key), f"{name}.{key}".lstrip("."), known_only
            )
        ]
    if theirs == ours:
        return []
    return [f"{name} was {_short(theirs)}, is now {_short(ours)}"]


def _short(value: Any) -> str:
    if isinstance(value, dict) and "name" in value:
        return str(value["name"])
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
