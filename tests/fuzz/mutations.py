"""Changes of JSON and of bytes that know what they change. All draw from one random.Random."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

HUGE = (2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64, 10**12, 10**30, 10**400)
NUMBERS = (*HUGE, -1, 0, 1, 2, 7, 255, 0.5, -0.0, 1e-320, 1e308, -1e308)
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))
NAMES = (
    "",
    " ",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "a\nb",
    "a\tb\r",
    "\0",
    "\x9b1m",
    "\ud800",
    "\udcff\udc80",
    "犬",
    "é" * 50,
    "\u202eevil",
    "../../etc/passwd",
    "/dev/zero",
    "x" * 3000,
    "{0.__class__}",
    "%s%n",
    "[bold]markup[/bold]",
    "[/]",
    "__metadata__",
    "optimizer/momentum.0",
    "-1",
    "1e999",
    "nan",
    "None",
    "true",
    "__class__",
    "lenet",
    "resnet18",
    "mnist",
)


def odd_value(rng: random.Random) -> Any:
    """A value that no key expects, or only one of another kind."""
    kind = rng.randrange(8)
    if kind < 2:
        return rng.choice(NUMBERS)
    if kind == 2:
        return rng.choice(NOT_FINITE)
    if kind == 3:
        return rng.choice(NAMES)
    if kind == 4:
        return rng.choice((None, True, False, [], {}, [[]], [None], {"": None}))
    if kind == 5:
        return [rng.choice(NUMBERS) for _ in range(rng.choice((1, 2, 3, 4, 50)))]
    if kind == 6:
        return {rng.choice(NAMES): rng.choice(NUMBERS), "name": rng.choice(NAMES)}
    return nested(rng.choice((3, 30, 200)), rng.choice(("list", "dict")))


def nested(depth: int, kind: str) -> Any:
    """Lists in lists, or dicts in dicts."""
    value: Any = 0
    for _ in range(depth):
        value = [value] if kind == "list" else {"a": value}
    return value


def mutated(value: Any, rng: random.Random, times: int | None = None) -> Any:
    """A copy of what JSON holds, changed in one or a few places."""
    root = [copy.deepcopy(value)]
    for _ in range(times or rng.choice((1, 1, 1, 2, 3, 8))):
        places = list(_places(root))
        holder, key = rng.choice(places)
        rng.choice(_CHANGES)(holder, key, rng, places)
    return root[0]


def deep_json(value: Any, rng: random.Random) -> str:
    """The JSON of a value, with a part of it nested more deeply than a parser's stack."""
    marker = "\x00deep"
    root = [copy.deepcopy(value)]
    holder, key = rng.choice(list(_places(root)))
    holder[key] = marker
    depth = rng.choice((900, 2000, 100_000))
    opening, closing = rng.choice((("[", "]"), ('{"a":', "}")))
    return json.dumps(root[0]).replace(
        json.dumps(marker), opening * depth + "0" + closing * depth, 1
    )


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in it, the outermost first."""
    if isinstance(value, dict):
        keys: Any = list(value)
    elif isinstance(value, list):
        keys = range(min(len(value), 20))
    else:
        return
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _replace(holder: Any, key: Any, rng: random.Random, places: list) -> None:
    holder[key] = odd_value(rng)


def _delete(holder: Any, key: Any, rng: random.Random, places: list) -> None:
    if isinstance(holder, dict):
        del holder[key]
    else:
        holder[key] = None


def _rename(holder: Any, key: Any, rng: random.Random, places: list) -> None:
    if isinstance(holder, dict):
        holder[rng.choice((*NAMES, f"{key}2", key.upper(), f"{key} "))] = holder.pop(key)
    else:
        holder[key] = [holder[key]]


def _swap(holder: Any, key: Any, rng: random.Random, places: list) -> None:
    other, its = rng.choice(places)
    holder[key] = copy.deepcopy(other[its]) if its in _keys(other) else None


def _extend(holder: Any, key: Any, rng: random.Random, places: list) -> None:
    value = holder[key]
    if isinstance(value, list):
        value += [odd_value(rng)] if rng.random() < 0.5 else value[:5] * rng.choice((1, 100))
    elif isinstance(value, dict):
        value[rng.choice(NAMES)] = odd_value(rng)
    elif isinstance(value, str):
        holder[key] = value + rng.choice(NAMES)
    else:
        holder[key] = [value]


def _rescale(holder: Any, key: Any, rng: random.Random, places: list) -> None:
    value = holder[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        holder[key] = rng.choice(NUMBERS)
        return
    changes: tuple[Callable[[], Any], ...] = (
        lambda: -value,
        lambda: value + 1,
        lambda: value - 1,
        lambda: int(value) * 10**9,
        lambda: float(value),
        lambda: str(value),
        lambda: value == 1,
        lambda: rng.choice(HUGE),
    )
    holder[key] = rng.choice(changes)()


_CHANGES = (_replace, _replace, _delete, _rename, _swap, _extend, _rescale, _rescale)


def _keys(holder: Any) -> Any:
    return holder if isinstance(holder, dict) else range(len(holder))


def damaged(content: bytes, rng: random.Random, first: int = 0) -> bytes:
    """Bytes flipped, cut out, doubled, or cut off, from `first` on."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        if len(data) <= first:
            break
        place = rng.randrange(first, len(data))
        kind = rng.randrange(6)
        if kind == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place : place + rng.choice((1, 2, 4, 8))] = rng.choice(
                (b"\0", b"\xff" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\0\0\0\x80")
            )
        elif kind == 2:
            del data[place : place + rng.choice((1, 4, 100))]
        elif kind == 3:
            data[place:place] = data[place : place + rng.choice((1, 4, 100))]
        elif kind == 4:
            data[place] = rng.randrange(256)
        elif rng.random() < 0.3:
            del data[place:]
    return bytes(data)
