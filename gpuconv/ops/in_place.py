"""In-place variants of gradients, for a backward engine that made `dy` itself.

Each gives the bits of the operation it is named after, in `dy`'s memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuconv.arrays import device_of
from gpuconv.cpu import batch_norm, elementwise
from gpuconv.threads import over_shards


def can_overwrite(a: Any) -> bool:
    """Whether these operations may write into `a`: a NumPy array, in C order and writable."""
    return device_of(a) == "cpu" and a.flags.carray


def relu_backward_into(dy: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`relu_backward(dy, y)`, in dy's memory."""
    flat = dy.reshape(-1), elementwise.contiguous(y).reshape(-1)
    over_shards(elementwise.relu_backward_into, flat, grain=elementwise.GRAIN)
    return dy


def batch_norm2d_backward_into(
    dy: np.ndarray,
    x: np.ndarray,
    w: np.ndarray | None,
    b: np.ndarray | None,
    mean: np.ndarray,
    var: np.ndarray,
    eps: float,
    activation: str | None,
    of_batch: bool,
) -> tuple[np.ndarray | None, ...]:
    """`batch_norm2d_backward` with dx in dy's memory."""
    arguments = (dy, x, w, b, mean, var, eps, activation == "relu", of_batch, True)
    return batch_norm.backward(*arguments, in_place=True)
