"""Run configs: the settings of a training run, and the objects that they describe.

A run config is a flat dict that JSON can hold. A checkpoint keeps it as "settings", so that a run
can be resumed without repeating its options.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpuconv import checkpoint, data, models, optim
from gpuconv.data import Augment, Preprocessing
from gpuconv.data.picture import RESIZE
from gpuconv.errors import require_known
from gpuconv.nn import Module
from gpuconv.optim import Optimizer, Schedule

RunConfig = dict[str, Any]

DEFAULTS: RunConfig = {
    "model": "lenet",  # a name, or "mynet.py:build"
    "spec": None,  # of the network in place of a model by name, see `source`
    "weights": None,  # a file of weights to begin with
    "freeze": [],  # names of layers that do not train
    "classes": None,  # the data's
    "data": "mnist",
    "epochs": 5,
    "first_epoch": 0,  # epochs that the run had when its schedule began
    "batch": 64,
    "optimizer": "sgd",
    "lr": None,  # LEARNING_RATES' for the optimiser
    "momentum": None,  # 0.9 for sgd
    "weight_decay": None,  # WEIGHT_DECAYS' for the optimiser
    "loss": "cross_entropy",
    "label_smoothing": 0.0,
    "ema": None,
    "schedule": "onecycle",
    "base_batch": None,  # the batch that the rate is for; None: any
    "warmup": 0.0,  # epochs
    "clip": None,
    "augment": "shift",
    "normalize": "data",
    "validation": None,  # VALIDATION, where that is enough images to choose the best epoch
    "limit": None,
    "size": None,  # input_size's
    "gray": False,
    "resize": "fit",
    "skip_bad": False,
    "stratified": True,
    "sync_batchnorm": False,
    "seed": 0,
    "device": "auto",
}
PRESETS: dict[str, RunConfig] = {
    "default": {},
    "article": {
        "epochs": 3,
        "batch": 16,
        "lr": 0.1,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "loss": "article",
        "schedule": "none",
        "augment": "none",
        "validation": 0.0,
    },
}
LEARNING_RATES = {"sgd": 0.05, "lars": 10.0, "adam": 3e-3, "adamw": 3e-3}
WEIGHT_DECAYS = {"sgd": 5e-4, "lars": 5e-4, "adam": 0.0, "adamw": 1e-2}
WITH_MOMENTUM = ("sgd", "lars")
VALIDATION, MIN_VALIDATION_IMAGES = 0.05, 100
CHOICES = {
    "optimizer": tuple(LEARNING_RATES),
    "loss": ("cross_entropy", "article", "hinge"),
    "schedule": ("none", "step", "cosine", "onecycle"),
    "normalize": ("data", "none"),
    "augment": ("none", "shift", "affine", "flip", "crop"),
    "resize": RESIZE,
}


def run_config(
    preset: str = "default", stored: Mapping[str, Any] | None = None, **changes: Any
) -> RunConfig:
    """A run config: the preset's settings, over them a resumed run's, over them `changes`.

    preset: a name of `PRESETS`. stored: the run config of a run to resume, see `stored_config`.
    changes: settings by their names in `DEFAULTS`.
    Raises ValueError for an unknown preset, setting or choice, a momentum where the optimiser has
    none, and label smoothing with a loss that has none.

    >>> config = run_config("article", epochs=1)
    >>> config["batch"], config["epochs"], config["loss"]
    (16, 1, 'article')
    """
    require_known("preset", preset, PRESETS)
    for name in changes:
        require_known("setting", name, DEFAULTS)
    config = {**DEFAULTS, **PRESETS[preset], **(stored or {}), **changes}
    for name, known in CHOICES.items():
        for choice in str(config[name]).split("+") if name == "augment" else [config[name]]:
            require_known(name, choice, known)
    sgd = config["optimizer"] in WITH_MOMENTUM
    if not sgd and "momentum" in changes:
        raise ValueError(
            "train: momentum is for the optimizer sgd or lars; Adam has its own averages"
        )
    if config["warmup"] and config["schedule"] == "onecycle":
        raise ValueError(
            "train: the schedule onecycle has a warm-up of its own; give another with --warmup"
        )
    if config["label_smoothing"] and config["loss"] != "cross_entropy":
        loss = config["loss"]
        raise ValueError(
            f"train: label smoothing is for the loss cross_entropy, the loss is {loss}"
        )
    if config["lr"] is None:
        config["lr"] = LEARNING_RATES[config["optimizer"]]
    if config["weight_decay"] is None:
        config["weight_decay"] = WEIGHT_DECAYS[config["optimizer"]]
    if config["momentum"] is None or not sgd:
        config["momentum"] = 0.9 if sgd else None
    return config


def source(path: str | Path) -> RunConfig:
    """The settings of a network like that of a checkpoint, for a run that begins with its weights.

    Raises ValueError where the checkpoint does not describe it.
    """
    known = str(path).endswith(checkpoint.SUFFIXES)
    spec = checkpoint.read(path).metadata.get("model") if known else None
    if not spec or models.is_file(spec["name"]) or spec.keys() == {"name"}:
        built = f", it was built by {spec['name']}" if spec else ""
        raise ValueError(f"{path}: does not say how to build its network{built}; give --model")
    return {"model": spec["name"], "spec": spec}


def stored_config(folder: str | Path, model: str | None = None) -> RunConfig:
    """The run config of the run in a folder, to resume it.

    model: "mynet.py:build", for a network that only this file can build: a file runs only where it
    is named. Raises FileNotFoundError where there is no run, ValueError where a Trainer was used
    without a run config, or model is lacking.
    """
    last = Path(folder) / "last.safetensors"
    if Path(folder).is_file():
        raise ValueError(f"{folder}: is a file; give the folder of the run, {Path(folder).parent}")
    if not last.exists():
        raise FileNotFoundError(f"{folder}: holds no run to resume: there is no {last.name}")
    metadata = checkpoint.read(last).metadata
    config = metadata.get("settings")
    if not isinstance(config, dict) or config.keys() - DEFAULTS.keys():
        raise ValueError(f"{last}: is no run of `gpuconv train`; resume it with Trainer.fit")
    shape = (metadata.get("input") or {}).get("input_shape") or metadata.get("image_shape")
    how = Preprocessing.from_metadata(metadata, shape)  # of version 0.1 too
    size = (metadata.get("input") or {}).get("size")
    if models.is_file(config.get("model", "")):
        spec = metadata.get("model") or {}
        if not models.is_file(spec.get("name", "")):  # its layers are gpuconv's own
            config = {**config, "spec": spec}
        elif model is None or not models.is_file(model):
            raise ValueError(
                f"{last}: the network was built by {config['model']}, whose code runs only if you"
                f" name it: add --model {config['model']}"
            )
        config = {**config, "model": model or config["model"]}
    return {"size": size, "resize": how.resize, "stratified": how.stratified, **config}


def extended(folder: str | Path, stored: RunConfig, epochs: int) -> RunConfig:
    """The stored run config of a run in a folder, for more epochs with a schedule of their own.

    epochs: of the whole run. The schedule spans those that are left.
    """
    position = checkpoint.read(Path(folder) / "last.safetensors").metadata.get("position") or {}
    return {**stored, "first_epoch": position.get("epoch", 0), "epochs": epochs}


def validation_fraction(fraction: float | None, images: int) -> float:
    """The fraction of the training images to hold out for validation.

    None is VALIDATION where that is enough images: the accuracy on a handful of them would choose
    the best epoch by chance.
    """
    if fraction is not None:
        return fraction
    return VALIDATION if images * VALIDATION >= MIN_VALIDATION_IMAGES else 0.0


def make_optimizer(config: RunConfig, model: Module) -> Optimizer:
    """The optimiser over the model's parameters."""
    arguments = {"lr": scaled_rate(config), "weight_decay": config["weight_decay"]}
    if config["optimizer"] in WITH_MOMENTUM:
        with_momentum = optim.SGD if config["optimizer"] == "sgd" else optim.LARS
        return with_momentum(model.parameters(), momentum=config["momentum"], **arguments)
    kind = {"adam": optim.Adam, "adamw": optim.AdamW}[config["optimizer"]]
    return kind(model.parameters(), **arguments)


