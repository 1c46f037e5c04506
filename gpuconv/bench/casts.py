"""Floats to numbers of 16 bits and back, as workloads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv.arrays import device_of
from gpuconv.bench.cases import Case
from gpuconv.cuda.runtime import runtime
from gpuconv.ops.cast import cast, uncast
from gpuconv.ops.cost import Cost
from gpuconv.precision import as_floats, rounded, stored

CASTS = ("cast", "uncast")
FACTOR = 2.0**10


class CastWorkload:
    """`cast`, in fp16 by a factor on the device, as loss scaling has it, or `uncast`.

    The attributes and methods of `workloads.Workload`.
    """

    kernels, in_place, direction = True, False, "forward"

    def __init__(self, case: Case, floats: Callable[[tuple[int, ...]], Any]) -> None:
        self.case = case
        x = floats(case.x)
        self.arguments: tuple[Any, ...] = (x,)
        if case.op == "uncast" and isinstance(x, np.ndarray):
            self.arguments = (stored(x, case.precision),)
        self.cost = Cost(0, 6 * x.size)

    def prepare(self, arguments: tuple[Any, ...]) -> Callable[[], tuple[Any, ...]]:
        """A call that casts the array."""
        (x,) = arguments
        if self.case.op == "uncast":
            return lambda: (uncast(x),)
        factor = None
        if self.case.precision == "fp16":
            factor = runtime(device_of(x) or "cpu").asarray(np.array([FACTOR], np.float32))
        return lambda: (cast(x, self.case.precision, factor),)

    def expected(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The one right result, whose bound is 0."""
        (x,) = self.arguments
        if self.case.op == "cast":
            times = FACTOR if self.case.precision == "fp16" else 1.0
            exact = rounded(x * np.float32(times), self.case.precision)
        else:
            exact = as_floats(x)
        return [(exact.astype(np.float64), np.zeros(exact.shape))]
