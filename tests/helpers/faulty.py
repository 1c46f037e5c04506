"""`gpuconv train --ranks N` as a process, to be killed, stopped and interrupted."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from ranks import HERE, require_mpi

OPTIONS = ("--limit", "640", "--batch", "32", "--augment", "none", "--validation", "0.1")


class Job:
    """A run on several ranks; `lines` and `errors` are what it has printed."""

    def __init__(self, ranks, *options):
        require_mpi()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gpuconv", "train", "--ranks", str(ranks), *map(str, options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(HERE)},
        )
        self.lines, self.errors = [], []
        self._news = threading.Condition()
        self._copies = [
            threading.Thread(target=self._copy, args=each)
            for each in ((self.process.stdout, self.lines), (self.process.stderr, self.errors))
        ]
        for copy in self._copies:
            copy.start()

    def _copy(self, stream, lines):
        for line in stream:
            with self._news:
                lines.append(line.rstrip("\n"))
                self._news.notify_all()

    def wait_for(self, text, seconds=60):
        """Return once a line of the output holds the text."""
        with self._news:
            assert self._news.wait_for(lambda: any(text in line for line in self.lines), seconds), (
                self.lines,
                self.errors,
            )

    def ranks(self):
        """{rank: process}, of those that are running now."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                variables = (path / "environ").read_bytes().split(b"\0")
                arguments = (path / "cmdline").read_bytes().split(b"\0")
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            rank = [v[9:] for v in variables if v.startswith(b"PMI_RANK=")]
            if rank and b"gpuconv" in arguments and self._is_ours(parent):
                found[int(rank[0])] = int(path.name)
        return found

    def _is_ours(self, process):
        while process > 1:
            if process == self.process.pid:
                return True
            stat = Path(f"/proc/{process}/stat").read_text()
            process = int(stat.rpartition(")")[2].split()[1])
        return False

    def end(self, seconds=90):
        """The exit code; kills what is left."""
        try:
            code = self.process.wait(seconds)
            for copy in self._copies:
                copy.join(10)
            return code
        finally:
            for process in self.ranks().values():
                os.kill(process, signal.SIGKILL)
            self.process.kill()
