"""Layer-wise adaptive rates, for large batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gpuconv import ops
from gpuconv.arguments import number
from gpuconv.arrays import contiguous
from gpuconv.autograd import Array, Parameter, settle
from gpuconv.cuda import recording
from gpuconv.optim import device
from gpuconv.optim.kernels import sum_of_squares
from gpuconv.optim.optimizer import Group
from gpuconv.optim.sgd import SGD

NO_LIMIT = 3e38  # a norm that clips nothing


class LARS(SGD):
    """SGD whose rate is each layer's own: proportional to the norm of its weights over that of
    their gradient, so that no layer moves by more than a share of its size.

    With d = grad + weight_decay * p: b = momentum * b + ratio * d; p -= lr * b, where
    ratio = trust * |p| / (|grad| + weight_decay * |p|), and 1 where either norm is 0. Parameters of
    one axis (biases, batch norm) have ratio 1 and no decay, as in MLPerf's rules. On a device the
    host reads the norms: steps are not recorded.

    Raises: TypeError or ValueError naming the argument.
    Source: You et al. 2017, "Large batch training of convolutional networks"; the rate is applied
    to the buffer, as in torch.optim.SGD.

    >>> weight = Parameter(np.array([[3.0, 4.0]])); weight.grad = np.array([[0.0, 2.0]])
    >>> LARS([weight], lr=1.0, momentum=0.0, trust=0.1).step(); print(weight.data)
    [[3.  3.5]]
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        decay = {"weight_decay": weight_decay, "dampening": 0.0}
        defaults = {"lr": lr, "momentum": momentum, "nesterov": False, **decay, "trust": trust}
        super(SGD, self).__init__(params, defaults)

    def _check(self, group: Mapping[str, Any]) -> None:
        super()._check(group)
        number("LARS: trust", group["trust"], above=0)

    def _kernel(self, group: Group) -> tuple[str, dict[str, float]]:
        return super()._kernel({**group, "weight_decay": 0.0})  # `step` has added it

    def step(self) -> None:
        settle()
        given = [p.grad for p in self.params]
        try:
            for i, p in enumerate(self.params):
                if p.grad is not None and p.requires_grad and p.data.ndim > 1:
                    p.grad = self._scaled(p, self.param_groups[self._owner[i]])
            super().step()
        finally:
            for p, gradient in zip(self.params, given, strict=True):
                p.grad = gradient

    def _scaled(self, p: Parameter, group: Group) -> Array:
        """ratio * (grad + weight_decay * p), a new array."""
        decay, own, gradient = group["weight_decay"], norm(p.data), norm(p.grad)
        ratio = 1.0
        if own > 0 and gradient > 0:
            ratio = group["trust"] * own / (gradient + decay * own)
        scaled = ops.scale(p.grad, ratio)
        return ops.add(scaled, ops.scale(p.data, ratio * decay)) if decay else scaled


def norm(array: Array) -> float:
    """The Euclidean norm, summed in float64."""
    if isinstance(array, np.ndarray):
        return math.sqrt(sum_of_squares(np.ravel(array)))
    recording.refuse("LARS reads norms on the host")
    on = device.runtime_of("LARS", [array])
    with recording.paused(), on.inside(array):
        return device.clip(on, [contiguous(array)], NO_LIMIT)
