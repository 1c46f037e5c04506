"""Operations that write their result over an input that nobody else reads: what training plans to
reuse instead of fresh memory. Each gives the bits of the operation it is named after.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuconv.arrays import device_of
from gpuconv.cpu import batch_norm, elementwise
from gpuconv.ops.add import add
from gpuconv.ops.dropout import _threshold
from gpuconv.threads import parallel, shards


def can_overwrite(a: Any) -> bool:
    """Whether these operations may write into `a`: a NumPy array, in C order and writable."""
    return device_of(a) == "cpu" and a.flags.c_contiguous and a.flags.writeable


def relu_into(x: np.ndarray) -> np.ndarray:
    """`relu(x)`, in x's memory."""
    flat = x.reshape(-1)
    parallel(lambda b, e: np.maximum(flat[b:e], 0, out=flat[b:e]), _shards(x), blas=False)
    return x


def relu_backward_into(dy: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`relu_backward(dy, y)`, in dy's memory."""
    flat, other = dy.reshape(-1), elementwise.plain(y).reshape(-1)
    parallel(lambda b, e: elementwise.cut(flat[b:e], other[b:e]), _shards(dy), blas=False)
    return dy


def add_into(a: np.ndarray, b: np.ndarray, activation: str | None) -> np.ndarray:
    """`add(a, b, activation)`, in a's memory."""
    add._check(a, b, activation)  # type: ignore[misc]
    flat, other = a.reshape(-1), elementwise.plain(b).reshape(-1)

    def part(begin: int, end: int) -> None:
        if activation == "relu":
            elementwise.add_relu_into(flat[begin:end], other[begin:end])
        else:
            np.add(flat[begin:end], other[begin:end], out=flat[begin:end])

    parallel(part, _shards(a), blas=False)
    return a


def dropout_into(x: np.ndarray, p: float, seed: int) -> np.ndarray:
    """`dropout(x, p, seed)`, in x's memory."""
    flat, scale = x.reshape(-1), x.dtype.type(1 / (1 - p))
    threshold, number = np.uint64(_threshold(p)), np.uint64(seed)
    parallel(
        lambda b, e: elementwise.dropout(flat[b:e], flat[b:e], b, number, threshold, scale),
        _shards(x),
        blas=False,
    )
    return x


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
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """`batch_norm2d_backward` with dx in dy's memory."""
    relu = activation == "relu"
    arguments = (dy, x, w, b, mean, var, eps, relu, of_batch, True)
    dx, dw, db = batch_norm.backward(*arguments, over=True)
    assert dx is not None
    return dx, None if w is None else dw, None if b is None else db


def _shards(a: np.ndarray) -> list[tuple[int, int]]:
    return shards(a.size, elementwise.GRAIN)
