"""A run in progress, for the page: its curves, its weights as they change, and the page's commands.

The training thread calls `TrainingMonitor` after every batch; the server's threads read what it has
noted and leave commands for it. The weights are copied into the session's own network, so that the
page never computes with the one that is being trained, and a run that is only watched has the bits
of one that is not.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from gpuconv.page.description import Answer, to_json
from gpuconv.page.request_checks import Refused
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
ACTIONS = {  # the states in which each fits, and the state after it
    "start": (("ready", "stopped"), "starting"),
    "pause": (("running",), "paused"),
    "resume": (("paused",), "running"),
    "stop": (("running", "paused"), "stopping"),
    "rate": (("running", "paused"), ""),
}


class TrainingMonitor(Callback):
    """Follows a trainer's runs and steers them by the page's commands.

    held: pictures to evaluate the network on, a loader that does not shuffle; title: what they are.
    State: "ready", then "running", "paused", "stopping", and "stopped", "done" or "failed".
    """

    each_batch = False

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
                print(f"stopped in the page: {stop}", flush=True)
                self._set("stopped", str(stop))
            except (ValueError, OSError, FloatingPointError) as error:
                self._set("failed", str(error))
                raise
            else:
                self._set("done")
            again = True

    # ---- the training thread -------------------------------------------------------------------

    def on_fit_begin(self, trainer: Trainer) -> None:
        self._evaluate(trainer)
        self._meter = _Meter(trainer)
        self._set("running")

    def on_batch_end(self, trainer: Trainer) -> None:
        self._meter.add(trainer)
        if self._meter.seconds >= POINT_SECONDS:
            self._note(trainer)
        if self._streams:  # somebody looks
            self._due[0].do(WEIGHT_SECONDS, self._copy, trainer)
            self._due[1].do(EVALUATE_SECONDS, self._evaluate, trainer)
        self._obey(trainer)

    def on_epoch_end(self, trainer: Trainer, record: Answer) -> None:
        kept = {name: value for name, value in record.items() if isinstance(value, (int, float))}
        self._epochs.append(kept)
        self._publish({"event": "epoch", "record": kept})
        self._evaluate(trainer)
        self._meter.rest()

    def on_fit_end(self, trainer: Trainer) -> None:
        self._copy(trainer)

    def _note(self, trainer: Trainer) -> None:
        """The means since the last point."""
        p, meter = trainer.state, self._meter
        point = {
            "step": p.step,
            "epoch": p.epoch + p.batch / max(trainer.batches, 1),
            "loss": meter.loss_sum / meter.images,
            "accuracy": meter.correct / meter.images,
        }
        self._progress = point | {
            "lr": trainer.optimizer.lr,
            "images_per_second": meter.images / max(meter.seconds, 1e-9),
            "epochs": trainer.epochs,
            "batches": trainer.batches,
        }
        meter.clear()
        self._points.append(point)
        if len(self._points) > MAX_POINTS:  # of an even number: those of long ago get sparser
            pairs = zip(self._points[:-1:2], self._points[1::2], strict=True)
            self._points = [*(_mean(*pair) for pair in pairs), point]
        self._publish({"event": "progress", "progress": self._progress})

    def _copy(self, trainer: Trainer) -> None:
        self.session.load(trainer.model.state_dict())
        self._publish({"event": "weights"})

    def _evaluate(self, trainer: Trainer) -> None:
        self._copy(trainer)
        self._evaluation = self.session.evaluate(self._held)
        self._publish({"event": "evaluation", "evaluation": self._evaluation})

    def _obey(self, trainer: Trainer) -> None:
        """Do what the page has asked for; stay here while it wants a pause."""
        rate, self._rate = self._rate, None
        if rate is not None:
            trainer.set_lr(rate)
            text = f"learning rate {rate:g} from step {trainer.state.step} on, set in the page"
            for callback in trainer.callbacks:
                callback.on_message(text)
            self._progress = self._progress | {"lr": rate}
            self._publish({"event": "progress", "progress": self._progress})
        if self.state == "paused":
            began = time.monotonic()
            self._copy(trainer)
            with self._changed:
                while self.state == "paused" and not trainer.interrupted:
                    self._changed.wait(0.1)
            trainer.exclude_time(time.monotonic() - began)
            self._meter.rest()
        if self.state == "stopping":
            trainer.interrupt()

    # ---- the server's threads ------------------------------------------------------------------

    def command(self, action: str, rate: Any = None) -> Answer:
        """ "start" (also goes on after a stop), "pause", "resume", "stop", or "rate" with a new
        learning rate. ValueError for another, or one that does not fit the state; TypeError for a
        rate that is no number.
        """
        if action not in ACTIONS:
            raise ValueError(f"unknown action {action[:40]!r} (known: {', '.join(ACTIONS)})")
        before, after = ACTIONS[action]
        with self._changed:
            if self.state not in before:
                raise ValueError(f"cannot {action}: the run is {self.state}")
            if action == "rate":
                if type(rate) not in (int, float) or not 0 < rate <= 1000:
                    raise ValueError(f"rate must be above 0 and at most 1000, got {rate!r}")
                self._rate = float(rate)
            else:
                self._set(after)
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
        }

    def events(self) -> Generator[bytes, None, None]:
        """What happens from now on, as server-sent events. Refused if too many listen already."""
        if len(self._streams) >= MAX_STREAMS:
            raise Refused(503, f"{MAX_STREAMS} pages follow this run already; close one")
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
                    yield b"data: " + to_json(event) + b"\n\n"
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


class _Meter:
    """Sums over the batches since the last point, also where an epoch is shorter than that."""

    def __init__(self, trainer: Trainer) -> None:
        p = trainer.state
        self._last = p.epoch, p.images, p.loss_sum, p.correct
        self.clear()
        self.rest()

    def clear(self) -> None:
        self.images = self.loss_sum = self.correct = self.seconds = 0.0

    def rest(self) -> None:
        """What took the time until now was no training."""
        self._at = time.monotonic()

    def add(self, trainer: Trainer) -> None:
        """One batch, or several. The trainer's own sums start anew with each epoch."""
        p, now = trainer.state, time.monotonic()
        epoch, *sums = self._last
        images, loss_sum, correct = sums if epoch == p.epoch else (0, 0.0, 0)
        self._last = p.epoch, p.images, p.loss_sum, p.correct
        self.images += p.images - images
        self.loss_sum += p.loss_sum - loss_sum
        self.correct += p.correct - correct
        self.seconds += now - self._at
        self._at = now


class _Due:
    """Something to do now and then, that takes no more than SHARE of the time."""

    _next = 0.0

    def do(self, interval: float, action: Callable[[Trainer], None], trainer: Trainer) -> None:
        began = time.monotonic()
        if began >= self._next:
            action(trainer)
            ended = time.monotonic()
            self._next = ended + max(interval, (ended - began) / SHARE)


def _mean(first: Answer, last: Answer) -> Answer:
    return last | {name: (first[name] + last[name]) / 2 for name in ("loss", "accuracy")}
