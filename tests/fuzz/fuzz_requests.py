"""Requests to the page: wrong lines, headers, bodies, questions and pictures.

Right is a whole answer with a proper status, 2xx or one line of 4xx (503 where the server says that
it is busy), within SECONDS and BYTES; a request that was cut off may be closed without an answer.
A server process is forked for every hundred requests.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import resource
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fuzz_pictures import changed_picture
from harness import BYTES, CONTROLS, SECONDS, Outcome, write_files
from mutations import NAMES, NUMBERS, damaged, deep_json, mutated, odd_value
from stage import Stage

STATUSES = {200, 400, 403, 404, 405, 408, 411, 413, 414, 415, 417, 431, 501, 503}
PATHS = {
    "/": {}, "/page.js": {}, "/api/model": {}, "/api/training": {}, "/api/events": {},
    "/api/maps": {"run": "1", "layer": "1", "first": "0"},
    "/api/weights": {"layer": "1", "channel": "0"},
    "/api/filters": {"layer": "1", "when": "now"},
    "/api/explanation": {"run": "1", "method": "grad-cam", "target": "1"},
    "/api/patches": {"layer": "1", "filter": "0"},
    "/api/sample": {"index": "0"},
}  # fmt: skip
JSON = "application/json"
METHODS = ("HEAD", "PUT", "OPTIONS", "CONNECT", "get", "G\0T", "X" * 9000, "", "PRI")
VERSIONS = (
    "HTTP/1.0",
    "HTTP/0.9",
    "HTTP/2.0",
    "HTTP/1.x",
    "FTP/1.1",
    "HTTP/1.1 x",
    "",
    "HTTP/9" * 99,
)
ODD = (
    *(str(number)[:400] for number in NUMBERS),
    *("1e3", "\u0663", "0x1", "+1", " 1", "1,1", "1,2,3,4", "a" * 9000),
)
ENDS = ("/../../etc/passwd", "/%2e%2e/%2e%2e", "//", "\\..", "%00", ";x", "#x", "?", "/~root")


@dataclass(frozen=True)
class Request:
    """The bytes to send, and whether they are a whole request."""

    content: bytes
    whole: bool = True
    held: int = 0


def request(stage: Stage, number: int, host: str) -> Request:
    """A request; host: the server's own."""
    rng = random.Random(f"requests {number}")
    method, target, kind, body, held = _asked(rng)
    headers = [("Host", host)]
    if kind:
        headers += [("Content-Type", kind), ("Content-Length", str(len(body)))]
    if rng.random() < 0.2:
        _change_headers(headers, rng)
    version = "HTTP/1.1" if rng.random() < 0.95 else rng.choice(VERSIONS)
    ending = "\r\n" if rng.random() < 0.95 else rng.choice(("\n", "\r", "\r\n\0"))
    lines = [f"{method} {target} {version}", *(f"{name}: {value}" for name, value in headers)]
    head = (ending.join(lines) + ending * 2).encode("latin-1", "replace")
    change = rng.random()
    if change < 0.05:
        return Request(damaged(head, rng) + body, whole=False, held=held)
    if change < 0.1:
        return Request((head + body)[: rng.randrange(len(head + body))], whole=False)
    if change < 0.15:
        return Request((head + body) * 2, held=held)  # one after the other on one connection
    return Request(head + body, held=held)


def _asked(rng: random.Random) -> tuple[str, str, str, bytes, int]:
    """The method, the target, the body's type or "", the body, and what it holds once decoded."""
    kind = rng.randrange(10)
    if kind < 4:
        return "GET", _question(rng), "", b"", 0
    if kind == 4:
        size = rng.choice((784, 784, 784, 3072, 783, 0))
        return "POST", "/api/run", "application/octet-stream", rng.randbytes(size), 0
    if kind == 5:
        return "POST", "/api/values", JSON, _values_body(rng), 0
    if kind < 8:
        _, picture, held = changed_picture(rng)
        return "POST", "/api/picture", "application/octet-stream", picture, held
    if kind == 8:
        actions = ("start", "pause", "stop", "rate", "step", "", *NAMES)
        found = mutated({"action": rng.choice(actions), "rate": odd_value(rng)}, rng)
        return "POST", "/api/training", JSON, json.dumps(found).encode(), 0
    return rng.choice(METHODS), rng.choice(list(PATHS)), "", b"", 0


