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

if DEVICE != "sim":
    pytest.skip("launches are counted on the simulator's arrays", allow_module_level=True)

from gpuconv.sim import launch as simulated_launch
from gpuconv.sim import layout, memory


def step(name, batch):
    counted = launches.training_step(launches.network(name), batch)
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
PARTLY = {"conv2d_forward_simt", "conv2d_backward_weight_simt", "cross_entropy_forward",
          "cross_entropy_mean", "cross_entropy_total", "cross_entropy_backward",
          "sgd_momentum"}  # fmt: skip


@pytest.mark.slow
def test_counted_bytes_are_what_kernels_touch_in_the_simulator(monkeypatch):
    """Every address that a launch reads or writes, once."""
    watched = Watched()
    monkeypatch.setattr(launches.runtimes, "runtime", lambda device: watched)
    rng = np.random.default_rng(0)
    network = small_network().to("sim")
    launches.step_of(network, rng.standard_normal((2, 3, 32, 32)).astype(np.float32))()
    for one, (read, written) in zip(watched.counted, watched.touched, strict=True):
        kernel = one.launch.kernel
        assert one.written == written, kernel
        assert read <= one.read, kernel
        assert one.read == read or kernel in PARTLY, (kernel, one.read, read)
