"""A training run from its config: `prepare` makes the trainer and the loaders, `test` the result.

from gpuconv import train
run = train.prepare(train.run_config(model="lenet", data="mnist", epochs=5))
run.trainer.out = "runs/mine"
history = run.fit()
print(train.test(run)["accuracy"])
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gpuconv import checkpoint, models
from gpuconv.data import Loader, Preprocessing, load, mean_and_std
from gpuconv.data.preprocessing import has_dark_border, image_size
from gpuconv.errors import DataError
from gpuconv.nn import CrossEntropyLoss, Module, output_shape
from gpuconv.optim import EMA
from gpuconv.train import config as configs
from gpuconv.train import fine_tuning
from gpuconv.train.state import is_best
from gpuconv.train.trainer import Trainer

TEST_BATCH = 500


@dataclass
class Run:
    """A run that is ready to train. validation: None where no images are held out. notes: lines
    that say with what weights it begins.
    """

    config: configs.RunConfig
    trainer: Trainer
    training: Loader
    validation: Loader | None
    notes: Sequence[str] = ()

    def fit(self, resume: bool | str = False) -> list[dict[str, Any]]:
        """`Trainer.fit` with the run's loaders and epochs."""
        epochs = self.config["epochs"]
        return self.trainer.fit(self.training, self.validation, epochs=epochs, resume=resume)


def prepare(config: configs.RunConfig, resumed: bool = False) -> Run:
    """The data, model, optimiser and trainer of a run config. The trainer has no folder yet.

    resumed: leave the weights undrawn, since `fit(resume=True)` loads them.
    Raises ValueError or OSError for a model or data that cannot be had.
    """
    config = dict(config)
    seed = config["seed"]
    weights = None if resumed else seed
    scaled = _usual_size(config)
    reading = {name: config[name] for name in ("resize", "limit", "skip_bad", "stratified")}
    whole = load(config["data"], "train", None, scaled, config["gray"], **reading)
    with suppress(DataError):  # the test set is read after training; if there is none, say so now
        load(config["data"], "test", None, scaled, config["gray"], **reading | {"limit": 1})
    shape, classes = whole.image_shape, whole.classes
    dark_border = has_dark_border(whole)
    whole = Preprocessing(shape, scaled or shape[1:], dark_border=dark_border).prepared(whole)
    wanted = config["classes"] or len(classes)
    model = _build(config, {"in_channels": shape[0], "num_classes": wanted}, weights)
    of_files = whole.resize is not None
    size = scaled if scaled and (of_files or config["size"]) else input_size(model, shape)
    _require_reads(config["model"], model, (shape[0], *size))
    notes = fine_tuning.begin(model, config, (shape[0], *size), len(classes), resumed)
    model.input_shape, config["size"] = (shape[0], *size), list(size)
    model.to(config["device"])
    mean, std = mean_and_std(whole) if config["normalize"] == "data" else (None, None)
    training, held_out = whole, None
    config["validation"] = configs.validation_fraction(config["validation"], len(whole))
    if config["validation"] > 0:
        share = 1 - config["validation"]
        try:
            training, held_out = whole.split(share, seed, config["stratified"])
        except ValueError as error:
            raise ValueError(f"validation {config['validation']:g}: {error}") from None
    scaling: dict[str, Any] = {"size": size, "mean": mean, "std": std}
    augment = configs.make_augment(config["augment"], shape)
    loader = Loader(training, config["batch"], seed=seed, augment=augment, **scaling)
    validation = None
    if held_out is not None:
        batch = min(TEST_BATCH, len(held_out))
        validation = Loader(held_out, batch, shuffle=False, **scaling)
    smoothing, decay = config["label_smoothing"], config["ema"]
    trainer = Trainer(
        model,
        CrossEntropyLoss(label_smoothing=smoothing) if smoothing else config["loss"],
        configs.make_optimizer(config, model),
        schedule=configs.make_schedule(config, len(loader)),
        clip_norm=config["clip"],
        average=None if decay is None else EMA(model, decay),
        seed=seed,
        sync_batchnorm=config["sync_batchnorm"],
        metadata={
            "settings": config,
            "image_shape": shape,
            "dark_border": dark_border,
            "resize": config["resize"],
            "stratified": config["stratified"],
        },
    )
    return Run(config, trainer, loader, validation, notes)


