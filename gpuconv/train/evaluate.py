"""Running a model over data without training it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from gpuconv import ops
from gpuconv.arrays import to_device
from gpuconv.nn import Module, Softmax, no_grad
from gpuconv.nn.module import in_mode
from gpuconv.train.finite import diagnose_non_finite

Batches = Iterator[tuple[np.ndarray, np.ndarray]]


def evaluate(
    model: Module, loss: Any, loader: Any, after_batch: Callable[[], None]
) -> dict[str, Any]:
    """`Trainer.evaluate`; after_batch is called after each batch, and may raise."""
    total, images = 0.0, 0
    confusion = np.zeros((0, 0), np.int64)
    with in_mode(model, False), np.errstate(all="ignore"):
        for x, labels in batches_of(loader):
            with no_grad():
                scores = model(to_device(x, model.device))
                value = float(loss(scores, to_device(labels, model.device)))
            answers = scores.numpy()
            if not (math.isfinite(value) and np.isfinite(answers).all()):
                what = "a score" if math.isfinite(value) else "the loss"
                raise diagnose_non_finite(model, x, f"evaluation, after {images} images", what)
            counts = _count_pairs(labels, answers)
            confusion = counts if not images else confusion + counts
            total += value * len(labels)
            images += len(labels)
            after_batch()
    if not images:
        raise ValueError("evaluate: the loader has no images")
    accuracy = int(np.trace(confusion)) / images
    return {"loss": total / images, "accuracy": accuracy, "images": images, "confusion": confusion}


def probabilities(model: Module, data: Any, batch_size: int) -> np.ndarray:
    """`Trainer.predict`. Raises FloatingPointError for scores that are not finite, naming the first
    layer whose output is not, and ValueError for such an input.
    """
    if isinstance(data, np.ndarray):
        data = data[None] if data.ndim == 3 else data
        parts = (data[i : i + batch_size] for i in range(0, max(len(data), 1), batch_size))
    elif getattr(data, "shuffle", False):
        raise ValueError("predict: the loader shuffles; make it with shuffle=False")
    else:
        parts = (x for x, _ in batches_of(data))
    outputs = []
    with in_mode(model, False), no_grad(), np.errstate(all="ignore"):
        for x in parts:
            outputs.append(model(to_device(x, model.device)).numpy())
            if not np.isfinite(outputs[-1]).all():
                raise diagnose_non_finite(model, x, "predict", "a score", "train it again")
    scores = np.concatenate(outputs)
    *_, (_, final) = model.named_modules()
    return scores if isinstance(final, Softmax) else ops.softmax(scores)


def batches_of(loader: Any, epoch: int = 0, start: int = 0) -> Batches:
    """Batches of an epoch from `start` on; a plain list gives the same ones every epoch."""
    if hasattr(loader, "batches"):
        batches: Batches = loader.batches(epoch, start)
        return batches
    return islice(iter(loader), start, None)


def _count_pairs(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """How often each class (row) was taken for each class (column)."""
    classes = scores.shape[1]
    pairs = np.asarray(labels, np.int64) * classes + scores.argmax(axis=1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
