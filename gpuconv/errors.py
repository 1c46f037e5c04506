"""Errors that a user meets: one line that says what came, what was expected, and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DeviceError(RuntimeError):
    """A device that does not work here, or failed: one line with the way out."""


def unknown(what: str, name: object, known: Iterable[str]) -> ValueError:
    """ValueError for a name that is not among the known ones, with the nearest of them."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name).lower(), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"unknown {what} {name!r}{hint} (known: {', '.join(names)})")
