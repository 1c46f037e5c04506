"""Data-parallel training: the same network on several ranks, each with a part of every batch.

    from gpuconv import distributed
    ranks = distributed.init()       # under `mpiexec -n 4 python train.py`; alone, one rank
    trainer = Trainer(...)           # as ever: it trains on all of them

`init` begins to talk to the other ranks, `current` is the communicator that it made. Without
`init` a process is alone, whatever started it, and MPI is not imported.
"""

from __future__ import annotations

import os

from gpuconv.distributed.communicator import Communicator, Reduction, part
from gpuconv.distributed.local import LocalCommunicator
from gpuconv.errors import DeviceError
from gpuconv.threads import share_cores

__all__ = ["Communicator", "LocalCommunicator", "Reduction", "current", "init", "launched", "part"]

# What a launcher tells a process of its rank: MPICH and Slurm, PMIx, Open MPI.
RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")
SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
INSTALL = "pip install 'gpuconv[mpi]' installs both"

_current: Communicator = LocalCommunicator()


def current() -> Communicator:
    """The communicator that `init` made; before that, of this process alone."""
    return _current


def launched() -> bool:
    """Whether mpiexec, srun or their like started this process as a rank."""
    return any(name in os.environ for name in RANK_VARIABLES)


def init() -> Communicator:
    """The communicator of all ranks that mpiexec or srun started, also for `current`; of this
    process alone where nothing did.

    Raises DeviceError without mpi4py or an MPI library, and where the launcher is of another MPI
    than mpi4py's.
    """
    global _current
    if _current.size == 1 and launched():
        _current = _of_mpi()
    return _current


def _of_mpi() -> Communicator:
    try:
        from gpuconv.distributed.mpi import MpiCommunicator
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py finds no MPI library
        raise DeviceError(
            f"this process is a rank of an MPI launcher, but MPI cannot be used ({error}): "
            f"mpi4py and MPICH are needed; {INSTALL}"
        ) from error
    communicator = MpiCommunicator()
    sizes = [int(os.environ[name]) for name in SIZE_VARIABLES if name in os.environ]
    if sizes and communicator.size != sizes[0]:
        raise DeviceError(
            f"the launcher started {sizes[0]} ranks, mpi4py's MPI sees {communicator.size}: they "
            "are of different MPI libraries; use the mpiexec beside this Python"
        )
    share_cores(communicator.cores())
    return communicator
