"""Arithmetic on tensors: + - * / ** @, indexing, sums and shapes, as PyTorch users expect them.

Every function records its gradient. On NumPy arrays shapes are broadcast; on a device both operands
have one shape, or one of them is a number, and what has no kernel is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv import ops
from gpuconv.arrays import ShapeOnly, contiguous, device_of
from gpuconv.autograd import fusion, tensor
from gpuconv.autograd.state import Array
from gpuconv.cuda.recording import computed
from gpuconv.ops import in_place
from gpuconv.threads import blas_threads, thread_count

if TYPE_CHECKING:
    from gpuconv.autograd.tensor import Tensor

Shape = tuple[int, ...]
Number = int | float | np.integer | np.floating


def add(a: Any, b: Any) -> Tensor:
    """a + b, in the pass of a batch norm that made one of them; a ReLU that follows is fused with
    it. Shapes are broadcast on NumPy arrays alone.
    """
    together = fusion.summed(a, b)
    if together is not None:
        return together
    given, (a, b) = (a, b), _operands(a, b)
    if a.shape != b.shape or not a.ndim:
        y = _broadcast("add", _added, a, b, lambda dy, x, y: (dy, dy))
        as_given = (g if _is_number(g) else x.data for g, x in zip(given, (a, b), strict=True))
        computed(y.data, _added, *as_given)
        return y
    x, y = a.data, b.data

    def compute(activation: str | None) -> Tensor:
        add_op = ops.add.reference if a.reference or b.reference else ops.add.stored
        total = add_op(x, y, activation)
        kept = total if activation else None
        return tensor.record(
            "add_relu" if activation else "add", total, (a, b), _add_backward, kept
        )

    return fusion.defer(compute, (a, b), ("relu",))


def _added(a: Any, b: Any) -> Array:
    return np.asarray(a + b)


def _add_backward(dy: Array, over: bool, y: Array | None) -> tuple[Array, Array]:
    if y is not None:
        dy = relu_backward(dy, y, over)
    return dy, dy


def relu_backward(dy: Array, y: Array, over: bool) -> Array:
    """The gradient before a ReLU, in dy's own memory where `over` allows it."""
    if over and in_place.can_overwrite(dy):
        return in_place.relu_backward_into(dy, y)
    return ops.relu_backward.stored(dy, y)


def subtract(a: Any, b: Any) -> Tensor:
    """a - b."""
    if _is_number(b):
        return add(a, -a.dtype.type(b))
    return add(a, negate(tensor.as_tensor(b)))


def negate(x: Tensor) -> Tensor:
    """-x."""
    return scale(x, -1.0)


def multiply(a: Any, b: Any) -> Tensor:
    """a * b, element by element."""
    if _is_number(a) or _is_number(b):
        return scale(b, a) if _is_number(a) else scale(a, b)
    a, b = _operands(a, b)
    if a.shape == b.shape and a.ndim and a.device not in ("cpu", "reference"):
        y = ops.multiply.stored(a.data, b.data)
        return tensor.record("multiply", y, (a, b), _multiply_backward, a.data, b.data)
    return _broadcast("multiply", np.multiply, a, b, lambda dy, x, y: (dy * y, dy * x))


def _multiply_backward(dy: Array, over: bool, a: Array, b: Array) -> tuple[Array, Array]:
    return ops.multiply.stored(dy, b), ops.multiply.stored(dy, a)


def scale(x: Tensor, factor: float) -> Tensor:
    """x * factor, a number."""
    y = _scaled(x.data, factor)
    computed(y, _scaled, x.data, factor)
    return tensor.record("scale", y, (x,), _scale_backward, factor)


def _scale_backward(dy: Array, over: bool, factor: float) -> tuple[Array]:
    return (_scaled(dy, factor),)


def _scaled(x: Array, factor: float) -> Array:
    if x.ndim or not isinstance(x, np.ndarray):
        return ops.scale.stored(x, factor)
    return np.asarray(x * x.dtype.type(factor))


def divide(a: Any, b: Any) -> Tensor:
    """a / b; on a device b is a number, and a is scaled by 1 / b."""
    if not _is_number(b):
        return multiply(a, power(tensor.as_tensor(b), -1.0))
    if not isinstance(a.data, np.ndarray):
        return scale(a, 1 / b)
    y = _divided(a.data, b)
    computed(y, _divided, a.data, b)
    return tensor.record("divide", y, (a,), _divide_backward, b)


def _divide_backward(dy: Array, over: bool, b: float) -> tuple[Array]:
    return (_divided(dy, b),)


def _divided(x: Array, b: float) -> Array:
    return np.asarray(x / x.dtype.type(b))


def power(x: Tensor, exponent: float) -> Tensor:
    """x ** exponent, a number."""
    if not _is_number(exponent):
        raise TypeError(f"**: the exponent must be a number, got {type(exponent).__name__}")
    n = x.data.dtype.type(exponent)
    y = _on_host("**", lambda a: a**n, x)
    return tensor.record("power", y, (x,), _power_backward, x.data, n)


def _power_backward(dy: Array, over: bool, x: Array, n: Any) -> tuple[Array]:
    return (np.asarray(dy * n * x ** (n - 1) if n else np.zeros_like(x)),)


def matmul(a: Any, b: Any) -> Tensor:
    """The matrix product of (..., n, k) and (..., k, m); axes before the last two are broadcast."""
    a, b = _operands(a, b)
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(f"matmul: shapes {a.shape} and {b.shape} are no matrices that fit")
    with blas_threads(thread_count()):
        y = _on_host("@", np.matmul, a, b)
    return tensor.record("matmul", y, (a, b), _matmul_backward, a.data, b.data)


