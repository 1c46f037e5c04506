"""The training peak that `summary` reports, against what NumPy and the system measure."""

import gc
import json
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from gpuconv import models, nn, optim
from gpuconv.cpu import workspace
from gpuconv.nn.summary import summary

WITHIN = 0.15  # of the whole, which is what is promised
CLOSE = 0.02  # of activations alone, in which no parameter hides an error

# Image sizes and batches at which activations are not lost among the parameters.
SIZES = {
    "alexnet": (95, 32),
    "alexnet_2012": (99, 32),
    "densenet121": (64, 16),
    "googlenet": (96, 16),
    "googlenet_paper": (96, 16),
    "harley_lenet": (None, 256),
    "lenet": (None, 256),
    "lenet5": (None, 256),
    "resnet18": (64, 32),
    "resnet34": (64, 32),
    "resnet50": (64, 16),
    "vgg16": (64, 16),
    "vgg16_bn": (64, 16),
    "vgg19": (64, 16),
    "zfnet": (95, 32),
}


def measured(network, shape, batch, monkeypatch, loss=None):
    """Bytes at the peak of a training step that finds the momentum and workspaces of one before."""
    rng, loss = np.random.default_rng(0), loss or nn.CrossEntropyLoss()
    images, labels = rng.standard_normal((batch, *shape), np.float32), np.zeros(batch, np.int64)
    optimizer = optim.SGD(network.parameters(), lr=0.0, momentum=0.9)

    def step(x):
        optimizer.zero_grad()
        loss.forward(network.forward(x), labels)
        network.backward(loss.backward(), need_dx=False)

    step(images)  # loads compiled loops, hires threads
    optimizer.zero_grad()
    monkeypatch.setattr(workspace, "_kept", threading.local())
    gc.collect()
    tracemalloc.start()
    try:
        x = images.copy()
        step(x)
        optimizer.step()  # makes the momentum
        tracemalloc.reset_peak()
        step(x)
        optimizer.step()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    holders = [*network.parameters(), *(buffer for _, buffer in network.named_buffers())]
    return peak + sum(holder.data.nbytes for holder in holders)


def compare(network, shape, batch, monkeypatch, loss=None):
    """Predicted over measured, of the whole and of activations; both asserted."""
    found = summary(network, shape).training(batch)
    peak = measured(network, shape, batch, monkeypatch, loss)
    whole, rest = found.total / peak, found.activations / (peak - found.state)
    text = f"{found}, measured {peak}: {whole:.3f} of the whole, {rest:.3f} of activations"
    print(text)
    assert abs(whole - 1) <= WITHIN, text
    assert abs(rest - 1) <= CLOSE, text
    return found


def build(name, size=None, **options):
    """A model for images of size x size, 10 classes, and their shape; with None its own.

    Its weights are small and of no meaning: to draw them would take longer than the steps, and
    infinities would choose other algorithms.
    """
    arguments = {} if size is None else {"num_classes": 10, "input_size": size}
    network = models.MODELS[name](seed=None, **arguments, **options)
    for parameter in network.parameters():
        parameter.data[...] = 1e-3
    for _, layer in network.layers():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters(np.random.default_rng(0))
    return network, network.input_shape


@pytest.mark.parametrize("name", models.MODELS)
def test_measured_peak_is_the_summarys(name, monkeypatch):
    size, batch = SIZES[name]
    compare(*build(name, size), batch, monkeypatch)


@pytest.mark.parametrize("name", ["resnet50", pytest.param("densenet121", marks=pytest.mark.slow)])
def test_with_recomputation(name, monkeypatch):
    network, shape = build(name, 64, recompute=True)
    saving = compare(network, shape, 16, monkeypatch)
    plain = summary(build(name, 64)[0]).training(16)
    assert saving.activations < 0.8 * plain.activations
    assert saving.state == plain.state


@pytest.mark.parametrize("name", ["googlenet", "googlenet_paper"])
def test_with_auxiliary_heads(name, monkeypatch):
    compare(*build(name, 96, aux=True), 16, monkeypatch, nn.AuxiliaryLoss())


def branches():
    """Every container, in an order no model has, with layers that alias and that copy."""
    side = nn.Sequential(nn.Conv2d(24, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU())
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1),
        nn.Residual(side, nn.Conv2d(24, 24, 1)),
        nn.ReLU(),
        nn.Concat(
            nn.Sequential(nn.Conv2d(24, 16, 1), nn.Tanh()),
            nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.LocalResponseNorm(3), nn.Dropout(0.2)),
            nn.Residual(nn.Sequential(nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 24, 1))),
            nn.Identity(),
        ),
        nn.DenseBlock(nn.Conv2d(88, 12, 3, padding=1), nn.Recompute(nn.Conv2d(100, 12, 1))),
        nn.Sigmoid(),
        nn.AvgPool2d(2),
        nn.ScaledTanh(),
        nn.PartialConv2d(np.eye(112), 1),
        nn.SumPool2d(2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(448, 10),
    )


def test_a_network_of_ones_own(monkeypatch):
    compare(branches(), (3, 40, 36), 16, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["vgg16_bn", "densenet121", "resnet50", "googlenet_paper", "alexnet_2012"]
)
def test_at_full_size(name, monkeypatch):
    compare(*build(name), 8, monkeypatch)


RESIDENT = """
import sys, json
sys.path.insert(0, sys.argv[1])
import model_steps
import gpuconv.cpu.conv
from gpuconv.nn.summary import summary
model_steps.batch.__defaults__ = (int(sys.argv[3]),)
predicted = summary(model_steps.network(sys.argv[2])).training_bytes(int(sys.argv[3]))
print(json.dumps([predicted, model_steps.peak(model_steps.ours, sys.argv[2])]))
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs /proc/self/clear_refs, Linux's"
)
@pytest.mark.parametrize(
    ("name", "batch"),
    [
        ("resnet18", 32),
        pytest.param("densenet121", 8, marks=pytest.mark.slow),
        pytest.param("vgg16_bn", 8, marks=pytest.mark.slow),
        pytest.param("resnet50", 8, marks=pytest.mark.slow),
        pytest.param("googlenet", 64, marks=pytest.mark.slow),
    ],
)
def test_the_process_takes_as_much(name, batch):
    """Resident size at the peak of a step at 224 x 224, in a process of its own, over its size
    before the network is made. Compiled loops are in it too, 70 to 90 MB: hence large batches.
    """
    folder = Path(__file__).parents[2] / "benchmarks"
    command = [sys.executable, "-c", RESIDENT, str(folder), name, str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    predicted, peak = json.loads(done.stdout)
    print(f"{name}: predicted {predicted}, resident {peak}: {predicted / peak:.3f}")
    assert abs(predicted / peak - 1) <= WITHIN, (predicted, peak)
