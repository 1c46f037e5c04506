"""Ctrl-C and SIGTERM: the first is noted, so that the batch ends and the state is saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A run that was told to stop, and saved what it had. exit_code: 130 after Ctrl-C, 143 after
    SIGTERM, as shells have it.
    """

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.signal = number
        self.exit_code = 128 + number


class EvaluationStopped(Exception):
    """A rank's part of an evaluation was told to stop. number: of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """`with Signals() as signals:` and ask `signals.received` between batches.

    The first SIGINT or SIGTERM is kept there; a second one raises at once, wherever the program is.
    The handlers that were there come back at the end. Outside the main thread, where Python allows
    no handlers, and for a signal that is ignored (nohup), nothing changes.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None):
                    signal.signal(number, self._handle)
                    self._before[number] = before
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise Interrupted(number, "stopped at once; the last checkpoint is whole")
        self.received = number
