"""What `gpuconv train` trains with: the recipes, and the objects their settings name.

Settings are a flat dict that JSON can hold; a checkpoint keeps it, so that a run can be resumed
without repeating its options.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpuconv.data.augment import Augment
    from gpuconv.nn import CrossEntropyLoss, Module
    from gpuconv.optim import EMA, Optimizer, Schedule

Settings = dict[str, Any]

DEFAULT: Settings = {
    "model": "lenet",
    "data": "mnist",
    "epochs": 5,
    "batch": 64,
    "optimizer": "sgd",
    "lr": None,  # LEARNING_RATES' for the optimiser
    "momentum": None,  # 0.9 for sgd
    "weight_decay": None,  # WEIGHT_DECAYS' for the optimiser
    "loss": "cross_entropy",
    "label_smoothing": 0.0,
    "ema": None,
    "schedule": "onecycle",
    "clip": None,
    "augment": "shift",
    "normalize": "data",
    "validation": None,  # HELD_OUT, where that is enough images to judge by
    "limit": None,
    "gray": False,
    "seed": 0,
    "device": "auto",
}
RECIPES: dict[str, Settings] = {
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
LEARNING_RATES = {"sgd": 0.05, "adam": 3e-3, "adamw": 3e-3}
WEIGHT_DECAYS = {"sgd": 5e-4, "adam": 0.0, "adamw": 1e-2}
HELD_OUT, FEWEST_HELD_OUT = 0.05, 100
SCHEDULES = ("none", "step", "cosine", "onecycle")
LOSSES = ("cross_entropy", "article", "hinge")
NORMALIZE = ("none", "data")
AUGMENT = ("none", "shift", "affine", "flip", "crop")


def settings(recipe: str, stored: Mapping[str, Any], given: Mapping[str, Any]) -> Settings:
    """The recipe's settings, over them a resumed run's, over them what was given by hand.

    Raises ValueError for a momentum where the optimiser has none, and for label smoothing with a
    loss that has none.
    """
    chosen = {**DEFAULT, **RECIPES[recipe], **stored, **given}
    sgd = chosen["optimizer"] == "sgd"
    if not sgd and "momentum" in given:
        raise ValueError("train: --momentum is for --optimizer sgd; Adam has its own averages")
    if chosen["label_smoothing"] and chosen["loss"] != "cross_entropy":
        raise ValueError(
            f"train: --label-smoothing is for --loss cross_entropy, the loss is {chosen['loss']}"
        )
    if chosen["lr"] is None:
        chosen["lr"] = LEARNING_RATES[chosen["optimizer"]]
    if chosen["weight_decay"] is None:
        chosen["weight_decay"] = WEIGHT_DECAYS[chosen["optimizer"]]
    if chosen["momentum"] is None or not sgd:
        chosen["momentum"] = 0.9 if sgd else None
    return chosen


def held_out(fraction: float | None, images: int) -> float:
    """The share of the training images to hold out: as given, else HELD_OUT of a set that is not
    too small for it; the accuracy on a handful of images would choose the best epoch by chance.
    """
    if fraction is not None:
        return fraction
    return HELD_OUT if images * HELD_OUT >= FEWEST_HELD_OUT else 0.0


def make_loss(chosen: Settings) -> CrossEntropyLoss | str:
    """The loss, or its name where it has nothing to set."""
    from gpuconv.nn import CrossEntropyLoss

    smoothing = chosen["label_smoothing"]
    return CrossEntropyLoss(label_smoothing=smoothing) if smoothing else chosen["loss"]


def make_average(chosen: Settings, model: Module) -> EMA | None:
    """The moving average of the model's weights, if one is asked for."""
    from gpuconv import optim

    return None if chosen["ema"] is None else optim.EMA(model, decay=chosen["ema"])


def make_optimizer(chosen: Settings, model: Module) -> Optimizer:
    """The optimiser over the model's parameters."""
    from gpuconv import optim

    arguments = {"lr": chosen["lr"], "weight_decay": chosen["weight_decay"]}
    if chosen["optimizer"] == "sgd":
        return optim.SGD(model.parameters(), momentum=chosen["momentum"], **arguments)
    kind = {"adam": optim.Adam, "adamw": optim.AdamW}[chosen["optimizer"]]
    return kind(model.parameters(), **arguments)


def make_schedule(chosen: Settings, batches: int) -> Schedule | None:
    """The learning rate over the run's steps; `batches` is how many an epoch has.

    step: a tenth after each third of the run. cosine: to 0 at the end. onecycle: up to the rate
    within 30% of the run, and down to almost 0; the momentum the other way round.
    """
    from gpuconv import optim

    lr, steps = chosen["lr"], chosen["epochs"] * batches
    if chosen["schedule"] == "step":
        return optim.StepLR(lr, step_size=max(1, -(-steps // 3)))
    if chosen["schedule"] == "cosine":
        return optim.CosineLR(lr, t_max=steps)
    if chosen["schedule"] == "onecycle":
        cycle = chosen["optimizer"] != "sgd" or chosen["momentum"] > 0
        return optim.OneCycleLR(lr, total_steps=steps, cycle_momentum=cycle)
    return None


def make_augment(text: str, image_shape: tuple[int, ...]) -> Augment | None:
    """The augmentation of that name, or of several joined by "+"; None for "none".

    shift: up to 2 pixels each way. affine: up to 10 degrees and 10% of size. flip: left and right.
    crop: a window of the images' own size out of 4 pixels of padding.
    """
    from gpuconv import data

    steps: list[Augment] = []
    for name in text.split("+"):
        if name == "shift":
            steps.append(data.Shift(2))
        elif name == "affine":
            steps.append(data.Affine(degrees=10, scale=0.1))
        elif name == "flip":
            steps.append(data.HorizontalFlip())
        elif name == "crop":
            steps.append(data.RandomCrop(image_shape[1:], padding=4))  # type: ignore[arg-type]
    return data.Compose(steps) if len(steps) > 1 else steps[0] if steps else None
