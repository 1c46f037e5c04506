"""`Communicator`: what the processes of a data-parallel run, its ranks, say to each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np

T = TypeVar("T")


class Reduction(Protocol):
    """An all-reduce under way; the array belongs to it until `wait` returns."""

    def test(self) -> bool:
        """Go on as far as is possible without waiting; whether it is done."""

    def wait(self) -> None:
        """Return once the array holds the sum."""


class Communicator:
    """The ranks of a run, each a process, numbered 0 to size - 1.

    Every rank calls the same methods in the same order: each returns once all ranks that it needs
    have called it. The sums are in the order of the ranks: with equal ranks they have equal bits,
    the same on every rank.
    check: called again and again while a call waits; what it raises ends the wait. waits: how many
    waits were begun.
    Source: MPI 4.0; the names are those of ChainerMN and torch.distributed.
    """

    rank: int = 0
    size: int = 1
    check: Callable[[], None] | None = None
    waits: int = 0

    def all_reduce(self, array: np.ndarray) -> None:
        """The sum of all ranks' arrays, in place: arrays of one shape and type, C-contiguous."""
        self.start_all_reduce(array).wait()

    def start_all_reduce(self, array: np.ndarray) -> Reduction:
        """Begin `all_reduce`; several may be under way, begun by all ranks in the same order."""
        raise NotImplementedError(f"{type(self).__name__} has no start_all_reduce")

    def broadcast(self, array: np.ndarray, root: int = 0) -> None:
        """The root's array, in place: arrays of one shape and type, C-contiguous."""
        raise NotImplementedError(f"{type(self).__name__} has no broadcast")

    def all_gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order; any that can be pickled."""
        raise NotImplementedError(f"{type(self).__name__} has no all_gather")

    def gather_numbers(self, numbers: Any) -> np.ndarray:
        """Numbers of all ranks, as many from each: float64 (size, count)."""
        raise NotImplementedError(f"{type(self).__name__} has no gather_numbers")

    def barrier(self) -> None:
        """Return once all ranks have called it."""
        self.gather_numbers((0.0,))

    def abort(self, code: int = 1) -> None:
        """End the processes of all ranks, at once."""
        raise NotImplementedError(f"{type(self).__name__} has no abort")

    def from_root(self, function: Callable[[], T]) -> T:
        """What `function` returns, or raises, on rank 0, which alone calls it, on every rank."""
        return self.agreed(function if self.rank == 0 else lambda: None)[0]  # type: ignore[return-value]

    def agreed(self, function: Callable[[], T]) -> list[T]:
        """What `function` returns on each rank, in their order. What it raises on one, the first
        in their order, is raised on all.
        """
        found: tuple[T | None, Exception | None]
        try:
            found = function(), None
        except Exception as error:
            found = None, error
        every = self.all_gather(found)
        own = found[1]
        for rank, (_, failed) in enumerate(every):
            if failed is not None:
                raise own if own is not None and rank == self.rank else failed
        return [value for value, _ in every]  # type: ignore[misc]


def part(count: int, rank: int, size: int) -> slice:
    """A rank's part of `count` samples in a row; the first ranks' have one more where it does not
    come out even.

    >>> [part(10, rank, 4) for rank in range(4)]
    [slice(0, 3, None), slice(3, 6, None), slice(6, 8, None), slice(8, 10, None)]
    """
    each, more = divmod(count, size)
    begin = rank * each + min(rank, more)
    return slice(begin, begin + each + (rank < more))
