"""The page's server: standard library, this machine only unless asked otherwise.

Each connection has a thread, and there are at most MAX_CLIENTS. What is wrong in a request gets a
4xx and one line; nothing a client sends ends the server. Files are served from a fixed table, so
there is no path to escape from.
"""

from __future__ import annotations

import errno
import queue
import signal
import socket
import threading
import time
from collections.abc import Generator
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from gpuconv.errors import printable
from gpuconv.page import request_checks
from gpuconv.page.assets import CONTENT_SECURITY_POLICY, assets
from gpuconv.page.description import to_json
from gpuconv.page.monitor import TrainingMonitor
from gpuconv.page.request_checks import Refused
from gpuconv.page.routes import MOST_BYTES, POST, ask
from gpuconv.page.session import Gone, Missing, Session

MAX_CLIENTS = 32
REQUEST_SECONDS = 20  # for a request, from its first byte to its last; until the first; to answer
ROOM_SECONDS = 2  # for a connection that was closed to make room
LINGER_SECONDS = 1  # that a refused client may go on talking
POLL_SECONDS = 0.1  # until the server notices that it shall end
PORTS_TRIED = 50
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class PageServer(ThreadingHTTPServer):
    """Serves a `Session` at http://HOST:PORT/. monitor: follows a training run, None without one.

    Raises OSError in one line where no port from `port` on is free. port 0 takes any free one.

    >>> server = PageServer(session, port=0)  # doctest: +SKIP
    >>> threading.Thread(target=server.serve_forever, daemon=True).start()  # doctest: +SKIP
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self,
        session: Session,
        host: str = "127.0.0.1",
        port: int = 0,
        monitor: TrainingMonitor | None = None,
    ) -> None:
        self.session, self.host, self.monitor = session, host, monitor
        self._clients = threading.BoundedSemaphore(MAX_CLIENTS)
        self._lock = threading.Lock()
        # Connections whose request has not come whole, by the time since when they have waited.
        self._waiting: dict[socket.socket, float] = {}
        if ":" in host:
            self.address_family = socket.AF_INET6
        last = min(port + PORTS_TRIED, 65536) - 1
        for tried in range(port, last + 1):
            try:
                super().__init__((host, tried), Handler)
                return
            except OSError as error:
                if error.errno != errno.EADDRINUSE or tried == last:
                    reason = (error.strerror or str(error)).lower()
                    raise type(error)(f"show: cannot listen on {host}:{tried}: {reason}") from None

    @property
    def url(self) -> str:
        """The page's address."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.server_address[1]}/"

    def waits(self, connection: socket.socket) -> None:
        """A connection begins to wait for its next request."""
        with self._lock:
            self._waiting[connection] = time.monotonic()

    def begins(self, connection: socket.socket) -> None:
        """Its request begins to come, and has its time from now on."""
        with self._lock:
            if connection in self._waiting:
                self._waiting[connection] = time.monotonic()

    def answers(self, connection: socket.socket) -> None:
        """A connection's request has come whole. ConnectionError if it was to make room."""
        with self._lock:
            if self._waiting.pop(connection, None) is None:
                raise ConnectionAbortedError("closed to make room for another client")

    def _make_room(self) -> bool:
        """Close the connection that has waited longest for its request; False if none waits.

        A browser whose connection is gone opens another.
        """
        with self._lock:
            if not self._waiting:
                return False
            self._close(min(self._waiting, key=self._waiting.__getitem__))
        return True

    def service_actions(self) -> None:
        """Close, now and then, connections whose request takes too long: a timeout of the socket
        alone counts anew with every byte.
        """
        with self._lock:
            late = time.monotonic() - REQUEST_SECONDS
            for connection in [each for each, since in self._waiting.items() if since < late]:
                self._close(connection)

    def _close(self, connection: socket.socket) -> None:
        del self._waiting[connection]
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        free = self._clients.acquire(blocking=False)
        if not free and self._make_room():
            free = self._clients.acquire(timeout=ROOM_SECONDS)
        if not free:
            with suppress(OSError):
                request.settimeout(1)
                request.sendall(BUSY)
            self.shutdown_request(request)
            return
        self.waits(request)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._waiting.pop(request, None)
            self._clients.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away or stalled is no error of ours; its thread just ends."""


def announce(server: PageServer, port: int, hint: str) -> None:
    """Print the page's address. port: the one that was asked for."""
    if port not in (0, server.server_address[1]):
        print(f"port {port} is busy; taking the next free one")
    if not request_checks.is_loopback(server.host):
        print(f"listening on {server.host}: anybody who reaches this address can use the page")
    print(f"{server.session.title}: {server.url} ({hint})", flush=True)


