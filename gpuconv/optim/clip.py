"""Clipping of gradients by their joint norm."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gpuconv.arguments import number
from gpuconv.autograd import Parameter
from gpuconv.optim import device
from gpuconv.optim.kernels import sum_of_squares
from gpuconv.optim.loss_scale import LossScaler


def clip_grad_norm(
    parameters: Iterable[Parameter], max_norm: float, scaler: LossScaler | None = None
) -> float:
    """Scale all gradients, in place, so that their joint Euclidean norm is at most `max_norm`.

    Each gradient is multiplied by min(1, max_norm / (norm + 1e-6)), as PyTorch's `clip_grad_norm_`
    does; the norm is summed in float64, tensor after tensor, so equal gradients give equal bits.
    Parameters without a gradient are skipped. A norm of NaN or infinity spoils the gradients, as in
    PyTorch: look at what returns. scaler: has been told of these gradients and skips such a step,
    which a recorded one then does too; without it a recorded step stops there.

    Returns: the norm before clipping.
    Raises: ValueError if max_norm is negative or not finite.
    Source: Pascanu et al. 2013, "On the difficulty of training recurrent neural networks".

    On a device kernels do it; a gradient that is neither in C order nor channels-last becomes a new
    array in C order.

    >>> from gpuconv.nn import Parameter
    >>> weight = Parameter(np.zeros(2)); weight.grad = np.array([3.0, 4.0])
    >>> clip_grad_norm([weight], max_norm=1.0)
    5.0
    """
    number("clip_grad_norm: max_norm", max_norm, 0)
    chosen = [p for p in parameters if p.grad is not None and p.requires_grad]
    if chosen and not isinstance(chosen[0].grad, np.ndarray):
        return _clip_on_device(chosen, max_norm, scaler is None)
    gradients = [np.ravel(p.grad) for p in chosen]
    norm = math.sqrt(sum(map(sum_of_squares, gradients)))
    if math.isinf(norm):  # squares of float64 overflow at 1.3e154
        largest = max(float(np.max(np.abs(g), initial=0.0)) for g in gradients)
        if math.isfinite(largest):
            norm = largest * math.sqrt(sum(sum_of_squares(g / largest) for g in gradients))
    if scaler is not None and not math.isfinite(norm):
        return norm  # these gradients are not used
    factor = max_norm / (norm + 1e-6)
    if not factor >= 1.0:  # so that NaN is not taken for "small enough"
        for p in chosen:
            g: Any = p.grad
            np.multiply(g, g.dtype.type(factor), out=g)
    return norm


def _clip_on_device(chosen: Sequence[Parameter], max_norm: float, noted: bool) -> float:
    on = device.runtime_of("clip_grad_norm", [p.grad for p in chosen])
    with on.inside(chosen[0].grad):
        device.make_dense(chosen)
        return device.clip(on, [p.grad for p in chosen], max_norm, noted)
