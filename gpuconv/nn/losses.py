"""Losses: `forward(scores, labels)` gives the mean over the batch, `backward()` its gradient on
the scores.
"""

from __future__ import annotations

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


LOSSES: dict[str, type[_Loss]] = {
    "cross_entropy": CrossEntropyLoss,
    "article": ArticleLoss,
    "hinge": HingeLoss,
}
