"""The loop over an epoch's batches: one by one, or on a device by replaying recorded steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.arrays import to_device
from gpuconv.cuda.recording import SLOTS, Recorder
from gpuconv.train.answers import refuse_labels
from gpuconv.train.feed import Source, batches_of
from gpuconv.train.records import Fixed, Records

if TYPE_CHECKING:
    from gpuconv.train.trainer import Trainer

SECONDS = 0.1  # of steps that are started at once: so soon a callback or Ctrl-C is heard


def one_by_one(trainer: Trainer, batches: Any) -> Iterator[None]:
    """Train with the rest of an epoch's batches; yields after each."""
    p, on = trainer.state, trainer.model.device
    for x, labels in batches_of(batches, p.epoch, p.batch):
        batch = to_device(x, on), to_device(labels, on)
        trainer.timed_batch(partial(tuple, batch), partial(np.asarray, x))
        yield


class RecordedSteps:
    """The same on a device: steps are recorded and replayed, several at a time.

    records: those of the run.
    """

    def __init__(self, trainer: Trainer, batches: Any, records: Records) -> None:
        self._trainer, self._records = trainer, records
        self._source = Source(batches, trainer.model.device)
        self._feed = self._source.feed()
        self._ahead = 1  # steps to start at once
        size, images = getattr(batches, "batch_size", 1), len(getattr(batches, "dataset", ()))
        self._has_smaller_batch = images % size > 0

    def __iter__(self) -> Iterator[None]:
        """Train with the rest of an epoch's batches; yields after one or several."""
        trainer = self._trainer
        self._feed = feed = self._source.feed()
        if feed.note:
            self._records.say(feed.note)
        p = trainer.state
        fixed = self._fixed()
        while True:
            most = min(trainer.batches_until_told(), self._ahead)
            if self._records.wanted and trainer.ranks is not None:
                most = trainer.ranks.agree(most)
            count, shape = feed.prepare(p.epoch, p.batch, most)
            if not count:
                return
            kind = self._kind(fixed, shape)
            record = self._records.find(kind)
            if record is None:  # a layer may have been replaced
                fixed = self._fixed()
                kind = self._kind(fixed, shape)
                record = self._records.find(kind)
            if record is None:
                self._ordinary(kind, shape, fixed)
            else:
                self._replay(record, count)
            yield

    def _fixed(self) -> Fixed:
        trainer = self._trainer
        return Fixed(trainer.model, trainer.loss, trainer.optimizer, trainer.average)

    def _kind(self, fixed: Fixed, shape: Hashable) -> Hashable:
        trainer = self._trainer
        parts = trainer.model, trainer.loss, trainer.optimizer, trainer.average
        more: list[Hashable] = [trainer.clip_norm, trainer.precision, *map(id, parts)]
        if self._records.wanted and trainer.ranks is not None:
            more.append(trainer.ranks.place(trainer.state.batch))
        return fixed.now("train", id(self._feed), shape, *more)

    def _ordinary(self, kind: Hashable, shape: Hashable, fixed: Fixed) -> None:
        trainer, feed = self._trainer, self._feed
        p = trainer.state
        if feed.feed is not None:
            feed.feed()

        def images() -> Any:
            return feed.host(p.epoch, p.batch)[0]

        def step(recorder: Recorder | None) -> None:
            if recorder is None:
                trainer.timed_batch(lambda: feed.load(shape, 0), images)
            else:
                recorder.keep((feed, fixed.arrays()))
                trainer.timed_batch(lambda: feed.load(shape, recorder.slot), images)
                recorder.gradients = fixed.gradients()

        trainer.optimizer.zero_grad()  # so that a record need not hold memory beside theirs
        self._records.run(kind, step, trainer.mark, fixed.guard)

    def _replay(self, record: Any, count: int) -> None:
        trainer, feed = self._trainer, self._feed
        p, began = trainer.state, time.monotonic()
        images, states = p.images, trainer.rng_states()
        counts = list(trainer.optimizer.steps)

        def failing() -> None:
            states[:] = trainer.rng_states()

        def then() -> int:  # of this shape
            feed.ahead()
            left = trainer.batches - p.batch - self._has_smaller_batch
            return min(trainer.batches_until_told(), self._ahead, left) if count > 1 else 0

        outcome = record.run(count, feed.feed, failing, then)
        if outcome.losses:
            each = (p.images - images) // len(outcome.losses)
            for losses in outcome.losses:
                p.loss_sum += record.total(losses) * each
            correct = sum(outcome.correct)
            p.correct += correct if trainer.ranks is None else trainer.ranks.total(correct)
        if outcome.failed is not None:
            losses, norm = outcome.failed
            value = record.total(losses)
            if math.isnan(value):
                refuse_labels(trainer.loss, record.outputs, feed.labels(p.epoch, p.batch))
            raise trainer.broken(value, norm, states, lambda: feed.host(p.epoch, p.batch)[0])
        trainer.settle_scale(counts)
        seconds = max(time.monotonic() - began, 1e-6) / count
        self._ahead = max(1, min(int(SECONDS / seconds), 2 * self._ahead, SLOTS))


def steps_of(
    trainer: Trainer, batches: Any, records: Records | None
) -> Callable[[], Iterator[None]]:
    """What trains with the rest of an epoch's batches, called once for each epoch."""
    if records is None:
        return lambda: one_by_one(trainer, batches)
    return RecordedSteps(trainer, batches, records).__iter__