def test(run: Run) -> dict[str, Any]:
    """Test the weights of the best epoch, or of the last where nothing was held out.

    They are loaded from the run's folder into its model. Returns `Trainer.evaluate`'s result and
    "checkpoint" (the file's path), "epoch" (of the weights) and "dataset" (the test set).
    """
    trainer = run.trainer
    if trainer.out is None:
        raise ValueError("test: the run has no folder: set run.trainer.out before it is trained")
    path, found = trainer.communicator.from_root(partial(_best, trainer, Path(trainer.out)))
    found.load_into(trainer.model)
    preprocessing = Preprocessing.from_metadata(found.metadata, trainer.model.input_shape)
    dataset = preprocessing.load(run.config["data"], "test", run.config["limit"])
    # best.safetensors holds the averaged weights already, if there are any; last.safetensors not.
    average = trainer.average if path.name == "last.safetensors" else None
    with average.applied() if average else nullcontext():
        result = trainer.evaluate(preprocessing.loader(dataset, TEST_BATCH))
    epoch = found.metadata.get("epoch", trainer.state.epoch)
    return {**result, "checkpoint": path, "epoch": epoch, "dataset": dataset}


def _best(trainer: Trainer, folder: Path) -> tuple[Path, checkpoint.Checkpoint]:
    """The checkpoint of the best epoch, or of the last where none was the best."""
    best, last = folder / "best.safetensors", folder / "last.safetensors"
    if best.exists() and is_best(found := checkpoint.read(best), trainer.state):
        return best, found
    return last, checkpoint.read(last)


def input_size(model: Module, image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """The (height, width) to which a network's input is padded, for images (C, H, W).

    The images' own where the network reads them, else the next multiples of 32 or 64 that it reads:
    a network for photographs of 224x224 does not train on digits with 60 times as much black around
    them. Where it reads none of these, the size that it was made for.
    """
    for unit in (1, 32, 64):
        height, width = (-(-side // unit) * unit for side in image_shape[1:])
        try:
            output_shape(model, (image_shape[0], height, width))
        except ValueError:
            continue
        return height, width
    return image_size(model.input_shape or image_shape)


def _require_reads(name: str, model: Module, shape: tuple[int, int, int]) -> None:
    try:
        output_shape(model, shape)
    except ValueError as error:
        own = model.input_shape
        made = f", it was made for {own[1]}x{own[2]}" if own else ""
        raise ValueError(
            f"{name} does not read images of {shape[1]}x{shape[2]} (--size){made}: {error}"
        ) from None


def _build(config: configs.RunConfig, arguments: dict[str, Any], seed: int | None) -> Module:
    if config["size"]:
        arguments = {**arguments, "input_size": config["size"][0]}
    if config["spec"] is None:
        return models.named(config["model"], seed, **arguments)
    spec, known = config["spec"], config["spec"].get("arguments", {})
    changed = {name: value for name, value in arguments.items() if name in known}
    return models.build({**spec, "arguments": {**known, **changed, "seed": seed}})


def _usual_size(config: configs.RunConfig) -> tuple[int, int] | None:
    """(height, width) of the pictures that a network was made for; None where it does not say."""
    if config["size"]:
        return config["size"][0], config["size"][1]
    # A function of the user's may need arguments, which the data decide later.
    usual = {"in_channels": 3, "num_classes": 2} if models.is_file(config["model"]) else {}
    shape = _build(config, usual, None).input_shape
    return None if shape is None else image_size(shape)
