"""A Trainer's part in a run on several ranks: gpuconv/distributed.

Each rank has its part of every batch. The loss of the batch is the mean of the parts' losses,
weighted by what each is a mean over, and so are the gradients: backward begins with a part's weight
in place of 1, and the ranks' gradients are summed. Every rank then takes the same step.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv import ops
from gpuconv.arrays import to_numpy
from gpuconv.autograd import Array, Tensor
from gpuconv.cuda import recording
from gpuconv.cuda.runtime import runtime
from gpuconv.data import Loader
from gpuconv.distributed import Communicator, part
from gpuconv.distributed.gradients import GradientSums, Leaf
from gpuconv.distributed.nccl import CardBucket, CardSums, problem
from gpuconv.nn import BatchNorm2d, Dropout
from gpuconv.train.batches import PartBatches

if TYPE_CHECKING:
    from gpuconv.train.trainer import Trainer


class Ranks:
    """The exchanges between the ranks of a Trainer's run. images, correct: of the last batch, of
    all ranks. signal: that asks the run to end, on some rank, or None. late: whether rank 0 thinks
    that a checkpoint is due.
    """

    def __init__(self, trainer: Trainer, communicator: Communicator, synchronise: bool) -> None:
        self._trainer, self.communicator = trainer, communicator
        modules = list(trainer.model.modules())
        self._norms = [m for m in modules if isinstance(m, BatchNorm2d)]
        self._dropouts = [m for m in modules if isinstance(m, Dropout)]
        self._synchronise = synchronise
        self._sums: tuple[list[Leaf], GradientSums] = [], GradientSums(communicator, [])
        self.images = self.correct = 0
        self.signal: int | None = None
        self.late = False
        self.weight = 0.0  # of this rank's part, of 1 for all
        self.own_value = 0.0
        self._cards: CardSums | None = None  # where NCCL adds up
        self._events: list[Any] = []

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Within, layers know of the other ranks."""
        self.signal, self.late = None, False
        try:
            for norm in self._norms:
                norm.communicator = self.communicator if self._synchronise else None
            yield
        finally:
            self.part()

    def part(self) -> None:
        """Layers know of no other ranks any more."""
        for norm in self._norms:
            norm.communicator, norm.idle = None, False
        for dropout in self._dropouts:
            dropout.first = 0

    def use_cards(self) -> str:
        """Let NCCL add up, where the model is on cuda. Returns why steps cannot be recorded: what
        is between the ranks is then done by the host, at least in part; or "".
        """
        if self._trainer.model.device != "cuda":
            return "the host adds up the ranks' gradients"
        on = runtime("cuda")
        if why := problem(on):
            return f"the host adds up the ranks' gradients: {why}"
        self._cards = CardSums(self.communicator, on)
        self._events = [self._cards.event() for _ in range(4)]
        if self._synchronise and self._norms:
            return "batch norm's statistics are exchanged by the host"
        if not isinstance(self._batches, Loader):
            return "the sizes of the ranks' parts are known for a data.Loader alone"
        labels = np.asarray(self._batches.dataset.labels)
        if 0 < len(labels) % self._batches.batch_size < self.communicator.size:
            return "the last batch has fewer images than there are ranks"
        if weight_of(self._trainer.loss, labels) != len(labels):
            return "the loss is a mean over something else than images"
        return ""

    def place(self, batch: int) -> int:
        """How many images a batch of a `Loader` has on all ranks; layers are told of this rank's
        place in it. For steps that are recorded, each kind of which has one.
        """
        loader, on = self._batches, self.communicator
        count = min(loader.batch_size, len(loader.dataset) - batch * loader.batch_size)
        own = part(count, on.rank, on.size)
        for dropout in self._dropouts:
            dropout.first = own.start
        self.images, self.weight = count, (own.stop - own.start) / count
        self.own_value = math.nan  # a replayed step tells the loss of all ranks alone
        return count

    def agree(self, most: int) -> int:
        """The least of all ranks' numbers of steps; signals and the rate are exchanged too."""
        rows = self.communicator.gather_numbers((most, *self._requests()))
        self._hear(rows[:, 1:])
        return int(rows[:, 0].min())

    def total(self, number: int) -> int:
        """The sum over all ranks."""
        return int(self.communicator.gather_numbers((number,)).sum())

    def scattered(self, batches: Any) -> Any:
        """This rank's part of each batch."""
        on, self._batches = self.communicator, batches
        if isinstance(batches, Loader):
            return batches.scattered(on.rank, on.size)
        return PartBatches(batches, on.rank, on.size)

    def share_state(self) -> None:
        """Give every rank the model's parameters and buffers of rank 0, and its random numbers;
        then see that all have the same state. Raises ValueError naming what differs.
        """
        trainer, on = self._trainer, self.communicator
        state = {n: np.array(a, order="C") for n, a in trainer.model.state_dict().items()}
        self._require_same("model", {n: (a.shape, str(a.dtype)) for n, a in state.items()})
        for array in state.values():
            on.broadcast(array)
        trainer.model.load_state_dict(state)
        numbers = on.from_root(lambda: [layer.rng_state for layer in self._dropouts])
        for layer, number in zip(self._dropouts, numbers, strict=True):
            layer.rng_state = number
        own = trainer.optimizer.state_dict()
        arrays = {**trainer.model.state_dict(), **own.pop("arrays")}
        checks = {name: zlib.crc32(np.ascontiguousarray(a).data) for name, a in arrays.items()}
        position = {**vars(trainer.state), "seconds": 0.0}
        self._require_same("state", {**checks, **own, "position": position})

    def _require_same(self, what: str, found: dict[str, Any]) -> None:
        every = self.communicator.all_gather(found)
        for rank, other in enumerate(every):
            for name in {**every[0], **other}:
                if other.get(name) != every[0].get(name):
                    raise ValueError(
                        f"rank {rank} has another {what} than rank 0: {name} differs; every rank "
                        "runs the same program with the same arguments"
                    )

    def begin_batch(self, labels: Array) -> None:
        """To be called before the forward pass of this rank's part of a batch."""
        for norm in self._norms:
            norm.idle = not len(labels)
        if self._dropouts:
            counts = self.communicator.gather_numbers((len(labels),))[:, 0]
            for dropout in self._dropouts:
                dropout.first = int(counts[: self.communicator.rank].sum())

    def exchange(self, value: float, scores: Tensor, labels: Array) -> float:
        """The loss of the whole batch; value: of this rank's part. Also exchanged are right
        answers, signals, and the rate, which a callback of rank 0 may have changed.
        """
        with recording.paused():
            host = to_numpy(labels)
            own = weight_of(self._trainer.loss, host)
            correct = np.count_nonzero(scores.numpy().argmax(axis=1) == host)
        self.own_value = value if own else 0.0
        numbers = self.own_value * own, own, correct, len(labels), *self._requests()
        rows = self.communicator.gather_numbers(numbers)
        total, weights, right, images = rows[:, :4].sum(axis=0)
        self.correct, self.images = int(right), int(images)
        self._hear(rows[:, 4:])
        self.weight = float(own / weights) if weights else 0.0
        return float(total / weights) if weights else float("nan")

    def _requests(self) -> tuple[float, ...]:
        """A signal or 0, whether a checkpoint is due, the rate and its share of the schedule's."""
        trainer = self._trainer
        signal = trainer.own_signal() or 0
        return signal, trainer.is_late(), trainer.optimizer.lr, trainer.state.rate

    def _hear(self, rows: np.ndarray) -> None:
        """Take what the ranks asked for: any rank's signal, the rest of rank 0."""
        trainer, p = self._trainer, self._trainer.state
        self.signal = next((int(number) for number in rows[:, 0] if number), None)
        self.late = bool(rows[0, 1])
        if tuple(rows[0, 2:]) != (trainer.optimizer.lr, p.rate):
            trainer.optimizer.lr, p.rate = float(rows[0, 2]), float(rows[0, 3])

    def note_losses(self) -> None:
        """Where a step is being recorded, make the losses that it notes those of all ranks."""
        recorder, cards = recording.state.recorder, self._cards
        if recorder is None or cards is None or not recorder.scalars:
            return
        totals = [ops.scale(loss, self.weight) for loss in recorder.scalars]
        cards.start([(total, total) for total in totals], self._events[0])
        cards.join(self._events[1])
        recorder.scalars[:] = totals

    def backward(self, loss: Tensor) -> None:
        """`loss.backward()` of the whole batch's loss, whose gradients every rank gets."""
        sums, cards = self._gradient_sums(), self._cards
        averages: Averages | CardAverages
        if cards is None:
            averages = Averages(self.communicator, self._tracked(), self.weight)
        else:
            averages = CardAverages(cards, self._tracked(), self.weight, self._events[2:])
        sums.begin()
        loss.backward(np.full(loss.shape, self.weight, loss.dtype), ready=sums.ready)
        if cards is not None:
            own = [p.grad is not None for p in self._sums[0]]
            used = map(any, self.communicator.gather_numbers(own).T)
        sums.finish()
        averages.finish()
        if cards is not None:  # the sum of no gradients is none
            for p, some in zip(self._sums[0], used, strict=True):
                p.grad = p.grad if some else None

    def _gradient_sums(self) -> GradientSums:
        chosen: list[Leaf] = [p for p in self._trainer.optimizer.params if p.requires_grad]
        if list(map(id, chosen)) != list(map(id, self._sums[0])):
            make = None if self._cards is None else partial(CardBucket, self._cards)
            self._sums = chosen, GradientSums(self.communicator, chosen, make=make)
        return self._sums[1]

    def _tracked(self) -> list[Any]:
        """What holds the running statistics that this rank's part alone has moved."""
        norms = [] if self._synchronise else [m for m in self._norms if m.in_training]
        return [h for m in norms for h in (m.running_mean, m.running_var) if h is not None]

    def error(self, error: Exception) -> Exception:
        """Of the ranks' errors for a batch whose loss is not finite, that of the first whose own
        part's is not.
        """
        every = self.communicator.all_gather((bool(np.isfinite(self.own_value)), error))
        return next((other for finite, other in every if not finite), error)


