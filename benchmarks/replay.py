"""What a replayed LeNet step costs the host: launches, time and Python calls, without a GPU.

    python benchmarks/replay.py            # batches of 64, 128 and 512
    python benchmarks/replay.py 64 --calls # and the calls by function

`Trainer.fit` with its loader and progress, over real CuPy and the stand-in driver of tests/driver,
which counts launches and runs none: time on the device is not part of it. The time is the mean of
1,000 steps, the best of five runs; the calls are those of Python functions (sys.setprofile).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

DRIVER = Path(__file__).resolve().parents[1] / "tests" / "driver"
STEPS, RUNS = 1000, 5


def measured(batch: int, steps: int = STEPS, runs: int = RUNS, each: bool = False) -> dict[str, Any]:
    """{"us": a step, "calls": a step, "driver": {function: calls a step}} in the driver's process."""
    import driver
    import numpy as np

    library = driver.install(execute=False, defer=False)
    from gpuconv import data, models, nn, optim, train
    from gpuconv.cuda.cupy import CupyRuntime

    CupyRuntime.scalar = lambda self, array: _kept(array)  # type: ignore[assignment, method-assign]
    rng = np.random.default_rng(0)
    count = (steps + 10) * batch
    images = rng.integers(0, 256, (min(count, 57_000), 1, 28, 28), np.uint8)
    source = data.Dataset(images, rng.integers(0, 10, len(images)))
    found: dict[str, Any] = {"us": float("inf")}

    class Watch(train.Callback):
        """Begins when all kinds of steps are replayed, ends `steps` later."""

        each_batch = False
        began: tuple[int, float] | None = None
        counts: Counter[Any] = Counter()

        def __init__(self, counts: bool) -> None:
            self.counting = counts

        def on_batch_end(self, trainer: Any) -> None:
            step = trainer.state.step
            if self.began is None and trainer.state.epoch >= 3:
                library.standin_forget_counts()
                if self.counting:
                    sys.setprofile(self.note)
                self.began = step, time.perf_counter()
            elif self.began is not None and step >= self.began[0] + steps:
                sys.setprofile(None)
                done = step - self.began[0]
                seconds = time.perf_counter() - self.began[1]
                if self.counting:
                    found["calls"] = sum(self.counts.values()) / done
                    found["each"] = {str(k): n / done for k, n in self.counts.most_common(40)}
                else:
                    found["us"] = min(found["us"], 1e6 * seconds / done)
                    calls = driver.calls(library).items()
                    found["driver"] = {name: round(n / done, 4) for name, n in calls}
                raise StopIteration

        def note(self, frame: Any, event: str, _: Any) -> None:
            if event == "call":
                code = frame.f_code
                self.counts[f"{Path(code.co_filename).name}:{code.co_qualname}"] += 1

    for run in range(runs + 1):
        model = models.lenet(seed=0).to("cuda")
        optimizer = optim.SGD(model.parameters(), 0.05, 0.9)
        loader = data.Loader(source, batch, seed=1, size=32, mean=0.13, std=0.31)
        epochs = 10 + 2 * steps // len(loader)
        schedule = optim.OneCycleLR(0.05, epochs * len(loader))
        watch = Watch(counts=run == runs)
        trainer = train.Trainer(
            model, nn.CrossEntropyLoss(), optimizer, schedule, progress=False,
            callbacks=[train.progress.Progress(io.StringIO()), watch],
        )  # fmt: skip
        try:
            trainer.fit(loader, epochs=epochs)
        except StopIteration:
            pass
    if not each:
        del found["each"]
    return found


def _kept(array: Any) -> float:
    from gpuconv.cuda import recording

    if recording.state.recorder is not None:
        recording.state.recorder.scalars.append(array)
    return 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("batch", type=int, nargs="*", default=[64, 128, 512])
    parser.add_argument("--calls", action="store_true", help="the calls by function")
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if "GPUCONV_STANDIN_DRIVER" not in os.environ:
        sys.path.insert(0, str(DRIVER))
        import driver

        with tempfile.TemporaryDirectory() as folder:
            environment = driver.environment(Path(folder))
            command = [sys.executable, __file__, *sys.argv[1:]]
            raise SystemExit(os.spawnve(os.P_WAIT, sys.executable, command, environment))
    for batch in arguments.batch:
        found = measured(batch, each=arguments.calls)
        if arguments.json:
            print(json.dumps(found))
            continue
        print(f"batch {batch}: {found['us']:.1f} us and {found['calls']:.1f} Python calls a step")
        print("   of the driver, a step: ", found["driver"])
        for name, count in found.get("each", {}).items():
            print(f"   {count:8.2f} {name}")


if __name__ == "__main__":
    main()
