"""Learning-rate schedules: pure functions of the optimiser's step; nothing need be restored.

`schedule(step)` is the rate of the step that comes after `step` finished ones; the first is 0. One
step is one batch: a rate that falls every 5 epochs has `step_size=5 * len(loader)`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from gpuconv.arguments import number, whole
from gpuconv.errors import require_known

_Phase = tuple[float, float, float, float]  # first and last step, first and last value


@dataclass(frozen=True)
class Schedule:
    """What every schedule offers; a schedule of your own overrides `__call__`."""

    def __call__(self, step: int) -> float:
        """The learning rate of this step."""
        raise NotImplementedError(f"{type(self).__name__} has no __call__")

    def momentum(self, step: int) -> float | None:
        """The momentum (Adam's beta1) of this step, or None where the schedule leaves it alone."""
        return None

    def describe(self) -> dict[str, Any]:
        """Name and arguments, as a checkpoint keeps them."""
        return {"name": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class StepLR(Schedule):
    """lr * gamma ** (step // step_size): PyTorch's StepLR, counted in steps.

    Raises: TypeError or ValueError naming the argument.

    >>> StepLR(0.1, step_size=100, gamma=0.5)(250)
    0.025
    """

    lr: float
    step_size: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        number("StepLR: lr", self.lr, 0)
        whole("StepLR: step_size", self.step_size)
        number("StepLR: gamma", self.gamma, 0)

    def __call__(self, step: int) -> float:
        return self.lr * self.gamma ** (step // self.step_size)


@dataclass(frozen=True)
class CosineLR(Schedule):
    """From lr down to eta_min along half a cosine over t_max steps: PyTorch's CosineAnnealingLR.

    eta_min + (lr - eta_min) * (1 + cos(pi * step / t_max)) / 2; it rises again after t_max.

    Raises: TypeError or ValueError naming the argument.
    Source: Loshchilov and Hutter 2016, "SGDR", without restarts.
    """

    lr: float
    t_max: int
    eta_min: float = 0.0

    def __post_init__(self) -> None:
        number("CosineLR: lr", self.lr, 0)
        whole("CosineLR: t_max", self.t_max)
        number("CosineLR: eta_min", self.eta_min, 0)

    def __call__(self, step: int) -> float:
        return _cosine(self.lr, self.eta_min, step / self.t_max)


@dataclass(frozen=True)
class OneCycleLR(Schedule):
    """Up to max_lr and down again, momentum the other way round: PyTorch's OneCycleLR.

    The rate starts at max_lr / div_factor, reaches max_lr after pct_start of the steps and ends at
    (max_lr / div_factor) / final_div_factor. With cycle_momentum the momentum of SGD, or beta1 of
    Adam, falls from max_momentum to base_momentum and rises again.

    Raises: TypeError or ValueError naming the argument; ValueError for a step beyond total_steps.
    Source: Smith and Topin 2017, "Super-convergence".
    """

    max_lr: float
    total_steps: int
    pct_start: float = 0.3
    anneal_strategy: str = "cos"
    cycle_momentum: bool = True
    base_momentum: float = 0.85
    max_momentum: float = 0.95
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    three_phase: bool = False

    def __post_init__(self) -> None:
        number("OneCycleLR: max_lr", self.max_lr, 0)
        whole("OneCycleLR: total_steps", self.total_steps)
        number("OneCycleLR: pct_start", self.pct_start, 0, 1)
        require_known("anneal_strategy", self.anneal_strategy, _ANNEAL)
        number("OneCycleLR: base_momentum", self.base_momentum, 0, below=1.0)
        number("OneCycleLR: max_momentum", self.max_momentum, 0, below=1.0)
        for name in ("div_factor", "final_div_factor"):
            number(f"OneCycleLR: {name}", getattr(self, name), above=0)

    def __call__(self, step: int) -> float:
        return self._at(step, self._rates)

    def momentum(self, step: int) -> float | None:
        return self._at(step, self._momenta) if self.cycle_momentum else None

    @cached_property
    def _rates(self) -> list[_Phase]:
        first = self.max_lr / self.div_factor
        return self._phases(first, self.max_lr, first / self.final_div_factor)

    @cached_property
    def _momenta(self) -> list[_Phase]:
        return self._phases(self.max_momentum, self.base_momentum, self.max_momentum)

    def _phases(self, start: float, peak: float, end: float) -> list[_Phase]:
        """With three phases it falls to the start before the end."""
        levels, ends = [start, peak, end], [self.pct_start * self.total_steps - 1]
        if self.three_phase:
            levels.insert(2, start)
            ends.append(2 * self.pct_start * self.total_steps - 2)
        ends.append(self.total_steps - 1)
        return [*zip([0.0, *ends], ends, levels, levels[1:], strict=False)]

    def _at(self, step: int, phases: list[_Phase]) -> float:
        if not 0 <= step < self.total_steps:
            raise ValueError(
                f"OneCycleLR: step {step} is beyond total_steps={self.total_steps};"
                " total_steps must be epochs * batches per epoch"
            )
        for begin, end, start, to in phases:  # noqa: B007
            if step <= end:
                break
        part = (step - begin) / (end - begin) if end > begin else 1.0
        return _ANNEAL[self.anneal_strategy](start, to, part)


@dataclass(frozen=True)
class WarmupLR(Schedule):
    """The rates of another schedule, or one rate, which rise from `share` of it within `steps`.

    after(step) * (share + (1 - share) * step / steps) before `steps`, then after(step). With a
    large batch the first steps would be too long; the schedule's own momentum stays.

    Raises: TypeError or ValueError naming the argument.
    Source: Goyal et al. 2017, "Accurate, large minibatch SGD", section 2.2.

    >>> [WarmupLR(0.4, steps=2, share=0.25)(step) for step in range(3)]
    [0.1, 0.25, 0.4]
    """

    after: Schedule | float
    steps: int
    share: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.after, Schedule):
            number("WarmupLR: after", self.after, 0)
        whole("WarmupLR: steps", self.steps)
        number("WarmupLR: share", self.share, 0, 1)

    def __call__(self, step: int) -> float:
        rate = self.after(step) if isinstance(self.after, Schedule) else self.after
        if step >= self.steps:
            return rate
        return rate * (self.share + (1 - self.share) * step / self.steps)

    def momentum(self, step: int) -> float | None:
        return self.after.momentum(step) if isinstance(self.after, Schedule) else None

    def describe(self) -> dict[str, Any]:
        after = self.after.describe() if isinstance(self.after, Schedule) else self.after
        return {"name": "WarmupLR", "after": after, "steps": self.steps, "share": self.share}


def _cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) / 2.0 * (math.cos(math.pi * part) + 1)


def _linear(start: float, end: float, part: float) -> float:
    return (end - start) * part + start


_ANNEAL = {"cos": _cosine, "linear": _linear}
