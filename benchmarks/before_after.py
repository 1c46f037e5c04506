"""Times this checkout against an earlier commit, in turn: has anything become slower?

    python benchmarks/before_after.py --before 5e9b825            every row, 15 pairs; an hour
    python benchmarks/before_after.py --before HEAD~5 --only LeNet --pairs 31
    python benchmarks/before_after.py --before 5e9b825 --sim      steps on the simulator
    python benchmarks/before_after.py --before 5e9b825 --checks   kernels, unchecked and checked
    python benchmarks/before_after.py --before 5e9b825 --memory   peaks of NumPy memory instead

The commit is checked out into a temporary worktree. A process for each side waits for orders; one
runs while the other sleeps, and which goes first changes with every pair. A row gives both medians,
the median of the pairs' ratios before / after (above 1: faster now), and the interval that holds
the true median of such ratios with 95% confidence, from their order. Rows: the operations of the
speed table (bench_cases.py), and a training step of every model at batch 8, LeNet at 8, 64 and 128.

--sim: training steps on the device sim, with and without its checks. Both sides keep compiled
kernels in one cache, whose entries name their version, and a row is timed after two steps.

--checks: a tiled SGEMM, convolutions, axpy and a histogram on the simulator, without and with its
checks; also how many times longer the checked run of each takes.

--memory: the peak of what NumPy has allocated during the third training step at batch 8 and 32, as
tracemalloc counts it, after / before (below 1: less now).
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
THREADS = 2
SHORT = 0.05  # seconds: calls shorter than this are timed several at a time
LENET_BATCHES = (8, 64, 128)
MODELS = (
    "lenet5", "alexnet", "alexnet_2012", "zfnet", "googlenet", "googlenet_paper", "vgg16",
    "vgg16_bn", "vgg19", "resnet18", "resnet34", "resnet50", "densenet121",
)  # fmt: skip
SIM_STEPS = (("lenet", 64, 32), ("lenet", 8, 32), ("resnet18", 2, 64))
Call = Callable[[], object]


# ---- one side: a process that waits for orders -------------------------------------------------


def rows() -> dict[str, Callable[[], Call]]:
    """What makes each row's call, by name."""
    from bench_cases import CONVOLUTIONS, POOLS

    made: dict[str, Callable[[], Call]] = {}
    for batch in LENET_BATCHES:
        made[f"LeNet step, batch {batch}"] = lambda batch=batch: training_step("lenet", batch)
    for name in CONVOLUTIONS:
        made[name] = lambda name=name: convolution(*CONVOLUTIONS[name])
    for name in POOLS:
        made[name] = lambda name=name: pool(*POOLS[name])
    for name in MODELS:
        made[f"{name} step, batch 8"] = lambda name=name: training_step(name, 8)
    return made


def sim_rows() -> dict[str, Callable[[], Call]]:
    """Training steps on the simulator: network, batch, side of the square images."""
    made: dict[str, Callable[[], Call]] = {}
    for name, batch, side in SIM_STEPS:
        made[f"sim: {name} step, {batch} x {side} x {side}"] = partial(sim_step, name, batch, side)
    made["sim, checked: lenet step, 2 x 32 x 32"] = partial(sim_step, "lenet", 2, 32, check=True)
    return made


def check_rows() -> dict[str, Callable[[], Call]]:
    """Kernels on the simulator, each with and without its checks."""
    import bench_checks

    return bench_checks.rows()


def sim_step(name: str, batch: int, side: int, check: bool = False) -> Call:
    if check:
        checked()
    return training_step(name, batch, "sim", side)


def checked() -> None:
    """From now on the device sim of this process verifies every access."""
    try:
        from gpuconv.cuda.runtime import runtime
    except ImportError:  # 0.1
        from gpuconv.runtime.runtime import runtime
    runtime("sim").check = True


def convolution(shape: Any, kernel: Any, stride: int, padding: int) -> Call:
    from gpuconv import ops

    rng, (K, R, S) = np.random.default_rng(0), kernel
    x = rng.standard_normal(shape, np.float32)
    w = rng.standard_normal((K, shape[1], R, S), np.float32)
    b = rng.standard_normal(K, np.float32)
    dy = rng.standard_normal(ops.conv2d(x, w, b, stride, padding).shape, np.float32)

    def run() -> object:
        y = ops.conv2d(x, w, b, stride, padding)
        return y, ops.conv2d_backward(dy, x, w, b, stride, padding)

    return run


def pool(shape: Any, kernel: int, stride: int, padding: int) -> Call:
    from gpuconv import ops

    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape, np.float32)
    dy = rng.standard_normal(ops.max_pool2d(x, kernel, stride, padding)[0].shape, np.float32)

    def run() -> object:
        y, argmax = ops.max_pool2d(x, kernel, stride, padding)
        return y, ops.max_pool2d_backward(dy, argmax, x.shape, kernel, stride, padding)

    return run


def training_step(name: str, batch: int, device: str = "cpu", side: int = 0) -> Call:
    """Forward, cross-entropy, backward, SGD with momentum; by the interface of 0.1 or of 0.2."""
    from gpuconv import models, nn, optim, to_device

    model, criterion = models.MODELS[name](), nn.CrossEntropyLoss()
    shape = model.input_shape
    model.to(device)
    optimizer = optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    rng = np.random.default_rng(0)
    size = (batch, shape[0], side, side) if side else (batch, *shape)
    x, labels = rng.standard_normal(size, np.float32), rng.integers(0, 10, batch)
    if device != "cpu":
        x, labels = to_device(x, device), to_device(labels, device)

    def explicit() -> float:
        optimizer.zero_grad()
        value = criterion.forward(model.forward(x), labels)
        model.backward(criterion.backward(), need_dx=False)
        optimizer.step()
        return value

    def taped() -> float:
        optimizer.zero_grad()
        loss = criterion(model(x), labels)
        loss.backward()
        optimizer.step()
        return float(loss)

    return explicit if hasattr(model, "backward") else taped


