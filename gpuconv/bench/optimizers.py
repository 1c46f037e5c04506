"""Steps of the optimisers and gradient clipping as workloads; in fp16 with scaled gradients.

The time of clipping on a GPU is that of the scaling: the norm is summed on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from gpuconv import optim
from gpuconv.arrays import device_of
from gpuconv.autograd import Parameter
from gpuconv.bench.cases import Case
from gpuconv.ops.cost import Cost

LR, EPS = 1e-3, 1e-8
NORM = 1e-3  # to clip to: so little that every call scales
SCALE = 2.0**10  # of the loss, in fp16
# name: (the optimiser, arrays of the parameter's size that a step reads or writes)
OPTIMIZERS: dict[str, tuple[Callable[..., Any], int]] = {
    "sgd": (lambda p: optim.SGD(p, LR), 3),
    "sgd_momentum": (lambda p: optim.SGD(p, LR, momentum=0.9), 5),
    "adam": (lambda p: optim.Adam(p, LR, eps=EPS), 7),
    "adam_amsgrad": (lambda p: optim.Adam(p, LR, eps=EPS, amsgrad=True), 9),
    "clip_grad_norm": (lambda p: SimpleNamespace(step=partial(optim.clip_grad_norm, p, NORM)), 2),
}


class OptimizerWorkload:
    """One step over one parameter of the case's shape, from a state of zeros.

    The attributes and methods of `workloads.Workload`.
    """

    kernels, in_place, direction = True, True, "step"

    def __init__(self, case: Case, floats: Callable[[tuple[int, ...]], Any]) -> None:
        self.case = case
        self.arguments: tuple[Any, ...] = (floats(case.x), floats(case.x))
        self._make, accesses = OPTIMIZERS[case.op]
        self._scale = SCALE if case.precision == "fp16" else 1.0
        accesses += 2 * (case.precision == "fp16")  # the gradient, unscaled in place
        self.cost = Cost(0, 4 * accesses * int(np.prod(case.x)))

    def prepare(self, arguments: tuple[Any, ...]) -> Callable[[], tuple[Any, ...]]:
        """A call that takes one step; arguments: the parameter and its gradient."""
        parameter = Parameter(arguments[0])
        parameter.grad = arguments[1]
        optimizer, scaler = self._make([parameter]), None
        if self.case.precision == "fp16":
            scaler = optim.LossScaler(device_of(arguments[0]) or "cpu", SCALE)

        def step() -> tuple[Any, ...]:
            if scaler is None:
                optimizer.step()
            else:
                scaler.unscale([parameter])
                optimizer.step(scaler)
            return (parameter.grad if self.case.op == "clip_grad_norm" else parameter.data,)

        return step

    def expected(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The parameter after one step, or the gradient, by the formula; how far off it may be."""
        p, grad = (a.astype(np.float64) for a in self.arguments)
        grad /= self._scale
        if self.case.op == "clip_grad_norm":
            exact = grad * (NORM / (np.sqrt((grad**2).sum()) + 1e-6))
            return [(exact, 2.0**-22 * np.abs(exact))]
        # Adam's first averages, corrected for their start at 0, are grad and grad**2.
        change = grad / (np.abs(grad) + EPS) if self.case.op.startswith("adam") else grad
        exact = p - LR * change
        return [(exact, 2.0**-22 * (np.abs(p) + LR * np.abs(change)))]
