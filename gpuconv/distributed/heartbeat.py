"""Heartbeats: a rank that dies, hangs or fails ends the job, with one line that says which.

A thread in each rank sends rank 0 a beat every second, and a second thread in rank 0 answers. They
talk over TCP, beside MPI, so that a stuck collective does not stop them. Time is counted in a
process's own beats: another is lost once MISSED of these went by without hearing from it. A job
that is stopped as a whole (Ctrl-Z, a suspended machine) counts nothing meanwhile, and a compiler
that keeps the main thread busy does not keep the beats from being sent.
"""

from __future__ import annotations

import os
import secrets
import selectors
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn, Protocol

from gpuconv.distributed.line import JOIN, Clock, Line, addresses, connect

BEAT = 1.0  # seconds
MISSED = 30  # beats: so long may the interpreter's lock be held, or a processor be taken away
IDLE = 45  # beats without work while others wait; longer, for a slow disk may be why
BUSY = 1800  # beats of work while others are in one wait, for it; longer than any first compilation
IDLE_SHARE = 0.02  # of a beat's time on the processor; with less a rank does nothing
GATHER = 0.5  # seconds in which ranks that fail for one reason report it
INTERRUPTED = 128  # exit codes of a job that somebody has ended
FORWARD = 0.2  # seconds in which a launcher passes a line on, before it cleans up


class Ranks(Protocol):
    """What a heartbeat needs of a `Communicator`."""

    rank: int
    size: int
    check: Callable[[], None] | None
    waits: int

    def all_gather(self, value: Any) -> list[Any]: ...

    def abort(self, code: int = 1) -> None: ...


