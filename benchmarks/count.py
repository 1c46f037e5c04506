"""Counts of one LeNet training step: Python calls on the cpu, or kernel launches.

    python benchmarks/count.py            # Python calls: the total, and calls by file
    python benchmarks/count.py --each     # by function
    python benchmarks/count.py --launches lenet 64    # a line for each launch: blocks, multiply-adds

Launches: see gpuconv/bench/launches.py; networks lenet, lenet5 and tinyvgg, any batch. Python calls:
counts `call` events of sys.setprofile on the main thread in the fourth step (zero_grad, forward,
loss, backward, optimiser), batch 64, 2 threads. Figures of different Python versions differ.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np

import gpuconv
from gpuconv import models, nn, optim
from gpuconv.bench import launches

PACKAGE = Path(gpuconv.__file__).parent
BATCH, STEP = 64, 4


def lenet_step() -> Callable[[], Any]:
    """A function that makes one training step."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((BATCH, 1, 32, 32), np.float32)
    labels = rng.integers(0, 10, BATCH)
    model, criterion = models.lenet(), nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        loss = criterion(model(x), labels)
        loss.backward()
        optimizer.step()

    return step


def calls_of(function: Callable[[], Any]) -> Counter[CodeType]:
    """How often each Python function is called while `function` runs."""
    counts: Counter[CodeType] = Counter()

    def note(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            counts[frame.f_code] += 1

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    del counts[function.__code__]
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--each", action="store_true", help="a line for each function")
    parser.add_argument("--launches", nargs=2, metavar=("NETWORK", "BATCH"), help="and launches")
    arguments = parser.parse_args()
    each = arguments.each
    if arguments.launches:
        network, batch = arguments.launches
        print(launches.table(launches.step_launches(*launches.NETWORKS[network](), int(batch))))
        return
    gpuconv.set_thread_count(2)
    step = lenet_step()
    for _ in range(STEP - 1):
        step()
    counts = calls_of(step)
    table: Counter[str] = Counter()
    for code, count in counts.items():
        path = Path(code.co_filename)
        inside = path.is_relative_to(PACKAGE)
        name = str(path.relative_to(PACKAGE)) if inside else path.name
        table[f"{name}:{code.co_name}" if each else name] += count
    for name, count in table.most_common():
        print(f"{count:6} {name}")
    print(f"{sum(counts.values()):6} calls in all, Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
