"""Any iterable of (x, labels) as the data of a Trainer: lists, PyTorch's DataLoader, your own."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from gpuconv.arrays import to_numpy
from gpuconv.data import Loader
from gpuconv.data.dataset import channels_last_images, to_255
from gpuconv.distributed.communicator import part
from gpuconv.nn import Conv2d, Module

FOR_EXAMPLES = "data.Loader(data.from_pairs(...), batch_size=64) makes batches"


class Batches:
    """An iterable of batches, read as a Trainer reads a Loader: `len` and `batches(epoch, start)`.

    source: gives pairs of arrays of any library. what: names it in errors. model: whose input the
    first batch is compared with. An iterable without a length is counted by one pass over it.
    """

    def __init__(self, source: Any, what: str, model: Module) -> None:
        self.source, self._what, self._model = source, what, model
        self._checked = False
        self._count: int | None = None

    def __len__(self) -> int:
        if self._count is None:
            try:
                self._count = len(self.source)
            except TypeError:  # torch's DataLoader of an IterableDataset, say
                self._count = sum(1 for _ in self.source)
        return self._count

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The batches from `start` on; what they are in an epoch is the source's to say."""
        source = self.source
        if hasattr(source, "__iter__"):
            each = iter(source)
        else:  # a sequence by its indices: not every one ends by an IndexError
            each = (source[i] for i in range(len(source)))
        return map(self._pair, islice(each, start, None))

    def _pair(self, batch: Any) -> tuple[np.ndarray, np.ndarray]:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            count = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
            raise TypeError(
                f"{self._what}: a batch must be (x, labels), got a {type(batch).__name__}{count}"
            )
        x, labels = (np.asarray(to_numpy(part)) for part in batch)
        if not self._checked:
            self._check(x, labels)
            self._checked = True
        return x, labels

    def _check(self, x: np.ndarray, labels: np.ndarray) -> None:
        """Refuse a first batch that would be taken for something else."""
        if not labels.ndim:
            raise ValueError(
                f"{self._what}: x of shape {x.shape} and one label are one example, expected a "
                f"batch; {FOR_EXAMPLES}"
            )
        check_images(x, self._what, self._model)


class PartBatches:
    """One rank's part of every batch of an iterable that gives each rank the same ones."""

    def __init__(self, batches: Batches, rank: int, ranks: int) -> None:
        self.source, self._rank, self._ranks = batches, rank, ranks

    def __len__(self) -> int:
        return len(self.source)

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The parts of the batches from `start` on."""
        for x, labels in self.source.batches(epoch, start):
            own = part(len(labels), self._rank, self._ranks)
            yield x[own], labels[own]


class Spread:
    """Every `ranks`-th batch, from number `rank` on: what one rank evaluates."""

    def __init__(self, batches: Any, rank: int, ranks: int) -> None:
        self.source, self._rank, self._ranks = batches, rank, ranks

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Those of an epoch, but for the first `start`."""
        source, first = self.source, self._rank + start * self._ranks
        if not isinstance(source, Loader):
            return islice(source.batches(epoch), first, None, self._ranks)
        order, numbers = source.order(epoch), range(first, len(source), self._ranks)
        return (source.batch(epoch, source.indices(order, number)) for number in numbers)


def check_images(x: np.ndarray, what: str, model: Module) -> None:
    """Refuse images in another layout or scale than networks read."""
    if x.ndim != 4 or x.dtype.kind != "f":
        return
    first = next((m for m in model.modules() if next(m.children(), None) is None), None)
    channels = first.in_channels if isinstance(first, Conv2d) else None
    if channels_last_images(x.shape) and channels != x.shape[1]:
        raise ValueError(
            f"{what}: images of shape {x.shape} are channels last (NHWC), expected (N, C, H, W): "
            "x.transpose(0, 3, 1, 2), PyTorch's x.permute(0, 3, 1, 2)"
        )
    if to_255(x):
        raise ValueError(f"{what}: images from 0 to 255, expected 0 to 1 or standardised: x / 255")


def as_batches(source: Any, what: str, model: Module, once: bool = False) -> Any:
    """A Loader as it is, any other iterable of pairs as `Batches`. once: iterators are taken too.

    Raises TypeError for what gives no batches, or gives them only once.
    """
    if source is None or hasattr(source, "batches"):
        return source
    if not hasattr(source, "__iter__") and not hasattr(source, "__getitem__"):
        raise TypeError(
            f"{what}: expected a data.Loader or an iterable of (x, labels), got "
            f"{type(source).__name__}"
        )
    if hasattr(source, "__next__") and not once:
        raise TypeError(
            f"{what}: an iterator ends after one pass; give a list, or an object whose __iter__ "
            "begins anew"
        )
    if isinstance(source, tuple | list) and any(hasattr(part, "dtype") for part in source):
        raise TypeError(
            f"{what}: expected (x, labels) pairs, got arrays: "
            "data.Loader(data.Dataset(x, labels), batch_size=64) makes batches"
        )
    return Batches(source, what, model)
