"""Ranks on this machine, started by the mpiexec that comes with MPICH."""

from __future__ import annotations

import importlib.util
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from gpuconv.distributed.communicator import Communicator
from gpuconv.errors import DeviceError
from gpuconv.threads import share_cores

INSTALL = "pip install 'gpuconv[mpi]'"
OUR_CODES = (0, 1, 2, 130, 141, 143)  # of ranks that ended themselves
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What MPICH's mpiexec prints of its own, besides frames and empty lines.
BANNER = "=   BAD TERMINATION"
NOISE = re.compile(
    r"(=   |\[(mpiexec|proxy)|YOUR APPLICATION TERMINATED|This typically refers|Please see the FAQ)"
)


def mpiexec() -> Path | None:
    """The mpiexec beside this Python, where pip puts MPICH's, else the one on the PATH."""
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    return None if found is None else Path(found)


def run(count: int, arguments: Iterable[str]) -> int:
    """Run `gpuconv ARGUMENTS` on so many ranks of this machine; the exit code. What they print is
    printed here; Ctrl-C, SIGTERM and SIGHUP are passed on, and Ctrl-Z stops them all.

    Raises DeviceError, saying how to get it, where MPI is missing.
    """
    launcher = mpiexec()
    missing = [] if importlib.util.find_spec("mpi4py") else ["mpi4py"]
    missing += [] if launcher else ["MPICH's mpiexec"]
    if missing:
        raise DeviceError(f"{count} ranks need {' and '.join(missing)}: {INSTALL}")
    command = [str(launcher), "-n", str(count), sys.executable, "-m", "gpuconv", *arguments]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # a terminal's Ctrl-C comes here, and is passed on once
    )
    copies = [
        _Copy(process, process.stdout, sys.stdout),
        _Copy(process, process.stderr, sys.stderr),
    ]
    numbers: dict[int, int] = {}  # of the ranks' processes
    with _signals_passed_on(process), _Ends() as ends:
        while len(numbers) < count and process.poll() is None:
            time.sleep(0.1)
            started = _rank_numbers(process.pid)
            for rank_process in started.keys() - numbers.keys():
                ends.watch(rank_process)
            numbers |= started
        code = process.wait()
        for copy in copies:
            copy.join()
        victim = ends.first()
    if any(copy.broken for copy in copies):
        raise BrokenPipeError
    if code in OUR_CODES:
        return code
    if not copies[1].lines:  # mpiexec ended the others before one could say why
        who = f"rank {numbers[victim]} (process {victim})" if victim else "a rank"
        raise DeviceError(
            f"{who} ended unexpectedly: it crashed, or it was killed; the job has ended; to go on: "
            "gpuconv train --resume FOLDER"
        )
    return 2


def split_cores(communicator: Communicator) -> None:
    """Give this rank its part of the cores that it may use, as the default number of threads: those
    ranks of its machine share them that may use some of the same.
    """
    own = _machine()
    every = communicator.all_gather(own)
    share_cores(sum(host == own[0] and bool(cores & own[1]) for host, cores in every))


def _machine() -> tuple[str, frozenset[int]]:
    """Its name, and the cores of it that this process may use."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [0]
    return os.uname().nodename, frozenset(cores)


class _Copy(threading.Thread):
    """Copies what mpiexec's processes print, without what it says itself. lines: so many. broken:
    whether nobody reads it any more.
    """

    def __init__(self, process: subprocess.Popen[str], source: Any, target: TextIO) -> None:
        super().__init__(daemon=True)
        self._process, self._source, self._target = process, source, target
        self.lines, self.broken = 0, False
        self.start()

    def run(self) -> None:
        for line in of_ranks(self._source):
            if self.broken:  # read on, so that nobody waits
                continue
            try:
                print(line, end="", file=self._target, flush=True)
                self.lines += 1
            except OSError:
                self.broken = True
                self._process.send_signal(signal.SIGHUP)


class _Ends:
    """Which of the watched processes ended first, by Linux's own list of events.

    mpiexec cannot say: it kills the other ranks at once, then names the lowest of those killed.
    """

    def __init__(self) -> None:
        self._events = select.epoll() if hasattr(os, "pidfd_open") else None
        self._processes: dict[int, int] = {}  # by their descriptors

    def __enter__(self) -> _Ends:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._processes:
            os.close(descriptor)
        if self._events is not None:
            self._events.close()

    def watch(self, process: int) -> None:
        if self._events is None:
            return
        with suppress(OSError):  # it has ended, or there is no descriptor for it
            descriptor = os.pidfd_open(process)
            self._processes[descriptor] = process
            self._events.register(descriptor, select.EPOLLIN)

    def first(self) -> int | None:
        """The process, or None where none is known to have ended. To be asked once."""
        ended = self._events.poll(0, 1) if self._events is not None else []
        return self._processes[ended[0][0]] if ended else None


def of_ranks(lines: Iterable[str]) -> Iterator[str]:
    """The lines that ranks printed, of all that mpiexec prints."""
    held: list[str] = []  # which may be the frame of its own
    ended = False
    for line in lines:
        if line.startswith(BANNER):
            ended, held = True, []
        elif not line.strip(" =\n"):
            held.append(line)
        elif not NOISE.match(line) or not (ended or line.startswith("[mpiexec")):
            yield from held
            yield line
            held = []
    if not ended:
        yield from held


@contextmanager
def _signals_passed_on(process: subprocess.Popen[str]) -> Iterator[None]:
    """Within, signals for this process are for mpiexec, which passes them on to the ranks."""

    def forward(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    def stop(number: int, frame: FrameType | None) -> None:
        ranks = [process.pid, *_descendants(process.pid)]  # mpiexec would stop alone
        _send(ranks, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        _send(ranks, signal.SIGCONT)  # somebody let this process go on

    handlers: dict[int, Callable[[int, FrameType | None], None]] = {
        **dict.fromkeys(FORWARDED, forward),
        signal.SIGTSTP: stop,
    }
    before = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                    before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
        if process.poll() is None:
            process.terminate()


def _descendants(process: int) -> list[int]:
    """The children of a process, their children and so on, as Linux lists them."""
    children: list[int] = []
    for listed in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            children += map(int, listed.read_text().split())
    return children + [each for child in children for each in _descendants(child)]


def _rank_numbers(launcher: int) -> dict[int, int]:
    """{process: rank} of those that mpiexec has started, as Linux lists them."""
    found: dict[int, int] = {}
    for process in _descendants(launcher):
        with suppress(OSError):
            variables = Path(f"/proc/{process}/environ").read_bytes()
            if rank := re.search(rb"(?:^|\0)PMI_RANK=(\d+)", variables):
                found[process] = int(rank[1])
    return found


def _send(processes: Iterable[int], number: int) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)
