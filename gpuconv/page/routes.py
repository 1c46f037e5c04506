"""What the page asks for, by path: each route reads its question and puts it to the session."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import numpy as np

from gpuconv.page.description import Part
from gpuconv.page.monitor import TrainingMonitor
from gpuconv.page.session import Missing, Session

if TYPE_CHECKING:
    from gpuconv.page.server import PageServer

JSON, BYTES = "application/json", "application/octet-stream"
MOST_BYTES = {JSON: 4 << 20, BYTES: 16 << 20}  # of a body of that type
MAX_PARTS = 16  # that one question asks for
WINDOW = ("from", "channels", "top", "left", "rows", "columns", "dilation")


def _whole(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError(f"{name} must be a whole number, got {text[:40]!r}")
    return int(text)


# By path: a method of the session, and its arguments by their names, numbers but for WORDS.
QUESTIONS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "/api/maps": (Session.maps, ("run", "layer", "first")),
    "/api/weights": (Session.weights, ("layer", "channel")),
    "/api/filters": (Session.filters, ("layer", "when")),
    "/api/explanation": (Session.explanation, ("run", "method", "target")),
    "/api/patches": (Session.patches, ("layer", "filter")),
    "/api/sample": (Session.sample, ("index",)),
}
WORDS = ("run", "when", "method")


def ask(server: PageServer, path: str, query: str) -> Any:
    """The answer to a GET: a dict for JSON, or a generator of server-sent events."""
    if path == "/api/model":
        return server.session.describe() | {"training": server.monitor is not None}
    if path == "/api/training":
        return _monitor(server).snapshot()
    if path == "/api/events":
        return _monitor(server).events()
    if path not in QUESTIONS:
        raise Missing(f"there is nothing at {path[:80]!r}")
    method, names = QUESTIONS[path]
    given = {name: values[-1] for name, values in parse_qs(query).items()}
    for name in names:
        if name not in given:
            raise ValueError(f"the question lacks {name}")
    read = (given[name] if name in WORDS else _whole(name, given[name]) for name in names)
    return method(server.session, *read)


def _run(server: PageServer, body: bytes) -> Any:
    shape = server.session.preprocessing.image_shape
    if len(body) != math.prod(shape):
        raise ValueError(
            f"a picture of shape {shape} has {math.prod(shape)} bytes, got {len(body)}"
        )
    return server.session.run(np.frombuffer(body, np.uint8).reshape(shape))


def _values(server: PageServer, body: bytes) -> Any:
    found = _object(body)
    windows = _field(found, "windows", list)
    if len(windows) > MAX_PARTS:
        raise ValueError(f"at most {MAX_PARTS} windows at a time, got {len(windows)}")
    return server.session.values(_field(found, "run", str), [_part(each) for each in windows])


def _part(window: Any) -> Part:
    if not isinstance(window, dict) or set(window) != set(WINDOW):
        raise ValueError(f"a window needs {', '.join(WINDOW)}")
    part = Part(*(window[name] for name in WINDOW))
    numbers = (part.number, part.top, part.left, part.rows, part.columns)
    if len(part.dilation) != 2 or not all(
        type(n) is int and abs(n) < 1 << 30 for n in (*numbers, *part.channels, *part.dilation)
    ):
        raise ValueError("a window has whole numbers")
    return part


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
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"the body must be a JSON object, got a {type(found).__name__}")
    return found


def _field(found: Mapping[str, Any], name: str, kind: type) -> Any:
    if not isinstance(found.get(name), kind):
        raise ValueError(f"{name} must be a {kind.__name__}")
    return found[name]


def _picture(server: PageServer, body: bytes) -> Any:
    return server.session.read_picture(body)


# By path: what answers, and the type of the body.
POST: dict[str, tuple[Callable[[PageServer, bytes], Any], str]] = {
    "/api/run": (_run, BYTES),
    "/api/values": (_values, JSON),
    "/api/training": (_command, JSON),
    "/api/picture": (_picture, BYTES),
}
