"""pytest-benchmark suite: every pass of every operation, on the CPU path.

The passes come from the table of `gpuconv bench`, so an operation that is in it is measured here.
"""

import numpy as np
import pytest

from gpuconv.bench.cases import standard
from gpuconv.bench.measure import require_right
from gpuconv.bench.workloads import counted, of_case

BATCH, SMOKE_BATCH = 16, 1  # small where --benchmark-disable only asks whether it runs
PASSES = [
    pytest.param(number, direction, id=f"{case} {direction}")
    for number, case in enumerate(standard(BATCH))
    for direction, _ in counted(case)
]


@pytest.mark.parametrize(("number", "direction"), PASSES)
def test_pass(benchmark, number, direction):
    case = standard(SMOKE_BATCH if benchmark.disabled else BATCH)[number]
    (workload,) = of_case(case, () if direction == "step" else (direction,))
    arguments = [a.copy() if isinstance(a, np.ndarray) else a for a in workload.arguments]
    call = workload.prepare(tuple(arguments))
    require_right(workload, call())
    benchmark(call)
