"""Sums of gradients over all ranks, which begin while backward still goes on.

Parameters are put into buckets of some megabytes, the last ones first, for backward finds their
gradients first. Once a bucket's gradients are whole, and those of the buckets before it, it is
all-reduced; backward goes on meanwhile. Buckets depend on the parameters alone, so that every rank
reduces the same ones in the same order, whatever its part of the batch asked for.
Source: Li et al. 2020, "PyTorch distributed: experiences on accelerating data parallel training".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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


class Bucket:
    """Gradients of some parameters in one flat array, then for each parameter how many ranks have
    a gradient for it.
    """

    def __init__(self, parameters: Sequence[Leaf], dtype: np.dtype) -> None:
        self.parameters = parameters
        sizes = [p.data.size for p in parameters]
        ends = np.cumsum(sizes)
        self.flat = np.zeros(sum(sizes) + len(sizes), dtype)
        self.parts = [
            self.flat[end - p.data.size : end].reshape(p.data.shape)
            for p, end in zip(parameters, ends, strict=True)
        ]
        self.counts = self.flat[sum(sizes) :]
        self.missing = len(parameters)  # whose gradients are not whole yet
        self.reduction: Reduction | None = None

    def put(self, i: int) -> None:
        """Copy a parameter's gradient, if it has one."""
        gradient = self.parameters[i].grad
        self.parts[i][...] = 0 if gradient is None else to_numpy(gradient)
        self.counts[i] = gradient is not None
        self.missing -= 1

    def take(self) -> None:
        """Give the parameters the sums; None to one for which no rank has a gradient."""
        for p, sums, count in zip(self.parameters, self.parts, self.counts, strict=True):
            on = device_of(p.data) or "cpu"
            p.grad = to_device(sums, on) if count else None


class GradientSums:
    """Makes each parameter's `grad` the sum over all ranks. Each step: `begin`, then `ready` for
    each parameter whose gradient is whole, in any order, then `finish`.

    The sums are the memory of the buckets: the next step overwrites them.

    >>> from gpuconv.nn import Parameter
    >>> from gpuconv.distributed import LocalCommunicator
    >>> weight = Parameter(np.zeros(2)); weight.grad = np.array([3.0, 4.0])
    >>> sums = GradientSums(LocalCommunicator(), [weight])
    >>> sums.begin(); sums.ready(weight); sums.finish(); weight.grad
    array([3., 4.])
    """

    def __init__(
        self, communicator: Communicator, parameters: Iterable[Leaf], nbytes: int = BUCKET
    ) -> None:
        self.communicator = communicator
        chosen = [p for p in parameters if p.requires_grad]
        self.buckets = [Bucket(group, dtype) for group, dtype in grouped(chosen[::-1], nbytes)]
        places = ((b, i, p) for b in self.buckets for i, p in enumerate(b.parameters))
        self._places = {id(p): (bucket, i) for bucket, i, p in places}
        self._told: set[int] = set()
        self._next = 0  # the first bucket that is not on its way

    def begin(self) -> None:
        """A new step: no gradient is whole."""
        self._told.clear()
        self._next = 0
        for bucket in self.buckets:
            bucket.missing, bucket.reduction = len(bucket.parameters), None

    def ready(self, parameter: Leaf) -> None:
        """This parameter's gradient is whole."""
        key = id(parameter)
        if key not in self._places or key in self._told:
            return
        self._told.add(key)
        bucket, i = self._places[key]
        bucket.put(i)
        self._send()

    def finish(self) -> None:
        """Return once all gradients are the sums of all ranks'."""
        for bucket in self.buckets:
            for p in bucket.parameters:
                self.ready(p)
        for bucket in self.buckets:
            assert bucket.reduction is not None
            bucket.reduction.wait()
            bucket.take()

    def _send(self) -> None:
        """Start the buckets that are whole, and help those on their way along."""
        for bucket in self.buckets[: self._next]:
            if bucket.reduction is not None and not bucket.reduction.test():
                break
        while self._next < len(self.buckets) and not self.buckets[self._next].missing:
            bucket = self.buckets[self._next]
            bucket.reduction = self.communicator.start_all_reduce(bucket.flat)
            self._next += 1


def grouped(parameters: Sequence[Leaf], nbytes: int) -> Iterator[tuple[list[Leaf], np.dtype]]:
    """The parameters in their order, cut where the bytes would be too many or the type changes."""
    group: list[Leaf] = []
    held = 0
    for p in parameters:
        dtype, size = np.dtype(p.data.dtype), p.data.size * p.data.dtype.itemsize
        if group and (dtype != group[0].data.dtype or held + size > nbytes):
            yield group, np.dtype(group[0].data.dtype)
            group, held = [], 0
        group.append(p)
        held += size
    if group:
        yield group, np.dtype(group[0].data.dtype)
