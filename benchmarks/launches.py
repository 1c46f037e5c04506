"""The launches of one training step, and the memory that each moves, from launch plans alone.

The step is the real one (forward, cross-entropy, backward, SGD with momentum), on arrays that have
a place and a shape but are never touched, over a runtime that notes launches instead of starting
them: no simulator, no GPU, and any size of batch. Each launch counts the arrays that its kernel
reads, once, and those that it writes, once; workspaces and tables are among them. What passes
through shared memory or is read again from the L2 is not counted, nor are copies from the host.

`seconds` estimates a launch's time on a GPU by a model; nothing is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np

from gpuconv import autograd, models, nn, optim
from gpuconv.arrays import to_device
from gpuconv.cuda import runtime as runtimes
from gpuconv.cuda.binding import signature_of
from gpuconv.cuda.launch_config import LIMITS, Launch
from gpuconv.sim import Array

ALIGN = 256  # bytes: the alignment of cudaMalloc
# Parameters that a kernel reads and writes; any other is read if it is const, else written.
IN_PLACE = {
    "add_channels": ("to",),
    "batch_norm2d_track": ("running_mean", "running_var"),
    "batch_norm2d_merge": ("running_mean", "running_var"),
    "batch_norm2d_backward_sums": ("partials",),
    "batch_norm2d_relu_max_pool2d_backward_sums": ("partials",),
    "conv2d_backward_small": ("partials",),
    "conv2d_backward_weight_simt": ("partials",),
    "conv2d_backward_weight_mma": ("partials",),
}
# Arrays of each tensor of an optimiser's table that a kernel reads and writes.
TABLES = {
    **{"sgd": (2, 1), "sgd_momentum": (3, 2), "adam": (4, 3), "adam_amsgrad": (5, 4)},
    "unscale": (1, 1),
}


@dataclass(frozen=True)
class Counted:
    """A launch, and the bytes that its kernel reads and writes, each array once."""

    launch: Launch
    read: int
    written: int

    @property
    def blocks(self) -> int:
        return int(np.prod(self.launch.grid))


class _Untouched:
    """Addresses without contents: the pages of a large array that nobody writes take no memory."""

    shadow = None

    def __init__(self, nbytes: int) -> None:
        self._raw = np.empty(nbytes + ALIGN, np.uint8)
        offset = -self._raw.ctypes.data % ALIGN
        self.begin, self.bytes = self._raw.ctypes.data + offset, self._raw[offset:][:nbytes]


class Notes(runtimes.Runtime):
    """A device "sim" that starts nothing: `counted` is what it would have started."""

    name = "sim"
    limits = LIMITS["sm_90a"]  # those of the card whose times are estimated

    def __init__(self) -> None:
        super().__init__()
        self.counted: list[Counted] = []

    def empty(self, shape: Any, dtype: Any = np.float32) -> Array:
        lengths = shape if isinstance(shape, tuple) else (shape,)
        kind = np.dtype(dtype)
        memory: Any = _Untouched(int(np.prod(lengths, dtype=np.int64)) * kind.itemsize)
        return Array(memory, memory.bytes.view(kind).reshape(lengths))

    def asarray(self, host: np.ndarray) -> Array:
        array = self.empty(host.shape, host.dtype)
        if host.nbytes <= 1 << 20:  # tables are read again; images and weights are not
            array._host[...] = host
        return array

    def asnumpy(self, array: Array) -> np.ndarray:
        return np.zeros(array.shape, array.dtype)

    def copy(self, array: Array) -> Array:
        return self.empty(array.shape, array.dtype)

    def span(self, array: Array) -> Array:
        return array.span()

    def address(self, array: Array) -> int:
        return array.ptr

    def synchronize(self) -> None:
        """Nothing is ever running."""

    def start(self, launch: Launch, arguments: list[Any]) -> None:
        self.counted.append(counted(launch, arguments))


def counted(launch: Launch, arguments: list[Any]) -> Counted:
    """What a launch moves; of its arguments only an optimiser's table is looked at."""
    read = written = 0
    for p, argument in zip(signature_of(launch).parameters, arguments, strict=True):
        if not p.pointer:
            continue
        nbytes = (launch.sizes[p.name] or 0) * p.dtype.itemsize
        if p.written:
            written += nbytes
        if not p.written or p.name in IN_PLACE.get(launch.kernel, ()):
            read += nbytes
        if p.name == "tensors" and launch.kernel in TABLES:
            elements = int(argument._host.reshape(-1, 6)[:, -1].sum())
            reads, writes = TABLES[launch.kernel]
            read, written = read + 4 * reads * elements, written + 4 * writes * elements
    return Counted(launch, read, written)


