"""`Trainer`: the article's five steps repeated, batch after batch, and everything around them."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gpuconv import autograd, checkpoint, distributed
from gpuconv.arguments import flag, number, whole
from gpuconv.arrays import is_device, to_numpy
from gpuconv.cuda import recording
from gpuconv.cuda.runtime import runtime
from gpuconv.distributed.agreement import require_equal
from gpuconv.errors import require_known
from gpuconv.files import remove_leftovers
from gpuconv.nn import LOSSES, Module
from gpuconv.optim import EMA, LossScaler, Optimizer, Schedule, clip_grad_norm
from gpuconv.precision import require_precision
from gpuconv.threads import thread_count
from gpuconv.train import finite, state
from gpuconv.train.answers import Run, answers_of, value_of
from gpuconv.train.batches import Spread, as_batches
from gpuconv.train.callback import Callback, told_each_batch
from gpuconv.train.description import describe_run
from gpuconv.train.evaluate import evaluate, probabilities
from gpuconv.train.folder import locked
from gpuconv.train.history import History
from gpuconv.train.interrupt import EvaluationStopped, Interrupted, Signals
from gpuconv.train.progress import Progress
from gpuconv.train.ranks import Ranks
from gpuconv.train.records import Records
from gpuconv.train.steps import steps_of


class Trainer:
    """Train, evaluate and use a model.

    loss: a loss of gpuconv.nn, or its name ("cross_entropy", "article", "hinge").
    schedule: the learning rate as a function of the step; without one the optimiser's stays.
    clip_norm: the greatest joint norm of a step's gradients.
    average: a moving average of the model's weights, updated after each step; the validation and
    best.safetensors are of the averaged weights, the model itself keeps its own.
    callbacks: told what happens, see `Callback`. progress: show a bar, or plain lines where the
    output is no terminal.
    out: the run's folder; it gets last.safetensors, best.safetensors (the best validation accuracy)
    and history.jsonl, and `fit(resume=True)` goes on from there, bit for bit.
    checkpoint_seconds, checkpoint_batches: how often last.safetensors is written within an epoch,
    None for never; it always is after an epoch and on Ctrl-C. log_batches: a line in the history
    every so many batches.
    precision: "ieee" (float32), "tf32", "tf32-conv", "bf16" or "fp16", see `autograd.precision`;
    `evaluate` and `predict` use it too. scale_growth: with fp16, after how many good steps in a row
    the loss scale is doubled, see `optim.LossScaler`.
    graph: on sim and cuda, record the steps and replay them (gpuconv/cuda/recording.py), with equal
    bits; False runs every step anew, for a model whose forward does not do the same each time.
    seed, metadata: kept in the checkpoints; seeds of model and loader decide the numbers.
    communicator: of the ranks that train together, `distributed.current()` unless given; each calls
    the Trainer with the same arguments and gets its part of every batch. Rank 0 alone writes files
    and shows progress; callbacks are told on every rank. sync_batchnorm: batch norm has the
    statistics of the whole batch, not of each rank's part.

    Raises: TypeError or ValueError naming the argument.

    >>> trainer = Trainer(model, "cross_entropy", optim.Adam(model.parameters()))  # doctest: +SKIP
    >>> trainer.fit(train, validation, epochs=5)[-1]["validation_accuracy"]  # doctest: +SKIP
    0.989
    """

    def __init__(
        self,
        model: Module,
        loss: Any,
        optimizer: Optimizer,
        schedule: Schedule | None = None,
        clip_norm: float | None = None,
        average: EMA | None = None,
        callbacks: Iterable[Callback] = (),
        out: Any = None,
        seed: int = 0,
        checkpoint_seconds: float | None = 60.0,
        checkpoint_batches: int | None = None,
        log_batches: int | None = None,
        metadata: dict[str, Any] | None = None,
        progress: bool = True,
        graph: bool = True,
        precision: str = "ieee",
        scale_growth: int = 2000,
        communicator: distributed.Communicator | None = None,
        sync_batchnorm: bool = False,
    ) -> None:
        if isinstance(loss, str):
            loss = LOSSES[require_known("loss", loss, LOSSES)]()
        for name, value, check in (
            ("clip_norm", clip_norm, partial(number, above=0)),
            ("checkpoint_seconds", checkpoint_seconds, partial(number, least=0)),
            ("checkpoint_batches", checkpoint_batches, whole),
            ("log_batches", log_batches, whole),
        ):
            if value is not None:
                check(f"Trainer: {name}", value)
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.schedule, self.clip_norm, self.seed = schedule, clip_norm, seed
        self.average = average
        self.communicator = communicator or distributed.current()
        self.leads = self.communicator.rank == 0
        self.sync_batchnorm = flag("Trainer: sync_batchnorm", sync_batchnorm)
        self.callbacks = [*([Progress()] if progress and self.leads else []), *callbacks]
        self.out = None if out is None else Path(out)
        self.checkpoint_seconds, self.checkpoint_batches = checkpoint_seconds, checkpoint_batches
        self.log_batches, self.graph = log_batches, flag("Trainer: graph", graph)
        self.precision = require_precision("Trainer: precision", precision, model.device)
        self.scale_growth = whole("Trainer: scale_growth", scale_growth)
        self.scaler: LossScaler | None = None  # while `fit` runs in fp16
        self.metadata = dict(metadata or {})
        self.state = state.TrainState()
        self.history = History(None)
        self.epochs = self.batches = 0
        self.stopping = False
        self._initial = optimizer.hyperparameters()  # before a schedule changes them
        self._signals: Signals | None = None
        self._requested: int | None = None  # a signal's number, by `interrupt`
        self._answers: Run | None = None  # while `fit` runs
        self.ranks: Ranks | None = None  # while `fit` runs on several
        self._spread: Spread | None = None  # of the batches that were evaluated last
        self._run: dict[str, Any] = {}  # the metadata that stay the same
        self._saved_at = self._tick = 0.0

    # ---- train ---------------------------------------------------------------------------------

    def fit(
        self, train: Any, validation: Any = None, epochs: int = 1, resume: bool | str = False
    ) -> list[dict[str, Any]]:
        """Train until `epochs` epochs are done; the history's epochs, also those before a resume.

        train, validation: Loaders, or any iterables of (x, labels): lists of batches, PyTorch's
        DataLoaders. What they give in an epoch is theirs to say: a resumed run has an uninterrupted
        one's bits only if that is the same every time. Without a length they are counted once.
        resume: True goes on from out/last.safetensors, "auto" does if there is one, False starts
        anew and replaces what is in `out`. A resumed run gives the bits of an uninterrupted one, on
        the same machine with as many threads. "extend" goes on from the end of an epoch with this
        Trainer's own schedule, data and settings, for more epochs or for fine-tuning; the schedule
        begins there. The same call also resumes the extended run.

        Raises: ValueError for epochs < 1, a checkpoint of another run, or NaN in the input;
        FloatingPointError naming the first layer whose output is not finite; OSError where `out`
        cannot be written or another run is in it; Interrupted (a KeyboardInterrupt) after Ctrl-C or
        SIGTERM, when the batch is finished and saved. A second Ctrl-C stops at once.
        """
        self.epochs = whole("fit: epochs", epochs)
        train = as_batches(train, "fit: train", self.model)
        validation = as_batches(validation, "fit: validation", self.model)
        self.batches = len(train)
        if not self.batches:
            raise ValueError("fit: the training set has no batches")
        if resume not in (True, False, "auto", "extend"):
            raise ValueError(f'fit: resume must be True, False, "auto" or "extend", got {resume!r}')
        on = self.communicator
        with ExitStack() as stack:
            on.from_root(lambda: stack.enter_context(locked(self.out)))
            self._signals = stack.enter_context(Signals())
            stack.enter_context(np.errstate(all="ignore"))
            self._begin(train, validation, resume)
            try:
                if on.size > 1:
                    self.ranks = Ranks(self, on, self.sync_batchnorm)
                    stack.enter_context(self.ranks.joined())
                    train = self.ranks.scattered(train)
                    self.ranks.share_state()
                self._notify("on_fit_begin")
                records = self._records()
                shared = records if self.ranks is None else None
                self._answers = answers_of(self.model, shared, self.graph, self.precision)
                steps = steps_of(self, train, records)
                while self.state.epoch < self.epochs and not self.stopping:
                    self._epoch(steps, validation)
            finally:
                self._signals = self._answers = self.ranks = None
                self._notify("on_fit_end")
        return self.history.epochs()

    def _records(self) -> Records | None:
        """What keeps recorded steps; None where no steps are recorded."""
        if not is_device(self.model.device):
            return None
        records = Records(runtime(self.model.device), self._message, self.graph)
        if self.ranks is not None and (why := self.ranks.use_cards()):
            records.wanted = False
            if self.graph:
                records.say(f"the steps are not recorded: {why}")
        return records

    def _begin(self, train: Any, validation: Any, resume: bool | str) -> None:
        self.stopping, self._requested = False, None
        self._saved_at = self._tick = time.monotonic()
        self._first_batch: tuple[int, float] | None = None  # images, and seconds for each
        self._stochastic = state.stochastic_layers(self.model)
        if self.precision == "fp16":
            self.scaler = LossScaler(self.model.device, growth=self.scale_growth)
        self._run = describe_run(self, self._initial, train, validation)
        require_equal(self.communicator, self._run["recipe"])
        last = None if self.out is None else self.out / "last.safetensors"
        if resume and last is None:
            raise ValueError("fit: resume needs the Trainer's out, the folder of the run")
        on = self.communicator
        if last is not None:
            on.from_root(partial(remove_leftovers, last.parent))
        if last is not None and (on.from_root(last.exists) if resume == "auto" else resume):
            self._resume(last, state.extend if resume == "extend" else state.restore)
        else:
            self.state = state.TrainState()
            self._try_schedule()
            self.history = self._history_of(last)
            self._save_last()  # resumable from here on
            on.agreed(partial(self.history.restore, 0))
            if last is not None:  # nobody shall take an earlier run's best for this one's
                best = last.with_name("best.safetensors")
                on.from_root(partial(best.unlink, missing_ok=True))

    def _resume(self, last: Path, restore: Callable[..., state.TrainState]) -> None:
        on = self.communicator
        found = on.from_root(partial(checkpoint.read, last))
        self.state = restore(found, self, self._run["recipe"])
        self._try_schedule()
        self.history = self._history_of(last)
        whole = on.from_root(partial(self.history.restore, found.metadata["history_lines"]))
        self.history.records = on.from_root(lambda: self.history.records)
        if not whole:
            self._message(f"{self.history.path}: lacks records that the run had written")
        p, threads = self.state, found.metadata["threads"]
        self._message(f"resumed {last}: epoch {p.epoch + 1} after {p.batch} batches")
        best = last.with_name("best.safetensors")
        if self.leads and best.exists() and not state.is_best(checkpoint.read(best), p):
            self._message(f"{best}: is of another run, or of an epoch that is trained again")
        if threads != thread_count():
            self._message(
                f"the run had {threads} threads, now there are {thread_count()}: the last"
                " bits may differ"
            )
        if (before := found.metadata.get("ranks", 1)) != on.size:
            self._message(f"the run had {before} ranks, now there are {on.size}")

    def _history_of(self, last: Path | None) -> History:
        kept = last is not None and self.leads
        return History(last.with_name("history.jsonl") if kept else None)  # type: ignore[union-attr]

    def _try_schedule(self) -> None:
        """Refuse a schedule that is too short now, not at its end."""
        if self.schedule is not None:
            p = self.state
            steps = (self.epochs - p.epoch) * self.batches - p.batch
            self.schedule(max(self._scheduled_step + steps - 1, 0))

    def _epoch(self, steps: Callable[[], Iterator[None]], validation: Any) -> None:
        p = self.state
        self.model.train()
        for _ in steps():
            self._notify("on_batch_end")
            if self.log_batches and p.batch % self.log_batches == 0:
                self._append(self.state.record(self.optimizer.lr))
            self._save_if_due()
            self._stop_if_requested()
        record = self._epoch_record(validation)
        self._append(record)
        better = p.update_best(record)
        p.next_epoch()
        self._tick = time.monotonic()
        self._notify("on_epoch_end", record)
        self.stopping = any(self.communicator.all_gather(self.stopping))
        if better:
            self._save_best(record)
        self._save_last()
        self._stop_if_requested()

    def batches_until_told(self) -> int:
        """After how many batches, at most, somebody must hear of them: a callback, the history, a
        checkpoint.
        """
        p, most = self.state, self.batches
        if any(told_each_batch(callback) for callback in self.callbacks):
            return 1
        for every in (self.log_batches, self.checkpoint_batches):
            if every:
                most = min(most, every - p.batch % every)
        return most

    def timed_batch(
        self, load: Callable[[], tuple[Any, Any]], images: Callable[[], np.ndarray]
    ) -> None:
        """Train with one batch, (x, labels) as `load` gives it where the model is; `images` gives x
        as a NumPy array.

        The first of `fit` compiles what it runs, or reads it from disk: it counts as if it had been
        as quick as the second, if that is of the same epoch.
        """
        began, before = time.monotonic(), self.state.images
        self._batch(load, images)
        count = self.state.images - before
        each = (time.monotonic() - began) / count
        if self._first_batch is None:
            self._first_batch = count, each
        else:
            first_images, first = self._first_batch
            self.exclude_time(max(first - each, 0.0) * first_images)
            self._first_batch = 0, 0.0

    def _batch(self, load: Callable[[], tuple[Any, Any]], images: Callable[[], np.ndarray]) -> None:
        p, states, counts = self.state, self.rng_states(), list(self.optimizer.steps)
        value, scores, labels = self._step(load)
        if not math.isfinite(value):
            raise self.broken(value, 0.0, states, images)
        if self.ranks is not None:
            p.loss_sum += value * self.ranks.images
            p.correct += self.ranks.correct
        else:
            p.loss_sum += value * len(labels)
            with recording.paused():
                answers, truth = scores.numpy().argmax(axis=1), to_numpy(labels)
            p.correct += int(np.count_nonzero(answers == truth))
        self.settle_scale(counts)

    def settle_scale(self, counts: list[int]) -> None:
        """After steps in fp16: see `LossScaler.settle`."""
        if self.scaler is not None:
            self.scaler.settle(self.optimizer, counts)

    def _in_precision(self) -> AbstractContextManager[None]:
        return autograd.precision(self.precision, self.scaler and self.scaler.factor)

    def _step(self, load: Callable[[], tuple[Any, Any]]) -> tuple[float, Any, Any]:
        """Forward, loss, backward, update: the article's steps 2 to 4 for one batch.

        Returns the loss, the scores and the labels; nothing is updated where the loss is not
        finite. What the host does besides, it does by `again`, and then also where the step is
        replayed.
        """
        self.optimizer.zero_grad()
        x, labels = load()
        ranks, images = self.ranks, len(labels)
        if ranks is not None:
            ranks.begin_batch(labels)
        with self._in_precision():
            scores = self.model(x)
        loss = self.loss(scores, labels)
        value = value_of(loss)
        main = scores[0] if isinstance(scores, tuple) else scores  # beside auxiliary heads' scores
        if ranks is not None:
            ranks.note_losses()
        recording.note(main.data, labels)
        if ranks is not None:
            value, images = ranks.exchange(value, main, labels), ranks.images
        if not math.isfinite(value):
            return value, main, labels
        if ranks is None:
            loss.backward()
        else:
            ranks.backward(loss)
        if self.scaler is not None:
            self.scaler.unscale(self.optimizer.params)
        if self.clip_norm is not None:
            norm = clip_grad_norm(self.optimizer.params, self.clip_norm, self.scaler)
            if self.scaler is None and not math.isfinite(norm):
                raise self.broken(value, norm, [], lambda: x)
        recording.again(self._set_rate, self._rate_now)
        self.optimizer.step(self.scaler)
        if self.average is not None:
            self.average.update(self.scaler)
        recording.again(partial(self._count, images), self._position_now)
        return value, main, labels

    def _set_rate(self) -> None:
        if self.schedule is not None:
            step = self._scheduled_step
            self.optimizer.lr = self.schedule(step) * self.state.rate
            if (momentum := self.schedule.momentum(step)) is not None:
                self.optimizer.momentum = momentum  # type: ignore[attr-defined]

    def _rate_now(self) -> Callable[[], None]:
        settings = self.optimizer.hyperparameters()

        def back() -> None:
            for group, before in zip(self.optimizer.param_groups, settings, strict=True):
                group.update(before)

        return back

    def _count(self, images: int) -> None:
        p = self.state
        p.step += 1
        p.batch += 1
        p.images += images

    def _position_now(self) -> Callable[[], None]:
        p = self.state
        now = {"step": p.step, "batch": p.batch, "images": p.images}
        return partial(vars(p).update, now)

    def mark(self) -> Hashable:
        """Equal as long as nothing but steps changes what the next steps compute on the host."""
        groups = [tuple(h.values()) for h in self.optimizer.hyperparameters()]
        skipped = self.scaler and self.scaler.skipped
        p = self.state
        return str((groups, p.step, p.rate, self.rng_states(), self.schedule, skipped))

    def rng_states(self) -> list[list[int]]:
        """Of the layers that draw random numbers."""
        return [layer.rng_state for _, layer in self._stochastic]

    def broken(
        self,
        value: float,
        norm: float,
        rng_states: list[list[int]],
        images: Callable[[], np.ndarray],
    ) -> Exception:
        """The error for a batch whose loss, or else whose gradients' norm, is not finite.

        rng_states: from before the batch, which is run again to find out what broke first.
        """
        if math.isfinite(value):
            text = f"{self._where()}: the gradients' norm is {norm}; {finite.CURE}"
            return FloatingPointError(text)
        for (_, layer), before in zip(self._stochastic, rng_states, strict=True):
            layer.rng_state = before
        ranks = self.ranks
        if ranks is not None:
            ranks.part()
        with recording.paused(), self._in_precision():
            error = finite.diagnose_non_finite(self.model, images(), self._where())
        return error if ranks is None else ranks.error(error)

    @property
    def _scheduled_step(self) -> int:
        """The next step as the schedule counts it."""
        return self.state.step - self.state.schedule_start

    def _where(self) -> str:
        return f"epoch {self.state.epoch + 1}, batch {self.state.batch + 1}"

    def _epoch_record(self, validation: Any) -> dict[str, Any]:
        p = self.state
        self._count_time()
        record = {**self.state.record(self.optimizer.lr), "seconds": round(p.seconds, 3)}
        if self.scaler is not None:
            record["loss_scale"] = self.scaler.scale
        del record["batch"]
        if not (self._first_batch and self._first_batch[0]):  # nothing but the first batch
            record["images_per_second"] = round(p.images / max(p.seconds, 1e-9), 1)
        self._first_batch = 0, 0.0
        if validation is not None:
            with self._averaged():
                measured = self.evaluate(validation)
            record["validation_loss"] = measured["loss"]
            record["validation_accuracy"] = measured["accuracy"]
        return record

    def _count_time(self) -> None:
        now = time.monotonic()
        self.state.seconds += now - self._tick
        self._tick = now

    # ---- save ----------------------------------------------------------------------------------

    def _append(self, record: dict[str, Any]) -> None:
        self.communicator.agreed(partial(self.history.append, record))

    def _save_best(self, record: dict[str, Any]) -> None:
        self.communicator.from_root(partial(self._write_best, record))

    def _write_best(self, record: dict[str, Any]) -> None:
        if self.out is not None:
            metadata = {**self._run, "kind": "best", "epoch": record["epoch"], "result": record}
            with self._averaged():
                best = checkpoint.Checkpoint(self.model.state_dict(), metadata)
                checkpoint.write(self.out / "best.safetensors", best)

    def _save_if_due(self) -> None:
        batches = self.checkpoint_batches
        late = self.is_late() if self.ranks is None else self.ranks.late
        if late or (batches and self.state.batch % batches == 0):
            self._save_last()

    def is_late(self) -> bool:
        """Whether the last checkpoint is older than it should be."""
        seconds = self.checkpoint_seconds
        return seconds is not None and time.monotonic() - self._saved_at >= seconds

    def _save_last(self) -> None:
        self.communicator.from_root(self._write_last)

    def _write_last(self) -> None:
        if self.out is None:
            return
        if broken := finite.broken_parameter(self.model):
            raise FloatingPointError(
                f"{self._where()}: {broken} is not finite after the last update; {finite.CURE}"
            )
        self._count_time()
        self.history.sync()
        metadata = {**self._run, "history_lines": len(self.history.records)}
        checkpoint.write(self.out / "last.safetensors", state.capture(self, metadata))
        self._saved_at = time.monotonic()

    def _stop_if_requested(self) -> None:
        number = self.own_signal() if self.ranks is None else self.ranks.signal
        if number is None:
            return
        self._save_last()
        p = self.state
        where = f"interrupted in epoch {p.epoch + 1} after {p.batch} of {self.batches} batches"
        saved = "" if self.out is None else f"; saved in {self.out / 'last.safetensors'}"
        raise Interrupted(number, where + saved)

    def _stop_evaluation(self) -> None:
        """Leave this rank's part of an evaluation, where a signal says so."""
        if (number := self.own_signal()) is not None:
            raise EvaluationStopped(number)

    def own_signal(self) -> int | None:
        """The number of a signal that this process got, to end the run, or of `interrupt`'s."""
        received = self._signals.received if self._signals else None
        return self._requested if received is None else received

    @property
    def interrupted(self) -> bool:
        """Whether the run ends after this batch: a callback that waits should wait no longer."""
        return self.own_signal() is not None

    def interrupt(self) -> None:
        """End the run after this batch, saved, as Ctrl-C does: `fit` raises Interrupted."""
        self._requested = signal.SIGINT

    def set_lr(self, lr: float) -> None:
        """Use another learning rate from the next step on; a schedule's rates all change by the
        same factor. The run's checkpoints keep the change. TypeError or ValueError for an lr that
        is no number from 0 on.
        """
        self.optimizer.lr = lr
        if self.schedule is not None and (usual := self.schedule(max(self._scheduled_step - 1, 0))):
            self.state.rate = lr / usual

    def exclude_time(self, seconds: float) -> None:
        """Do not count time that a callback spent waiting."""
        self._tick += seconds

    def _averaged(self) -> AbstractContextManager[None]:
        """Within, the model has its averaged weights, if there are any."""
        return nullcontext() if self.average is None else self.average.applied()

    # ---- use -----------------------------------------------------------------------------------

    def evaluate(self, loader: Any) -> dict[str, Any]:
        """Loss and accuracy over a loader, in evaluation mode.

        Returns: {"loss": mean, "accuracy": 0 to 1, "images": N, "confusion": int64 (classes,
        classes)}, with a row for each true class and a column for each predicted one, or None for
        more than 4,096 classes. On several ranks each calls it and evaluates some of the batches;
        the result is that of one rank.
        Raises: ValueError for an empty loader or NaN in the input, FloatingPointError as `fit`.
        """
        run = self._answers or answers_of(self.model, None, self.graph, self.precision)
        loader = as_batches(loader, "evaluate", self.model, once=True)
        on = self.communicator
        if on.size > 1:
            if self._spread is None or self._spread.source is not loader:
                self._spread = Spread(loader, on.rank, on.size)
            try:
                own = self._stop_evaluation, run, on
                return evaluate(self.model, self.loss, self._spread, *own, self.precision)
            except EvaluationStopped as stop:  # on some rank
                if self.ranks is not None:
                    self.ranks.signal = stop.number
                    self._stop_if_requested()
                raise Interrupted(stop.number, "evaluation interrupted") from None
        after = self._stop_if_requested
        return evaluate(self.model, self.loss, loader, after, run, None, self.precision)

    def predict(self, data: Any, batch_size: int = 256) -> np.ndarray:
        """Probabilities (N, classes) for images: an array (N, C, H, W) of any library, one image
        (C, H, W), or a loader of (x, labels) that does not shuffle.

        Raises: ValueError for a shuffling loader, whose rows would not follow the data.
        """
        run = self._answers or answers_of(self.model, None, self.graph, self.precision)
        return probabilities(self.model, data, batch_size, run, self.precision)

    # ---- notify --------------------------------------------------------------------------------

    def _notify(self, event: str, *args: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self, *args)

    def _message(self, text: str) -> None:
        for callback in self.callbacks:
            callback.on_message(text)
