"""Times gpuconv's CPU path and PyTorch's CPU build in turn, once both have computed the same.

    python benchmarks/compare_torch.py              every row; a few minutes
    python benchmarks/compare_torch.py --quick      few rows: a check, not a measurement
    python benchmarks/compare_torch.py --readme     also put the table into README.md

Both use the same number of threads. Rounds alternate: some calls of ours, some of PyTorch's, the
first of each not counted; a row gives each side's median and the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
from bench_cases import CONVOLUTIONS, LENET_BATCHES, POOLS

import gpuconv
from gpuconv import models, nn, ops, optim

try:
    import torch
except ImportError:
    sys.exit("compare_torch: PyTorch is not installed (pip install torch); nothing to compare with")

README = Path(__file__).parent.parent / "README.md"
MARKERS = "<!-- compare_torch begin -->", "<!-- compare_torch end -->"
RNG = np.random.default_rng(0)


class Row(NamedTuple):
    """One case: a call of ours and the same one of PyTorch's."""

    name: str
    ours: Callable[[], object]
    theirs: Callable[[], object]


class Result(NamedTuple):
    name: str
    ours: float
    theirs: float
    ratio: float
    spread: tuple[float, float]


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


def same(name: str, ours: np.ndarray, theirs: torch.Tensor, tolerance: float = 2e-5) -> None:
    """Stop unless ours is theirs within `tolerance` of the largest value, before any timing."""
    expected = theirs.detach().numpy()
    error = np.abs(ours - expected).max() / np.abs(expected).max()
    if ours.shape != expected.shape or not error <= tolerance:
        sys.exit(f"compare_torch: {name}: results differ by {error:.2e}, nothing timed")


def convolution(name: str) -> Row:
    shape, (K, R, S), stride, padding = CONVOLUTIONS[name]
    x, w, b = floats(*shape), floats(K, shape[1], R, S), floats(K)
    tx, tw, tb = (torch.tensor(a, requires_grad=True) for a in (x, w, b))
    dy = floats(*ops.conv2d(x, w, b, stride, padding).shape)
    tdy = torch.tensor(dy)

    def ours() -> tuple[np.ndarray, ...]:
        y = ops.conv2d(x, w, b, stride, padding)
        return y, *ops.conv2d_backward(dy, x, w, b, stride, padding)

    def theirs() -> torch.Tensor:
        tx.grad = tw.grad = tb.grad = None
        y = torch.nn.functional.conv2d(tx, tw, tb, stride, padding)
        y.backward(tdy)
        return y

    y = theirs()
    for found, expected in zip(ours(), (y, tx.grad, tw.grad, tb.grad), strict=True):
        same(name, found, expected)
    return Row(f"{name}, {'x'.join(map(str, shape))}", ours, theirs)


def pool(name: str) -> Row:
    shape, kernel, stride, padding = POOLS[name]
    x = floats(*shape)
    tx = torch.tensor(x, requires_grad=True)
    y, _ = ops.max_pool2d(x, kernel, stride, padding)
    dy = floats(*y.shape)
    tdy = torch.tensor(dy)

    def ours() -> tuple[np.ndarray, np.ndarray]:
        y, argmax = ops.max_pool2d(x, kernel, stride, padding)
        return y, ops.max_pool2d_backward(dy, argmax, x.shape, kernel, stride, padding)

    def theirs() -> torch.Tensor:
        tx.grad = None
        y = torch.nn.functional.max_pool2d(tx, kernel, stride, padding)
        y.backward(tdy)
        return y

    ty = theirs()
    for found, expected in zip(ours(), (ty, tx.grad), strict=True):
        same(name, found, expected)
    return Row(f"{name}, {'x'.join(map(str, shape))}", ours, theirs)


