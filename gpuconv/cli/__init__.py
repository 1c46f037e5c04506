"""The command line: `gpuconv train`, `evaluate`, `predict` and so on, one module for each command.

A command's module is cheap to import; what is heavy is imported when the command runs, so that
`gpuconv --help` answers at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _quiet_interrupts() -> Iterator[None]:
    """Within, Ctrl-C ends the process with its usual code and without a traceback: the commands
    are still being imported, and `main`, which does so from then on, is not there yet.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    try:
        yield
    finally:
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, before)


with _quiet_interrupts():
    from gpuconv.cli.main import main

__all__ = ["main"]
