"""What `gpuconv train` does, from its settings to the report at the end."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from gpuconv import checkpoint, models
from gpuconv.cli import recipes
from gpuconv.cli.folder import begin_folder
from gpuconv.cli.inputs import (
    Input,
    dark_border,
    field,
    is_picture_folder,
    load_data,
    mean_and_std,
)
from gpuconv.data import Dataset, Loader
from gpuconv.devices import choose
from gpuconv.nn import Sequential
from gpuconv.threads import set_thread_count, thread_count
from gpuconv.train import Interrupted, Trainer

TEST_BATCH = 500


def train(args: argparse.Namespace, given: recipes.Settings) -> None:
    """Train as the options say, then test, report, and draw. Raises as `Trainer.fit` does."""
    if args.threads is not None:
        set_thread_count(args.threads)
    stored = _stored_settings(args.resume) if args.resume else {}
    chosen = recipes.settings(args.recipe, stored, given)
    trainer, loaders = _prepare(chosen)
    trainer.out = (
        Path(args.resume) if args.resume else begin_folder(chosen, args.out, args.overwrite)
    )
    _announce(trainer, chosen, loaders)

    def run(again: bool) -> None:
        resume = again or bool(args.resume)
        history = trainer.fit(*loaders, epochs=chosen["epochs"], resume=resume)
        _report(trainer, chosen, history)

    try:
        if args.show:
            from gpuconv.cli.show import watch

            watch(trainer, loaders, chosen, args.port, run)
        else:
            run(again=False)
    except Interrupted as stop:
        raise _with_hint(stop, trainer.out) from None


def _stored_settings(folder: str) -> recipes.Settings:
    last = Path(folder) / "last.safetensors"
    if not last.exists():
        raise FileNotFoundError(f"{folder}: holds no run to resume: there is no {last.name}")
    found = checkpoint.read(last).metadata.get("settings")
    if not isinstance(found, dict) or found.keys() - recipes.DEFAULT.keys():
        raise ValueError(f"{last}: is no run of `gpuconv train`; resume it with Trainer.fit")
    return found


def _prepare(chosen: recipes.Settings) -> tuple[Trainer, tuple[Loader, Loader | None]]:
    """The trainer, without a folder yet, and the loaders of training and validation images."""
    size = None
    if is_picture_folder(chosen["data"]):
        size = field(_network(chosen["model"], {}, chosen["seed"]))
    whole = load_data(chosen["data"], "train", size, chosen["gray"], chosen["limit"])
    shape, classes = whole.image_shape, whole.classes
    sizes = {"in_channels": shape[0], "num_classes": len(classes)}
    model = _network(chosen["model"], sizes, chosen["seed"]).to(chosen["device"])
    mean, std = mean_and_std(whole) if chosen["normalize"] == "data" else (None, None)
    border = dark_border(whole)
    training, held_out = whole, None
    chosen["validation"] = recipes.held_out(chosen["validation"], len(whole))
    if chosen["validation"] > 0:
        training, held_out = whole.split(1 - chosen["validation"], seed=chosen["seed"])
    how: dict[str, Any] = {"size": field(model), "mean": mean, "std": std}
    augment = recipes.make_augment(chosen["augment"], shape)
    loader = Loader(training, chosen["batch"], seed=chosen["seed"], augment=augment, **how)
    validation = None
    if held_out is not None:
        validation = Loader(held_out, min(TEST_BATCH, len(held_out)), shuffle=False, **how)
    trainer = Trainer(
        model,
        recipes.make_loss(chosen),
        recipes.make_optimizer(chosen, model),
        schedule=recipes.make_schedule(chosen, len(loader)),
        clip_norm=chosen["clip"],
        average=recipes.make_average(chosen, model),
        seed=chosen["seed"],
        metadata={"settings": chosen, "image_shape": shape, "dark_border": border},
    )
    return trainer, (loader, validation)


def _network(name: str, arguments: dict[str, Any], seed: int) -> Sequential:
    return models.build({"name": name, "arguments": {**arguments, "seed": seed}})


def _announce(trainer: Trainer, chosen: recipes.Settings, loaders: Any) -> None:
    loader, validation = loaders
    count = sum(parameter.data.size for parameter in trainer.model.parameters())
    images = f"{len(loader.dataset):,} training images"
    if validation is not None:
        images += f", {len(validation.dataset):,} held out"
    print(f"{chosen['model']}, {count:,} parameters; {chosen['data']}, {images}")
    device = trainer.model.device
    if chosen["device"] == "auto":
        device += f" (auto: {choose()[1]})"
    print(f"device {device}, {thread_count()} threads; folder {trainer.out}", flush=True)


def _with_hint(stop: Interrupted, out: Path | None) -> Interrupted:
    told = Interrupted(stop.signal, f"{stop}; to go on: gpuconv train --resume {out}")
    return told


def _report(trainer: Trainer, chosen: recipes.Settings, history: list[dict[str, Any]]) -> None:
    """Test the best epoch's weights, or the last's; print the result and where everything is."""
    assert trainer.out is not None
    best, last = trainer.out / "best.safetensors", trainer.out / "last.safetensors"
    kept = best if best.exists() else last
    found = checkpoint.read(kept)
    found.load_into(trainer.model)
    test, note = _test_set(chosen, Input(found.metadata, trainer.model))  # type: ignore[arg-type]
    # best's weights are averages already, if there are any; last's are not
    average = trainer.average if kept == last else None
    with average.applied() if average else nullcontext():
        result = trainer.evaluate(test)
    right = int(np.trace(result["confusion"]))
    epoch = found.metadata.get("epoch", trainer.position.epoch)
    print(
        f"\ntest accuracy  {result['accuracy']:.2%} ({right:,} of {result['images']:,}{note}), "
        f"loss {result['loss']:.4f}, weights of epoch {epoch}"
    )
    print(f"checkpoint     {kept}\nhistory        {trainer.history.path}", flush=True)
    _draw(trainer.out, history, result["confusion"], test.dataset)


def _test_set(chosen: recipes.Settings, wanted: Input) -> tuple[Loader, str]:
    dataset = wanted.data(chosen["data"], "test", chosen["limit"])
    return wanted.loader(dataset, TEST_BATCH), "" if chosen["limit"] is None else ", limited"


def _draw(out: Path, history: list[dict[str, Any]], counts: np.ndarray, test: Dataset) -> None:
    from gpuconv.viz import confusion, curves

    pictures = out / "curves.png", out / "confusion.png"
    try:
        curves(history, pictures[0])
        confusion(counts, test.classes, pictures[1])
    except ImportError as error:
        print(f"pictures       none: {error}")
    else:
        print(f"pictures       {pictures[0]}, {pictures[1]}")
