"""Errors that a user meets: one line that says what came, what was expected, and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import TypeVar

Name = TypeVar("Name")


class DeviceError(RuntimeError):
    """A device that does not work here, or failed: one line with the way out."""


class DataError(ValueError):
    """A data file or array that cannot be used: corrupted, truncated, or not what it should be."""


# What people call a device or its like.
SYNONYMS = {"gpu": "cuda", "nvidia": "cuda", "simulator": "sim", "numpy": "reference"}


class Notice(UserWarning):
    """What the user should know though all went well."""


def unknown(what: str, name: object, known: Iterable[str]) -> ValueError:
    """ValueError for a name that is not among the known ones, with the nearest of them."""
    names = sorted(known)
    meant = str(name).lower()
    near = difflib.get_close_matches(SYNONYMS.get(meant, meant), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"unknown {what} {name!r}{hint} (known: {', '.join(names)})")


def require_known(what: str, name: Name, known: Collection[str]) -> Name:
    """`name`, where it is among the known ones; else the ValueError of `unknown`."""
    if name not in known:
        raise unknown(what, name, known)
    return name


def printable(text: str, keep: str = "") -> str:
    """The text with control characters, and others that no terminal shows, as escapes (\\x1b).

    keep: such characters that stay. A name from a file may hold any.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text
    )


def one_line(error: BaseException) -> str:
    """What an exception says, in one line; an OSError without "[Errno 2]" and quotes."""
    if isinstance(error, OSError) and error.strerror:
        name = "" if error.filename is None else f"{error.filename}: "
        return name + error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__
