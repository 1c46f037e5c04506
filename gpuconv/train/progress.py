"""What a training run shows: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from gpuconv.errors import printable
from gpuconv.train.callback import Callback

if TYPE_CHECKING:
    from gpuconv.train.trainer import Trainer

LIVE_SECONDS = 0.2  # between updates of the bar
PLAIN_SECONDS = 10.0  # between lines where the output is no terminal
COMPILED_SECONDS = 3.0  # a first batch that took longer compiled the loops it runs
RATE_SECONDS = 1.0  # over which images per second are counted


class Progress(Callback):
    """Epoch, bar, loss, accuracy, images per second, time left.

    stream: where to write, standard output unless given. Between updates a batch costs one reading
    of the clock.
    """

    each_batch = False

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream if stream is not None else sys.stdout
        self.live = self.stream.isatty()
        self._interval = LIVE_SECONDS if self.live else PLAIN_SECONDS
        self._display: Any = None
        self._task: Any = None
        self._next = self._began = self._mark = 0.0
        self._step = self._mark_images = 0
        self._rate = 0.0
        self._first = True

    def on_fit_begin(self, trainer: Trainer) -> None:
        self._began = time.monotonic()
        self._first = True
        if self.live:
            self._display, self._task = _bar(self.stream, trainer.batches)
            self._display.start()

    def on_batch_end(self, trainer: Trainer) -> None:
        now = time.monotonic()
        if self._first:
            self._begin_rates(trainer, now)
        if now < self._next:
            return
        self._next = now + self._interval
        p = trainer.state
        if now - self._mark >= RATE_SECONDS or not self._rate:
            self._rate = (p.images - self._mark_images) / max(now - self._mark, 1e-9)
            self._mark, self._mark_images = now, p.images
        steps = max(p.step - self._step, 1)
        left = (trainer.epochs * trainer.batches - p.step) * (now - self._began) / steps
        numbers = f"loss {p.loss:.4f}  accuracy {p.accuracy:.2%}  {self._rate:,.0f} images/s"
        numbers += f"  {duration(left)} left"
        epoch = f"epoch {p.epoch + 1}/{trainer.epochs}"
        if self._display is None:
            self._line(f"{epoch}  batch {p.batch}/{trainer.batches}  {numbers}")
        else:
            self._display.update(self._task, completed=p.batch, description=epoch, numbers=numbers)
            self._display.refresh()

    def _begin_rates(self, trainer: Trainer, now: float) -> None:
        """Leave the first batch out of rates: it may have compiled the CPU path's loops."""
        self._first = False
        if now - self._began > COMPILED_SECONDS:
            self._line(f"compiled for this processor in {duration(now - self._began)}, once")
        self._began = self._mark = now
        self._next = now + self._interval
        self._step, self._mark_images = trainer.state.step, trainer.state.images

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        text = f"epoch {record['epoch']}/{trainer.epochs}"
        text += f"  loss {record['loss']:.4f}  accuracy {record['accuracy']:.2%}"
        if "validation_loss" in record:
            text += f"  validation loss {record['validation_loss']:.4f}"
            text += f"  accuracy {record['validation_accuracy']:.2%}"
        if "images_per_second" in record:
            text += f"  {record['images_per_second']:,.0f} images/s"
        self._line(f"{text}  {duration(record['seconds'])}")
        self._mark, self._mark_images = time.monotonic(), 0

    def on_message(self, text: str) -> None:
        self._line(text)

    def on_fit_end(self, trainer: Trainer) -> None:
        if self._display is not None:
            self._display.stop()
            self._display = None

    def _line(self, text: str) -> None:
        if self._display is not None:
            text = printable(text)
            self._display.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, file=self.stream, flush=True)


def duration(seconds: float) -> str:
    """ "4.2 s", "3:07" or "2:03:07"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _bar(stream: TextIO, batches: int) -> tuple[Any, Any]:
    # Imported here: rich takes a tenth of a second that a run without a terminal need not spend.
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[numbers]}"),
        console=Console(file=getattr(stream, "drawable", stream)),  # its own escapes shall act
        auto_refresh=False,  # a drawing thread would take the interpreter from the training
        transient=True,
    )
    return bars, bars.add_task("", total=batches, numbers="")
