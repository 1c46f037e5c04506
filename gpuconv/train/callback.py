"""Callbacks: what a training run reports while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpuconv.train.trainer import Trainer


class Callback:
    """Override the methods you need. `trainer.state` says where the run is; setting
    `trainer.stopping = True` ends it after this epoch. A change of the optimiser made in
    `on_epoch_end` is part of that epoch's checkpoint.
    """

    # False for a callback to which `on_batch_end` may be told once for several batches: on a device
    # the Trainer then need not wait for each.
    each_batch = True

    def on_fit_begin(self, trainer: Trainer) -> None:
        """The run is about to begin, or to go on from `trainer.state`."""

    def on_batch_end(self, trainer: Trainer) -> None:
        """One batch is done, or without `each_batch` several. Called often: be quick."""

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """One epoch and its validation are done; `record` is its line in the history."""

    def on_message(self, text: str) -> None:
        """One line for the user: resumed, interrupted, and so on."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """The run is over, whether it ended well or by an exception."""


def told_each_batch(callback: Callback) -> bool:
    """Whether `on_batch_end` has something to do, and for every batch."""
    return callback.each_batch and type(callback).on_batch_end is not Callback.on_batch_end
