"""Adam and AdamW."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from gpuconv.arguments import number
from gpuconv.optim.optimizer import Group, Optimizer


class Adam(Optimizer):
    """Adam: PyTorch's, weight decay added to the gradient.

    m = b1 * m + (1 - b1) * g, v = b2 * v + (1 - b2) * g^2 with g = grad + weight_decay * p, and
    after t steps p -= lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps). Finite gradients beyond
    1.8e19 in float32 (1.3e154 in float64) count as that, so that v stays finite. With amsgrad the
    largest v so far takes v's place in the update.

    Raises: TypeError or ValueError naming the argument.
    Source: Kingma and Ba 2014, "Adam: a method for stochastic optimization"; Reddi et al. 2018, "On
    the convergence of Adam and beyond".
    """

    slots = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    added = frozenset({"amsgrad"})
    decoupled: ClassVar[bool] = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
    ) -> None:
        defaults = {"betas": betas, "lr": lr, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "amsgrad": bool(amsgrad)})

    @property
    def momentum(self) -> float:
        """betas[0] under the name that schedules use; assigned to, it changes in every group."""
        return self.param_groups[0]["betas"][0]

    @momentum.setter
    def momentum(self, value: float) -> None:
        value = number(f"{self._name}: betas[0]", value, 0, below=1.0)
        for group in self.param_groups:
            group["betas"] = (value, group["betas"][1])

    def _check(self, group: Mapping[str, Any]) -> None:
        betas = group["betas"]
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise TypeError(f"{self._name}: betas must be two numbers, got {betas!r}")
        for i, beta in enumerate(betas):
            number(f"{self._name}: betas[{i}]", beta, 0, below=1.0)
        for name in ("lr", "eps", "weight_decay"):
            number(f"{self._name}: {name}", group[name], 0)

    def _slots(self, group: Group) -> tuple[str, ...]:
        return self.slots if group["amsgrad"] else self.slots[:2]

    def _kernel(self, group: Group) -> tuple[str, dict[str, float]]:
        beta1, beta2 = group["betas"]
        keep, decay = 1.0, group["weight_decay"]
        if self.decoupled:
            keep, decay = 1.0 - group["lr"] * decay, 0.0
        shares = {"share1": 1 - beta1, "beta2": beta2, "share2": 1 - beta2, "eps": group["eps"]}
        kernel = "adam_amsgrad" if group["amsgrad"] else "adam"
        return kernel, {"keep": keep, "decay": decay, **shares}

    def _numbers(self, group: Group, step: int, first: bool) -> tuple[float, ...]:
        """The step's size, and the root that sqrt(v) is divided by."""
        beta1, beta2 = group["betas"]
        return group["lr"] / (1 - beta1**step), (1 - beta2**step) ** 0.5

    def _untimed(self, group: Group) -> float:
        return group["lr"]


class AdamW(Adam):
    """Adam with decoupled weight decay: p *= 1 - lr * weight_decay before Adam's own update.

    Raises: TypeError or ValueError naming the argument.
    Source: Loshchilov and Hutter 2017, "Decoupled weight decay regularization".
    """

    decoupled = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad)