def _question(rng: random.Random) -> str:
    path = rng.choice(list(PATHS))
    given = dict(PATHS[path])
    for name in list(given):
        if rng.random() < 0.25:
            given[name] = rng.choice((*ODD, *NAMES))
        elif rng.random() < 0.3 and given[name].isdigit():
            given[name] = str(rng.randrange(12))
        elif rng.random() < 0.1:
            del given[name]
    pairs = [f"{name}={_quoted(value, rng)}" for name, value in given.items()]
    if rng.random() < 0.1:
        pairs += rng.choice((["x" * 70_000], ["a=1"] * 3000, ["%"], ["=&=&;"], ["layer=1&layer=2"]))
    if rng.random() < 0.15:
        path = rng.choice(("http://evil/", "//evil", "*", "", path)) + rng.choice(ENDS)
    return path + ("?" + "&".join(pairs) if pairs else "")


def _quoted(value: str, rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.1:
        return value.replace(" ", "+")
    return quote(value, safe=",-" if kind < 0.5 else "", errors="surrogatepass")


def _values_body(rng: random.Random) -> bytes:
    window = {"from": rng.randrange(14), "channels": [0, 1], "top": -1, "left": 2, "rows": 5}
    window |= {"columns": rng.choice((1, 5, 1 << 21)), "dilation": [1, 2]}
    found = {"run": "1", "windows": [window] * rng.choice((1, 2, 16, 17))}
    kind = rng.randrange(5)
    if kind == 0:
        return json.dumps(found).encode()
    if kind == 1:
        return deep_json(found, rng).encode()
    if kind == 2:
        return damaged(json.dumps(found).encode(), rng)
    return json.dumps(mutated(found, rng)).encode()


HEADERS = (
    ("Origin", "null"),
    ("Origin", "http://evil"),
    ("Origin", "http://[::1"),
    ("Origin", "//"),
    ("Sec-Fetch-Site", "cross-site"),
    ("Transfer-Encoding", "chunked"),
    ("Expect", "100-continue"),
    ("Expect", "x"),
    ("Connection", "close"),
    ("Connection", "Upgrade"),
    ("Range", "bytes=0-1"),
    ("Accept-Encoding", "gzip"),
    ("Cookie", "x" * 60_000),
    ("Content-Encoding", "gzip"),
)
VALUES = (
    *("", " ", "[", "-1", "0", "1e9", "99999999999", "5, 5", "\xb2", "127.1", "x" * 70_000),
    *("evil.example", "127.0.0.1", "[::1]", "text/plain", "application/json;charset=utf-7"),
)


def _change_headers(headers: list[tuple[str, str]], rng: random.Random) -> None:
    kind = rng.randrange(7)
    place = rng.randrange(len(headers))
    name, value = headers[place]
    if kind == 0:
        del headers[place]
    elif kind == 1:
        headers[place] = name, rng.choice(VALUES)
    elif kind == 2:
        headers.append((name, rng.choice((value, "1", "evil"))))
    elif kind == 3:
        headers.append(rng.choice(HEADERS))
    elif kind == 4:
        headers += [(f"X-{i}", "y") for i in range(rng.choice((50, 99, 101, 2000)))]
    elif kind == 5:
        odd = (("", "x"), (" folded", "x"), ("No colon\r\n", ""), ("\0", "\0"))
        headers.insert(place, rng.choice(odd))
    else:
        headers[place] = name + rng.choice((" ", "\t", "\r")), value


# ---- server -------------------------------------------------------------------------------------


class Server:
    """The page's server in a process of its own. Use it in a with statement."""

    def __init__(self, stage: Stage, number: int) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="gpuconv-fuzz-")
        place = Path(self._place.name)
        self._stderr = place / "stderr"
        run = ("done", "colour")[number % 2]
        write_files(place, {**stage.runs[run], **stage.digits, **stage.shapes})
        reading, writing = os.pipe()
        self.process = os.fork()
        if not self.process:
            os.close(reading)
            _serve(place, run, bool(number % 4 > 1), writing)
        os.close(writing)
        with open(reading) as announced:
            self.port = int(announced.read() or 0)
        if not self.port:
            raise RuntimeError(f"the page's server did not start: {self._stderr.read_text()}")
        self.ended, self._said = False, 0

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.ended:
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
        self._place.cleanup()

    def ask(self, content: bytes) -> bytes:
        """What the server says to some bytes, until it or we have said all."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=4 * SECONDS) as connection:
            received = bytearray()
            try:
                connection.sendall(content)
                connection.shutdown(socket.SHUT_WR)
                while part := connection.recv(1 << 20):
                    received += part
                    if b"text/event-stream" in received[:1000]:
                        break  # it has no end
            except TimeoutError:
                raise
            except OSError:
                pass  # it has refused the rest, and closed the connection
            return bytes(received)

    def problem(self) -> str:
        """What is wrong with the process itself, or nothing."""
        found, status = os.waitpid(self.process, os.WNOHANG)
        if found:
            self.ended = True
            return f"the server ended with {os.waitstatus_to_exitcode(status)}"
        said = self._stderr.read_text(errors="replace")
        new, self._said = said[self._said :], len(said)
        return f"the server said {new[:1000]!r}" if new else ""

    def peak(self) -> int:
        """The most memory that the process has used since `forget_peak`: bytes."""
        return _status(self.process, "VmHWM")

    def forget_peak(self) -> int:
        """Begin to count anew; the memory in use."""
        Path(f"/proc/{self.process}/clear_refs").write_text("5")
        return _status(self.process, "VmRSS")


def _status(process: int, name: str) -> int:
    text = Path(f"/proc/{process}/status").read_text()
    found = re.search(rf"{name}:\s*(\d+) kB", text)
    return int(found[1]) * 1024 if found else 0


def _serve(place: Path, run: str, training: bool, writing: int) -> None:
    """Serve in this forked process; never returns."""
    try:
        os.chdir(place)
        os.dup2(os.open("stderr", os.O_WRONLY | os.O_CREAT, 0o644), 2)
        import sys

        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        from gpuconv.cli.output import tidy_output
        from gpuconv.page.monitor import TrainingMonitor
        from gpuconv.page.opening import open_session
        from gpuconv.page.server import PageServer

        session = open_session(f"runs/{run}/best.safetensors")
        session.warm_up()
        monitor = TrainingMonitor(session, [], "nothing") if training else None  # type: ignore[arg-type]
        server = PageServer(session, monitor=monitor)
        os.write(writing, str(server.server_address[1]).encode())
        os.close(writing)
        with tidy_output():  # as the command has it
            server.serve_forever()
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(1)


def run_requests(stage: Stage, numbers: Sequence[int]) -> Iterator[Outcome]:
    """Send requests to one server and judge each answer."""
    with Server(stage, numbers[0] // 100) as server:
        host = f"127.0.0.1:{server.port}"
        server.ask(f"GET /api/model HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        for number in numbers:
            sent = request(stage, number, host)
            for _ in range(3):
                idle = server.forget_peak()
                begun = time.monotonic()
                try:
                    received = server.ask(sent.content)
                except TimeoutError:
                    received = b""
                seconds = time.monotonic() - begun
                if seconds <= SECONDS or server.ended:
                    break
            problem = server.problem()
            memory = 0 if server.ended else max(0, server.peak() - idle)
            statuses, wrong = _judged(received, sent.whole)
            problem = problem or wrong
            if not problem and seconds > SECONDS:
                problem = f"took {seconds:.1f} s"
            if not problem and memory > BYTES + sent.held + len(sent.content):
                problem = f"took {memory >> 20} MB"
            shown = f"{sent.content[:600]!r}\n{received[:600]!r}"
            answered = statuses[:1] == [200]
            yield Outcome(f"requests {number}", answered, seconds, memory, problem, shown)
            if server.ended:
                return


def _judged(received: bytes, whole: bool) -> tuple[list[int], str]:
    """The statuses of the answers, and what is wrong with them, or nothing."""
    statuses: list[int] = []
    rest = received
    while rest:
        head, parted, rest = rest.partition(b"\r\n\r\n")
        line, *headers = head.decode("latin-1").split("\r\n")
        found = re.fullmatch(r"HTTP/1\.1 (\d{3}) [\x20-\x7e]*", line)
        if not parted or found is None:
            return statuses, f"an answer that is no HTTP: {line[:200]!r}"
        status = int(found[1])
        if status == 100:
            continue
        statuses.append(status)
        if status not in STATUSES:
            return statuses, f"status {status}"
        fields = {
            name.lower(): value for name, _, value in (each.partition(": ") for each in headers)
        }
        kind = fields.get("content-type", "")
        if kind == "text/event-stream":
            return statuses, ""
        length = int(fields.get("content-length", -1))
        body, rest = rest[:length], rest[length:]
        if length < 0 or len(body) < length:
            return statuses, f"an answer of {len(body)} bytes that says {length}"
        if wrong := _wrong_body(status, kind, body):
            return statuses, wrong
    if whole and not statuses:
        return statuses, "no answer"
    return statuses, ""


def _wrong_body(status: int, kind: str, body: bytes) -> str:
    if kind == JSON:
        try:
            json.loads(body, parse_constant=_no_constant)
        except ValueError as error:
            return f"an answer that is no JSON: {error}"
    elif status != 200:
        text = body.decode()
        if text.count("\n") > 1 or CONTROLS.intersection(text) or "Traceback" in text:
            return f"a refusal that is not one line: {text[:200]!r}"
    return ""


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
