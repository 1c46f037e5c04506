"""What one training step costs, counted: Python calls on the cpu, launches and bytes on a GPU.

    python benchmarks/count.py                              # Python calls of a LeNet step, by file
    python benchmarks/count.py --each                       # by function
    python benchmarks/count.py --bytes resnet18             # launches and bytes, by kernel
    python benchmarks/count.py --bytes lenet --batch 64     # of another batch
    python benchmarks/count.py --bytes resnet18 --each      # one line for each launch
    python benchmarks/count.py --launches lenet             # blocks, multiply-adds, cycles of each
    python benchmarks/count.py --estimate                   # the table of docs/benchmarks.md

The first two count `call` events of sys.setprofile on the main thread in the fourth step
(zero_grad, forward, loss, backward, optimiser), batch 64, 2 threads. Figures of different Python
versions differ. The others need no GPU: benchmarks/launches.py says what is counted and by which
model the times are estimated.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any

import launches
import numpy as np

import gpuconv
from gpuconv import models, nn, optim

PACKAGE = Path(gpuconv.__file__).parent
BATCH, STEP = 64, 4
ESTIMATED = (
    *(("lenet", batch) for batch in (64, 128, 512)),
    *((name, 128) for name in ("alexnet", "googlenet", "resnet18", "resnet50")),
    *(("vgg16", 32), ("densenet121", 32)),
)


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


def show_bytes(name: str, batch: int, each: bool) -> None:
    """A table of a step's launches: one line for each, or for each kernel."""
    step = launches.training_step(launches.network(name), batch)
    groups: dict[str, list[launches.Counted]] = defaultdict(list)
    for number, one in enumerate(step):
        groups[f"{number:3} {one.launch.kernel}" if each else one.launch.kernel].append(one)
    print(f"{'launches':>8} {'read, MB':>10} {'written, MB':>12} {'estimate, ms':>13}")
    total = {"in all": step}
    for kernel, some in {**groups, **total}.items():
        read, written = sum(c.read for c in some) / 1e6, sum(c.written for c in some) / 1e6
        time = sum(map(launches.seconds, some)) * 1e3
        print(f"{len(some):8} {read:10.1f} {written:12.1f} {time:13.3f} {kernel}")


def show_launches(name: str, batch: int) -> None:
    """A line for each launch of a step: multiply-adds that its result needs and that it executes,
    cycles of the longest block, bytes, time by the model.
    """
    step = launches.training_step(launches.network(name), batch)
    print("blocks      needed    executed  cycles      MB     us")
    for one in step:
        launch, moved = one.launch, (one.read + one.written) / 1e6
        work = f"{launch.multiply_adds:12}{launches.executed(launch):12.0f}"
        time = f"{launches.cycles(launch):8.0f}{moved:8.2f}{1e6 * launches.seconds(one):7.1f}"
        print(f"{one.blocks:6}{work}{time} {launch.kernel}")
    needed, done = (
        sum(each)
        for each in zip(
            *((c.launch.multiply_adds, launches.executed(c.launch)) for c in step), strict=True
        )
    )
    time = 1e6 * sum(map(launches.seconds, step))
    print(f"{len(step)} launches, executed / needed {done / needed:.2f}, estimate {time:.1f} us")


def show_estimates() -> None:
    """Markdown: a line for each network, of the batches that docs/benchmarks.md has."""
    print("| training step | launches | GB moved | estimate, ms |\n|---|---:|---:|---:|")
    for name, batch in ESTIMATED:
        step = launches.training_step(launches.network(name), batch)
        gigabytes = sum(c.read + c.written for c in step) / 1e9
        time = sum(map(launches.seconds, step)) * 1e3
        print(f"| {name}, batch {batch} | {len(step)} | {gigabytes:.3g} | {time:.3g} |")


def main() -> None:
    networks = [*models.MODELS, "tinyvgg"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--each", action="store_true", help="a line for each function or launch")
    parser.add_argument("--bytes", metavar="NETWORK", choices=networks, help="of a GPU step")
    parser.add_argument("--launches", metavar="NETWORK", choices=networks, help="each of them")
    parser.add_argument("--batch", type=int, default=128, help="images of that step")
    parser.add_argument("--estimate", action="store_true", help="times of GPU steps, by a model")
    given = parser.parse_args()
    if given.bytes:
        show_bytes(given.bytes, given.batch, given.each)
    elif given.launches:
        show_launches(given.launches, given.batch)
    elif given.estimate:
        show_estimates()
    else:
        show_calls(given.each)


def show_calls(each: bool) -> None:
    """The Python calls of a LeNet step on the cpu, by file or by function."""
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
