"""How much of the sums of gradients hides behind backward, measured on this machine's ranks.

    mpiexec -n 2 python benchmarks/overlap.py       # the table of docs/distributed.md

A training step is timed three ways, in turn: on each rank alone, with sums that begin once backward
has found the gradients of a bucket, and with sums that all begin after backward. Medians of the
slowest rank's times; each step begins with a barrier.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from gpuconv import distributed, models, nn, optim
from gpuconv.distributed.gradients import GradientSums
from gpuconv.threads import thread_count

CASES = (("lenet", 64, 300), ("resnet18", 8, 20))  # images of a rank, steps of each way


def step_of(name: str, batch: int, ranks: distributed.Communicator) -> Callable[[str], None]:
    """A function that makes a step in a way: "alone", "meanwhile" or "after"."""
    model = models.named(name, 0)
    assert model.input_shape is not None
    rng = np.random.default_rng(ranks.rank)
    x = rng.standard_normal((batch, *model.input_shape), np.float32)
    labels = rng.integers(0, 10, batch)
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.train().parameters(), lr=0.01, momentum=0.9)
    sums = GradientSums(ranks, optimizer.params)

    def step(way: str) -> None:
        optimizer.zero_grad()
        loss = criterion(model(x), labels)
        sums.begin()
        loss.backward(ready=sums.ready if way == "meanwhile" else None)
        if way != "alone":
            sums.finish()
        optimizer.step()

    return step


def slowest(step: Callable[[], None], ranks: distributed.Communicator) -> float:
    """Seconds of one step on the slowest rank."""
    ranks.barrier()
    began = time.perf_counter()
    step()
    return float(ranks.gather_numbers((time.perf_counter() - began,)).max())


def main() -> None:
    ranks = distributed.init()
    if ranks.rank == 0:
        print(f"{ranks.size} ranks of {thread_count()} thread(s)\n")
        print("| network, images a rank | alone, ms | sums meanwhile, ms | sums after, ms |")
        print("|---|---:|---:|---:|")
    for name, batch, steps in CASES:
        step = step_of(name, batch, ranks)
        ways = ("alone", "meanwhile", "after")
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(steps + 2):
            for way in ways:
                times[way].append(slowest(partial(step, way), ranks))
        if ranks.rank == 0:
            cells = " | ".join(f"{1e3 * float(np.median(times[way][2:])):.3g}" for way in ways)
            print(f"| {name}, {batch} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
