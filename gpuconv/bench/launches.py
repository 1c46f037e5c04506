"""What a training step launches, counted in the simulator, and its time by a stated model.

    print(table(step_launches(models.lenet(), (1, 32, 32), batch=64)))

Multiply-adds are counted as the kernels execute them, padding and all. The time is an estimate: a
launch takes LAUNCH seconds at least, and else rounds of blocks over the processors, each as long as
the longest block takes at the issue rate of its kernel's main loop, or as its bytes take.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuconv import models, nn, optim, sim
from gpuconv.arrays import to_device
from gpuconv.cuda import source
from gpuconv.cuda.launch_config import Launch, ceil_div
from gpuconv.cuda.runtime import runtime

# An H100: processors, clock, bytes a second (0.85 of 3.0 TB/s), and the least time of a launch.
PROCESSORS, CLOCK, BANDWIDTH, LAUNCH = 132, 1.98e9, 2.55e12, 2.5e-6
ISSUED = 0.9  # of the cycles, an instruction
LANES = 128  # multiply-adds a cycle and processor
# FFMA among the instructions of the loop with the most of them; the build tests hold the kernels
# to it. What is not named is taken for the least of them.
FFMA_SHARE = {
    "conv2d_forward_simt": 0.63,
    "conv2d_backward_data_simt": 0.63,
    "conv2d_backward_weight_simt": 0.63,
    "conv2d_forward_few_channels": 0.41,
    "conv2d_backward_weight_few_channels": 0.10,
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
class CountedLaunch:
    """One launch: its grid's blocks, the multiply-adds that its result needs, those executed, those
    of the block with the most, and the bytes of its arrays, each once.
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
        return max(LAUNCH, rounds * self.cycles / CLOCK, self.bytes / BANDWIDTH)


def step_launches(model: nn.Module, image: tuple[int, ...], batch: int) -> list[CountedLaunch]:
    """The launches of one training step (cross-entropy, SGD with momentum) on `sim`, in order.

    image: the shape of one example. The second step is counted, in which all memory is there.
    """
    rng = np.random.default_rng(0)
    x = to_device(rng.standard_normal((batch, *image), np.float32), "sim")
    model = model.to("sim")
    classes = model(x[:1]).shape[1]
    labels = to_device(rng.integers(0, classes, batch), "sim")
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        criterion(model(x), labels).backward()
        optimizer.step()

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


def count(launches: Sequence[tuple[Launch, list[Any]]]) -> list[CountedLaunch]:
    """Each launch, run once more by kernels that count their multiply-adds."""
    modules: dict[tuple[str, tuple[str, ...]], sim.Module] = {}
    rows = []
    for launch, arguments in launches:
        key = launch.file, launch.options
        if key not in modules:
            text = COUNTER % (COUNTED, COUNTED) + source.text(launch.file)
            modules[key] = sim.Module(text, launch.options, name=launch.file)
        module, blocks = modules[key], int(np.prod(launch.grid))
        before = _executed(module)
        given = launch.kernel, launch.grid, launch.block, arguments, launch.shared
        module.launch(*given)
        executed = _executed(module) - before
        nbytes = sum(a.nbytes for a in arguments if hasattr(a, "strides") and a.ndim)
        total, longest = int(executed.sum()), int(executed.max())
        row = launch.kernel, blocks, launch.multiply_adds, total, longest, nbytes
        rows.append(CountedLaunch(*row))
    return rows


def _executed(module: sim.Module) -> np.ndarray:
    """The counters; zeros of a file without a multiply-add."""
    try:
        return sim.asnumpy(module.variable("executed", np.uint64)).astype(np.int64)
    except ValueError:
        return np.zeros(1, np.int64)


def table(rows: Sequence[CountedLaunch]) -> str:
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
