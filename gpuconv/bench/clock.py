"""`Times`, the statistics of repeated runs, and the CPU's timing loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MIN_REPETITIONS, MAX_REPETITIONS = 7, 1000


@dataclass(frozen=True)
class Times:
    """Seconds of repeated runs: median, 10th and 90th percentile, and how many there were.

    late: whether the host was too slow to keep a GPU busy, so that the times include gaps.
    """

    median: float
    low: float
    high: float
    count: int
    late: bool = False

    @classmethod
    def of(cls, seconds: Sequence[float], late: bool = False) -> Times:
        """The statistics of runs. ValueError for no runs, or a time that is not above 0."""
        runs = np.asarray(seconds, np.float64)
        if not (runs.size and (runs > 0).all()):
            raise ValueError(f"times must be above 0 seconds, got {list(seconds)[:3]}")
        low, median, high = np.percentile(runs, (10, 50, 90))
        return cls(float(median), float(low), float(high), runs.size, late)

    @property
    def spread(self) -> float:
        """From the 10th to the 90th percentile, as a share of the median."""
        return (self.high - self.low) / self.median


def repetitions(one: float, seconds: float) -> int:
    """How many runs of `one` second each fill `seconds`, within MIN_ and MAX_REPETITIONS."""
    return int(min(max(seconds / max(one, 1e-9), MIN_REPETITIONS), MAX_REPETITIONS))


def cpu_times(calls: Sequence[Callable[[], Any]], seconds: float) -> Times:
    """Time the calls in turn, repeatedly for about `seconds`; each has arrays of its own.

    The first round is a warm-up.
    """
    for call in calls:
        call()
    started = time.perf_counter()
    calls[0]()
    count = repetitions(time.perf_counter() - started, seconds)
    runs = []
    for number in range(count):
        call = calls[number % len(calls)]
        started = time.perf_counter()
        call()
        runs.append(time.perf_counter() - started)
    return Times.of(runs)
