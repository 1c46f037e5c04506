"""Batches in a reproducible random order, from any point of any epoch on."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np

from gpuconv.arguments import whole
from gpuconv.data.augment import Augment
from gpuconv.data.dataset import Dataset, Scale, to_float
from gpuconv.data.rng import CounterRNG
from gpuconv.distributed.communicator import part

ORDER, AUGMENT = 2, 3  # streams of draws; Dataset.split has 1


class Loader:
    """Iterate a dataset in batches of (x, labels); each iteration is the next epoch.

    x: float32 (n, C, H, W), see `to_float` for `size`, `mean` and `std`; labels: int64 (n,).
    batch_size: more than there are images is one batch of all. shuffle: a new order every epoch,
    else the dataset's own. drop_last: leave out a last, smaller batch, even if it is the only one.
    augment: a callable of augment.py, or any `(images, rng) -> images`.
    The order of epoch e is a pure function of (seed, e), the augmentation of image i of
    (seed, e, i): a run resumed with `batches(epoch, start)` reads the same bits.
    No second thread prefetches: a batch of 128 digits takes 0.1 to 0.4 ms.
    Raises ValueError for a batch size below 1, and for an augmentation, size or scale that does
    not fit the images.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        augment: Augment | None = None,
        drop_last: bool = False,
        size: int | tuple[int, int] | None = None,
        mean: Scale = None,
        std: Scale = None,
    ) -> None:
        self.batch_size = whole("batch_size", batch_size, 1)
        self.dataset, self.shuffle, self.seed = dataset, shuffle, int(seed)
        self.augment, self.drop_last = augment, drop_last
        self.size, self.mean, self.std = size, mean, std
        self.epoch, self.rank, self.ranks = 0, 0, 1
        x, _ = self.batch(0, np.zeros(1, np.int64))  # arguments that do not fit fail here
        self.input_shape: tuple[int, ...] = x.shape[1:]

    def __len__(self) -> int:
        """Batches in an epoch."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        epoch = self.epoch
        self.epoch += 1
        return self.batches(epoch)

    def scattered(self, rank: int, ranks: int) -> Loader:
        """A loader of one rank's part of every batch; together they are this one's batches, in
        their order. batch_size stays that of all ranks together.

        Raises ValueError for a batch size that is less than the number of ranks.
        """
        if min(self.batch_size, len(self.dataset)) < ranks:
            raise ValueError(
                f"batches of {min(self.batch_size, len(self.dataset))} images on {ranks} ranks: "
                "each needs an image; give a larger batch size, or fewer ranks"
            )
        one = copy.copy(self)
        one.rank, one.ranks = rank, ranks
        return one

    def order(self, epoch: int) -> np.ndarray:
        """The indices of the images in the order in which `epoch` reads them, (N,) int64."""
        indices = np.arange(len(self.dataset))
        if not self.shuffle:
            return indices
        return CounterRNG(self.seed, epoch, indices, ORDER).permutation()

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The batches of `epoch`, from batch `start` on: exactly those a full pass ends with.

        Leaves the count of epochs alone. Raises ValueError for a batch that the epoch lacks;
        start = len(loader), the end of the epoch, yields nothing.
        """
        if epoch < 0 or not 0 <= start <= len(self):
            raise ValueError(
                f"there is no batch {start} in epoch {epoch}: expected an epoch of "
                f"at least 0 and a batch from 0 to {len(self)}"
            )
        order = self.order(epoch)
        return (self.batch(epoch, self.indices(order, batch)) for batch in range(start, len(self)))

    def indices(self, order: np.ndarray, batch: int) -> np.ndarray:
        """The images of a batch, of this rank's part of it, in an epoch's order."""
        whole = order[batch * self.batch_size : (batch + 1) * self.batch_size]
        return whole[part(len(whole), self.rank, self.ranks)]

    def batch(self, epoch: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(x, labels) of the images `indices` as `epoch` reads them."""
        images = self.dataset.images[indices]
        if self.augment is not None:
            images = self.augment(images, CounterRNG(self.seed, epoch, indices, AUGMENT))
        x = to_float(images, self.size, self.mean, self.std)
        return x, self.dataset.labels[indices]
