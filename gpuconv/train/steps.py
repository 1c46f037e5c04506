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
from gpuconv.cuda.runtime import runtime
from gpuconv.nn import Module, no_grad
from gpuconv.train.evaluate import Answers, batches_of
from gpuconv.train.feed import Feed, feed_of
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
        self._feed = feed_of(batches, trainer.model.device)
        self._ahead = 1  # steps to start at once
        if self._feed.note:
            records.say(self._feed.note)

    def __iter__(self) -> Iterator[None]:
        """Train with the rest of an epoch's batches; yields after one or several."""
        trainer = self._trainer
        p, feed = trainer.state, self._feed
        fixed = Fixed(trainer.model, trainer.loss, optimizer=trainer.optimizer)
        average = None if trainer.average is None else trainer.average.decay
        while True:
            most = min(trainer.batches_until_told(), self._ahead)
            count, shape = feed.prepare(p.epoch, p.batch, most)
            if not count:
                return
            kind = fixed.now("train", id(feed), shape, trainer.clip_norm, average)
            record = self._records.find(kind)
            if record is None:
                self._ordinary(kind, shape, fixed)
            else:
                self._replay(record, count)
            yield

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

        self._records.run(kind, step)

    def _replay(self, record: Any, count: int) -> None:
        trainer, feed = self._trainer, self._feed
        p, began = trainer.state, time.monotonic()
        images, states = p.images, trainer.rng_states()

        def failing() -> None:
            states[:] = trainer.rng_states()

        outcome = record.run(count, feed.feed, failing)
        if outcome.losses:
            each = (p.images - images) // len(outcome.losses)
            for losses, correct in zip(outcome.losses, outcome.correct, strict=True):
                p.loss_sum += total_loss(trainer.loss, losses) * each
                p.correct += correct
        if outcome.failed is not None:
            losses, norm = outcome.failed
            value = total_loss(trainer.loss, losses)
            if math.isnan(value):
                refuse_labels(trainer.loss, record.outputs, feed.labels(p.epoch, p.batch))
            raise trainer.broken(value, norm, states, lambda: feed.host(p.epoch, p.batch)[0])
        seconds = max(time.monotonic() - began, 1e-6) / count
        self._ahead = max(1, min(int(SECONDS / seconds), 2 * self._ahead, SLOTS))


class RecordedAnswers:
    """`evaluate.one_by_one` on a device: the forward pass is recorded and replayed."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._feeds: dict[int, tuple[Any, Feed]] = {}  # of loaders that are evaluated again

    def __call__(self, model: Module, loss: Any, batches: Any) -> Iterator[Answers]:
        feed = self._feed_of(batches, model.device)
        fixed, on, batch = Fixed(model, loss), self._records.on, 0

        def images(batch: int) -> np.ndarray:
            return feed.host(0, batch)[0]

        def step(recorder: Recorder | None) -> tuple[Any, float]:
            if feed.feed is not None:
                feed.feed()
            if recorder is not None:
                recorder.keep((feed, fixed.arrays()))
            with no_grad():
                x, labels = feed.load(shape, 0 if recorder is None else recorder.slot)
                scores = model(x)
                value = math.nan if loss is None else float(loss(scores, labels))
            if recorder is not None:
                recorder.outputs = scores.data
            return scores.data, value

        while True:
            count, shape = feed.prepare(0, batch, 1)
            if not count:
                return
            kind = fixed.now("answers", id(feed), loss is None, shape)
            record = self._records.find(kind)
            if record is None:
                scores, value = self._records.run(kind, step)
            else:
                if feed.feed is not None:
                    feed.feed()
                record.replay()
                scores, value = record.outputs, math.nan
                if loss is not None:
                    value = total_loss(loss, record.losses())
                    if math.isnan(value):
                        refuse_labels(loss, scores, feed.labels(0, batch))
            host, truth = on.read(scores), feed.labels(0, batch)
            yield Answers(host, truth, value, partial(images, batch))
            batch += 1

    def _feed_of(self, batches: Any, device: str) -> Feed:
        _, feed = self._feeds.get(id(batches), (None, None))
        if feed is None:
            feed = feed_of(batches, device)
            self._feeds = {id(batches): (batches, feed)}
        return feed


def total_loss(loss: Any, losses: list[float]) -> float:
    """A step's loss from those that it computed, as the loss adds them up."""
    return losses[0] if len(losses) == 1 else loss.combined(losses)


def refuse_labels(loss: Any, scores: Any, labels: np.ndarray) -> None:
    """What an ordinary step raises for a label that is no class, where a replayed one gives NaN."""
    loss(np.zeros(scores.shape, np.float32), labels)


def steps_of(
    trainer: Trainer, batches: Any, records: Records | None
) -> Callable[[], Iterator[None]]:
    """What trains with the rest of an epoch's batches, called once for each epoch."""
    if records is None:
        return lambda: one_by_one(trainer, batches)
    return RecordedSteps(trainer, batches, records).__iter__


def records_of(trainer: Trainer) -> Records | None:
    """Where the trainer's steps are recorded; None where they are not."""
    device = trainer.model.device
    if not trainer.graph or device not in ("sim", "cuda"):
        return None
    return Records(runtime(device), trainer._message)
