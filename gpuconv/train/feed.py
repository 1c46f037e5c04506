"""Batches of a loader on a device, for steps that are recorded: at addresses that stay the same."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from itertools import islice, takewhile
from typing import Any, Protocol

import numpy as np

from gpuconv.arrays import to_device
from gpuconv.cuda.runtime import runtime
from gpuconv.data import Loader
from gpuconv.data.on_device import batches_for
from gpuconv.train.python_state import python_state

READ_AHEAD = 64 << 20  # bytes of images that are held for the next steps
Batch = tuple[Any, Any]  # x and labels


def batches_of(loader: Any, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
    """Batches of an epoch from `start` on; a plain list gives the same ones every epoch."""
    if hasattr(loader, "batches"):
        batches: Iterator[Batch] = loader.batches(epoch, start)
        return batches
    return islice(iter(loader), start, None)


class Feed(Protocol):
    """What the loop asks for a batch.

    feed: called before each step where it is not None. note: where the images lie, a line.
    """

    feed: Callable[[], None] | None
    note: str

    def prepare(self, epoch: int, first: int, most: int) -> tuple[int, Hashable]:
        """Be ready for batches from `first` on, at most so many, all of one shape: how many, and
        what stands for that shape. (0, ...) where there is none.
        """

    def ahead(self) -> None:
        """Begin with what comes after what is prepared: for when the device works."""

    def load(self, shape: Any, slot: Any) -> Batch:
        """The next batch on the device, as part of a step. slot: 0, or in a step that is recorded
        an array that holds how many batches of those prepared came before: then the batch is at
        the same place every time.
        """

    def host(self, epoch: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """A batch as NumPy arrays."""

    def labels(self, epoch: int, batch: int) -> np.ndarray:
        """Its labels, as a NumPy array; of a batch that was prepared last it costs little."""


class CopiedBatches:
    """Any iterable of (x, labels), batch by batch copied to the device."""

    note = ""

    def __init__(self, batches: Any, device: str) -> None:
        self._source, self._device, self._on = batches, device, runtime(device)
        self._iterator: Iterator[Batch] = iter(())
        self._ready: deque[Batch] = deque()  # read ahead
        self._at = (-1, 0)  # the epoch and the batch that is the first of these
        self._fed: list[Batch] = []  # those before it that were prepared together
        self._failed: Exception | None = None  # of the batch after these
        self._fixed: dict[Hashable, Batch] = {}  # by shape, where a recorded step looks
        self.feed: Callable[[], None] | None = self._feed

    def prepare(self, epoch: int, first: int, most: int) -> tuple[int, Hashable]:
        if self._at != (epoch, first):
            self._iterator, self._at = batches_of(self._source, epoch, first), (epoch, first)
            self._ready.clear()
            self._failed = None
        self._fed.clear()
        held = sum(x.nbytes for x, _ in self._ready)
        while len(self._ready) < most and (not self._ready or held < READ_AHEAD):
            batch = None if self._failed else self._next(most > 1)
            if batch is None:
                break
            self._ready.append(batch)
            held += batch[0].nbytes
        if self._failed and not self._ready:
            raise self._failed
        shapes = [_shape(batch) for batch in self._ready]
        alike = takewhile(lambda shape: shape == shapes[0], shapes[:most])
        return len(list(alike)), shapes[0] if shapes else None

    def ahead(self) -> None:
        pass  # who knows what a foreign iterable takes

    def _next(self, ahead: bool) -> Batch | None:
        """The next batch; a copy if it is read ahead, for the one after may take its memory."""
        try:
            batch = next(self._iterator, None)
        except Exception as error:  # raised when it is that batch's turn
            self._failed = error
            return None
        if batch is None or not ahead:
            return batch
        return np.array(batch[0]), np.array(batch[1])

    def _feed(self) -> None:
        batch = self._ready.popleft()
        self._fed.append(batch)
        self._at = self._at[0], self._at[1] + 1
        for array, host in zip(self._fixed.get(_shape(batch), ()), batch, strict=False):
            self._on.queue().copy(array, np.ascontiguousarray(host))

    def load(self, shape: Any, slot: Any) -> Batch:
        x, labels = self._fed[-1]
        if isinstance(slot, int):
            return to_device(x, self._device), to_device(labels, self._device)
        if shape not in self._fixed:
            self._fixed[shape] = self._on.constant(x), self._on.constant(labels)
        return self._fixed[shape]

    def host(self, epoch: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
        back = self._at[1] - batch
        if self._at[0] == epoch and 0 < back <= len(self._fed):
            return self._fed[-back]
        return next(batches_of(self._source, epoch, batch))

    def labels(self, epoch: int, batch: int) -> np.ndarray:
        return self.host(epoch, batch)[1]


def _shape(batch: Batch) -> Hashable:
    return tuple((a.shape, a.dtype.str) for a in batch)


def feed_of(batches: Any, device: str) -> Feed:
    """The batches of a loader, or of any iterable of (x, labels), on "sim" or "cuda"."""
    return batches_for(batches, device) or CopiedBatches(batches, device)


class Source:
    """A loader, or any iterable of (x, labels), whose batches are read on a device."""

    def __init__(self, batches: Any, device: str) -> None:
        self.batches, self._device = batches, device
        self._feed: Feed | None = None
        self._state: Hashable = None  # of the loader, when the feed was made
        self._kept: list[Any] = []

    def feed(self) -> Feed:
        """Its batches as it is now: others once a loader was changed."""
        kept: list[Any] = []
        settings = vars(self.batches) if isinstance(self.batches, Loader) else {}
        state = python_state([v for n, v in settings.items() if n != "epoch"], kept=kept)
        if self._feed is None or state != self._state:
            self._feed, self._state, self._kept = feed_of(self.batches, self._device), state, kept
        return self._feed