@contextmanager
def noting() -> Iterator[Notes]:
    """Within, device "sim" is one that only notes its launches."""
    notes = Notes()
    with mock.patch.object(runtimes, "runtime", return_value=notes):
        yield notes


def training_step(model: nn.Module, batch: int, precision: str = "ieee") -> list[Counted]:
    """The launches of a step of a model that knows its `input_shape`, in order, after one that made
    its state.
    """
    assert model.input_shape is not None
    images = np.empty((batch, *model.input_shape), np.float32)
    with noting() as notes:
        step = step_of(model.to("sim"), images, precision)
        step()
        notes.counted.clear()
        step()
    return notes.counted


def step_of(model: nn.Module, images: np.ndarray, precision: str = "ieee") -> Callable[[], None]:
    """A function that makes one training step of a model on device "sim"."""
    criterion = nn.AuxiliaryLoss()
    optimizer = optim.SGD(model.train().parameters(), lr=0.05, momentum=0.9)
    scaler = optim.LossScaler("sim") if precision == "fp16" else None
    x, labels = to_device(images, "sim"), to_device(np.zeros(len(images), np.int64), "sim")

    def step() -> None:
        optimizer.zero_grad()
        with autograd.precision(precision, scaler and scaler.factor):
            scores = model(x)
        criterion(scores, labels).backward()
        if scaler is not None:
            scaler.unscale(optimizer.params)
        optimizer.step(scaler)

    return step


# ---- an estimate of time -------------------------------------------------------------------------

# An H100 SXM as NVIDIA states it, and which part of a peak kernels of each kind are taken to reach.
PROCESSORS, LANES, CLOCK = 132, 128, 1.98e9  # lanes: FP32 multiply-adds a clock and processor
BANDWIDTH, STREAMING = 3.0e12, 0.85  # bytes a second, and the part of it that is reached
LEAST = 2.5e-6  # seconds of the shortest launch
# Of a convolution's instructions those that multiply and add, as counted in machine code for sm_90,
# by the tile's sides; of these 0.9 are taken to issue.
SHARES = {(128, 128): 0.83, (128, 64): 0.80, (64, 64): 0.74 * 0.8}
FEW_CHANNELS, ISSUED = 0.6, 0.9
# FLOP/s of dense products on tensor cores as NVIDIA states them, and the part of it that mma.sync
# reaches on this card as others measured.
TENSOR_CORES = {"TF32": 494.7e12, "BF16": 989.4e12, "FP16": 989.4e12}
MMA = 0.65
# Of the loops of small layers, the least of all specialisations; of a chain with what follows them.
SMALL = {
    "conv2d_forward_small": 0.69,
    "conv2d_backward_small": 0.67,
    "linear_chain_forward": 0.32,
    "linear_small_backward": 0.35,
}


