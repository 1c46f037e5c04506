"""Losses: `criterion(scores, labels)` is the mean over the batch, a tensor of one number."""

from __future__ import annotations

from typing import Any

from gpuconv.arguments import number
from gpuconv.autograd import Tensor
from gpuconv.nn import functional
from gpuconv.nn.module import Module


class CrossEntropyLoss(Module):
    """-log of the softmax probability of the right class, for scores (N, classes) and integer
    labels (N,); label_smoothing as torch.nn.CrossEntropyLoss.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = number("CrossEntropyLoss: label_smoothing", label_smoothing, 0, 1)

    def forward(self, scores: Tensor, labels: Any) -> Tensor:
        return functional.cross_entropy(scores, labels, self.label_smoothing)


class ArticleLoss(Module):
    """The article's total error: the sum over the classes of 1/2 (target - probability)^2, after a
    softmax, for scores (N, classes) and integer labels (N,).
    """

    def forward(self, scores: Tensor, labels: Any) -> Tensor:
        return functional.half_squared_error(scores, labels)


class HingeLoss(Module):
    """The loss of support vector machines: max(0, margin - right class's score + other score), the
    mean over the classes, for scores (N, classes) and integer labels (N,). As
    torch.nn.MultiMarginLoss.
    """

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

    def __init__(self, loss: Module | None = None, weight: float = 0.3) -> None:
        super().__init__()
        self.loss = CrossEntropyLoss() if loss is None else loss
        self.weight = number("AuxiliaryLoss: weight", weight)

    def forward(self, scores: Tensor | tuple[Tensor, ...], labels: Any) -> Tensor:
        if not isinstance(scores, tuple | list):
            return self.loss(scores, labels)
        main, *others = [self.loss(each, labels) for each in scores]
        if not others:
            return main
        beside = others[0]
        for other in others[1:]:
            beside = beside + other
        return main + self.weight * beside


LOSSES: dict[str, type[Module]] = {
    "cross_entropy": CrossEntropyLoss,
    "article": ArticleLoss,
    "hinge": HingeLoss,
}
