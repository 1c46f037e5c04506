"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gpuconv.arguments import number
from gpuconv.optim.optimizer import Group, Optimizer


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum and Nesterov's variant: PyTorch's SGD.

    With d = grad + weight_decay * p: b = d the first time, then
    b = momentum * b + (1 - dampening) * d; p -= lr * b, with nesterov p -= lr * (d + momentum * b),
    without momentum p -= lr * d.

    Raises: TypeError or ValueError naming the argument.
    Source: Sutskever et al. 2013, "On the importance of initialization and momentum".

    >>> from gpuconv.nn import Parameter
    >>> weight = Parameter(np.ones(1)); weight.grad = np.array([0.5])
    >>> SGD([weight], lr=0.1).step(); print(weight.data)
    [0.95]
    """

    slots = ("momentum_buffer",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        dampening: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "nesterov": bool(nesterov)}
        decay = {"weight_decay": weight_decay, "dampening": dampening}
        super().__init__(params, {**defaults, **decay})

    @property
    def momentum(self) -> float:
        """The share of the last update that the next one keeps; assigned to, it changes in every
        group.
        """
        return self.param_groups[0]["momentum"]

    @momentum.setter
    def momentum(self, value: float) -> None:
        value = number("SGD: momentum", value, 0)
        for group in self.param_groups:
            group["momentum"] = value

    def _check(self, group: Mapping[str, Any]) -> None:
        for name in ("lr", "momentum", "weight_decay", "dampening"):
            number(f"SGD: {name}", group[name], 0)
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError("SGD: nesterov needs a momentum greater than 0 and no dampening")

    def _slots(self, group: Group) -> tuple[str, ...]:
        return self.slots if group["momentum"] else ()

    def _kernel(self, group: Group) -> tuple[str, dict[str, float]]:
        numbers = {"lr": group["lr"], "decay": group["weight_decay"]}
        if group["momentum"] == 0:
            return "sgd", numbers
        numbers |= {"momentum": group["momentum"], "nesterov": bool(group["nesterov"])}
        return "sgd_momentum", numbers

    def _numbers(self, group: Group, step: int, first: bool) -> tuple[float, ...]:
        if group["momentum"] == 0:
            return ()
        # The first buffer is the gradient itself: momentum * 0 + 1 * d, dampening not applied.
        return (1.0 if first else 1.0 - group["dampening"],)

    def _untimed(self, group: Group) -> float:
        return 1.0 - group["dampening"]
