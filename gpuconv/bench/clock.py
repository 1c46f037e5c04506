"""`Times`, and the clock of the CPU path."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEAST, MOST = 7, 1000  # repetitions


@dataclass(frozen=True)
class Times:
    """Seconds of repeated runs: median, 10th and 90th percentile, and how many there were.

    late: on a GPU, whether the host was too slow to keep it busy, so that the times hold gaps.
    """

    median: float
    low: float
    high: float
    count: int
    late: bool = False

    @classmethod
    def of(cls, seconds: Sequence[float], late: bool = False) -> Times:
        """ValueError for no runs, or a time that is not a number above 0."""
        found = np.asarray(seconds, np.float64)
        if not (found.size and (found > 0).all()):
            raise ValueError(f"times must be above 0 seconds, got {list(seconds)[:3]}")
        low, median, high = np.percentile(found, (10, 50, 90))
        return cls(float(median), float(low), float(high), found.size, late)

    @property
    def spread(self) -> float:
        """From the 10th to the 90th percentile, as a share of the median."""
        return (self.high - self.low) / self.median


def repetitions(one: float, seconds: float) -> int:
    """How many runs of `one` second each fill `seconds`, within LEAST and MOST."""
    return int(min(max(seconds / max(one, 1e-9), LEAST), MOST))


def cpu_times(calls: Sequence[Callable[[], Any]], seconds: float) -> Times:
    """The calls in turn, over and over for about `seconds`, each over arrays of its own.

    The first round is not counted.
    """
    for call in calls:
        call()
    started = time.perf_counter()
    calls[0]()
    count = repetitions(time.perf_counter() - started, seconds)
    found = []
    for number in range(count):
        call = calls[number % len(calls)]
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return Times.of(found)
