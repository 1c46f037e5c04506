"""What the page asks for, by path: each route reads its question and puts it to the session."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.page.monitor import Busy, TrainingMonitor
from gpuconv.page.request_checks import Refused
from gpuconv.page.session import Missing

if TYPE_CHECKING:
    from gpuconv.page.server import PageServer

JSON, BYTES = "application/json", "application/octet-stream"
MAX_JSON, MAX_PICTURE = 4 << 20, 16 << 20  # bytes
Query = Mapping[str, str]


class Stream:
    """Server-sent events; `close` when nobody listens any more."""

    def __init__(self, events: Generator[bytes, None, None]) -> None:
        self._events = events

    def __iter__(self) -> Iterator[bytes]:
        return self._events

    def close(self) -> None:
        self._events.close()


@dataclass(frozen=True)
class Post:
    """A route that takes a body: of which type, of at most how many bytes."""

    answer: Callable[[PageServer, bytes], Any]
    type: str = JSON
    most: int = MAX_JSON


def _model(server: PageServer, given: Query) -> Any:
    return server.session.describe() | {"training": server.monitor is not None}


def _maps(server: PageServer, given: Query) -> Any:
    return server.session.maps(_text(given, "run"), _int(given, "layer"), _int(given, "first"))


def _node(server: PageServer, given: Query) -> Any:
    index = tuple(_whole("index", part) for part in _text(given, "index").split(","))
    return server.session.node(_text(given, "run"), _int(given, "layer"), index)


def _filters(server: PageServer, given: Query) -> Any:
    return server.session.filters(_int(given, "layer"), _text(given, "when"))


def _explanation(server: PageServer, given: Query) -> Any:
    arguments = _text(given, "run"), _text(given, "method"), _int(given, "target")
    return server.session.explanation(*arguments)


def _patches(server: PageServer, given: Query) -> Any:
    return server.session.patches(_int(given, "layer"), _int(given, "filter"))


def _sample(server: PageServer, given: Query) -> Any:
    return server.session.sample(_int(given, "index"))


def _run(server: PageServer, body: bytes) -> Any:
    found = _object(body)
    try:
        content = base64.b64decode(_field(found, "pixels", str), validate=True)
    except binascii.Error as error:
        raise ValueError(f"pixels: not base64: {error}") from None
    shape = _field(found, "shape", list)
    if len(shape) != 3 or not all(type(side) is int and 0 < side < 10_000 for side in shape):
        raise ValueError("shape must be [channels, height, width]")
    if len(content) != shape[0] * shape[1] * shape[2]:
        raise ValueError(f"pixels has {len(content)} bytes, shape says {shape}")
    return server.session.run(np.frombuffer(content, np.uint8).reshape(shape))


def _picture(server: PageServer, body: bytes) -> Any:
    return server.session.read_picture(body)


def _training(server: PageServer, given: Query) -> Any:
    return _monitor(server).snapshot()


def _events(server: PageServer, given: Query) -> Any:
    try:
        return Stream(_monitor(server).events())
    except Busy as busy:
        raise Refused(503, str(busy)) from None


def _command(server: PageServer, body: bytes) -> Any:
    found = _object(body)
    return _monitor(server).command(_field(found, "action", str), found.get("rate"))


def _monitor(server: PageServer) -> TrainingMonitor:
    if server.monitor is None:
        raise Missing("there is no run here; `gpuconv train --show` has one")
    return server.monitor


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError as error:
        raise ValueError(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise ValueError("the body's JSON is too deep") from None
    if not isinstance(found, dict):
        raise ValueError(f"the body must be a JSON object, got a {type(found).__name__}")
    return found


def _field(found: Mapping[str, Any], name: str, kind: type) -> Any:
    if not isinstance(found.get(name), kind):
        raise ValueError(f"{name} must be a {kind.__name__}")
    return found[name]


def _text(given: Query, name: str) -> str:
    if name not in given:
        raise Refused(400, f"the question lacks {name}")
    return given[name]


def _int(given: Query, name: str) -> int:
    return _whole(name, _text(given, name))


def _whole(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError(f"{name} must be a whole number, got {text[:40]!r}")
    return int(text)


GET: dict[str, Callable[[PageServer, Query], Any]] = {
    "/api/model": _model,
    "/api/maps": _maps,
    "/api/node": _node,
    "/api/filters": _filters,
    "/api/explanation": _explanation,
    "/api/patches": _patches,
    "/api/sample": _sample,
    "/api/training": _training,
    "/api/events": _events,
}
POST: dict[str, Post] = {
    "/api/run": Post(_run),
    "/api/training": Post(_command),
    "/api/picture": Post(_picture, BYTES, MAX_PICTURE),
}
