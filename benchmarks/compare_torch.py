"""Times gpuconv's CPU path and PyTorch's CPU build in turn, once both have computed the same.

    python benchmarks/compare_torch.py              every row; a few minutes
    python benchmarks/compare_torch.py --quick      few rows: a check, not a measurement
    python benchmarks/compare_torch.py --docs       also put the table into docs/benchmarks.md
    python benchmarks/compare_torch.py --errors     the errors of 3x3 convolutions, without times

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

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
MARKERS = "<!-- compare_torch begin -->", "<!-- compare_torch end -->"
ERROR_MARKERS = "<!-- errors begin -->", "<!-- errors end -->"
RNG = np.random.default_rng(0)


class Row(NamedTuple):
    """One case: a call of ours and the same one of PyTorch's.

    errors: of the output, ours and PyTorch's, as shares of its largest value; None where a single
    error says little.
    """

    name: str
    ours: Callable[[], object]
    theirs: Callable[[], object]
    errors: tuple[float, float] | None = None


class Result(NamedTuple):
    name: str
    ours: float
    theirs: float
    ratio: float
    spread: tuple[float, float]
    errors: tuple[float, float] | None


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


def same(name: str, ours: np.ndarray, theirs: torch.Tensor, tolerance: float = 2e-5) -> None:
    """Stop unless ours is theirs within `tolerance` of the largest value, before any timing."""
    expected = theirs.detach().numpy()
    error = np.abs(ours - expected).max() / np.abs(expected).max()
    if ours.shape != expected.shape or not error <= tolerance:
        sys.exit(f"compare_torch: {name}: results differ by {error:.2e}, nothing timed")


class Passes(NamedTuple):
    """A convolution's passes on one set of arrays: each call returns y, dx, dw and db."""

    ours: Callable[[], tuple[np.ndarray, ...]]
    theirs: Callable[[], tuple[torch.Tensor, ...]]
    exact: Callable[[], tuple[np.ndarray, ...]]


def passes(name: str) -> Passes:
    shape, (K, R, S), stride, padding = CONVOLUTIONS[name]
    arrays = floats(*shape), floats(K, shape[1], R, S), floats(K)
    dy = floats(*ops.conv2d(*arrays, stride, padding).shape)

    def ours() -> tuple[np.ndarray, ...]:
        y = ops.conv2d(*arrays, stride, padding)
        return y, *ops.conv2d_backward(dy, *arrays, stride, padding)

    def in_torch(dtype: torch.dtype) -> Callable[[], tuple[torch.Tensor, ...]]:
        inputs = [torch.tensor(a, dtype=dtype, requires_grad=True) for a in arrays]
        tdy = torch.tensor(dy, dtype=dtype)

        def call() -> tuple[torch.Tensor, ...]:
            for tensor in inputs:
                tensor.grad = None
            y = torch.nn.functional.conv2d(*inputs, stride, padding)
            y.backward(tdy)
            return y.detach(), *(tensor.grad for tensor in inputs)  # type: ignore[misc]

        return call

    def exact() -> tuple[np.ndarray, ...]:
        return tuple(tensor.numpy() for tensor in in_torch(torch.float64)())

    return Passes(ours, in_torch(torch.float32), exact)


def convolution(name: str) -> Row:
    ours, theirs, exact = passes(name)
    mine, other, right = ours(), theirs(), exact()
    for found, expected in zip(mine, other, strict=True):
        same(name, found, expected)
    with gpuconv.no_winograd():
        winograd = ours()[0].tobytes() != mine[0].tobytes()
    title = f"{name}, {'x'.join(map(str, CONVOLUTIONS[name][0]))}"
    errors = largest_error(mine[0], right[0]), largest_error(other[0].numpy(), right[0])
    return Row(title + " (Winograd)" * winograd, ours, theirs, errors)


def largest_error(value: np.ndarray, exact: np.ndarray) -> float:
    return float(np.abs(value - exact).max() / np.abs(exact).max())


def rms_error(value: np.ndarray, exact: np.ndarray) -> float:
    return float(np.sqrt(np.square(value - exact).mean() / np.square(exact).mean()))


def error_table() -> str:
    """Errors of every 3x3 convolution's results, with Winograd's algorithm and without."""
    lines = [
        "| convolution | result | Winograd | direct | PyTorch | Winograd, largest | "
        "direct, largest | PyTorch, largest |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in (name for name in CONVOLUTIONS if name.startswith("3x3")):
        case = passes(name)
        winograd, other, right = case.ours(), [t.numpy() for t in case.theirs()], case.exact()
        with gpuconv.no_winograd():
            direct = case.ours()
        for number, result in enumerate(("y", "dx", "dw")):
            cells = [
                f"{error(values[number], right[number]):.1e}"
                for error in (rms_error, largest_error)
                for values in (winograd, direct, other)
            ]
            lines.append(f"| {name} | {result} | {' | '.join(cells)} |")
    return "\n".join(lines)


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
    error = largest_error(ours()[0], ty.detach().numpy())
    return Row(f"{name}, {'x'.join(map(str, shape))}", ours, theirs, (error, error))


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
        return value.item()

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
    spread = ratios[0], ratios[-1]
    return Result(row.name, *medians, statistics.median(ratios), spread, row.errors)


def timed(call: Callable[[], object], seconds: float) -> list[float]:
    times: list[float] = []
    while len(times) < 2 or sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def table(results: list[Result]) -> str:
    lines = [
        "| forward + backward | gpuconv, ms | PyTorch, ms | ratio | smallest to largest | "
        "error of y: gpuconv | PyTorch |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for r in results:
        low, high = r.spread
        cells = f"{r.name} | {r.ours * 1e3:.2f} | {r.theirs * 1e3:.2f} | {r.ratio:.2f}x"
        errors = [f"{error:.1e}" if error else "0" for error in r.errors or ()] or ["", ""]
        lines.append(f"| {cells} | {low:.2f} to {high:.2f} | {' | '.join(errors)} |")
    return "\n".join(lines)


def conditions(rounds: int) -> str:
    return (
        f"{date.today()}; {rounds} alternating rounds, medians; "
        f"{gpuconv.thread_count()} threads each; {versions()}"
    )


def versions() -> str:
    return (
        f"{platform.machine()}, {processor()}; "
        f"gpuconv {gpuconv.__version__}, NumPy {np.__version__}, PyTorch {torch.__version__}"
    )


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


def write_docs(text: str, markers: tuple[str, str] = MARKERS) -> None:
    """Put `text` between two markers of docs/benchmarks.md."""
    begin, end = markers
    before, rest = PAGE.read_text().split(begin)
    PAGE.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--quick", action="store_true", help="few rows and repeats")
    parser.add_argument("--rounds", type=int, default=15, help="alternating rounds for each row")
    parser.add_argument("--only", default="", help="rows whose name holds this text")
    parser.add_argument("--docs", action="store_true", help="put the table into the docs")
    parser.add_argument("--errors", action="store_true", help="errors of 3x3 convolutions only")
    options = parser.parse_args()
    torch.set_num_threads(gpuconv.thread_count())
    if options.errors:
        text = f"{error_table()}\n\n{date.today()}; {versions()}."
        print(text)
        if options.docs:
            write_docs(text, ERROR_MARKERS)
        return
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
    if options.docs:
        write_docs(text)


if __name__ == "__main__":
    main()
