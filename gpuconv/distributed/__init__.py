"""Data-parallel training: the same network on several ranks, each with a part of every batch.

    from gpuconv import distributed
    ranks = distributed.init()       # under `mpiexec -n 4 python train.py`; alone, one rank
    trainer = Trainer(...)           # as ever: it trains on all of them

`init` begins to talk to the other ranks, `current` is the communicator that it made. Without
`init` a process is alone, whatever started it, and MPI is not imported.
"""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import AbstractContextManager, nullcontext

from gpuconv.distributed import agreement, launch
from gpuconv.distributed.cards import split_cards
from gpuconv.distributed.communicator import Communicator, Reduction, part
from gpuconv.distributed.heartbeat import Heartbeat
from gpuconv.distributed.local import LocalCommunicator
from gpuconv.errors import DeviceError

__all__ = [
    "Communicator",
    "LocalCommunicator",
    "Reduction",
    "current",
    "fail",
    "init",
    "launched",
    "on_failure",
    "part",
    "patient",
    "started",
]

# What a launcher tells a process of its rank: MPICH and Slurm, PMIx, Open MPI.
RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")
LOCAL_RANK_VARIABLES = ("MPI_LOCALRANKID", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK")
SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")

_current: Communicator = LocalCommunicator()
_heartbeat: Heartbeat | None = None


def current() -> Communicator:
    """The communicator that `init` made; before that, of this process alone."""
    return _current


def launched() -> bool:
    """Whether mpiexec, srun or their like started this process as a rank."""
    return any(name in os.environ for name in RANK_VARIABLES)


def started() -> int:
    """How many ranks a launcher started, as far as it says; 1 where nothing did."""
    known = [os.environ[name] for name in SIZE_VARIABLES if name in os.environ]
    return int(known[0]) if known and launched() else 1


def init() -> Communicator:
    """The communicator of all ranks that mpiexec or srun started, also for `current`; of this
    process alone where nothing did.

    From now on the ranks are one job: it ends, for all of them, when one dies or hangs (see
    `heartbeat.py`) and at an exception that nothing catches. The default number of threads is this
    rank's part of its machine's cores.
    Raises DeviceError without mpi4py or an MPI library, and where the launcher is of another MPI
    than mpi4py's; DataError, on all ranks, for one that runs other code or other versions.
    """
    global _current
    if _current.size == 1 and launched():
        _current = _of_mpi()
        if _current.size > 1:
            _join()
    return _current


def patient() -> AbstractContextManager[None]:
    """Within, the others may wait for this rank for long, without its being taken for one that
    hangs: it waits for a user, or does by itself what takes more than half an hour.
    """
    return nullcontext() if _heartbeat is None else _heartbeat.patient()


def on_failure(hint: str) -> None:
    """What the line that ends a job adds, so that a user knows how to go on."""
    if _heartbeat is not None:
        _heartbeat.hint = hint


def fail(text: str, code: int) -> None:
    """End all ranks with one line on stderr and this exit code; returns in a process alone.

    Before `init`, when ranks know nothing of each other, the first rank of a machine says the line,
    and the others, which have the same software and arguments, end without a word.
    """
    if _heartbeat is not None:
        _heartbeat.fail(text, code)
    if launched() and any(os.environ.get(name, "0") != "0" for name in LOCAL_RANK_VARIABLES):
        os._exit(code)


def _join() -> None:
    global _heartbeat
    _heartbeat = Heartbeat(_current)
    sys.excepthook = _heartbeat.report
    atexit.register(_heartbeat.close)
    agreement.require_equal(_current, agreement.software())
    launch.split_cores(_current)
    split_cards(_current)


def _of_mpi() -> Communicator:
    try:
        # it waits for all ranks; one that a signal has ended would never come
        with launch.signals_end_at_once():
            from gpuconv.distributed.mpi import MpiCommunicator
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py finds no MPI library
        raise DeviceError(
            f"this process is a rank of an MPI launcher, but MPI cannot be used ({error}): "
            f"mpi4py and MPICH are needed; {launch.INSTALL} installs both"
        ) from error
    communicator = MpiCommunicator()
    if started() not in (1, communicator.size):
        raise DeviceError(
            f"the launcher started {started()} ranks, mpi4py's MPI sees {communicator.size}: they "
            "are of different MPI libraries; use the mpiexec beside this Python"
        )
    return communicator
