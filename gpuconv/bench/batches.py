"""A loader's batch, made on the host or by its kernel, as a workload."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from gpuconv.arrays import contiguous, device_of
from gpuconv.bench.cases import Case
from gpuconv.cuda.runtime import runtime
from gpuconv.data import Compose, Dataset, HorizontalFlip, Loader, Shift
from gpuconv.data.draws import WORDS, draw_rows
from gpuconv.data.loader import AUGMENT
from gpuconv.data.on_device import LEVELS, config_image_batch, moves_of, values_of
from gpuconv.data.rng import key_of
from gpuconv.ops.cost import Cost

MEAN, STD = 0.5, 0.25


class BatchWorkload:
    """All images of a set in one batch: shuffled, shifted, mirrored, normalised.

    The attributes and methods of `workloads.Workload`.
    """

    kernels, in_place, direction = True, False, "forward"

    def __init__(self, case: Case, floats: Callable[[tuple[int, ...]], Any]) -> None:
        self.case, self._drawn = case, floats(case.x)
        N, C, H, W = case.x
        rows, values = 4 * N * WORDS, 4 * C * LEVELS
        self.cost = Cost(0, 5 * N * C * H * W + 2 * 8 * N + rows + values + 4)

    @cached_property
    def arguments(self) -> tuple[Any, ...]:
        """Images, labels, and what the kernel reads besides: its table, the values, the slot."""
        images = np.clip(64 * self._drawn + 128, 0, 255).astype(np.uint8)
        loader = self._loader(images, np.arange(len(images)) % 10)
        table = np.empty((len(images), WORDS), np.int32)
        key = key_of(loader.seed, 0, AUGMENT)
        draw_rows(moves_of(loader), loader.order(0), key, *images.shape[2:], 0, 0, table)
        labels = loader.dataset.labels
        return images, labels, table, values_of(loader), np.zeros(1, np.uint32)

    def prepare(self, arguments: tuple[Any, ...]) -> Callable[[], tuple[Any, ...]]:
        """A call that makes the batch: (x, labels)."""
        images, labels, table, values, slot = map(contiguous, arguments)
        shape = self.case.x
        if isinstance(images, np.ndarray):
            loader = self._loader(images, labels)
            return lambda: next(loader.batches(0))
        on = runtime(device_of(images) or "cpu")
        config = config_image_batch(shape, shape, "uint8", 1, len(images))

        def call() -> tuple[Any, ...]:
            N, C, H, W = shape
            x, answers = on.empty((N, H, W, C)), on.empty(N, np.int64)
            on.run(
                config, {"first": 0}, x=x, batch_labels=answers, images=images, labels=labels,
                table=table, values=values, slot=slot,
            )  # fmt: skip
            return on.as_nchw(x), answers

        return call

    def expected(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The batch in float64; its labels are exact."""
        images, labels, *_ = self.arguments
        loader = self._loader(images, labels)
        plain = Loader(loader.dataset, len(images), augment=loader.augment)
        moved, answers = next(plain.batches(0))
        exact = (np.rint(moved * 255.0) / 255 - MEAN) / STD
        return [(exact, np.full(exact.shape, 2.0**-20)), (answers, np.zeros(len(answers)))]

    def _loader(self, images: np.ndarray, labels: np.ndarray) -> Loader:
        augment = Compose([Shift(2), HorizontalFlip()])
        return Loader(Dataset(images, labels), len(images), augment=augment, mean=MEAN, std=STD)
