"""Batch normalisation of a batch of which each rank has a part."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuconv import ops
from gpuconv.arrays import device_of, to_device, to_numpy
from gpuconv.autograd import Array, Tensor, as_tensor, defer, once, record
from gpuconv.distributed.communicator import Communicator


def synchronised_batch_norm(
    communicator: Communicator,
    x: Any,
    running_mean: Array | None,
    running_var: Array | None,
    w: Any = None,
    b: Any = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`functional.batch_norm` in training, with the statistics of all ranks' parts of the batch,
    which are those of the whole batch.

    x may have no images. Raises ValueError for one value per channel on all ranks together.
    Source: Peng et al. 2018, "MegDet"; torch.nn.SyncBatchNorm.
    """
    x = as_tensor(x)
    own_ops = Operations(x)
    C, like = x.data.shape[1], x.data
    w = Tensor(_array(np.ones(C), like)) if w is None else w
    b = Tensor(_array(np.zeros(C), like)) if b is None else b
    mean, var, count = once(_statistics, communicator, x.data, own_ops)
    if count < 2:
        raise ValueError(f"batch_norm: training needs more than one value a channel, got {count}")
    mean, var = _array(mean, like), _array(var, like)
    if running_mean is not None:
        once(own_ops.track, running_mean, running_var, mean, var, count, momentum)
    arrays = x.data, w.data, b.data, mean, var

    def compute(activation: str | None) -> Tensor:
        y = own_ops.forward(*arrays, eps, activation)[0]
        saved = communicator, own_ops, count, arrays, eps, activation
        name = "batch_norm" if activation is None else "batch_norm_relu"
        return record(name, y, (x, w, b), _backward, *saved)

    return defer(compute, (x, w, b), ("relu",))


class Operations:
    """The operations of a device, of their definitions for a tensor of "reference"."""

    def __init__(self, x: Tensor) -> None:
        def chosen(one: Any) -> Any:
            return one.reference if x.reference else one

        self.forward = chosen(ops.batch_norm2d)
        self.backward = chosen(ops.batch_norm2d_backward)
        self.track = chosen(ops.batch_norm2d_track)


def _statistics(
    communicator: Communicator, x: Array, own_ops: Operations
) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean and biased variance of all ranks' x, float64 (C,), and how many values a channel has:
    with n, m and v of each part, mean = sum n m / sum n, var = sum n (v + (m - mean)^2) / sum n.
    """
    C = x.shape[1]
    count = x.size // max(C, 1)
    mean = var = np.zeros(C)
    if count:
        mean, var = map(to_numpy, own_ops.forward(x)[1:])
    every = communicator.gather_numbers(np.concatenate([[count], mean, var]))
    n, means, variances = every[:, :1], every[:, 1 : 1 + C], every[:, 1 + C :]
    total = max(n.sum(), 1)
    mean = (n * means).sum(axis=0) / total
    var = (n * (variances + np.square(means - mean))).sum(axis=0) / total
    return mean, var, int(n.sum())


def _backward(
    dy: Array,
    over: bool,
    communicator: Communicator,
    own_ops: Operations,
    count: int,
    arrays: tuple[Array, ...],
    eps: float,
    activation: str | None,
) -> tuple[Array | None, ...]:
    """dx = w / sqrt(var + eps) * (dy - [sum dy + z * sum dy*z] / count), the sums being of all
    ranks: the part in brackets is a batch norm of x with other w and b, added to the rest.
    """
    x, w, _, mean, var = arrays
    dx, dw, db = own_ops.backward(dy, *arrays, eps, activation, False, True)
    own = np.concatenate([to_numpy(dw), to_numpy(db)])
    sum_dw, sum_db = np.split(communicator.gather_numbers(own).sum(axis=0), 2)
    scale = to_numpy(w) / np.sqrt(to_numpy(var).astype(np.float64) + eps) / count
    slope, base = (_array(-scale * sums, x) for sums in (sum_dw, sum_db))
    dx = own_ops.forward(x, slope, base, mean, var, eps, None, dx)[0]
    return dx, dw, db


def _array(values: np.ndarray, like: Array) -> Array:
    """The values in the type and on the device of another array."""
    return to_device(np.asarray(values, like.dtype), device_of(like) or "cpu")
