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
from gpuconv.runtime.outline import Meter, Outline

WITHIN = 0.15  # of the whole, which is what is promised
CLOSE = 0.04  # of activations alone, in which no parameter hides an error
SMALL = {"stem": "small"}

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


def measured(network, shape, batch, loss=None):
    """Bytes at the peak of a training step, the third and fourth of a network's life."""
    rng, loss = np.random.default_rng(0), loss or nn.CrossEntropyLoss()
    images, labels = rng.standard_normal((batch, *shape), np.float32), np.zeros(batch, np.int64)
    optimizer = optim.SGD(network.parameters(), lr=1e-5, momentum=0.9)

    def step(x):
        optimizer.zero_grad()
        loss.forward(network.forward(x), labels)
        network.backward(loss.backward(), need_dx=False)
        optimizer.step()

    step(images)  # loads compiled loops, hires threads
    optimizer.zero_grad()
    optimizer = optim.SGD(network.parameters(), lr=1e-5, momentum=0.9)
    gc.collect()
    tracemalloc.start()
    try:
        x = images.copy()
        step(x)
        tracemalloc.reset_peak()
        step(x), step(x)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    holders = [*network.parameters(), *(buffer for _, buffer in network.named_buffers())]
    return peak + sum(holder.data.nbytes for holder in holders)


def compare(network, shape, batch, monkeypatch, loss=None):
    """Predicted over measured, of the whole and of activations; both asserted."""
    monkeypatch.setattr(workspace, "_kept", threading.local())
    found = summary(network, shape).training(batch)
    peak = measured(network, shape, batch, loss)
    whole, rest = found.total / peak, found.activations / (peak - found.state)
    text = f"{found}, measured {peak}: {whole:.3f} of the whole, {rest:.3f} of activations"
    print(text)
    assert abs(whole - 1) <= WITHIN, text
    assert abs(rest - 1) <= CLOSE, text
    return found


@pytest.mark.parametrize("name", models.MODELS)
def test_measured_peak_is_the_summarys(name, monkeypatch):
    size, batch = SIZES[name]
    network = models.MODELS[name]()
    channels, side, _ = network.input_shape
    if size is not None:
        network = models.MODELS[name](num_classes=10, **_resized(name, size))
    side = size or side
    found = compare(network, (channels, side, side), batch, monkeypatch)
    assert found.activations > 0.15 * found.total
