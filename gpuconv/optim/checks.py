"""Argument checks that optimisers and schedules share."""

from __future__ import annotations

import math
import numbers


def number(
    owner: str, name: str, value: object, below: float = math.inf, positive: bool = False
) -> float:
    """The value as a float in [0, below), above 0 if it must be `positive`. TypeError or ValueError
    that names the argument.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{owner}: {name} must be a number, got {value!r}")
    found = float(value)
    if not (math.isfinite(found) and 0 <= found < below) or (positive and not found):
        bounds = f"{'>' if positive else '>='} 0"
        bounds += "" if math.isinf(below) else f" and < {below:g}"
        raise ValueError(f"{owner}: {name} must be a finite number {bounds}, got {found}")
    return found


def count(owner: str, name: str, value: object) -> int:
    """The value as an int of at least 1. TypeError or ValueError that names the argument."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{owner}: {name} must be a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{owner}: {name} must be at least 1, got {value}")
    return int(value)
