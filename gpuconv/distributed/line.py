"""What heartbeats are sent over: a line of TCP between two ranks, and a clock that counts beats."""

from __future__ import annotations

import json
import selectors
import socket
import threading
import time
from contextlib import suppress
from typing import Any

JOIN = 60.0  # seconds for all ranks to connect
BUFFER = 1 << 16


class Line:
    """Messages over a socket, dicts that JSON can hold; any thread may send, one receives."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sending = threading.Lock()
        self._begun = b""  # of the next message

    def send(self, **message: Any) -> None:
        """Send a message; OSError where the other end is closed. One that would have to wait, for
        the other has read nothing for long, is dropped.
        """
        with self._sending, suppress(BlockingIOError):
            self.socket.send(json.dumps(message).encode() + b"\n", socket.MSG_DONTWAIT)

    def receive(self, seconds: float) -> list[dict[str, Any]] | None:
        """The messages that have come, waiting for the first for at most so long; None once the
        other end is closed.
        """
        with selectors.DefaultSelector() as ready:
            ready.register(self.socket, selectors.EVENT_READ)
            if not ready.select(seconds):
                return []
        try:
            read = self.socket.recv(BUFFER)
        except OSError:  # reset by the other end
            read = b""
        if not read:
            return None
        *whole, self._begun = (self._begun + read).split(b"\n")
        return [json.loads(each) for each in whole]


class Clock:
    """Counts beats of so many seconds, one at a time: a process that was stopped for an hour has
    missed one.
    """

    def __init__(self, beat: float) -> None:
        self._beat = beat
        self._next = time.monotonic() + beat

    def left(self) -> float:
        """Seconds to the next beat."""
        return max(0.0, self._next - time.monotonic())

    def sleep(self) -> list[Any]:
        """Sleep until the next beat; nothing is heard meanwhile."""
        time.sleep(self.left())
        return []

    def struck(self) -> bool:
        """Whether it is time for the next beat; if so it counts."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._beat
        return True


def addresses(one_machine: bool) -> list[str]:
    """Where this process may be reached: by its name and its network's address, or from its own
    machine alone.
    """
    if one_machine:
        return ["127.0.0.1"]
    found = [socket.getfqdn(), socket.gethostname()]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # sends nothing; which network leads outside
        found.insert(0, probe.getsockname()[0])
    return found


def connect(hosts: list[str], port: int) -> Line:
    """A line to the first of the hosts that answers. Raises OSError naming them if none does."""
    for host in hosts:
        with suppress(OSError):
            connected = socket.create_connection((host, port), JOIN / (2 * len(hosts)))
            connected.settimeout(None)
            return Line(connected)
    raise OSError(
        f"rank 0 does not answer at {' or '.join(hosts)}, port {port}; heartbeats need TCP "
        "between the machines of a job"
    )
