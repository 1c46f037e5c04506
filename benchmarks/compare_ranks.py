"""Ranks of one thread against one rank of as many threads: images per second of training.

    python benchmarks/compare_ranks.py [--ranks 2] [--model resnet18] [--size 224]
                                       [--batch 16] [--rounds 4]

Both train the same global batches on the cpu path, in turn, each in processes of its own; the first
step, which compiles, does not count. The figures are the median of the rounds' ratios, and the
ratio of each side's best, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from gpuconv import distributed, models, nn, optim
from gpuconv.train import Callback, Trainer

STEPS = 5  # that are timed, after one that is not


class Clock(Callback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_batch_end(self, trainer: Trainer) -> None:
        self.ends.append(time.perf_counter())


def measure(model: str, size: int, batch: int) -> None:
    """Train as a rank, or alone; rank 0 prints images per second."""
    ranks, clock, rng = distributed.init(), Clock(), np.random.default_rng(0)
    network = models.MODELS[model](num_classes=10, seed=0, input_size=size)
    assert network.input_shape is not None
    x = rng.standard_normal((batch, *network.input_shape), np.float32)
    batches = [(x, rng.integers(0, 10, batch))] * (STEPS + 1)
    update = optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    Trainer(network, nn.CrossEntropyLoss(), update, callbacks=[clock], progress=False).fit(batches)
    if ranks.rank == 0:
        print(json.dumps(STEPS * batch / (clock.ends[-1] - clock.ends[0])), flush=True)


def images_per_second(ranks: int, threads: int, arguments: list[str]) -> float:
    """What `measure` finds with so many ranks of so many threads."""
    command = [sys.executable, __file__, "--measure", *arguments]
    if ranks > 1:
        command = [str(Path(sys.executable).parent / "mpiexec"), "-n", str(ranks), *command]
    environment = {**os.environ, "GPUCONV_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: float = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        return measure(args.model, args.size, args.batch)
    arguments = ["--model", args.model, "--size", str(args.size), "--batch", str(args.batch)]
    ratios, best = [], [0.0, 0.0]
    for _ in range(args.rounds):
        several = images_per_second(args.ranks, 1, arguments)
        one = images_per_second(1, args.ranks, arguments)
        ratios.append(several / one)
        best = [max(best[0], several), max(best[1], one)]
        print(
            f"{args.ranks} ranks x 1 thread {several:.2f} images/s, 1 rank x {args.ranks} threads "
            f"{one:.2f}: {ratios[-1]:.3f}", flush=True,
        )  # fmt: skip
    print(f"median {statistics.median(ratios):.3f} of {len(ratios)} rounds in turn", end="")
    print(f"; best {best[0]:.2f} against {best[1]:.2f} images/s: {best[0] / best[1]:.3f}")


if __name__ == "__main__":
    main()
