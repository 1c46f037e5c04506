"""What a model answers to batches: one by one, or on a device by a recorded forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from gpuconv import autograd
from gpuconv.arrays import is_device, to_device
from gpuconv.cuda import recording
from gpuconv.cuda.recording import Recorder
from gpuconv.cuda.runtime import runtime
from gpuconv.nn import Module, no_grad
from gpuconv.train.feed import Feed, Source, batches_of
from gpuconv.train.records import Fixed, Records


class Answers(NamedTuple):
    """What a model gave for a batch. loss: NaN where none was asked for. images: gives the batch's
    x as a NumPy array.
    """

    scores: np.ndarray
    labels: np.ndarray
    loss: float
    images: Callable[[], np.ndarray]


def one_by_one(
    model: Module, loss: Any, batches: Any, precision: str = "ieee"
) -> Iterator[Answers]:
    """A model's answers to (x, labels); loss: None for none."""
    for x, labels in batches_of(batches):
        with no_grad():
            with autograd.precision(precision):
                scores = model(to_device(x, model.device))
            value = math.nan
            if loss is not None:
                value = float(loss(scores, to_device(labels, model.device)))
        yield Answers(scores.numpy(), labels, value, partial(np.asarray, x))


Run = Callable[[Module, Any, Any], Iterator[Answers]]  # as `one_by_one`


class RecordedAnswers:
    """`evaluate.one_by_one` on a device: the forward pass is recorded and replayed."""

    def __init__(self, records: Records, precision: str = "ieee") -> None:
        self._records, self._precision = records, precision
        self._source: Source | None = None  # of a loader that may be evaluated again

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
                with autograd.precision(self._precision):
                    scores = model(x)
                value = math.nan if loss is None else value_of(loss(scores, labels))
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
                scores, value = self._records.run(kind, step, guard=fixed.guard)
            else:
                if feed.feed is not None:
                    feed.feed()
                record.start()
                scores, value = record.outputs, math.nan
                if loss is not None:
                    value = record.loss()
                    if math.isnan(value):
                        refuse_labels(loss, scores, feed.labels(0, batch))
            host, truth = on.read(scores), feed.labels(0, batch)
            yield Answers(host, truth, value, partial(images, batch))
            batch += 1

    def _feed_of(self, batches: Any, device: str) -> Feed:
        if self._source is None or self._source.batches is not batches:
            self._source = Source(batches, device)
        return self._source.feed()


def value_of(loss: Any) -> float:
    """A loss as a number; a step that is being recorded notes it as its own."""
    recorder = recording.state.recorder
    with recording.paused():
        value = float(loss)
    if recorder is not None and (why := recorder.host_numbers.add_up(loss.data, value)):
        recording.refuse(why)
    return value


def refuse_labels(loss: Any, scores: Any, labels: np.ndarray) -> None:
    """What an ordinary step raises for a label that is no class, where a replayed one gives NaN."""
    loss(np.zeros(scores.shape, np.float32), labels)


def answers_of(
    model: Module, records: Records | None = None, graph: bool = True, precision: str = "ieee"
) -> Run:
    """What runs a model over batches, for `evaluate` and `probabilities`.

    records: where a device's passes are recorded; None for records of its own, if `graph`.
    """
    if not is_device(model.device):
        return partial(one_by_one, precision=precision)
    records = records or Records(runtime(model.device), lambda text: None, graph)
    return RecordedAnswers(records, precision)
