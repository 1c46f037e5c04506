"""Sums of gradients over all ranks, which begin while backward still goes on.

Parameters are put into buckets of some megabytes, the last ones first, for backward finds their
gradients first. Once a bucket's gradients are whole, and those of the buckets before it, it is
all-reduced; backward goes on meanwhile. Buckets depend on the parameters alone, so that every rank
reduces the same ones in the same order, whatever its part of the batch asked for.
Source: Li et al. 2020, "PyTorch distributed: experiences on accelerating data parallel training".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np

from gpuconv.arrays import device_of, to_device, to_numpy
from gpuconv.distributed.communicator import Communicator, Reduction

BUCKET = 4 << 20  # bytes: PyTorch has 25 MB for NCCL; a smaller one is reduced earlier


class Leaf(Protocol):
    """A parameter: an array and its gradient, of its shape."""

    data: Any
    grad: Any
    requires_grad: bool


class Bucket(Protocol):
    """Gradients of some parameters, which are summed together."""

    parameters: Sequence[Leaf]

    def put(self, i: int) -> None:
        """A parameter's gradient is whole; or there is none."""

    def start(self) -> None:
        """All are: begin to add up the ranks' gradients."""

    def test(self) -> bool:
        """Help it along; whether it is done."""

    def finish(self) -> None:
        """Wait, and give the parameters the sums."""


class HostBucket:
    """A bucket in one flat array of the host; behind the gradients it has for each parameter how
    many ranks have a gradient for it.
    """

    def __init__(self, communicator: Communicator, parameters: Sequence[Leaf]) -> None:
        self.parameters, self._communicator = parameters, communicator
        dtype = parameters[0].data.dtype
        sizes = [p.data.size for p in parameters]
        ends = np.cumsum(sizes)
        self.flat = np.zeros(sum(sizes) + len(sizes), dtype)
        self.parts = [
            self.flat[end - p.data.size : end].reshape(p.data.shape)
            for p, end in zip(parameters, ends, strict=True)
        ]
        self.counts = self.flat[sum(sizes) :]
        self._reduction: Reduction | None = None

    def put(self, i: int) -> None:
        gradient = self.parameters[i].grad
        self.parts[i][...] = 0 if gradient is None else to_numpy(gradient)
        self.counts[i] = gradient is not None

    def start(self) -> None:
        self._reduction = self._communicator.start_all_reduce(self.flat)

    def test(self) -> bool:
        return self._reduction is not None and self._reduction.test()

    def finish(self) -> None:
        """None is the sum for a parameter for which no rank has a gradient."""
        assert self._reduction is not None
        self._reduction.wait()
        for p, sums, count in zip(self.parameters, self.parts, self.counts, strict=True):
            on = device_of(p.data) or "cpu"
            p.grad = to_device(sums, on) if count else None


class GradientSums:
    """Makes each parameter's `grad` the sum over all ranks. Each step: `begin`, then `ready` for
    each parameter whose gradient is whole, in any order, then `finish`.

    The sums are the memory of the buckets: the next step overwrites them. make: a bucket of some
    parameters; `HostBucket` unless given.

    >>> from gpuconv.nn import Parameter
    >>> from gpuconv.distributed import LocalCommunicator
    >>> weight = Parameter(np.zeros(2)); weight.grad = np.array([3.0, 4.0])
    >>> sums = GradientSums(LocalCommunicator(), [weight])
    >>> sums.begin(); sums.ready(weight); sums.finish(); weight.grad
    array([3., 4.])
    """

    def __init__(
        self,
        communicator: Communicator,
        parameters: Iterable[Leaf],
        nbytes: int = BUCKET,
        make: Callable[[Sequence[Leaf]], Bucket] | None = None,
    ) -> None:
        make = make or partial(HostBucket, communicator)
        chosen = [p for p in parameters if p.requires_grad]
        self.buckets: list[Bucket] = list(map(make, grouped(chosen[::-1], nbytes)))
        self._missing: list[int] = []  # of each bucket, the gradients that are not whole yet
        self._places = {
            id(p): (number, i)
            for number, bucket in enumerate(self.buckets)
            for i, p in enumerate(bucket.parameters)
        }
        self._told: set[int] = set()
        self._next = 0  # the first bucket that is not on its way

    def begin(self) -> None:
        """A new step: no gradient is whole."""
        self._told.clear()
        self._next = 0
        self._missing = [len(bucket.parameters) for bucket in self.buckets]

    def ready(self, parameter: Leaf) -> None:
        """This parameter's gradient is whole."""
        key = id(parameter)
        if key not in self._places or key in self._told:
            return
        self._told.add(key)
        number, i = self._places[key]
        self.buckets[number].put(i)
        self._missing[number] -= 1
        self._send()

    def finish(self) -> None:
        """Return once all gradients are the sums of all ranks'."""
        for bucket in self.buckets:
            for p in bucket.parameters:
                self.ready(p)
        for bucket in self.buckets:
            bucket.finish()

    def _send(self) -> None:
        """Start the buckets that are whole, and help those on their way along."""
        for bucket in self.buckets[: self._next]:
            if not bucket.test():
                break
        while self._next < len(self.buckets) and not self._missing[self._next]:
            self.buckets[self._next].start()
            self._next += 1


def grouped(parameters: Sequence[Leaf], nbytes: int) -> Iterator[list[Leaf]]:
    """The parameters in their order, cut where the bytes would be too many or the type changes."""
    group: list[Leaf] = []
    held = 0
    for p in parameters:
        size = p.data.size * p.data.dtype.itemsize
        if group and (p.data.dtype != group[0].data.dtype or held + size > nbytes):
            yield group
            group, held = [], 0
        group.append(p)
        held += size
    if group:
        yield group
