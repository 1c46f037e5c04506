"""What a checked launch finds: one record for each wrong line of a kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

Coordinates = tuple[int, int, int]


class Party(NamedTuple):
    """The other access of a race: its block, its thread and its "file:line"."""

    block: Coordinates
    thread: Coordinates
    line: str


@dataclass(frozen=True)
class Finding:
    """One thing that a launch did wrong, where it was first seen.

    kind: a short word ("bounds_global", "race_shared", "deadlock", ...). severity: "error", or
    "warning" for what may be meant. file, line: the place in the source, "PTX" and the line of the
    PTX where the source is unknown. argument, index: the number of the kernel's argument that the
    access belongs to, and the element of that array, negative or past its end where the access is
    out of bounds; None where the access belongs to no argument. other: the second access of a race.
    message: one line that says all of it.
    """

    kind: str
    severity: str
    kernel: str
    file: str
    line: int
    block: Coordinates
    thread: Coordinates
    argument: int | None
    index: int | None
    other: Party | None
    message: str