def seconds(one: Counted) -> float:
    """The estimated time of a launch: what its bytes or its rounds of blocks take, at least LEAST.

    A round is one block on each processor, and a block takes its multiply-adds, padding included,
    over what a processor executes of them.
    """
    moving = (one.read + one.written) / (BANDWIDTH * STREAMING)
    rounds = -(-one.blocks // PROCESSORS)
    return max(LEAST, moving, rounds * cycles(one.launch) / CLOCK)


def cycles(launch: Launch) -> float:
    """Of a launch's longest block, on a processor of its own."""
    executed, share = _multiply_adds(launch)
    return executed / lanes(launch) / share / ISSUED


def lanes(launch: Launch) -> float:
    """The multiply-adds of a processor in a clock cycle at most."""
    form = dict(launch.defines).get("FORMAT")
    if form is None or not launch.multiply_adds:
        return LANES
    return TENSOR_CORES[form] / 2 / PROCESSORS / CLOCK


def executed(launch: Launch) -> float:
    """The multiply-adds of all blocks, each taken for as long as the longest of its kind."""
    if launch.kernel in SMALL:
        return float(sum(blocks * each for blocks, each in _small(launch)))
    return int(np.prod(launch.grid)) * _multiply_adds(launch)[0]


def _multiply_adds(launch: Launch) -> tuple[float, float]:
    """(executed by a block of a convolution, the mean of its stride phases; the share of its
    instructions that they are); 0 of other kernels.
    """
    macros, sizes = dict(launch.defines), launch.scalars
    if launch.file in ("conv_simt.cu", "conv_simt_weight.cu") and "TILE" in macros:
        tile = (int(macros["TILE"]), int(macros.get("TILE_N", macros["TILE"])))
        if launch.kernel == "conv2d_forward_simt":
            terms = float(sizes["reduction"])
        elif launch.kernel == "conv2d_backward_data_simt":
            terms = sizes["R"] * sizes["S"] * sizes["filters"] / sizes["phases"]
        elif launch.kernel == "conv2d_backward_weight_simt":
            terms = float(sizes["split_length"])
        else:
            return 0.0, 1.0
        return terms * tile[0] * tile[1], SHARES[tile]
    if launch.kernel == "conv2d_gather_mma":
        terms = sizes["R"] * sizes["S"] * sizes["channels"] / sizes["phases"]
        return terms * int(macros["TILE"]) * int(macros["TILE_N"]), MMA
    if launch.kernel == "conv2d_backward_weight_mma":
        return sizes["split_length"] * float(macros["TILE"]) * float(macros["TILE_N"]), MMA
    if launch.kernel == "conv2d_forward_few_channels":
        # a tile of 32 rows shared out among the lanes of filters, by 32 columns and 8 filters each
        taps = int(macros["R"]) * int(macros["S"]) * int(macros["C"])
        return 32 * 32 * 8.0 * taps, FEW_CHANNELS
    if launch.kernel == "conv2d_backward_weight_few_channels":
        pixels = sizes["split_length"] * 32
        taps = int(macros["COLUMNS"]) * int(macros["GROUPS"])
        return pixels * 8.0 * int(macros["LANES"]) * taps, FEW_CHANNELS
    if launch.kernel in SMALL:
        return float(max(each for _, each in _small(launch))), SMALL[launch.kernel]
    return 0.0, 1.0


def _small(launch: Launch) -> list[tuple[int, int]]:
    """(blocks, multiply-adds of one) of each kind of block of a kernel for small layers."""
    macros, n = {name: int(value) for name, value in launch.defines}, launch.scalars
    blocks = launch.grid[0]
    if launch.kernel == "linear_chain_forward":
        outputs = [-(-n[f"f{i + 1}"] // 4) * 4 for i in range(n["layers"])]  # a warp's four
        terms = [n[f"f{i}"] for i in range(n["layers"])]
        total = sum(a * b for a, b in zip(terms, outputs, strict=True))
        return [(blocks, macros["IMAGES"] * total)]
    data = n.get("data_blocks", 0)
    if launch.kernel == "linear_small_backward":
        panels = -(-n["out"] // 64), -(-n["rows"] // 64)
        return [(data, panels[0] * 16 * 32 * 64), (blocks - data, panels[1] * 16 * 32 * 64)]
    taps = macros["R"] * macros["S"]
    if launch.kernel == "conv2d_forward_small":
        patches = n["images"] * n["rows"] // 2 * n["columns"]
        return [(blocks, patches * 4 * n["filters"] * n["C"] * taps)]
    patches = n["data_images"] * n["data_rows"] // 2 * n["columns"] * bool(data)
    of_data = patches * 4 * n["channels"] * n["K"] * taps
    lines = n["length"] * n["images"] * min(n["rows"], n["P"])
    return [(data, of_data), (blocks - data, lines * n["wide"] * macros["FILTERS"] * n["C"] * taps)]


def network(name: str) -> nn.Module:
    """A model of the zoo by name, or "tinyvgg"."""
    return tiny_vgg() if name == "tinyvgg" else models.MODELS[name]()


def tiny_vgg() -> nn.Module:
    """The CNN Explainer's network (Wang et al. 2020): twice two 3x3 convolutions of 10 filters and
    a max-pool, on 3 x 64 x 64.
    """
    layers: list[nn.Module] = []
    for channels in (3, 10):
        layers += nn.Conv2d(channels, 10, 3), nn.ReLU(), nn.Conv2d(10, 10, 3), nn.ReLU()
        layers.append(nn.MaxPool2d(2))
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(10 * 13 * 13, 10))
    model.input_shape = (3, 64, 64)
    return model
