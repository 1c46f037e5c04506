"""A run in progress, for the page: its curves, its weights as they change, and the page's commands.

The training thread calls `TrainingMonitor` after every batch; the server's threads read what it has
noted and leave commands for it. The weights are copied into the session's own network, so that the
page never computes with the one that is being trained, and a run that is only watched has the bits
of one that is not.
"""

from __future__ import annotations

import json
import math
import queue
import threading
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from gpuconv.page.evaluation import evaluate
from gpuconv.page.session import Session
from gpuconv.train import Callback, Interrupted

if TYPE_CHECKING:
    from gpuconv.data import Loader
    from gpuconv.train import Trainer

POINT_SECONDS = 0.25  # between points of the curves
WEIGHT_SECONDS = 1.0  # between copies of the weights, while somebody looks
EVALUATE_SECONDS = 5.0  # between evaluations on held-out pictures, while somebody looks
SHARE = 0.05  # of the training's time that copies and evaluations may take, each
MAX_POINTS = 1000
MAX_STREAMS = 8
HEARTBEAT_SECONDS = 10.0

Answer = dict[str, Any]


class Busy(RuntimeError):
    """More pages follow the run than may."""


class TrainingMonitor(Callback):
    """Follows a trainer's runs and steers them by the page's commands.

    held: pictures to evaluate the network on, a loader that does not shuffle; title: what they are.
    State: "ready", then "running", "paused", "stopping", and "stopped", "done" or "failed".
    """

    def __init__(self, session: Session, held: Loader, title: str) -> None:
        self.session, self.title = session, title
        self.state, self.problem = "ready", ""
        self._held = held
        self._changed = threading.Condition()
        self._streams: set[queue.Queue[Answer]] = set()
        self._points: list[Answer] = []
        self._epochs: list[Answer] = []
        self._progress: Answer = {}
        self._evaluation: Answer = {}
        self._rate: float | None = None  # asked for in the page, and not yet set
        self._stride = 1  # intervals in a point, doubled when the points become too many
        self._since = _Since()
        self._pending: list[Answer] = []
        self._due = _Due(), _Due()

    # ---- the main thread -----------------------------------------------------------------------

    def follow(self, train: Callable[[bool], None]) -> None:
        """Train whenever the page says so, until interrupted (Ctrl-C).

        train(again): one run, which has `self` among its callbacks; again: to go on with the last.
        Raises what a run raises by itself; one that the page stopped can be gone on with.
        """
        again = False
        while True:
            with self._changed:
                while self.state != "starting":
                    self._changed.wait(0.5)
            try:
                train(again)
            except Interrupted as stop:
                if self.state != "stopping":
                    raise
                self._set("stopped", str(stop))
            except (ValueError, OSError, FloatingPointError) as error:
                self._set("failed", str(error))
                raise
            else:
                self._set("done")
            again = True

    # ---- the training thread -------------------------------------------------------------------

    def on_fit_begin(self, trainer: Trainer) -> None:
        self._since = _Since(trainer)
        self._copy(trainer)
        self._evaluate()
        self._set("running")

    def on_batch_end(self, trainer: Trainer) -> None:
        now = time.monotonic()
        if now - self._since.time >= POINT_SECONDS:
            self._note(trainer, now)
        if self._streams and self._due[0].at(now, WEIGHT_SECONDS):
            with self._due[0]:
                self._copy(trainer)
        if self._streams and self._due[1].at(now, EVALUATE_SECONDS):
            with self._due[1]:
                self._copy(trainer)
                self._evaluate()
        self._obey(trainer)
        if trainer.state.batch == trainer.batches:  # an epoch may be shorter than a point
            self._since.end_epoch(trainer)

    def on_epoch_end(self, trainer: Trainer, record: Answer) -> None:
        kept = {name: value for name, value in record.items() if isinstance(value, (int, float))}
        self._epochs.append(kept)
        self._publish({"event": "epoch", "record": kept})
        with self._due[1]:
            self._copy(trainer)
            self._evaluate()
        if self._since.ended:
            self._since.begin_epoch()
        else:  # of unknown length: the sums start again
            self._since = _Since(trainer)

    def on_fit_end(self, trainer: Trainer) -> None:
        self._copy(trainer)

    def _note(self, trainer: Trainer, now: float) -> None:
        """The means since the last point."""
        images = trainer.state.images - self._since.images
        if images <= 0:
            self._since = _Since(trainer)
            return
        p = trainer.state
        point = {
            "step": p.step,
            "epoch": p.epoch + p.batch / max(trainer.batches, 1),
            "loss": (p.loss_sum - self._since.loss_sum) / images,
            "accuracy": (p.correct - self._since.correct) / images,
        }
        self._progress = point | {
            "lr": trainer.optimizer.lr,
            "images_per_second": images / (now - self._since.time),
            "epochs": trainer.epochs,
            "batch": p.batch,
            "batches": trainer.batches,
        }
        self._since = _Since(trainer)
        self._pending.append(point)
        if len(self._pending) >= self._stride:
            self._points.append(_mean(self._pending))
            self._pending = []
        if len(self._points) > MAX_POINTS:
            pairs = zip(self._points[::2], self._points[1::2], strict=False)
            self._points = [_mean(list(pair)) for pair in pairs]
            self._stride *= 2
        self._publish({"event": "progress", "progress": self._progress})

    def _copy(self, trainer: Trainer) -> None:
        self.session.load(trainer.model.state_dict())
        self._publish({"event": "weights", "version": self.session.version})

    def _evaluate(self) -> None:
        self._evaluation = evaluate(self.session, self._held)
        self._publish({"event": "evaluation", "evaluation": self._evaluation})

    def _obey(self, trainer: Trainer) -> None:
        """Do what the page has asked for; stay here while it wants a pause."""
        rate, self._rate = self._rate, None
        if rate is not None:
            self._set_lr(trainer, rate)
        if self.state == "paused":
            began = time.monotonic()
            self._copy(trainer)
            with self._changed:
                while self.state == "paused" and not trainer.interrupted:
                    self._changed.wait(0.1)
            trainer.exclude_time(time.monotonic() - began)
            self._since = _Since(trainer)
        if self.state == "stopping":
            trainer.interrupt()

    def _set_lr(self, trainer: Trainer, rate: float) -> None:
        step = trainer.state.step
        trainer.set_lr(rate)
        for callback in trainer.callbacks:
            callback.on_message(f"learning rate {rate:g} from step {step} on, set in the page")
        self._progress = self._progress | {"lr": rate}
        self._publish({"event": "progress", "progress": self._progress})

    # ---- the server's threads ------------------------------------------------------------------

    def command(self, action: str, rate: Any = None) -> Answer:
        """ "start" (also goes on after a stop), "pause", "resume", "stop", or "rate" with a new
        learning rate. ValueError for another, or one that does not fit the state.
        """
        fits = {
            "start": ("ready", "stopped"),
            "pause": ("running",),
            "resume": ("paused",),
            "stop": ("running", "paused"),
            "rate": ("running", "paused"),
        }
        if action not in fits:
            raise ValueError(f"unknown action {action[:40]!r} (known: {', '.join(fits)})")
        with self._changed:
            if self.state not in fits[action]:
                raise ValueError(f"cannot {action}: the run is {self.state}")
            if action == "rate":
                self._rate = _positive(rate)
            else:
                after = {"start": "starting", "pause": "paused", "resume": "running"}
                self._set(after.get(action, "stopping"))
        return {"state": self.state}

    def snapshot(self) -> Answer:
        """All that the page needs to draw the run so far."""
        return {
            "state": self.state,
            "problem": self.problem,
            "evaluated_on": self.title,
            "points": list(self._points),
            "epochs": list(self._epochs),
            "progress": self._progress,
            "evaluation": self._evaluation,
            "version": self.session.version,
        }

    def events(self) -> Generator[bytes, None, None]:
        """What happens from now on, as server-sent events. Busy where too many listen already."""
        if len(self._streams) >= MAX_STREAMS:
            raise Busy(f"{MAX_STREAMS} pages follow this run already; close one")
        mine: queue.Queue[Answer] = queue.Queue(256)
        self._streams.add(mine)
        return self._listen(mine)

    def _listen(self, mine: queue.Queue[Answer]) -> Generator[bytes, None, None]:
        try:
            yield b"retry: 1000\n\n"
            while mine in self._streams:
                try:
                    event = mine.get(timeout=HEARTBEAT_SECONDS)
                except queue.Empty:
                    yield b": still here\n\n"
                else:
                    yield b"data: " + json.dumps(event).encode() + b"\n\n"
        finally:
            self._streams.discard(mine)

    def _set(self, state: str, problem: str = "") -> None:
        with self._changed:
            self.state, self.problem = state, problem
            self._changed.notify_all()
        self._publish({"event": "state", "state": state, "problem": problem})

    def _publish(self, event: Answer) -> None:
        for stream in list(self._streams):
            try:
                stream.put_nowait(event)
            except queue.Full:  # a page that does not read: its stream ends, it may come again
                self._streams.discard(stream)


