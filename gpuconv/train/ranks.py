"""A Trainer's part in a run on several ranks: gpuconv/distributed.

Each rank has its part of every batch. The loss of the batch is the mean of the parts' losses,
weighted by what each is a mean over, and so are the gradients: backward begins with a part's weight
in place of 1, and the ranks' gradients are summed. Every rank then takes the same step.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.arrays import to_numpy
from gpuconv.autograd import Array, Tensor
from gpuconv.data import Loader
from gpuconv.distributed import Communicator
from gpuconv.distributed.gradients import GradientSums, Leaf
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

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Within, layers know of the other ranks."""
        self.signal, self.late = None, False
        try:
            for norm in self._norms:
                norm.communicator, norm.synchronised = self.communicator, self._synchronise
            yield
        finally:
            self.part()

    def part(self) -> None:
        """Layers know of no other ranks any more."""
        for norm in self._norms:
            norm.communicator, norm.synchronised = None, False
        for dropout in self._dropouts:
            dropout.first = 0

    def scattered(self, batches: Any) -> Any:
        """This rank's part of each batch."""
        on = self.communicator
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
        if self._dropouts:
            counts = self.communicator.gather_numbers((len(labels),))[:, 0]
            for dropout in self._dropouts:
                dropout.first = int(counts[: self.communicator.rank].sum())

    def exchange(self, value: float, scores: Tensor, labels: Array) -> float:
        """The loss of the whole batch; value: of this rank's part. Also exchanged are right
        answers, signals, and the rate, which a callback of rank 0 may have changed.
        """
        trainer, on = self._trainer, self.communicator
        own, p = weight_of(trainer.loss, labels), trainer.state
        self.own_value = value if own else 0.0
        correct = np.count_nonzero(scores.numpy().argmax(axis=1) == to_numpy(labels))
        rate = trainer.optimizer.lr, p.rate
        request = trainer.own_signal() or 0
        numbers = self.own_value * own, own, correct, len(labels), request, trainer.is_late(), *rate
        rows = on.gather_numbers(numbers)
        total, weights, right, images = rows[:, :4].sum(axis=0)
        self.correct, self.images = int(right), int(images)
        self.signal = next((int(number) for number in rows[:, 4] if number), None)
        self.late = bool(rows[0, 5])
        if tuple(rows[0, 6:]) != rate:
            trainer.optimizer.lr, p.rate = float(rows[0, 6]), float(rows[0, 7])
        self.weight = own / weights if weights else 0.0
        return float(total / weights) if weights else float("nan")

    def backward(self, loss: Tensor) -> None:
        """`loss.backward()` of the whole batch's loss, whose gradients every rank gets."""
        sums = self._gradient_sums()
        averages = Averages(self.communicator, self._tracked(), self.weight)
        sums.begin()
        loss.backward(np.full(loss.shape, self.weight, loss.dtype), ready=sums.ready)
        sums.finish()
        averages.finish()

    def _gradient_sums(self) -> GradientSums:
        chosen: list[Leaf] = [p for p in self._trainer.optimizer.params if p.requires_grad]
        if list(map(id, chosen)) != list(map(id, self._sums[0])):
            self._sums = chosen, GradientSums(self.communicator, chosen)
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


def weight_of(loss: Any, labels: Array) -> float:
    """What a loss is a mean over: the number of examples, unless the loss says something else."""
    own = getattr(loss, "total_weight", None)
    return float(len(labels)) if own is None else own(to_numpy(labels))