def serve(session: Session, host: str = "127.0.0.1", port: int = 8123) -> None:
    """Serve a session's page until Ctrl-C, at the port or the next free one.

    Prints the address once requests are answered and Ctrl-C is caught, so that whoever reads it may
    use either at once. Raises OSError where no port is free.
    """
    interrupts: queue.SimpleQueue[None] = queue.SimpleQueue()  # whose put a handler may call
    in_main = threading.current_thread() is threading.main_thread()  # elsewhere Ctrl-C never comes
    with PageServer(session, host, port) as server:
        threading.Thread(target=server.serve_forever, args=(POLL_SECONDS,), daemon=True).start()
        if in_main:
            before = signal.signal(signal.SIGINT, lambda *_: interrupts.put(None))
        try:
            announce(server, port, "Ctrl-C ends")
            interrupts.get()
        finally:
            server.shutdown()
            if in_main:
                signal.signal(signal.SIGINT, before)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: PageServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "gpuconv", ""
    timeout = REQUEST_SECONDS
    disable_nagle_algorithm = True

    def handle_one_request(self) -> None:
        try:
            self.server.waits(self.connection)
            if not self.rfile.peek(1):  # type: ignore[attr-defined]
                self.close_connection = True
                return
            self.server.begins(self.connection)
            super().handle_one_request()
        except (OSError, ValueError):  # went away, stalled, or closed in the middle of an answer
            self.close_connection = True

    def finish(self) -> None:
        """End the connection once the client has said all, or after a moment: what is left unread
        would reset it, and the client might not get to read why it was refused.
        """
        super().finish()
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(LINGER_SECONDS)
            until = time.monotonic() + LINGER_SECONDS
            while self.connection.recv(1 << 16) and time.monotonic() < until:
                pass

    def do_GET(self) -> None:
        self._guarded(self._get)

    def do_POST(self) -> None:
        self._guarded(self._post)

    def _guarded(self, answer: Any) -> None:
        """Answer, or say in one line why not."""
        try:
            request_checks.check_headers(self.headers, self.server.host)
            answer()
        except Refused as refused:
            self.close_connection = True  # its body, if any, has not been read
            self._say(refused.status, str(refused))
        except Gone as gone:  # no fault of the page: it sends the picture again
            self._answer({"gone": str(gone)})
        except Missing as missing:
            self._say(HTTPStatus.NOT_FOUND, str(missing))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            self._say(HTTPStatus.BAD_REQUEST, str(error) or "bad request")
        except NotImplementedError as error:  # a layer of one's own, without a way back
            self._say(HTTPStatus.NOT_IMPLEMENTED, str(error))
        except MemoryError:
            self._say(HTTPStatus.INSUFFICIENT_STORAGE, "there is not enough memory for this")

    def _get(self) -> None:
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            raise Refused(400, "a GET has no body")
        self.server.answers(self.connection)
        asked = urlsplit(self.path)
        if asked.path in assets():
            self._send(HTTPStatus.OK, *assets()[asked.path])
            return
        found = ask(self.server, asked.path, asked.query)
        if isinstance(found, Generator):
            self._stream(found)
        else:
            self._answer(found)

    def _post(self) -> None:
        path = urlsplit(self.path).path
        if path not in POST:
            raise Refused(404, f"there is nothing at {path[:80]!r}")
        answer, kind = POST[path]
        request_checks.check_type(self.headers.get("Content-Type"), kind)
        length = request_checks.body_length(self.headers, MOST_BYTES[kind])
        body = self.rfile.read(length)
        if len(body) < length:
            raise Refused(400, f"the body ended after {len(body)} of {length} bytes")
        self.server.answers(self.connection)
        self._answer(answer(self.server, body))

    def _answer(self, found: Any) -> None:
        self._send(HTTPStatus.OK, "application/json", to_json(found))

    def _stream(self, events: Generator[bytes, None, None]) -> None:
        """Server-sent events until the client goes or the events end."""
        self.close_connection = True
        self.send_response(HTTPStatus.OK)
        self._headers("text/event-stream", None)
        try:
            for event in events:
                self.wfile.write(event)
        finally:
            events.close()

    def _send(self, status: int, kind: str, content: bytes) -> None:
        self.request_version = self.protocol_version  # 0.9, of a client's, would have no headers
        self.send_response(status)
        self._headers(kind, len(content))
        self.wfile.write(content)

    def _headers(self, kind: str, length: int | None) -> None:
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        if length is not None:
            self.send_header("Content-Length", str(length))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def _say(self, status: int, text: str) -> None:
        line = printable(" ".join(text.split())) + "\n"  # a client's words may hold anything
        self._send(status, "text/plain; charset=utf-8", line.encode(errors="replace"))

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """The base class's own refusals (bad lines, unknown methods), as one line too."""
        self.close_connection = True
        text = (message or HTTPStatus(code).phrase).encode("ascii", "replace").decode()
        status = {501: HTTPStatus.METHOD_NOT_ALLOWED, 505: HTTPStatus.BAD_REQUEST}.get(code, code)
        self._say(status, text[:200])

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal belongs to the command."""
