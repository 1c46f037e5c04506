"""The state of a run: where it is, to a checkpoint and back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

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
    of the schedule's learning rate that is used, see `Trainer.set_lr`. schedule_start: the step
    that is the schedule's first, 0 but in a run that was extended.
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
    schedule_start: int = 0

    @property
    def loss(self) -> float:
        """Mean loss of the current epoch so far."""
        return self.loss_sum / max(self.images, 1)

    @property
    def accuracy(self) -> float:
        """Share of right answers in the current epoch so far, each before its update."""
        return self.correct / max(self.images, 1)

    def record(self, lr: float) -> dict[str, Any]:
        """The current epoch so far as a record of the history."""
        return {
            "epoch": self.epoch + 1,
            "batch": self.batch,
            "step": self.step,
            "loss": self.loss,
            "accuracy": self.accuracy,
            "lr": lr,
        }

    def update_best(self, record: dict[str, Any]) -> bool:
        """Whether a finished epoch has the best validation accuracy so far, and at the same
        accuracy the lower loss; if so it is noted.
        """
        if "validation_accuracy" not in record:
            return False
        accuracy, loss = record["validation_accuracy"], record["validation_loss"]
        if self.best is not None and (accuracy, -loss) <= (self.best, -(self.best_loss or 0.0)):
            return False
        self.best, self.best_loss, self.best_epoch = accuracy, loss, record["epoch"]
        return True

    def next_epoch(self) -> None:
        """Begin to count the next epoch."""
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
        "epochs": trainer.epochs,
        "position": asdict(trainer.state),
        "optimizer": optimizer_state,
        "generators": generators,
        "threads": thread_count(),
        "ranks": trainer.communicator.size,
    }
    return Checkpoint(weights, {**metadata, **state}, arrays)


def restore(found: Checkpoint, trainer: Trainer, recipe: dict[str, Any]) -> TrainState:
    """Put a checkpoint's state into the trainer's model, optimiser and average, if the settings of
    its run are those of this one.

    recipe: this run's settings, as `describe_run` puts them into metadata.
    Raises: ValueError, in one line, saying what differs; then nothing has changed.
    """
    _require_same(found, _different(found, recipe))
    _load(found, trainer, found.metadata["optimizer"])
    return TrainState(**found.metadata["position"])


def extend(found: Checkpoint, trainer: Trainer, recipe: dict[str, Any]) -> TrainState:
    """As `restore`, for a run that goes on with the trainer's own settings: another schedule, other
    data, other settings of the optimiser. What must agree is the model.

    A checkpoint of these very settings, written on the way to as many epochs, is restored: it is of
    an extended run that was interrupted.
    Raises: ValueError, in one line, also for a run that stopped within an epoch.
    """
    different = _different(found, recipe)
    meta, optimizer = found.metadata, trainer.optimizer
    if not different and meta.get("epochs") == trainer.epochs:
        return restore(found, trainer, recipe)
    _require_same(found, [text for text in different if text.startswith("model.")])
    position = TrainState(**meta["position"])
    if position.batch:
        where = f"stopped in epoch {position.epoch + 1} after {position.batch} batches"
        raise ValueError(f"{found.path}: {where}; resume it to the epoch's end, then extend it")
    own = optimizer.state_dict()
    if own["name"] == meta["optimizer"]["name"]:
        own["steps"] = meta["optimizer"]["steps"]
    else:  # another optimiser: it begins anew
        averages = {n: a for n, a in found.optimizer.items() if n.startswith(AVERAGE)}
        found = replace(found, optimizer=averages)
    _load(found, trainer, own)
    position.schedule_start, position.rate = position.step, 1.0
    if any(text.startswith("data: ") for text in different):
        trainer._message(f"{found.path}: goes on with other images than the run had")
    if any(text.startswith("model: ") for text in different):
        trainer._message(f"{found.path}: the file that builds the network has changed since")
    if any(text.startswith(("validation", "loss")) for text in different):
        position.best = position.best_loss = position.best_epoch = None  # of another measure
    return position


def _different(found: Checkpoint, recipe: dict[str, Any]) -> list[str]:
    if found.metadata.get("kind") != "training":
        raise ValueError(f"{found.path}: holds weights only, not a training run to resume")
    return differences(found.metadata, recipe)


def _require_same(found: Checkpoint, different: list[str]) -> None:
    if different:
        more = f" (and {len(different) - 4} more)" if len(different) > 4 else ""
        raise ValueError(
            f"{found.path}: is of another run: {'; '.join(different[:4])}{more};"
            " repeat its settings, or train in another folder"
        )


def _load(found: Checkpoint, trainer: Trainer, optimizer_state: dict[str, Any]) -> None:
    """Weights, optimiser, average and random numbers, all of them or none.

    optimizer_state: without its arrays, which are the checkpoint's.
    """
    model, optimizer, average = trainer.model, trainer.optimizer, trainer.average
    generators = found.metadata["generators"]
    stochastic = dict(stochastic_layers(model))
    if stochastic.keys() != generators.keys():
        raise ValueError(f"{found.path}: other layers draw random numbers in that run")
    averages = {name: a for name, a in found.optimizer.items() if name.startswith(AVERAGE)}
    own = {name: a for name, a in found.optimizer.items() if name not in averages}
    weights = {name: array.copy() for name, array in model.state_dict().items()}
    before = optimizer.state_dict()
    found.load_into(model)
    try:
        optimizer.load_state_dict({**optimizer_state, "arrays": own})
        if average is not None:
            average.load_state_dict({k.removeprefix(AVERAGE): a for k, a in averages.items()})
    except ValueError as error:
        model.load_state_dict(weights)
        optimizer.load_state_dict(before)
        raise ValueError(f"{found.path}: {error}") from None
    for name, layer in stochastic.items():
        layer.rng_state = generators[name]


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
