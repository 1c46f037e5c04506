"""benchmarks/launches.py: what it counts is what kernels touch, and stays within the gates."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from simulated import DEVICE

from gpuconv import nn
from gpuconv.cuda.sim import SimRuntime
from gpuconv.models.resnet import BasicBlock

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import launches
import layers
import precisions

if DEVICE != "sim":
    pytest.skip("launches are counted on the simulator's arrays", allow_module_level=True)

from gpuconv.sim import launch as simulated_launch
from gpuconv.sim import layout, memory

DOCS = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"


def step(name, batch, precision="ieee"):
    counted = launches.training_step(launches.network(name), batch, precision)
    return counted, sum(one.read + one.written for one in counted)


def test_a_residual_network_moves_no_more_than_it_needs():
    """What has a kernel's epilogue to do it in has no launch of its own."""
    counted, nbytes = step("resnet18", 128)
    kernels = Counter(one.launch.kernel for one in counted)
    assert kernels["transpose"] == 1  # of the images, for the stem's convolution and its gradient
    assert not kernels.keys() & {"add", "add_relu", "add_channels", "batch_norm2d_statistics"}
    assert kernels["relu_backward"] == 1  # before the mean over the image
    assert len(counted) <= 160
    assert nbytes <= 18e9


def test_16_bits_move_little_more_than_they_must():
    counted, nbytes = step("resnet18", 128, "bf16")
    least = sum(one.least for one in layers.passes(launches.network("resnet18"), 128, "bf16"))
    assert least < nbytes <= 1.15 * least
    kernels = Counter(one.launch.kernel for one in counted)
    assert not kernels.keys() & {"add", "add_relu", "add_channels", "batch_norm2d_statistics"}


def by_hand():
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 5),
    )  # fmt: skip
    network.input_shape = (1, 8, 8)
    return network


def test_a_relus_mask_is_that_of_the_pooled_image():
    for precision in ("tf32", "bf16", "fp16"):
        counted = launches.training_step(by_hand(), 2, precision)
        masks = [one.launch.sizes for one in counted if one.launch.kernel == "relu_backward"]
        assert [sizes["y"] for sizes in masks] == [2 * 2 * 9]


def test_the_least_bytes_by_hand():
    """Of a batch of 2: conv, batch norm, ReLU, conv, ReLU, max-pool, linear."""
    network = by_hand()
    image, wide, narrow, pooled, scores = 2 * 64, 2 * 4 * 36, 2 * 2 * 36, 2 * 2 * 9, 2 * 5
    first, second, last = 4 * 9, 4 * 2 + 2, 18 * 5 + 5
    for name, a in (("bf16", 2), ("fp16", 2), ("tf32", 4)):
        expected = 2 * (a * (image + wide) + 4 * first)  # no gradient of the images
        expected += 3 * (a * (wide + narrow) + 4 * second) + 3 * (a * (pooled + scores) + 4 * last)
        expected += 7 * a * wide  # batch norm: forward, sums, gradient
        expected += a * (2 * narrow + 3 * pooled) + 2 * pooled  # with the ReLU's sign
        weights = first + 2 * 4 + second + last
        expected += 20 * weights + (8 * weights if name == "fp16" else 0)
        assert sum(one.least for one in layers.passes(network, 2, name)) == expected
    flops = [one.flops for one in layers.passes(network, 2, "bf16") if one.flops]
    assert flops[:3] == [2 * wide * 9] * 2 + [2 * narrow * 4]


@pytest.mark.slow
def test_the_tables_of_precisions_are_what_the_command_prints():
    text = DOCS.read_text("utf-8")
    for name, table in precisions.TABLES.items():
        assert f"<!-- {name} begin -->\n" + "\n".join(table()) + f"\n<!-- {name} end -->" in text
    for name, batch in precisions.MOVED:
        least, moved, _ = precisions.moved_bytes(name, batch, "bf16")
        assert least < moved <= 1.15 * least
    for precision in precisions.PRECISIONS:
        counted, _ = step("vgg16", 2, precision)
        assert sum(one.launch.kernel == "relu_backward" for one in counted) <= 7


def small_network():
    """What ResNet-18 is made of, for images of 3x32x32."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, 2, padding=3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1), BasicBlock(8, 8, 1), BasicBlock(8, 16, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip


class Watched(SimRuntime):
    """Notes what each launch is said to move, and what it touched: (read, written)."""

    def __init__(self):
        super().__init__(check=True)
        self.counted, self.touched = [], []

    def start(self, launch, arguments):
        simulated_launch._generation += 1  # no access of an earlier launch is remembered
        super().start(launch, arguments)
        self.counted.append(launches.counted(launch, arguments))
        self.touched.append(np.sum([touched(m.traces) for m in memory.live()], axis=0).tolist())


def touched(traces):
    """How many bytes of an allocation the last launch read and wrote, as the race detector noted
    it for each of its workers. Atomic operations (flag) count as writes.
    """
    marks = [array.view(layout.DTYPES["Trace"]) for array in traces.arrays]
    reads = np.any([one["reads"].any(1) for one in marks], axis=0).sum()
    writes = np.any([(one["write"] > 0) | (one["flag"] > 0) for one in marks], axis=0).sum()
    return reads * traces.granule, writes * traces.granule


# What may read less than whole arrays: strides skip pixels, options leave numbers unread.
PARTLY = {"conv2d_forward_simt", "conv2d_backward_weight_simt", "conv2d_gather_mma",
          "conv2d_backward_weight_mma", "cross_entropy_forward",
          "cross_entropy_mean", "cross_entropy_total", "cross_entropy_backward",
          "sgd_momentum"}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["ieee", "bf16"])
def test_counted_bytes_are_what_kernels_touch_in_the_simulator(monkeypatch, precision):
    """Every address that a launch reads or writes, once."""
    watched = Watched()
    monkeypatch.setattr(launches.runtimes, "runtime", lambda device: watched)
    rng = np.random.default_rng(0)
    network = small_network().to("sim")
    launches.step_of(network, rng.standard_normal((2, 3, 32, 32)).astype(np.float32), precision)()
    for one, (read, written) in zip(watched.counted, watched.touched, strict=True):
        kernel = one.launch.kernel
        assert one.written == written, kernel
        assert read <= one.read, kernel
        assert one.read == read or kernel in PARTLY, (kernel, one.read, read)
