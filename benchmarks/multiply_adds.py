"""The multiply-adds of one training step, counted as its kernels execute them in the simulator.

The step is the real one, of which each launch runs once more by kernels that count: padding and
all, by block. `Work.seconds` estimates a launch's time by a model; nothing is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import launches
import numpy as np
from launches import BANDWIDTH, CLOCK, ISSUED, LANES, PROCESSORS, STREAMING

from gpuconv import models, nn, sim
from gpuconv.cuda import source
from gpuconv.cuda.launch_config import Launch, ceil_div
from gpuconv.cuda.runtime import runtime

LEAST = 2.5e-6  # seconds of a launch among others, at least
# FFMA among the instructions of the loop with the most of them, in sm_90 machine code.
FFMA_SHARE = {
    "conv2d_forward_simt": 0.63,
    "conv2d_backward_data_simt": 0.63,
    "conv2d_backward_weight_simt": 0.63,
    "conv2d_forward_few_channels": 0.41,
    "conv2d_backward_weight_few_channels": 0.10,
    "conv2d_forward_small": 0.69,
    "conv2d_backward_small": 0.67,
}
LEAST_SHARE = 0.1
COUNTED = 1 << 16  # blocks with a counter of their own
COUNTER = """
__device__ unsigned long long executed[%d];
__device__ __forceinline__ float counted_fmaf(float a, float b, float c)
{
    const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    ++executed[block %% %d];  // a block runs on one core
    return __fmaf_rn(a, b, c);
}
#define fmaf counted_fmaf
"""


def tiny_vgg() -> nn.Sequential:
    """The CNN Explainer's network (Wang et al. 2020): twice two 3x3 convolutions of 10 filters and
    a max-pool, on 3 x 64 x 64.
    """
    layers: list[nn.Module] = []
    for channels in (3, 10):
        layers += nn.Conv2d(channels, 10, 3), nn.ReLU(), nn.Conv2d(10, 10, 3), nn.ReLU()
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(10 * 13 * 13, 10))


# Each network with the shape of its images.
NETWORKS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "lenet": lambda: (models.lenet(), (1, 32, 32)),
    "lenet5": lambda: (models.lenet5(), (1, 32, 32)),
    "tinyvgg": lambda: (tiny_vgg(), (3, 64, 64)),
}


@dataclass(frozen=True)
class Work:
    """One launch: its grid's blocks, the multiply-adds that its result needs, those executed, those
    of the block with the most, and the bytes of the arrays that it reads and that it writes.
    """

    kernel: str
    blocks: int
    needed: int
    executed: int
    longest: int
    bytes: int

    @property
    def cycles(self) -> float:
        """Of the longest block's multiply-adds."""
        share = FFMA_SHARE.get(self.kernel, LEAST_SHARE)
        return self.longest / (LANES * share * ISSUED)

    @property
    def seconds(self) -> float:
        """By the model: an estimate."""
        rounds = ceil_div(self.blocks, PROCESSORS)
        return max(LEAST, rounds * self.cycles / CLOCK, self.bytes / (BANDWIDTH * STREAMING))


def step_work(model: nn.Module, image: tuple[int, ...], batch: int) -> list[Work]:
    """The launches of one training step on `sim`, in order; image: the shape of one example."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, *image), np.float32)
    step = launches.step_of(model.to("sim"), images)  # alive until all ran: its arrays are theirs
    return count(recorded(step))


def recorded(function: Any) -> list[tuple[Launch, list[Any]]]:
    """What the second call of `function` launches on `sim`."""
    device = runtime("sim")
    function()
    device.recorded = []
    try:
        function()
        return device.recorded
    finally:
        device.recorded = None


def count(steps: Sequence[tuple[Launch, list[Any]]]) -> list[Work]:
    """Each launch, run once more by kernels that count their multiply-adds."""
    modules: dict[tuple[str, tuple[str, ...]], sim.Module] = {}
    rows = []
    for launch, arguments in steps:
        key = launch.file, launch.options
        if key not in modules:
            text = COUNTER % (COUNTED, COUNTED) + source.text(launch.file)
            modules[key] = sim.Module(text, launch.options, name=launch.file)
        module, blocks = modules[key], int(np.prod(launch.grid))
        before = _executed(module)
        given = launch.kernel, launch.grid, launch.block, arguments, launch.shared
        module.launch(*given)
        executed = _executed(module) - before
        moved = launches.counted(launch, arguments)
        total, longest = int(executed.sum()), int(executed.max())
        row = launch.kernel, blocks, launch.multiply_adds, total, longest
        rows.append(Work(*row, moved.read + moved.written))
    return rows


def _executed(module: sim.Module) -> np.ndarray:
    """The counters; zeros of a file without a multiply-add."""
    try:
        return sim.asnumpy(module.variable("executed", np.uint64)).astype(np.int64)
    except ValueError:
        return np.zeros(1, np.int64)


def table(rows: Sequence[Work]) -> str:
    """A line for each launch, and the totals."""
    lines = [
        f"{'kernel':38} {'blocks':>7} {'needed':>12} {'executed':>12} {'longest':>9} "
        f"{'cycles':>8} {'MB':>7} {'us':>6}"
    ]
    for row in rows:
        lines.append(
            f"{row.kernel:38} {row.blocks:7} {row.needed:12} {row.executed:12} {row.longest:9} "
            f"{row.cycles:8.0f} {row.bytes / 1e6:7.2f} {1e6 * row.seconds:6.1f}"
        )
    needed, executed = (sum(getattr(r, n) for r in rows) for n in ("needed", "executed"))
    lines.append(
        f"{len(rows)} launches, executed / needed {executed / max(needed, 1):.2f}, "
        f"estimate {1e6 * sum(r.seconds for r in rows):.1f} us"
    )
    return "\n".join(lines)
