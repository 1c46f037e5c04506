"""The state of a run: where it is, to a checkpoint and back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.checkpoint import Checkpoint
from gpuconv.nn import Dropout, Module
from gpuconv.threads import thread_count
from gpuconv.train.description import differences

if TYPE_CHECKING:
    from gpuconv.train.trainer import Trainer


@dataclass
class TrainState:
    """Where a run is; together with weights, optimiser and generators, all that it remembers.

    epoch: finished epochs. batch: finished batches of the current one. step: optimiser steps.
    images, loss_sum, correct, seconds: sums over the current epoch. best: the best validation
    accuracy so far, with the loss and the epoch, counted from 1, that it came with. rate: the share
    of the schedule's learning rate that is used, see `Trainer.set_lr`.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    images: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_loss: float | None = None
    best_epoch: int | None = None
    rate: float = 1.0

    @property
    def loss(self) -> float:
        """Mean loss of the current epoch so far."""
        return self.loss_sum / max(self.images, 1)

    @property
    def accuracy(self) -> float:
        """Share of right answers in the current epoch so far, each before its update."""
        return self.correct / max(self.images, 1)

    def next_epoch(self) -> None:
        self.epoch += 1
        self.batch = self.images = self.correct = 0
        self.loss_sum = self.seconds = 0.0


AVERAGE = "average/"  # begins the averages' names among the optimiser's arrays


def capture(trainer: Trainer, metadata: dict[str, Any]) -> Checkpoint:
    """The run as a checkpoint; arrays are not copied."""
    optimizer_state = trainer.optimizer.state_dict()
    arrays, weights = optimizer_state.pop("arrays"), trainer.model.state_dict()
    if trainer.average is not None:
        weights = trainer.average.own_state()  # a validation may be interrupted
        averages = trainer.average.state_dict()
        arrays |= {AVERAGE + name: array for name, array in averages.items()}
    generators = {name: layer.rng_state for name, layer in stochastic_layers(trainer.model)}
    state = {
        "kind": "training",
        "position": asdict(trainer.state),
        "optimizer": optimizer_state,
        "generators": generators,
        "threads": thread_count(),
    }
    return Checkpoint(weights, {**metadata, **state}, arrays)


def restore(found: Checkpoint, trainer: Trainer, recipe: dict[str, Any]) -> TrainState:
    """Put a checkpoint's state into the trainer's model, optimiser and average, if it is of the
    same recipe.

    Raises: ValueError, in one line, saying what differs; then nothing has changed.
    """
    meta, model = found.metadata, trainer.model
    if meta.get("kind") != "training":
        raise ValueError(f"{found.path}: holds weights only, not a training run to resume")
    if different := differences(meta, recipe):
        more = f" (and {len(different) - 4} more)" if len(different) > 4 else ""
        raise ValueError(
            f"{found.path}: is of another run: {'; '.join(different[:4])}{more};"
            " repeat its settings, or train in another folder"
        )
    generators = meta["generators"]
    drawing = dict(stochastic_layers(model))
    if drawing.keys() != generators.keys():
        raise ValueError(f"{found.path}: other layers draw random numbers in that run")
    averages = {name: a for name, a in found.optimizer.items() if name.startswith(AVERAGE)}
    own = {name: a for name, a in found.optimizer.items() if name not in averages}
    _load(
        found,
        trainer,
        {**meta["optimizer"], "arrays": own},
        {name.removeprefix(AVERAGE): a for name, a in averages.items()},
    )
    for name, layer in drawing.items():
        layer.rng_state = generators[name]
    return TrainState(**meta["position"])


def _load(
    found: Checkpoint,
    trainer: Trainer,
    optimizer_state: dict[str, Any],
    averages: dict[str, np.ndarray],
) -> None:
    """Weights, optimiser and average, all of them or none."""
    optimizer, average = trainer.optimizer, trainer.average
    weights = {name: array.copy() for name, array in trainer.model.state_dict().items()}
    before = optimizer.state_dict()
    found.load_into(trainer.model)
    try:
        optimizer.load_state_dict(optimizer_state)
        if average is not None:
            average.load_state_dict(averages)
    except ValueError as error:
        trainer.model.load_state_dict(weights)
        optimizer.load_state_dict(before)
        raise ValueError(f"{found.path}: {error}") from None


def is_best(best: Checkpoint, state: TrainState) -> bool:
    """Whether a best.safetensors is of this run: of the epoch, with the results, that it counts as
    its best.
    """
    result = best.metadata.get("result")
    if not isinstance(result, dict) or state.best_epoch is None:
        return False
    found = [result.get(name) for name in ("epoch", "validation_accuracy", "validation_loss")]
    return found == [state.best_epoch, state.best, state.best_loss]


def stochastic_layers(model: Module) -> list[tuple[str, Dropout]]:
    """The layers that draw random numbers, by name."""
    return [(name, each) for name, each in model.named_modules() if isinstance(each, Dropout)]
