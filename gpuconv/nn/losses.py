"""Losses: `criterion(scores, labels)` is the mean over the batch, a tensor of one number."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuconv.arguments import number, whole
from gpuconv.arrays import device_of, is_device
from gpuconv.autograd import Tensor
from gpuconv.autograd.walk import like
from gpuconv.cuda.runtime import runtime
from gpuconv.nn import functional
from gpuconv.nn.module import Buffer, Module


class CrossEntropyLoss(Module):
    """-log of the softmax probability of the right class, for scores (N, classes) and integer
    labels (N,). As torch.nn.CrossEntropyLoss:

    label_smoothing: in [0, 1], the part of the target that is spread over all classes. weight:
    (classes,) numbers, by which each class's loss is multiplied; the mean is over the weights of
    the labels. ignore_index: the label of examples that do not count; where none counts the loss is
    NaN.
    """

    _float32 = True

    def __init__(
        self, label_smoothing: float = 0.0, weight: Any = None, ignore_index: int = -100
    ) -> None:
        super().__init__()
        self.label_smoothing = number("CrossEntropyLoss: label_smoothing", label_smoothing, 0, 1)
        self.weight = self._checked_weight(weight)
        self.ignore_index = whole(
            "CrossEntropyLoss: ignore_index", ignore_index, -(2**63), 2**63 - 1
        )

    def forward(self, scores: Tensor, labels: Any) -> Tensor:
        weight = None if self.weight is None else _near(self.weight.data, scores.data)
        options = self.label_smoothing, weight, self.ignore_index
        return functional.cross_entropy(scores, labels, *options)

    def total_weight(self, labels: np.ndarray) -> float:
        """What the loss is a mean over: the sum of the weights of the labels that count."""
        counted = labels[labels != self.ignore_index]
        return float(len(counted) if self.weight is None else self.weight.data[counted].sum())

    def _checked_weight(self, weight: Any) -> Buffer | None:
        if weight is None:
            return None
        found = np.array(weight.data if isinstance(weight, Tensor) else weight)
        if found.ndim != 1 or found.dtype.kind not in "fiu" or not np.isfinite(found).all():
            raise ValueError(
                f"CrossEntropyLoss: weight must be finite numbers, one for each class, got {weight}"
            )
        return Buffer(found if found.dtype.kind == "f" else found.astype(np.float32))


class ArticleLoss(Module):
    """The article's total error: the sum over the classes of 1/2 (target - probability)^2, after a
    softmax, for scores (N, classes) and integer labels (N,).
    """

    _float32 = True

    def forward(self, scores: Tensor, labels: Any) -> Tensor:
        return functional.half_squared_error(scores, labels)


class HingeLoss(Module):
    """The loss of support vector machines: max(0, margin - right class's score + other score), the
    mean over the classes, for scores (N, classes) and integer labels (N,). As
    torch.nn.MultiMarginLoss.
    """

    _float32 = True

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = number("HingeLoss: margin", margin, above=0)

    def forward(self, scores: Tensor, labels: Any) -> Tensor:
        return functional.hinge(scores, labels, self.margin)


class AuxiliaryLoss(Module):
    """A loss for a network with auxiliary heads: that of the main scores plus `weight` times that
    of each other head's.

    It takes what the network gives: in training a tuple (main, others ...), each (N, classes); in
    evaluation the main scores alone. Source: Szegedy et al. 2014, weight 0.3.
    """

    _float32 = True

    def __init__(self, loss: Module | None = None, weight: float = 0.3) -> None:
        super().__init__()
        self.loss = CrossEntropyLoss() if loss is None else loss
        self.weight = number("AuxiliaryLoss: weight", weight)

    def forward(self, scores: Tensor | tuple[Tensor, ...], labels: Any) -> Tensor:
        if not isinstance(scores, tuple | list):
            return self.loss(scores, labels)
        main, *others = [self.loss(each, labels) for each in scores]
        return main + self.weight * sum(others[1:], others[0]) if others else main

    def total_weight(self, labels: np.ndarray) -> float:
        """What the loss is a mean over."""
        own = getattr(self.loss, "total_weight", None)
        return float(len(labels)) if own is None else own(labels)


LOSSES: dict[str, type[Module]] = {
    "cross_entropy": CrossEntropyLoss,
    "article": ArticleLoss,
    "hinge": HingeLoss,
}


def _near(weight: np.ndarray, scores: Any) -> Any:
    """The weight where the scores are; a step that is recorded keeps it there."""
    device = device_of(scores)
    if is_device(device) and isinstance(weight, np.ndarray):
        return runtime(device).constant(weight.astype(scores.dtype))
    return like(weight, scores)