def _matmul_backward(dy: Array, over: bool, a: Array, b: Array) -> tuple[Array, Array]:
    with blas_threads(thread_count()):
        da, db = dy @ np.swapaxes(b, -1, -2), np.swapaxes(a, -1, -2) @ dy
    return _unbroadcast(da, a), _unbroadcast(db, b)


def total(x: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The sum over all elements, or along the axes given."""
    if not x.ndim and axis is None:
        return x
    y = _on_host("sum", lambda a: a.sum(axis=axis, keepdims=keepdims), x)
    return tensor.record("sum", y, (x,), _total_backward, x.data.shape, axis)


def _total_backward(dy: Array, over: bool, shape: Shape, axis: Any) -> tuple[Array]:
    if axis is None:
        axis = tuple(range(len(shape)))
    axes = [i % len(shape) for i in (axis if isinstance(axis, tuple) else (axis,))]
    kept = [1 if i in axes else length for i, length in enumerate(shape)]
    return (np.broadcast_to(dy.reshape(kept), shape).copy(),)


def mean(x: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The mean over all elements, or along the axes given."""
    summed = total(x, axis, keepdims)
    return scale(summed, summed.size / x.size if x.size else math.nan)


def reshape(x: Tensor, shape: Shape) -> Tensor:
    """The same elements in C order under another shape; one length may be -1."""
    x = tensor.as_tensor(x)
    fusion.flattening(x)
    data = contiguous(x.data)
    before = data.shape
    y = data.reshape(shape)
    return tensor.record("reshape", y, (x,), lambda dy, over: (contiguous(dy).reshape(before),))


def flatten(x: Tensor, start_dim: int = 0) -> Tensor:
    """The axes from start_dim on, merged into one."""
    x = tensor.as_tensor(x)
    fusion.flattening(x)
    shape = x.data.shape
    return reshape(x, (*shape[:start_dim], math.prod(shape[start_dim:])))


def take(x: Tensor, index: Any) -> Tensor:
    """x[index], with NumPy's meaning."""
    y = _on_host("indexing", lambda a: a[index], x)
    return tensor.record("index", y, (x,), _take_backward, x.data.shape, index)


def _take_backward(dy: Array, over: bool, shape: Shape, index: Any) -> tuple[Array]:
    dx = np.zeros(shape, dy.dtype)
    np.add.at(dx, index, dy)  # an index may name an element twice
    return (dx,)


def largest(x: Tensor, axis: int | None = None) -> Tensor:
    """The largest element, or those along an axis; of equal ones the first gets a gradient."""
    if axis is None:
        x, axis = reshape(x, (-1,)), 0
    axis %= x.ndim
    where = _host("max", x).argmax(axis)
    index: list[Any] = list(np.indices(where.shape, sparse=True))
    index.insert(axis, where)
    return take(x, tuple(index))


def transpose(x: Tensor, axes: tuple[int, ...] | None = None) -> Tensor:
    """The axes in another order, in reverse order if none is given."""
    y = _on_host("transpose", lambda a: np.ascontiguousarray(a.transpose(axes)), x)
    order = tuple(range(x.ndim))[::-1] if axes is None else axes
    return tensor.record("transpose", y, (x,), _transpose_backward, order)


def _transpose_backward(dy: Array, over: bool, axes: tuple[int, ...]) -> tuple[Array]:
    return (np.ascontiguousarray(dy.transpose(np.argsort(axes))),)


def reflected(function: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    """The operator for a tensor on the right of what is none."""
    return lambda b, a: function(a, b)


def compared(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A comparison of a tensor's numbers."""
    return lambda a, b: function(a.numpy(), b)


def _broadcast(
    name: str,
    function: Callable[[Any, Any], Any],
    a: Tensor,
    b: Tensor,
    gradients: Callable[[Array, Array, Array], tuple[Array, Array]],
) -> Tensor:
    y = _on_host(name, function, a, b)
    return tensor.record(name, y, (a, b), _broadcast_backward, gradients, a.data, b.data)


def _broadcast_backward(
    dy: Array, over: bool, gradients: Any, a: Array, b: Array
) -> tuple[Array, Array]:
    da, db = gradients(dy, a, b)
    return _unbroadcast(da, a), _unbroadcast(db, b)


def _unbroadcast(d: Array, like: Array) -> Array:
    """The gradient of an operand, in its shape and dtype, from that of the broadcast result."""
    shape, d = like.shape, np.asarray(d, like.dtype)
    extra = d.ndim - len(shape)
    axes = [*range(extra)]
    axes += [extra + i for i, n in enumerate(shape) if n == 1 and d.shape[extra + i] != 1]
    return np.asarray(d.sum(axis=tuple(axes))).reshape(shape) if axes else d


def _on_host(name: str, function: Callable[..., Any], *operands: Tensor) -> Array:
    """A function of NumPy arrays; of shape-only ones, the shape of its result."""
    if not any(isinstance(x.data, ShapeOnly) for x in operands):
        return np.asarray(function(*(_host(name, x) for x in operands)))
    y = function(*(np.ones(x.data.shape, x.data.dtype) for x in operands))
    return ShapeOnly(np.shape(y), y.dtype)


def _host(name: str, x: Tensor) -> np.ndarray:
    if not isinstance(x.data, np.ndarray):
        where = device_of(x.data) or "shape-only arrays"
        raise NotImplementedError(f"{name}: has no kernel for {where} with these operands")
    return x.data


def _operands(a: Any, b: Any) -> tuple[Tensor, Tensor]:
    """Both as tensors; a number takes the other's dtype."""
    if _is_number(b):
        b = np.full((), b, a.dtype)
    if _is_number(a):
        a = np.full((), a, b.dtype)
    return tensor.as_tensor(a), tensor.as_tensor(b)


def _is_number(value: Any) -> bool:
    return isinstance(value, Number) and not isinstance(value, bool)
