"""Losses: `forward(scores, labels)` gives the mean over the batch, `backward()` its gradient on
the scores.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from gpuconv import ops
from gpuconv.ops.op import Op


class _Loss:
    """A pair of operations: forward gives the loss and what backward takes back."""

    forward_op: Op
    backward_op: Op

    def __init__(self) -> None:
        self.device = "cpu"
        self._saved: Any = None

    def _options(self) -> tuple[Any, ...]:
        return ()

    def _backward_options(self) -> tuple[Any, ...]:
        return ()

    def _run(self, operation: Op, *args: Any) -> Any:
        return operation.reference(*args) if self.device == "reference" else operation(*args)

    def forward(self, scores: np.ndarray, labels: np.ndarray) -> float:
        """The loss of scores (N, classes) for labels (N,), integers."""
        loss, saved = self._run(self.forward_op, scores, labels, *self._options())
        self._saved = saved, labels
        return loss

    def backward(self) -> np.ndarray:
        """dscores (N, classes), for the last forward."""
        if self._saved is None:
            raise RuntimeError(
                f"{type(self).__name__}.backward: call forward first; "
                f"each forward serves one backward"
            )
        saved, self._saved = self._saved, None
        return self._run(self.backward_op, *saved, *self._backward_options())


class CrossEntropyLoss(_Loss):
    """-log of the softmax probability of the right class; label_smoothing as
    torch.nn.CrossEntropyLoss.
    """

    forward_op, backward_op = ops.cross_entropy, ops.cross_entropy_backward

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def _options(self) -> tuple[Any, ...]:
        return (self.label_smoothing,)

    _backward_options = _options


class ArticleLoss(_Loss):
    """The article's total error: the sum over the classes of 1/2 (target - probability)^2, after a
    softmax.
    """

    forward_op, backward_op = ops.half_squared_error, ops.half_squared_error_backward


class HingeLoss(_Loss):
    """The support vector machine's: max(0, margin - right score + other score), the mean over the
    classes.

    As torch.nn.MultiMarginLoss.
    """

    forward_op, backward_op = ops.hinge, ops.hinge_backward

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = margin

    def _options(self) -> tuple[Any, ...]:
        return (self.margin,)


class AuxiliaryLoss:
    """A loss for a network with auxiliary heads: that of the main scores plus `weight` times that
    of each other head's.

    forward takes what the network gives: in training a tuple (main, others ...), each (N, classes);
    in evaluation the main scores alone. Source: Szegedy et al. 2014, weight 0.3.
    """

    def __init__(self, loss: _Loss | None = None, weight: float = 0.3) -> None:
        self.loss = CrossEntropyLoss() if loss is None else loss
        self.weight = weight
        self._heads: list[_Loss] = []

    @property
    def device(self) -> str:
        return self.loss.device

    @device.setter
    def device(self, device: str) -> None:
        self.loss.device = device

    def forward(self, scores: np.ndarray | tuple[np.ndarray, ...], labels: np.ndarray) -> float:
        """The weighted sum of the heads' losses for labels (N,), integers."""
        every = scores if isinstance(scores, tuple) else (scores,)
        self._heads = [copy.copy(self.loss) for _ in every]
        main, *others = [
            loss.forward(each, labels) for loss, each in zip(self._heads, every, strict=True)
        ]
        return main + self.weight * sum(others)

    def backward(self) -> np.ndarray | tuple[np.ndarray, ...]:
        """The gradient on what the last forward took, in the same form."""
        if not self._heads:
            raise RuntimeError(
                "AuxiliaryLoss.backward: call forward first; each forward serves one backward"
            )
        main, *others = [loss.backward() for loss in self._heads]
        self._heads = []
        scaled = [ops.scale(each, self.weight) for each in others]
        return (main, *scaled) if others else main


LOSSES: dict[str, type[_Loss]] = {
    "cross_entropy": CrossEntropyLoss,
    "article": ArticleLoss,
    "hinge": HingeLoss,
}
