"""The communicator of MPI's ranks, over mpi4py: arrays of the host.

An all-reduce is two exchanges. Each rank sends the others their parts of the array (MPI_Ialltoallv)
and adds up what it got of its own part in the order of the ranks; then all get all sums
(MPI_Iallgatherv). As many bytes go over the wires as in a ring. MPI_Allreduce itself is not used:
the order of its sums is the library's to choose.
"""

from __future__ import annotations

import atexit
import os
import pickle
import sys
import time
from collections import deque
from typing import Any, TypeVar

import numpy as np
from mpi4py import MPI

from gpuconv.distributed.communicator import Communicator, Reduction, part

T = TypeVar("T")
SPIN = 1e-3  # seconds of a wait that are spent asking; then it lets other processes run in between
# MPICH moves a large array only while it is asked: 44 MB take two ranks 25 ms, and 400 ms with
# sleep in between. A wait that lasts longer than this is for a rank that is late.
YIELD = 0.1
SLEEP = 5e-5


class MpiCommunicator(Communicator):
    """The ranks of an MPI communicator, MPI's world unless given.

    Every wait asks MPI again and again, and yields or sleeps in between where it takes long: so
    more ranks than cores do not hinder each other, and `check` can end it. Raises ValueError for an
    array that is not C-contiguous.
    """

    def __init__(self, comm: Any = None) -> None:
        world = MPI.COMM_WORLD if comm is None else comm
        # Calls of one MPI communicator match by their order, which differs between ranks for the
        # two exchanges of reductions that overlap: one communicator for each.
        self._calls, self._scatters, self._gathers = (world.Dup() for _ in range(3))
        self.rank, self.size = world.rank, world.size
        self._under_way: deque[_OrderedReduction] = deque()
        # A rank that ends without it takes the others with it, and mpiexec says nothing.
        atexit.register(_finalize)

    def start_all_reduce(self, array: np.ndarray) -> Reduction:
        return _OrderedReduction(self, _flat(array))

    def broadcast(self, array: np.ndarray, root: int = 0) -> None:
        self._wait(self._calls.Ibcast(_bytes(array), root))

    def all_gather(self, value: T) -> list[T]:
        own = np.frombuffer(pickle.dumps(value), np.uint8)
        counts = self.gather_numbers((own.size,))[:, 0].astype(np.int64)
        every = np.empty(counts.sum(), np.uint8)
        self._wait(self._calls.Iallgatherv(own, [every, counts.tolist()]))
        return [pickle.loads(each.data) for each in np.split(every, np.cumsum(counts)[:-1])]

    def gather_numbers(self, numbers: Any) -> np.ndarray:
        own = np.array(numbers, np.float64)
        every = np.empty((self.size, own.size))
        self._wait(self._calls.Iallgather(own, every))
        return every

    def abort(self, code: int = 1) -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        MPI.COMM_WORLD.Abort(code)

    def _wait(self, request: Any) -> None:
        self.until(request.Test)

    def until(self, done: Any) -> None:
        """Return when done() is true; `check` is called meanwhile."""
        self.waits += 1
        began = time.monotonic()
        while not done():
            waited = time.monotonic() - began
            if waited >= SPIN and self.check is not None:
                self.check()
            if waited >= YIELD:
                time.sleep(SLEEP)
            elif waited >= SPIN:
                os.sched_yield()


def _finalize() -> None:
    if not MPI.Is_finalized():
        MPI.Finalize()


class _OrderedReduction:
    """An all-reduce whose sums are in the order of the ranks."""

    def __init__(self, on: MpiCommunicator, flat: np.ndarray) -> None:
        self._on, self._flat = on, flat
        parts = [part(flat.size, rank, on.size) for rank in range(on.size)]
        self._counts = [p.stop - p.start for p in parts]
        self._begins = [p.start for p in parts]
        self._own = flat[parts[on.rank]]
        self._got = np.empty((on.size, self._own.size), flat.dtype)
        kind = MPI._typedict[flat.dtype.char]
        send = [flat, self._counts, self._begins, kind]
        self._scatter = on._scatters.Ialltoallv(send, [self._got, self._own.size, kind])
        self._gather: Any = None
        self._done, self._kind = False, kind
        on._under_way.append(self)

    def test(self) -> bool:
        while not self._done and self._on._under_way[0]._advanced():
            self._on._under_way.popleft()
        return self._done

    def wait(self) -> None:
        self._on.until(self.test)

    def _advanced(self) -> bool:
        """Go on, as the first of those under way; whether it is done."""
        if self._gather is None:
            if not self._scatter.Test():
                return False
            np.copyto(self._own, self._got[0])
            for other in self._got[1:]:
                np.add(self._own, other, out=self._own)
            receive = [self._flat, self._counts, self._begins, self._kind]
            self._gather = self._on._gathers.Iallgatherv(MPI.IN_PLACE, receive)
        self._done = self._gather.Test()
        return self._done


def _flat(array: np.ndarray) -> np.ndarray:
    if not array.flags.c_contiguous:
        raise ValueError(f"a communicator's arrays are C-contiguous, got strides {array.strides}")
    return array.reshape(-1)


def _bytes(array: np.ndarray) -> np.ndarray:
    return _flat(array).view(np.uint8)
