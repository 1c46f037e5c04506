"""The one way in for sizes, numbers and flags that a user gives: checked, as Python's own types.

NumPy's scalars count as Python's. A bool is no number, and a float or a string no int. Each error
is one line that begins with `name`, which says whose argument it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

LARGEST = 2**31 - 1  # kernels and compiled loops count to this


def whole(name: str, value: Any, least: int = 1, most: int = LARGEST) -> int:
    """`value` as an int; TypeError for another type, ValueError outside `least` to `most`."""
    if not _is_whole(value):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if not least <= value <= most:
        bound = f"at least {least}" if value < least else f"at most {most}"
        raise ValueError(f"{name} must be {bound}, got {value!r}")
    return int(value)


def number(
    name: str,
    value: Any,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> float:
    """`value` as a finite float; TypeError for another type, ValueError outside the bounds."""
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, Real)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    found = float(value)
    if not (least <= found <= most and above < found < below and math.isfinite(found)):
        bounds = ((">=", least), (">", above), ("<=", most), ("<", below))
        wanted = " and".join(f" {sign} {bound:g}" for sign, bound in bounds if math.isfinite(bound))
        raise ValueError(f"{name} must be a finite number{wanted}, got {value!r}")
    return found


def flag(name: str, value: Any) -> bool:
    """`value` as a bool: True, False, 1 or 0; TypeError for anything else, such as "no"."""
    if not isinstance(value, bool | np.bool_ | Integral) or value not in (0, 1):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def pair(name: str, value: Any, least: int) -> tuple[int, int]:
    """`value` as (vertical, horizontal): an int counts for both; each must be at least `least`."""
    both = (value, value) if _is_whole(value) else value
    if (
        not isinstance(both, Sequence)
        or isinstance(both, str)
        or len(both) != 2
        or not all(map(_is_whole, both))
    ):
        raise TypeError(f"{name} must be an int or a pair of ints, got {value!r}")
    if not (least <= min(both) and max(both) <= LARGEST):
        bound = f"at least {least}" if min(both) < least else f"at most {LARGEST}"
        raise ValueError(f"{name} must be {bound}, got {value!r}")
    return int(both[0]), int(both[1])


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
