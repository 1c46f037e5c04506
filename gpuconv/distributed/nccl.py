"""Sums over the cards of all ranks, one card each, by NCCL through CuPy: `cupy.cuda.nccl`.

The id of NCCL's communicator is handed out by the ranks' communicator of the host. Sums run in a
stream of their own beside the backward pass; they may be part of a recorded step. NCCL chooses the
order of a sum by the machine and the number of ranks: the same ranks on the same cards repeat it.
This has run against a stand-in for NCCL alone, never on several cards.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from gpuconv.cuda import recording
from gpuconv.cuda.runtime import Runtime
from gpuconv.distributed.communicator import Communicator
from gpuconv.distributed.gradients import Leaf


def problem(on: Any) -> str:
    """Why NCCL cannot be used, or ""."""
    nccl = on.cupy.cuda.nccl
    install = "pip install nvidia-nccl-cu12, or nvidia-nccl-cu13 for CUDA 13"
    return "" if nccl.available else f"CuPy finds no NCCL: {install}"


class CardSums:
    """All-reduces of float32 arrays on this rank's card.

    Made by all ranks at once. on: the runtime of cuda.
    """

    def __init__(self, communicator: Communicator, on: Any) -> None:
        self.on, self._nccl = on, on.cupy.cuda.nccl
        name = communicator.from_root(self._nccl.get_unique_id)
        self._ranks = self._nccl.NcclCommunicator(communicator.size, name, communicator.rank)
        self.side = on.cupy.cuda.Stream(non_blocking=True)

    def start(self, pairs: Sequence[tuple[Any, Any]], event: Any) -> None:
        """Begin to put the sums of the first of each pair into the second, which may be the same,
        after all that was launched until now. Both are dense, laid out alike.
        """
        addresses = [(self.on.address(a), self.on.address(b), a.size) for a, b in pairs]
        recording.call("ncclAllReduce", partial(self._start, addresses, event))

    def join(self, event: Any) -> None:
        """What is launched from now on waits for all that was started."""
        recording.call("join", partial(self._join, event))

    def event(self) -> Any:
        """An event for `start` or `join`, of which each call in a step needs its own."""
        return self.on.cupy.cuda.Event(disable_timing=True)

    def _start(self, addresses: Sequence[tuple[int, int, int]], event: Any) -> None:
        nccl = self._nccl
        event.record(self.on.cupy.cuda.get_current_stream())
        self.side.wait_event(event)
        nccl.groupStart()
        for source, to, count in addresses:
            self._ranks.allReduce(
                source, to, count, nccl.NCCL_FLOAT32, nccl.NCCL_SUM, self.side.ptr
            )
        nccl.groupEnd()

    def _join(self, event: Any) -> None:
        event.record(self.side)
        self.on.cupy.cuda.get_current_stream().wait_event(event)


class CardBucket:
    """Gradients on a card, summed where they lie."""

    def __init__(self, sums: CardSums, parameters: Sequence[Leaf]) -> None:
        self.parameters, self._sums = parameters, sums
        self._events = sums.event(), sums.event()

    def put(self, i: int) -> None:
        p, on = self.parameters[i], self._sums.on
        if p.grad is None:
            p.grad = on.zeros(p.data.shape)
        elif not is_dense(on, p.grad):
            p.grad = on.contiguous(p.grad)

    def start(self) -> None:
        self._sums.start([(p.grad, p.grad) for p in self.parameters], self._events[0])

    def test(self) -> bool:
        return True

    def finish(self) -> None:
        self._sums.join(self._events[1])


def is_dense(on: Runtime, array: Any) -> bool:
    """Whether its elements fill one row of memory, in whatever order."""
    nbytes = sum((n - 1) * s for n, s in zip(array.shape, array.strides, strict=True))
    return bool(array.size) and nbytes == array.nbytes - np.dtype(array.dtype).itemsize
