"""What a replayed LeNet step costs the host: launches, time and Python calls, without a GPU.

    python benchmarks/replay.py            # batches of 64, 128 and 512
    python benchmarks/replay.py 64 --calls # and the calls by function

`Trainer.fit` with its loader and progress, over real CuPy and the stand-in driver of tests/driver,
which counts launches and runs none: time on the device is not part of it. The times are the mean of
1,000 steps, the best of five runs: of the clock, and of the main thread. The calls are those of
Python functions (sys.setprofile).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from gpuconv import data, models, optim, train
from gpuconv.cuda import recording

DRIVER = Path(__file__).resolve().parents[1] / "tests" / "driver"
STEPS, RUNS = 1000, 5
IMAGES = 57_000


class Watch(train.Callback):
    """Looks at some steps, from when all kinds of them are replayed.

    found: "us" and "busy", microseconds of the clock and of the thread, or with `counting` "calls"
    of Python functions, in all and by function; "driver": its functions' calls. All are per step.
    """

    each_batch = False

    def __init__(self, library: Any, steps: int, counting: bool) -> None:
        self.library, self.steps, self.counting = library, steps, counting
        self.began: tuple[int, float, float] | None = None
        self.counts: Counter[str] = Counter()
        self.found: dict[str, Any] = {}

    def on_batch_end(self, trainer: train.Trainer) -> None:
        step = trainer.state.step
        if self.began is None and trainer.state.epoch >= 3:
            self.library.standin_forget_counts()
            if self.counting:
                sys.setprofile(self._note)
            self.began = step, time.perf_counter(), time.thread_time()
        elif self.began is not None and step >= self.began[0] + self.steps:
            sys.setprofile(None)
            self._end(step - self.began[0], *self.began[1:])
            raise StopIteration

    def _end(self, steps: int, clock: float, busy: float) -> None:
        import driver

        if self.counting:
            each = {name: count / steps for name, count in self.counts.most_common()}
            self.found = {"calls": sum(each.values()), "each": each}
            return
        self.found["us"] = 1e6 * (time.perf_counter() - clock) / steps
        self.found["busy"] = 1e6 * (time.thread_time() - busy) / steps
        calls = driver.calls(self.library).items()
        self.found["driver"] = {name: count / steps for name, count in calls}

    def _note(self, frame: Any, event: str, _: Any) -> None:
        if event == "call":
            code = frame.f_code
            self.counts[f"{Path(code.co_filename).name}:{code.co_qualname}"] += 1


def measured(batch: int, steps: int = STEPS, runs: int = RUNS) -> dict[str, Any]:
    """What `Watch` finds: the best of the runs' times, and the calls of another run."""
    import driver

    library = driver.install(execute=False, defer=False)
    from gpuconv.cuda.cupy import CupyRuntime

    CupyRuntime.scalar = _finite  # type: ignore[method-assign]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES, 1, 28, 28), np.uint8)
    source = data.Dataset(images, rng.integers(0, 10, len(images)))
    found = [_run(source, batch, Watch(library, steps, run == runs)) for run in range(runs + 1)]
    best = min(found[:-1], key=lambda one: float(one["us"]))
    return {**best, **found[-1]}


def _run(source: data.Dataset, batch: int, watch: Watch) -> dict[str, Any]:
    model = models.lenet(seed=0).to("cuda")
    optimizer = optim.SGD(model.parameters(), 0.05, 0.9)
    loader = data.Loader(source, batch, seed=1, size=32, mean=0.13, std=0.31)
    epochs = 5 + watch.steps // len(loader)
    schedule = optim.OneCycleLR(0.05, epochs * len(loader))
    callbacks = [train.progress.Progress(io.StringIO()), watch]
    trainer = train.Trainer(
        model, "cross_entropy", optimizer, schedule, callbacks=callbacks, progress=False
    )
    with contextlib.suppress(StopIteration):
        trainer.fit(loader, epochs=epochs)
    return watch.found


def _finite(self: Any, array: Any) -> float:
    """A loss, in place of what no kernel computed."""
    if recording.state.recorder is not None:
        recording.state.recorder.scalars.append(array)
        return recording.state.recorder.host_numbers.read(1.0)
    return 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("batch", type=int, nargs="*", default=[64, 128, 512])
    parser.add_argument("--calls", action="store_true", help="the calls by function")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if "GPUCONV_STANDIN_DRIVER" not in os.environ:
        sys.path.insert(0, str(DRIVER))
        import driver

        with tempfile.TemporaryDirectory() as folder:
            environment = driver.environment(Path(folder))
            command = [sys.executable, __file__, *sys.argv[1:]]
            raise SystemExit(os.spawnve(os.P_WAIT, sys.executable, command, environment))
    for batch in arguments.batch:
        found = measured(batch, arguments.steps, arguments.runs)
        if arguments.json:
            print(json.dumps(found))
            continue
        times = f"{found['us']:.1f} us ({found['busy']:.1f} of the main thread)"
        print(f"batch {batch}: {times} and {found['calls']:.1f} Python calls a step")
        print("   ", {name: round(count, 3) for name, count in found["driver"].items()})
        if arguments.calls:
            for name, count in found["each"].items():
                print(f"    {count:8.2f} {name}")


if __name__ == "__main__":
    main()