def scaled_rate(config: RunConfig) -> float:
    """The learning rate for the batch: "lr" is for "base_batch" images, and grows with the batch.
    Source: Goyal et al. 2017, the linear scaling rule.
    """
    rate: float = config["lr"]
    return rate * config["batch"] / config["base_batch"] if config["base_batch"] else rate


def make_schedule(config: RunConfig, batches: int) -> Schedule | None:
    """The learning rate as a function of the step; batches: the number of batches in an epoch.

    With "warmup" it rises within so many epochs, from the rate for "base_batch", or from 0.
    """
    after = _schedule(config, batches)
    if not config["warmup"]:
        return after
    share = min(1.0, config["lr"] / scaled_rate(config)) if config["base_batch"] else 0.0
    steps = max(1, round(config["warmup"] * batches))
    return optim.WarmupLR(after or scaled_rate(config), steps, share)


def _schedule(config: RunConfig, batches: int) -> Schedule | None:
    """The schedule without a warm-up.

    step: divided by 10 after each third of the run. cosine: down to 0 at the end. onecycle: up to
    the rate within 30% of the run, then down to almost 0; the momentum goes the other way.
    """
    lr, steps = scaled_rate(config), (config["epochs"] - config["first_epoch"]) * batches
    if config["schedule"] == "step":
        return optim.StepLR(lr, step_size=max(1, -(-steps // 3)))
    if config["schedule"] == "cosine":
        return optim.CosineLR(lr, t_max=steps)
    if config["schedule"] == "onecycle":
        cycle = config["optimizer"] != "sgd" or config["momentum"] > 0
        return optim.OneCycleLR(lr, total_steps=steps, cycle_momentum=cycle)
    return None


def make_augment(text: str, image_shape: tuple[int, ...]) -> Augment | None:
    """The augmentation of that name, or of several joined by "+"; None for "none".

    shift: up to 2 pixels in either direction. affine: up to 10 degrees and 10% of the size. flip:
    left to right. crop: a window of the images' own size after padding by 4 pixels.
    """
    kinds: dict[str, Augment] = {
        "shift": data.Shift(2),
        "affine": data.Affine(degrees=10, scale=0.1),
        "flip": data.HorizontalFlip(),
        "crop": data.RandomCrop(image_shape[1:], padding=4),  # type: ignore[arg-type]
    }
    steps = [kinds[name] for name in text.split("+") if name != "none"]
    return data.Compose(steps) if len(steps) > 1 else steps[0] if steps else None
