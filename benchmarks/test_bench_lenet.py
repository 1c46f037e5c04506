"""pytest-benchmark suite: one training step of LeNet on the CPU path."""

import numpy as np
import pytest
from bench_cases import LENET_BATCHES

from gpuconv import models, nn, optim


@pytest.mark.parametrize("batch", LENET_BATCHES)
@pytest.mark.parametrize("optimizer", [optim.SGD, optim.Adam])
def test_lenet_step(benchmark, batch, optimizer):
    rng = np.random.default_rng(0)
    x, labels = rng.random((batch, 1, 32, 32), np.float32), rng.integers(0, 10, batch)
    model, loss = models.lenet(), nn.CrossEntropyLoss()
    update = optimizer(model.parameters(), lr=1e-3)

    def step():
        update.zero_grad()
        value = loss(model(x), labels)
        value.backward()
        update.step()
        return value

    benchmark(step)
    assert step() < 2.4