def memory(name: str, batch: int) -> int:
    """Bytes of arrays at the peak of the third training step: less what Python's own objects take,
    for Numba's modules and what it knows of compiled code are 40 MB.
    """
    tracemalloc.start()
    step = training_step(name, batch)
    for _ in range(2):
        step()
    tracemalloc.reset_peak()
    step()
    peak = tracemalloc.get_traced_memory()[1]
    of_python = tracemalloc.DomainFilter(inclusive=True, domain=0)
    snapshot = tracemalloc.take_snapshot().filter_traces([of_python])
    tracemalloc.stop()
    return peak - sum(trace.size for trace in snapshot.traces)


def serve() -> None:
    """Read orders, a line each: "row NAME" prepares, "time COUNT" answers seconds a call,
    "memory NAME BATCH" answers bytes.
    """
    import gpuconv

    gpuconv.set_thread_count(THREADS)
    call: Call = lambda: None  # noqa: E731
    for line in sys.stdin:
        order, _, rest = line.strip().partition(" ")
        answer: object = "ready"
        if order == "row":
            call = (rows() | sim_rows() | check_rows())[rest]()
            for _ in range(2):
                call()
        elif order == "time":
            begin = time.perf_counter()
            for _ in range(int(rest)):
                call()
            answer = (time.perf_counter() - begin) / int(rest)
        elif order == "memory":
            name, batch = rest.split()
            answer = memory(name, int(batch))
        print(answer, flush=True)


class Side:
    """The process of one checkout."""

    def __init__(self, checkout: Path) -> None:
        paths = os.pathsep.join([str(checkout), str(ROOT / "benchmarks")])
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--serve"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip

    def ask(self, order: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(order, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline().strip()
        if not answer:
            sys.exit(f"before_after: one side ended at {order!r}")
        return answer

    def time(self, count: int) -> float:
        return float(self.ask(f"time {count}"))

    def end(self) -> None:
        self.process.terminate()
        self.process.wait()


# ---- both sides --------------------------------------------------------------------------------


def interval(ratios: list[float]) -> tuple[float, float]:
    """Between which of the sorted ratios their true median lies with at least 95% confidence."""
    n, ordered = len(ratios), sorted(ratios)
    below, rank = 0.0, 0
    while True:  # each ratio is on either side of the median with probability one half
        below += math.comb(n, rank) / 2**n
        if below > 0.025:
            break
        rank += 1
    rank = max(rank - 1, 0)
    return ordered[rank], ordered[n - 1 - rank]


def compare(before: Side, after: Side, name: str, pairs: int) -> float:
    """Print one row; returns its ratio."""
    for side in (before, after):
        side.ask(f"row {name}")
    count = max(1, round(SHORT / max(before.time(1), 1e-6)))
    times: dict[Side, list[float]] = {before: [], after: []}
    for number in range(pairs):
        for side in (before, after) if number % 2 else (after, before):
            times[side].append(side.time(count))
    ratios = [a / b for a, b in zip(times[before], times[after], strict=True)]
    ratio, (low, high) = statistics.median(ratios), interval(ratios)
    old, new = (1000 * statistics.median(times[side]) for side in (before, after))
    print(
        f"{name:32} {old:9.2f} {new:9.2f} ms   {ratio:.3f}  [{low:.3f}, {high:.3f}]"
        + ("" if high >= 0.97 else "   SLOWER"),
        flush=True,
    )
    return ratio


def compare_memory(checkouts: tuple[Path, Path], name: str, batch: int) -> float:
    peaks = []
    for checkout in checkouts:
        side = Side(checkout)
        peaks.append(int(side.ask(f"memory {name} {batch}")))
        side.end()
    ratio = peaks[1] / peaks[0]
    sizes = " ".join(f"{peak / 1e6:9.1f}" for peak in peaks)
    print(f"{name:20} batch {batch:3} {sizes} MB   {ratio:.3f}", flush=True)
    return ratio


@contextlib.contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A worktree of a commit, gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "before"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", "--quiet", str(place), commit], check=True)
        try:
            yield place
        finally:
            subprocess.run([*git, "remove", "--force", str(place)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", default="HEAD~1", help="the commit to compare with")
    parser.add_argument("--only", action="append", help="rows whose name holds this text")
    parser.add_argument("--pairs", type=int, default=15, help="pairs of measurements a row")
    parser.add_argument("--sim", action="store_true", help="training steps on the simulator")
    parser.add_argument("--checks", action="store_true", help="the simulator's checks")
    parser.add_argument("--memory", action="store_true", help="peaks of NumPy memory instead")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve()
        return

    def chosen(name: str) -> bool:
        return not args.only or any(text in name for text in args.only)

    with checked_out(args.before) as place:
        if args.memory:
            names = [name for name in ("lenet", *MODELS) if chosen(name)]
            found = [compare_memory((place, ROOT), n, batch) for n in names for batch in (8, 32)]
            print(f"largest after / before: {max(found):.3f}")
            return
        before, after = Side(place), Side(ROOT)
        try:
            print(f"{'':32} {'before':>9} {'after':>9}      before/after, 95% of its median")
            timed = check_rows() if args.checks else sim_rows() if args.sim else rows()
            found = [compare(before, after, n, args.pairs) for n in timed if chosen(n)]
        finally:
            before.end()
            after.end()
        print(f"geometric mean {statistics.geometric_mean(found):.3f} of {len(found)} rows")


if __name__ == "__main__":
    main()