class _Since:
    """Where the run was at the last point."""

    def __init__(self, trainer: Trainer | None = None) -> None:
        p = None if trainer is None else trainer.state
        self.time = time.monotonic()
        self.images = 0 if p is None else p.images
        self.loss_sum = 0.0 if p is None else p.loss_sum
        self.correct = 0 if p is None else p.correct
        self.ended = 0.0  # when the epoch did that is over

    def end_epoch(self, trainer: Trainer) -> None:
        """The position's sums will start from 0 again; what they held still counts."""
        p = trainer.state
        self.images -= p.images
        self.loss_sum -= p.loss_sum
        self.correct -= p.correct
        self.ended = time.monotonic()

    def begin_epoch(self) -> None:
        """Validation and what else came between the epochs is no time of training."""
        self.time += time.monotonic() - self.ended
        self.ended = 0.0


class _Due:
    """Something to do now and then, that takes no more than SHARE of the time."""

    def __init__(self) -> None:
        self._next = self._began = 0.0
        self._cost = 0.0

    def at(self, now: float, interval: float) -> bool:
        return now >= self._next + max(interval, self._cost / SHARE)

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._next = time.monotonic()
        self._cost = self._next - self._began


def _mean(points: list[Answer]) -> Answer:
    last = points[-1]
    means = {
        name: sum(point[name] for point in points) / len(points) for name in ("loss", "accuracy")
    }
    return last | means


def _positive(rate: Any) -> float:
    if isinstance(rate, bool) or not isinstance(rate, (int, float)):
        raise ValueError("rate must be a number")
    if not (math.isfinite(rate) and 0 < rate <= 1000):
        raise ValueError(f"rate must be above 0 and at most 1000, got {rate}")
    return float(rate)
