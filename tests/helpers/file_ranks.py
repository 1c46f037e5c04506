"""Ranks without MPI, for tests: processes that exchange values through files of a folder."""

import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path


class FileCommunicator:
    """`all_gather` through files; enough for heartbeats and agreements."""

    check = None
    waits = 0

    def __init__(self, rank, size, folder):
        self.rank, self.size, self._folder, self._calls = rank, size, Path(folder), 0
        self._processes = self.all_gather(os.getpid())

    def all_gather(self, value):
        names = [f"{self._calls}-{rank}" for rank in range(self.size)]
        self._calls += 1
        temporary = self._folder / f"{names[self.rank]}.part"
        temporary.write_bytes(pickle.dumps(value))
        temporary.rename(self._folder / names[self.rank])
        return [pickle.loads(self._wait(self._folder / name)) for name in names]

    def _wait(self, path):
        self.waits += 1
        while not path.exists():
            if self.check is not None:
                self.check()
            time.sleep(0.005)
        return path.read_bytes()

    def abort(self, code=1):
        """As MPI's: the other ranks are killed."""
        for rank, process in enumerate(self._processes):
            if rank != self.rank:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        os._exit(code)


def start(script, size, folder, *args):
    """`size` processes that run a script with (rank, size, folder, ...)."""
    command = [sys.executable, "-c", script]
    return [
        subprocess.Popen(
            [*command, str(rank), str(size), str(folder), *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for rank in range(size)
    ]


def finish(processes, seconds=30):
    """Exit codes, and what each wrote to stderr; what still runs after `seconds` is killed."""
    until = time.monotonic() + seconds
    try:
        outputs = [p.communicate(timeout=max(0.1, until - time.monotonic())) for p in processes]
    finally:
        for process in processes:
            process.kill()
    return [p.returncode for p in processes], [stderr for _, stderr in outputs]