def lenet(batch: int) -> Row:
    """A training step: forward, cross-entropy, backward, SGD with momentum."""
    x, labels = RNG.random((batch, 1, 32, 32), np.float32), RNG.integers(0, 10, batch)
    tx, tlabels = torch.tensor(x), torch.tensor(labels)
    model, loss = models.lenet(), nn.CrossEntropyLoss()
    tmodel, tloss = torch_lenet(model), torch.nn.CrossEntropyLoss()
    update = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    tupdate = torch.optim.SGD(tmodel.parameters(), lr=0.01, momentum=0.9)

    def ours() -> float:
        update.zero_grad()
        value = loss(model(x), labels)
        value.backward()
        update.step()
        return value

    def theirs() -> float:
        tupdate.zero_grad()
        value = tloss(tmodel(tx), tlabels)
        value.backward()
        tupdate.step()
        return value.item()

    for _ in range(3):
        if not abs(ours() - theirs()) <= 1e-4:
            sys.exit("compare_torch: LeNet's losses differ, nothing timed")
    for mine, other in zip(model.parameters(), tmodel.parameters(), strict=True):
        same("LeNet's weights after 3 steps", mine.data, other, 1e-4)
    return Row(f"LeNet training step, batch {batch}", ours, theirs)


def torch_lenet(model: nn.Sequential) -> torch.nn.Sequential:
    """PyTorch's version of the article's LeNet, with our weights."""
    t = torch.nn
    twin = t.Sequential(
        t.Conv2d(1, 6, 5), t.ReLU(), t.MaxPool2d(2), t.Conv2d(6, 16, 5), t.ReLU(), t.MaxPool2d(2),
        t.Flatten(), t.Linear(400, 120), t.ReLU(), t.Linear(120, 100), t.ReLU(), t.Linear(100, 10),
    )  # fmt: skip
    with torch.no_grad():
        for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
            other.copy_(torch.tensor(mine.data))
    return twin


def measure(row: Row, rounds: int, seconds: float) -> Result:
    """Alternate rounds of calls, each round `seconds` long or two calls."""
    row.ours(), row.theirs()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for call, kept in zip((row.ours, row.theirs), times, strict=True):
            call()
            kept.append(statistics.median(timed(call, seconds)))
    ratios = sorted(b / a for a, b in zip(*times, strict=True))
    medians = [statistics.median(kept) for kept in times]
    return Result(row.name, *medians, statistics.median(ratios), (ratios[0], ratios[-1]))


def timed(call: Callable[[], object], seconds: float) -> list[float]:
    times: list[float] = []
    while len(times) < 2 or sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def table(results: list[Result]) -> str:
    lines = [
        "| forward + backward | gpuconv, ms | PyTorch, ms | ratio | smallest to largest |",
        "|---|---:|---:|---:|---:|",
    ]
    for r in results:
        low, high = r.spread
        cells = f"{r.name} | {r.ours * 1e3:.2f} | {r.theirs * 1e3:.2f} | {r.ratio:.2f}x"
        lines.append(f"| {cells} | {low:.2f} to {high:.2f} |")
    return "\n".join(lines)


def conditions(rounds: int) -> str:
    return (
        f"{date.today()}; {rounds} alternating rounds, medians; "
        f"{gpuconv.thread_count()} threads each; {platform.machine()}, {processor()}; "
        f"gpuconv {gpuconv.__version__}, NumPy {np.__version__}, PyTorch {torch.__version__}"
    )


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


def write_readme(text: str, markers: tuple[str, str] = MARKERS) -> None:
    begin, end = markers
    before, rest = README.read_text().split(begin)
    README.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--quick", action="store_true", help="few rows and repeats")
    parser.add_argument("--rounds", type=int, default=15, help="alternating rounds for each row")
    parser.add_argument("--only", default="", help="rows whose name holds this text")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    options = parser.parse_args()
    torch.set_num_threads(gpuconv.thread_count())
    cases = [(lenet, batch) for batch in LENET_BATCHES]
    cases += [(convolution, name) for name in CONVOLUTIONS] + [(pool, name) for name in POOLS]  # type: ignore[misc]
    if options.quick:
        cases = [case for case in cases if case[1] in (64, "3x3, 256 channels", "max-pool 3x3/2")]
    rounds, seconds = (3, 0.0) if options.quick else (options.rounds, 0.15)
    results = []
    for build, argument in cases:
        if options.only in str(argument) or options.only in build.__name__:
            results.append(measure(build(argument), rounds, seconds))  # type: ignore[arg-type]
            print(table(results[-1:]).splitlines()[-1], flush=True)
    text = f"{table(results)}\n\n{conditions(rounds)}."
    print(f"\n{text}")
    if options.readme:
        write_readme(text)


if __name__ == "__main__":
    main()
