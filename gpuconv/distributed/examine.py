"""What this machine offers for training on several ranks, and how to get what is missing."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import subprocess
import sys
import time
from collections.abc import Iterator

from gpuconv.distributed.launch import INSTALL, mpiexec
from gpuconv.errors import one_line

TRIAL = """
from gpuconv import distributed
ranks = distributed.init()
assert ranks.size == 2, f"{ranks.size} ranks, not 2"
assert ranks.all_gather(ranks.rank) == [0, 1], "a wrong answer"
from gpuconv.__main__ import _end
_end(0)
"""
SECONDS = 60  # for the trial


def examine() -> Iterator[tuple[str, str, bool]]:
    """Findings in order: name, text, and whether ranks on this machine need it and lack it. Never
    raises: what is broken is a finding.
    """
    library, problem = _library()
    yield "mpi4py", problem or _version("mpi4py"), bool(problem)
    if not problem:
        yield "MPI library", library, False
    launcher = mpiexec()
    if launcher is None:
        yield "mpiexec", f"not found; {INSTALL} puts MPICH's beside this Python", True
    else:
        yield "mpiexec", str(launcher), False
    started = [f"{name}={os.environ[name]}" for name in _launchers() if name in os.environ]
    yield "started by", ", ".join(started) or "no launcher: this process is alone", False
    if launcher is not None and not problem and not started:
        text, works = _trial(str(launcher))
        yield "two ranks", text, not works
    yield "NCCL", _nccl(), False


def _launchers() -> tuple[str, ...]:
    from gpuconv import distributed

    return (*distributed.RANK_VARIABLES, *distributed.SIZE_VARIABLES)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _library() -> tuple[str, str]:
    """The MPI library that mpi4py has found, or "" and what is wrong."""
    try:
        package = importlib.import_module("mpi4py")
        before, package.rc.initialize = package.rc.initialize, False  # asking needs no MPI_Init
        try:
            library = importlib.import_module("mpi4py.MPI").Get_library_version()
        finally:
            package.rc.initialize = before
    except ModuleNotFoundError as error:
        return "", f"not installed ({one_line(error)}); {INSTALL} brings it and MPICH"
    except Exception as error:  # RuntimeError, ImportError: it finds no library, or another
        return "", f"there, but finds no MPI library: {one_line(error)}; {INSTALL} brings MPICH"
    return " ".join(library.strip("\0 \n").splitlines()[0].split()), ""


def _trial(launcher: str) -> tuple[str, bool]:
    """Start two ranks that ask each other: in words, and whether it worked."""
    began = time.monotonic()
    command = [launcher, "-n", "2", sys.executable, "-c", TRIAL]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return f"did not answer within {SECONDS} s", False
    except OSError as error:
        return f"cannot be started: {one_line(error)}", False
    if not done.returncode:  # not by what was printed, which mpiexec may lose
        return f"started and heard each other in {time.monotonic() - began:.1f} s", True
    said = " ".join((done.stderr or done.stdout).split())
    return f"failed, exit code {done.returncode}: {said[-300:] or 'without a word'}", False


def _nccl() -> str:
    try:
        nccl = importlib.import_module("cupy.cuda.nccl")
        count = importlib.import_module("cupy").cuda.runtime.getDeviceCount()
    except Exception as error:  # no CuPy, no NCCL, no driver
        return f"none: {one_line(error)}; it is for several GPUs (device cuda)"
    return f"{nccl.get_version()}, {count} GPUs"
