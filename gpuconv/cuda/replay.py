"""`Record`: a recorded step, run again."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np

from gpuconv.cuda.recording import SLOTS, Recorder
from gpuconv.cuda.step_launch import COLUMNS, CORRECT, LOSSES, NORM, STATE


class Outcome(NamedTuple):
    """What some steps gave. losses: of each finished step, in the order in which it computed them.
    failed: the losses and the norm of a step that stopped, as far as it came, or None.
    """

    losses: list[list[float]]
    correct: list[int]
    failed: tuple[list[float], float] | None


class Record:
    """A recorded step. note: why the device replays it as single launches, or "". total(losses):
    the loss of a step that reads these.

    One that noted its losses is run by `run`, any other by `start`.
    """

    def __init__(self, recorder: Recorder, mark: Callable[[], Hashable] = tuple) -> None:
        """mark: gives a value that is equal as long as nobody but the step's own effects has
        changed the host's state.
        """
        on = recorder.on
        if recorder.noted:  # only now it is known how many numbers a step has
            _, arguments = recorder.launches[recorder.turn]
            arguments[-2:] = map(np.int32, recorder.used)
        self.on, self.recorder, self.effects = on, recorder, recorder.effects
        self._mark = mark
        self._ahead: tuple[Hashable, np.ndarray, list[Callable[[], None]]] | None = None
        self.replay, self.note = on.replay_of(recorder)
        self.outputs, self._gradients = recorder.outputs, recorder.gradients
        self.total = recorder.host_numbers.total
        recorder.launches, recorder.trace = [], []

    def start(self) -> None:
        """Start one further step. A loss that is not finite does not stop it: nothing was noted."""
        self._write_row(self._compute(1, [effect.snapshot() for effect in self.effects])[0])
        self.replay()
        self._put_gradients()

    def _put_gradients(self) -> None:
        for parameter, gradient in self._gradients:
            parameter.grad = gradient

    def loss(self) -> float:
        """The loss of the last step, after all that was started."""
        return self.total([float(self.on.read(loss)[0]) for loss in self.recorder.scalars])

    def run(
        self,
        count: int,
        before: Callable[[], None] | None = None,
        failing: Callable[[], None] | None = None,
        then: Callable[[], int] | None = None,
    ) -> Outcome:
        """`count` further steps, from 1 to SLOTS; afterwards all has happened on the device.

        before: called before each launch. failing: called where a step stops, when the host's state
        is what that step found. then: called when these steps are started, says how many are likely
        to be run next: the host's part of those is done while the device works.
        """
        undo = [effect.snapshot() for effect in self.effects]
        table = self._ready(count)
        if table is None:
            table = self._compute(count, undo)
        self._write(table)
        started = 0
        try:
            for _ in range(len(table)):
                if before is not None:
                    before()
                self.replay()
                started += 1
        except BaseException:
            self._rewind(undo, started)
            raise
        self._put_gradients()
        if then is not None and (more := then()) > 0:
            self._compute_ahead(more)
        ring = self.on.read(self.recorder.ring)
        stopped = int(ring[-1])
        done = stopped - 1 if stopped else len(table)
        rows = ring[:-1].reshape(SLOTS, COLUMNS)
        end = LOSSES + len(self.recorder.scalars)
        losses, correct = rows[:done, LOSSES:end].tolist(), rows[:done, CORRECT].tolist()
        failed = None
        if stopped:
            self._rewind(undo, done)
            if failing is not None:
                failing()
            for effect in self.effects:
                if effect.early:
                    effect.advance()
            failed = rows[done, LOSSES:end].tolist(), float(rows[done, NORM])
        return Outcome(losses, list(map(int, correct)), failed)

    def _compute(self, count: int, undo: list[Callable[[], None]]) -> np.ndarray:
        """Do the host's part of steps; their numbers, uint32 (steps, words), for as many steps as
        it can be done for. What it raises for the first is raised.
        """
        rows: tuple[list[Any], list[Any]] = [], []  # seeds, numbers
        done = 0
        try:
            for _ in range(count):
                for effect in self.effects:
                    found = effect.advance()
                    if found is not None:
                        effect.numbers = found
                        rows[effect.kind].extend(found)
                done += 1
        except Exception:
            self._rewind(undo, done)
            if not done:
                raise
            for row, many in zip(rows, self.recorder.used, strict=True):
                del row[done * many :]
        with np.errstate(over="ignore"):
            floats = np.array(rows[1], np.float64).astype(np.float32)
        if not np.isfinite(floats).all():
            self._rewind(undo, 0)
            raise ValueError("a number of this step, such as its rate, does not fit float32")
        words = [np.array(rows[0], np.uint64).view(np.uint32), floats.view(np.uint32)]
        return np.concatenate([part.reshape(done, -1) for part in words], axis=1)

    def _compute_ahead(self, count: int) -> None:
        """Do the host's part of steps that are likely to come, and put the host's state back."""
        mark, here = self._mark(), [effect.snapshot() for effect in self.effects]
        try:
            table = self._compute(count, here)
        except Exception:  # raised again when it is their turn
            return
        there = [effect.snapshot() for effect in self.effects]
        self._rewind(here, 0)
        self._ahead = mark, table, there

    def _ready(self, count: int) -> np.ndarray | None:
        """The numbers of steps for which the host's part is done, if these are they."""
        ahead, self._ahead = self._ahead, None
        if ahead is None or len(ahead[1]) != count or ahead[0] != self._mark():
            return None
        for forth in ahead[2]:
            forth()
        return ahead[1]

    def _write(self, table: np.ndarray) -> None:
        end = STATE + table.size
        self.recorder.host[STATE:end] = table.ravel()
        self.on.queue().copy(self.recorder.words[:end], self.recorder.host[:end])
        self._write_row(table[0])

    def _write_row(self, row: np.ndarray) -> None:
        """Make a step's numbers those of the next one that is started."""
        (seeds, numbers), split = self.recorder.used, 2 * self.recorder.used[0]
        if seeds:
            self.on.queue().copy(self.recorder.rows[0][:seeds], row[:split].view(np.uint64))
        if numbers:
            self.on.queue().copy(self.recorder.rows[1][:numbers], row[split:].view(np.float32))

    def _rewind(self, undo: list[Callable[[], None]], steps: int) -> None:
        """Put the host's state to where it was, and from there on by so many steps."""
        for back in reversed(undo):
            back()
        for _ in range(steps):
            for effect in self.effects:
                found = effect.advance()
                if found is not None:
                    effect.numbers = found
