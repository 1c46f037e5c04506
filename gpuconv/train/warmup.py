"""Compile the kernels of a training step before the first one is needed."""

from __future__ import annotations

from functools import partial

import numpy as np

from gpuconv import optim
from gpuconv.data import Dataset, Loader, Shift
from gpuconv.nn import Module
from gpuconv.train.trainer import Trainer


def warm_up(model: Module, batch: int, precision: str = "ieee") -> None:
    """Two training steps on random images in this precision, with SGD and with Adam; the model's
    running statistics change.

    Every kernel that they use, those that make the batches too, is compiled and kept in its cache
    on disk (CuPy's, the simulator's, or Numba's). Kernels are chosen by shape, so `batch` is that
    of the training to come. Raises ValueError for a model that does not know its input, and for a
    precision that its device lacks.
    """
    if model.input_shape is None:
        raise ValueError("warm_up: the network does not know how large its images are")
    shape = batch, *model.input_shape
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    loader = Loader(Dataset(images, np.zeros(batch, np.int64)), batch, augment=Shift(1))
    for make in (partial(optim.SGD, momentum=0.9), optim.Adam):
        optimizer = make(model.parameters(), lr=0.0)
        run = Trainer(model, "cross_entropy", optimizer, progress=False, precision=precision)
        run.fit(loader)
