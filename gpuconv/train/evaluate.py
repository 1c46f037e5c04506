"""Running a model over data without training it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import chain, zip_longest
from typing import Any

import numpy as np

from gpuconv import autograd, ops
from gpuconv.arrays import to_numpy
from gpuconv.distributed import Communicator
from gpuconv.nn import Module, trace
from gpuconv.nn.module import in_mode
from gpuconv.train.answers import Run, answers_of
from gpuconv.train.batches import as_batches
from gpuconv.train.finite import diagnose_non_finite

MOST_CLASSES = 4096  # that are counted by pairs: 128 MB


def evaluate(
    model: Module,
    loss: Any,
    loader: Any,
    after_batch: Callable[[], None],
    run: Run | None = None,
    communicator: Communicator | None = None,
    precision: str = "ieee",
) -> dict[str, Any]:
    """`Trainer.evaluate`; after_batch is called after each batch, and may raise. run: what gives
    the model's answers, by default what its device allows, in this precision. communicator: of
    ranks whose loaders have every `size`-th batch each, from number `rank` on.
    """
    run = run or answers_of(model, precision=precision)
    own = partial(_sums, model, loss, loader, after_batch, run, precision)
    every = [own()] if communicator is None else communicator.agreed(own)
    # Added in the order of the batches: any number of ranks gives the same bits.
    in_order = chain.from_iterable(zip_longest(*(batches for batches, _, _ in every)))
    total, images = 0.0, 0
    for batch in filter(None, in_order):
        total, images = total + batch[0], images + batch[1]
    if not images:
        raise ValueError("evaluate: the loader has no images")
    accuracy = sum(correct for _, correct, _ in every) / images
    counted = [counts for _, _, counts in every if counts is not None]
    confusion = sum(counted[1:], counted[0]) if counted else None
    return {"loss": total / images, "accuracy": accuracy, "images": images, "confusion": confusion}


def _sums(
    model: Module,
    loss: Any,
    loader: Any,
    after_batch: Callable[[], None],
    run: Run,
    precision: str,
) -> tuple[list[tuple[float, int]], int, np.ndarray | None]:
    """For each batch the sum of the losses and the number of images; the right answers; and the
    confusion matrix, None where there is no batch or for more than MOST_CLASSES.
    """
    batches: list[tuple[float, int]] = []
    confusion: np.ndarray | None = None
    images = correct = 0
    with in_mode(model, False), np.errstate(all="ignore"):
        for answers, labels, value, x in run(model, loss, loader):
            if not (math.isfinite(value) and np.isfinite(answers).all()):
                what = "a score" if math.isfinite(value) else "the loss"
                with autograd.precision(precision):
                    where = f"evaluation, after {images} images"
                    raise diagnose_non_finite(model, x(), where, what)
            correct += int((answers.argmax(axis=1) == labels).sum())
            if answers.shape[1] <= MOST_CLASSES:
                counts = _count_pairs(labels, answers)
                confusion = counts if confusion is None else confusion + counts
            batches.append((value * len(labels), len(labels)))
            images += len(labels)
            after_batch()
    return batches, correct, confusion


def probabilities(
    model: Module, data: Any, batch_size: int, run: Run | None = None, precision: str = "ieee"
) -> np.ndarray:
    """`Trainer.predict`. Raises FloatingPointError for scores that are not finite, naming the first
    layer whose output is not, and ValueError for such an input.
    """
    data = to_numpy(data)
    if isinstance(data, np.ndarray):
        data = data[None] if data.ndim == 3 else data
        batches: Any = [
            (part := data[i : i + batch_size], np.zeros(len(part), np.int64))
            for i in range(0, max(len(data), 1), batch_size)
        ]
    elif getattr(data, "shuffle", False) or _draws(getattr(data, "sampler", None)):
        raise ValueError("predict: the loader shuffles; make it with shuffle=False")
    else:
        batches = data
    batches = as_batches(batches, "predict", model, once=True)
    outputs, run = [], run or answers_of(model, precision=precision)
    with in_mode(model, False), np.errstate(all="ignore"):
        for scores, _, _, x in run(model, None, batches):
            outputs.append(scores)
            if not np.isfinite(scores).all():
                with autograd.precision(precision):
                    raise diagnose_non_finite(model, x(), "predict", "a score", "train it again")
    scores = np.concatenate(outputs)
    return scores if _ends_with_softmax(model, x()) else ops.softmax(scores)


def _ends_with_softmax(model: Module, x: Any) -> bool:
    """Whether a network gives probabilities already; x: a batch that it has read."""
    try:
        traced = trace(model, tuple(x.shape[1:]))
    except TypeError:  # its forward asks for values
        traced = trace(model, x[:1])
    return traced.steps[traced.outputs[""]].name == "softmax"


def _draws(sampler: Any) -> bool:
    """Whether it is a sampler of PyTorch that shuffles."""
    return "Random" in type(sampler).__name__


def _count_pairs(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """How often each class (row) was taken for each class (column)."""
    classes = scores.shape[1]
    pairs = np.asarray(labels, np.int64) * classes + scores.argmax(axis=1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