class Averages:
    """Replaces arrays by their mean over all ranks, weighted by their parts: begun at once."""

    def __init__(self, communicator: Communicator, holders: list[Any], weight: float) -> None:
        self._holders = holders
        hosts = [to_numpy(holder.data).ravel() * weight for holder in holders]
        self._flat = np.concatenate(hosts) if hosts else np.zeros(0)
        self._reduction = communicator.start_all_reduce(self._flat) if hosts else None

    def finish(self) -> None:
        """Return once the arrays hold the means."""
        if self._reduction is not None:
            self._reduction.wait()
            begin = 0
            for holder in self._holders:
                shape, end = holder.data.shape, begin + holder.data.size
                means = self._flat[begin:end].reshape(shape)
                if isinstance(holder.data, np.ndarray):
                    holder.data[...] = means
                else:
                    holder.data.set(means)
                begin = end


class CardAverages:
    """The same on cards."""

    def __init__(
        self, cards: CardSums, holders: list[Any], weight: float, events: list[Any]
    ) -> None:
        self._cards, self._event = cards, events[1]
        self._parts = [ops.scale(holder.data, weight) for holder in holders]
        if holders:
            pairs = zip(self._parts, (holder.data for holder in holders), strict=True)
            cards.start(list(pairs), events[0])

    def finish(self) -> None:
        """Let what is launched from now on find the means."""
        if self._parts:
            self._cards.join(self._event)


def weight_of(loss: Any, labels: Array) -> float:
    """What a loss is a mean over: the number of examples, unless the loss says something else."""
    own = getattr(loss, "total_weight", None)
    return float(len(labels)) if own is None else own(to_numpy(labels))
