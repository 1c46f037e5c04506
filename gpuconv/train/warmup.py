"""Compile the kernels of a training step before the first one is needed."""

from __future__ import annotations

import numpy as np

from gpuconv import nn, optim
from gpuconv.arrays import to_device
from gpuconv.nn import Module


def warm_up(model: Module, batch: int) -> None:
    """Two training steps on random images, with SGD and with Adam; the model's weights change.

    Every kernel that they use is compiled and kept in its cache on disk (CuPy's, the simulator's,
    or Numba's). Kernels are chosen by shape, so `batch` is that of the training to come.
    Raises ValueError for a model that does not know its input.
    """
    if model.input_shape is None:
        raise ValueError("warm_up: the network does not know how large its images are")
    rng, loss = np.random.default_rng(0), nn.CrossEntropyLoss()
    x = to_device(rng.random((batch, *model.input_shape), np.float32), model.device)
    labels = to_device(np.zeros(batch, np.int64), model.device)
    for make in (lambda p: optim.SGD(p, momentum=0.9), optim.Adam):
        optimizer = make(model.parameters())
        optimizer.zero_grad()
        loss(model(x), labels).backward()
        optimizer.step()