class Heartbeat:
    """This rank's heartbeat, from now until `close` or the end of the job. All ranks make one at
    the same time.

    hint: what a user can do after the job has ended, added to the line that says so.
    beat, missed, idle, busy: see BEAT, MISSED, IDLE and BUSY. Raises OSError where the ranks cannot
    connect.
    """

    def __init__(
        self,
        ranks: Ranks,
        beat: float = BEAT,
        missed: int = MISSED,
        idle: int = IDLE,
        busy: int = BUSY,
    ) -> None:
        self.hint = ""
        self._ranks, self._beat, self._missed, self._idle = ranks, beat, missed, idle
        self._busy = busy
        self._waited = self._closed = False
        self._patient = 0
        hosts = ranks.all_gather(socket.gethostname())
        one_machine = len(set(hosts)) == 1
        server, meeting = None, None
        if ranks.rank == 0:
            server = socket.create_server(("127.0.0.1" if one_machine else "", 0), backlog=128)
            meeting = addresses(one_machine), server.getsockname()[1], secrets.token_hex(16)
        meeting = ranks.all_gather(meeting)[0]
        self._hub = None if server is None else _Hub(self, server, meeting[2])
        self._line = connect(*meeting[:2])
        own = {"rank": ranks.rank, "process": os.getpid(), "host": hosts[ranks.rank]}
        self._line.send(token=meeting[2], **own)
        ranks.check = self.check
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def check(self) -> None:
        """Note that the main thread waits for other ranks; a communicator's `check`."""
        self._waited = True

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Within, others may wait for this rank as long as it likes: it waits for a user, say."""
        self._patient += 1
        try:
            yield
        finally:
            self._patient -= 1

    def fail(self, text: str, code: int) -> NoReturn:
        """End the job with this line and exit code, for all ranks: if others fail at the same time,
        the first rank's line is the only one. A text of several lines is printed as it is.
        """
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        with suppress(OSError):
            self._line.send(fail=text, code=code)
            time.sleep(10 * GATHER + self._beat)  # the answer ends this process
        self.end_job(text, code)

    def report(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        """A `sys.excepthook`: an exception that nothing catches ends the job, not this rank alone,
        and one rank's traceback is printed.
        """
        if issubclass(kind, KeyboardInterrupt):
            self.fail("interrupted", 130)
        self.fail("".join(traceback.format_exception(kind, error, trace)), 1)

    def close(self) -> None:
        """Leave the job: this rank has done its part."""
        if not self._closed:
            self._closed = True
            with suppress(OSError):
                self._line.send(bye=True)
            if self._hub is not None:
                self._hub.tell_all(bye=True)

    def end_job(self, text: str, code: int) -> NoReturn:
        """Say the line, if it is not empty, and end all ranks."""
        if text:
            with suppress(OSError):
                os.write(2, f"gpuconv: {text.rstrip()}\n".encode(errors="backslashreplace"))
        time.sleep(FORWARD)
        silent = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):  # MPI says that it was told to abort
            os.dup2(silent, stream)
        threading.Thread(target=self._ranks.abort, args=(code,), daemon=True).start()
        time.sleep(5)  # where MPI itself is stuck
        os._exit(code)

    def _run(self) -> None:
        unheard = -round(JOIN / self._beat)  # at first it waits for all to join
        waiting, hub_left = 0, False
        used = time.process_time()
        clock = Clock(self._beat)
        while not self._closed:
            messages = self._line.receive(clock.left()) if not hub_left else clock.sleep()
            if messages is None:
                self._hub_lost("ended unexpectedly")
            for message in messages:
                unheard = 0
                hub_left = hub_left or "bye" in message
                if "end" in message:
                    time.sleep(10 * FORWARD)  # rank 0 aborts this one before: one cause, one line
                    os._exit(message["end"])
            if not clock.struck():
                continue
            now = time.process_time()
            idle = now - used < IDLE_SHARE * self._beat and not self._waited and not self._patient
            waiting = waiting + 1 if self._waited else 0
            if hub_left and waiting > self._missed:
                self._hub_lost("has left while others wait for it")
            with suppress(OSError):  # what is received says that it has ended
                self._line.send(
                    waits=self._waited,
                    idle=idle,
                    wait=self._ranks.waits,
                    patient=self._patient > 0,
                )
            used, self._waited, unheard = now, False, unheard + 1
            if unheard > self._missed and not hub_left:
                self._hub_lost("does not answer")

    def _hub_lost(self, what: str) -> NoReturn:
        time.sleep(min(self._ranks.rank - 1, 5))  # the first one says so and ends the others
        self.end_job(f"rank 0 {what}; the job has ended{self.hint}", 2)


class _Hub(threading.Thread):
    """Rank 0's other thread: it hears the beats of all ranks, its own too, and judges."""

    def __init__(self, own: Heartbeat, server: socket.socket, token: str) -> None:
        super().__init__(name="heartbeats", daemon=True)
        self._own, self._server, self._token = own, server, token
        self._size = own._ranks.size
        self._peers: dict[int, _Peer] = {}
        self._failed: dict[int, tuple[str, int]] = {}
        self._verdict = float("inf")  # when those that failed have had time to say so
        self.start()

    def tell_all(self, **message: Any) -> None:
        """Send a message to all ranks."""
        for peer in list(self._peers.values()):
            with suppress(OSError):
                peer.line.send(**message)

    def run(self) -> None:
        self._meet()
        self.tell_all(beat=True)
        clock = Clock(self._own._beat)
        with selectors.DefaultSelector() as ready:
            for peer in self._peers.values():
                ready.register(peer.line.socket, selectors.EVENT_READ, peer)
            while not all(peer.left for peer in self._peers.values()):
                left = min(clock.left(), max(0.0, self._verdict - time.monotonic()))
                for key, _ in ready.select(left):
                    if not self._hear(key.data):
                        ready.unregister(key.fileobj)
                if self._failed and (
                    time.monotonic() >= self._verdict or len(self._failed) == self._size
                ):
                    rank, (text, code) = min(self._failed.items())
                    own = rank and text and code < INTERRUPTED
                    self._end(f"rank {rank}: {text}" if own else text, code)
                if clock.struck():
                    self._judge()

    def _meet(self) -> None:
        """Wait for all ranks; a stranger, who does not know the token, is turned away."""
        self._server.settimeout(JOIN)
        while len(self._peers) < self._size:
            try:
                line = Line(self._server.accept()[0])
            except TimeoutError:
                absent = min(set(range(self._size)) - self._peers.keys())
                self._end(f"rank {absent} has not joined the job after {JOIN:.0f} s", 2)
            hello, *others = line.receive(JOIN) or [{}]
            if hello.get("token") == self._token:
                self._peers[hello["rank"]] = peer = _Peer(line, **hello)
                self._note(peer, others)
        self._server.close()

    def _hear(self, peer: _Peer) -> bool:
        """Note what a rank says; False once it has ended."""
        messages = peer.line.receive(0)
        if messages is None:
            if not peer.left:
                self._lost(peer, "ended unexpectedly: it crashed, or it was killed")
            return False
        self._note(peer, messages)
        return True

    def _note(self, peer: _Peer, messages: list[dict[str, Any]]) -> None:
        for message in messages:
            peer.unheard = 0
            peer.left = peer.left or "bye" in message
            if "fail" in message:
                self._failed[peer.rank] = message["fail"], message["code"]
                self._verdict = min(self._verdict, time.monotonic() + GATHER)
            peer.waits = message.get("waits", peer.waits)
            peer.idle = message.get("idle", peer.idle)
            peer.wait = message.get("wait", peer.wait)
            peer.patient = message.get("patient", peer.patient)

    def _judge(self) -> None:
        peers = sorted(self._peers.values(), key=lambda peer: peer.rank)
        awaited = any(peer.waits for peer in peers if not peer.left)
        for_long = any(peer.waits and peer.wait == peer.last for peer in peers if not peer.left)
        self.tell_all(beat=True)
        for peer in peers:
            peer.unheard = 0 if peer.left else peer.unheard + 1
            peer.absent = peer.absent + 1 if peer.left and awaited else 0
            peer.stuck = peer.stuck + 1 if peer.idle and awaited else 0
            works = for_long and not (peer.waits or peer.patient or peer.left)
            peer.worked = peer.worked + 1 if works else 0
            peer.last = peer.wait
        for peer in peers:
            if peer.unheard > self._own._missed:
                self._lost(peer, "does not answer: it was stopped, or its machine is gone")
            if peer.absent > self._own._missed:
                self._lost(peer, "has left while others wait for it")
            if peer.stuck > self._own._idle:
                self._lost(peer, "hangs: it does nothing while others wait for it")
            if peer.worked > self._own._busy:
                minutes = self._own._busy * self._own._beat / 60
                self._lost(peer, f"has let others wait for {minutes:.0f} minutes, busy by itself")

    def _lost(self, peer: _Peer, what: str) -> NoReturn:
        who = f"rank {peer.rank} (process {peer.process} on {peer.host})"
        self._end(f"{who} {what}; the job has ended{self._own.hint}", 2)

    def _end(self, text: str, code: int) -> NoReturn:
        self._peers.pop(0, None)  # that is this process
        self.tell_all(end=code)
        self._own.end_job(text, code)


@dataclass
class _Peer:
    """A rank as rank 0 sees it; counts are of beats in a row."""

    line: Line
    rank: int
    token: str
    process: int
    host: str
    unheard: int = 0
    waits: bool = False  # for other ranks
    idle: bool = False
    patient: bool = False
    wait: int = 0  # the number of its last wait
    last: int = -1  # that of a beat before
    stuck: int = 0  # idle while others wait
    worked: int = 0  # while others were in one wait
    absent: int = 0  # it has left, and others wait
    left: bool = False
