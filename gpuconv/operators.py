"""Arithmetic on tensors: + - * / ** @, indexing, sums and shapes, as PyTorch users expect them.

Every function records its gradient. On NumPy arrays shapes are broadcast; on a device both operands
have one shape, or one of them is a number, and what has no kernel is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv import ops
from gpuconv.arrays import ShapeOnly, contiguous, device_of
from gpuconv.autograd import Array, Tensor, as_tensor, defer, record
from gpuconv.ops import in_place

Shape = tuple[int, ...]
Number = int | float | np.integer | np.floating


def add(a: Any, b: Any) -> Tensor:
    """a + b; a ReLU that follows joins it. Shapes are broadcast on NumPy arrays alone."""
    a, b = _operands(a, b)
    if a.shape != b.shape or not a.ndim:
        return _broadcast("add", np.add, a, b, lambda dy, x, y: (dy, dy))
    x, y = a.data, b.data

    def compute(activation: str | None) -> Tensor:
        add_op = ops.add.reference if a.reference or b.reference else ops.add
        total = add_op(contiguous(x), contiguous(y), activation)
        kept = total if activation else None
        return record("add_relu" if activation else "add", total, (a, b), _add_backward, kept)

    return defer(compute, (a, b), ("relu",))


def _add_backward(dy: Array, over: bool, y: Array | None) -> tuple[Array, Array]:
    if y is not None:
        dy = relu_backward(dy, y, over)
    return dy, dy


def relu_backward(dy: Array, y: Array, over: bool) -> Array:
    """The gradient before a ReLU, in dy's own memory where `over` allows it."""
    if over and in_place.can_overwrite(dy):
        return in_place.relu_backward_into(dy, y)
    return ops.relu_backward(dy, y)


def subtract(a: Any, b: Any) -> Tensor:
    """a - b."""
    a, b = _operands(a, b)
    return add(a, scale(b, -1.0))


def multiply(a: Any, b: Any) -> Tensor:
    """a * b, element by element."""
    if _is_number(a) or _is_number(b):
        return scale(b, a) if _is_number(a) else scale(a, b)
    a, b = _operands(a, b)
    if a.shape == b.shape and a.ndim and a.device not in ("cpu", "reference"):
        y = ops.multiply(a.data, b.data)
        return record("multiply", y, (a, b), _multiply_backward, a.data, b.data)
    return _broadcast("multiply", np.multiply, a, b, lambda dy, x, y: (dy * y, dy * x))


def _multiply_backward(dy: Array, over: bool, a: Array, b: Array) -> tuple[Array, Array]:
    return ops.multiply(dy, b), ops.multiply(dy, a)


def scale(x: Tensor, factor: float) -> Tensor:
    """x * factor, a number."""
    y = _scaled(x.data, factor)
    return record("scale", y, (x,), lambda dy, over: (_scaled(dy, factor),))


def _scaled(x: Array, factor: float) -> Array:
    return ops.scale(x, factor) if x.ndim else np.asarray(x * x.dtype.type(factor))


def divide(a: Any, b: Any) -> Tensor:
    """a / b; on a device b is a number, and a is scaled by 1 / b."""
    if not _is_number(b):
        return multiply(a, power(as_tensor(b), -1.0))
    if not isinstance(a.data, np.ndarray):
        return scale(a, 1 / b)
    y = np.asarray(a.data / a.dtype.type(b))
    return record("divide", y, (a,), lambda dy, over: (np.asarray(dy / dy.dtype.type(b)),))


def power(x: Tensor, exponent: float) -> Tensor:
    """x ** exponent, a number."""
    if isinstance(x.data, ShapeOnly):
        return _shape_only("power", x.shape, x)
    data = _host("**", x)
    n = data.dtype.type(exponent)
    y = np.asarray(data**n)
    return record("power", y, (x,), lambda dy, over: (np.asarray(dy * n * data ** (n - 1)),))


def matmul(a: Any, b: Any) -> Tensor:
    """The matrix product of (n, k) and (k, m)."""
    a, b = _operands(a, b)
    if isinstance(a.data, ShapeOnly) or isinstance(b.data, ShapeOnly):
        return _shape_only("matmul", (*a.shape[:1], *b.shape[1:]), a, b)
    x, y = _host("@", a), _host("@", b)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[0]:
        raise ValueError(f"matmul: shapes {x.shape} and {y.shape} are no matrices that fit")
    return record("matmul", x @ y, (a, b), lambda dy, over: (dy @ y.T, x.T @ dy))


def total(x: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The sum over all elements, or along the axes given."""
    if isinstance(x.data, ShapeOnly):
        return _shape_only("sum", _without(x.shape, axis, keepdims), x)
    data = _host("sum", x)
    y = np.asarray(data.sum(axis=axis, keepdims=keepdims))
    kept = data.sum(axis=axis, keepdims=True).shape

    def backward(dy: Array, over: bool) -> tuple[Array]:
        return (np.broadcast_to(np.asarray(dy).reshape(kept), data.shape).copy(),)

    return record("sum", y, (x,), backward)


def mean(x: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The mean over all elements, or along the axes given."""
    summed = total(x, axis, keepdims)
    return scale(summed, summed.size / x.size)


def reshape(x: Tensor, shape: Shape) -> Tensor:
    """The same elements in C order under another shape; one length may be -1."""
    data = contiguous(x.data)
    before = data.shape
    return record("reshape", data.reshape(shape), (x,), _reshape_backward, before)


def _reshape_backward(dy: Array, over: bool, shape: Shape) -> tuple[Array]:
    return (contiguous(dy).reshape(shape),)


def flatten(x: Tensor, start_dim: int = 0) -> Tensor:
    """The axes from start_dim on as one."""
    shape = x.data.shape
    return reshape(x, (*shape[:start_dim], math.prod(shape[start_dim:])))


def take(x: Tensor, index: Any) -> Tensor:
    """x[index], with NumPy's meaning."""
    if isinstance(x.data, ShapeOnly):
        return record("index", x.data[index], (x,), _unknown)
    data = _host("indexing", x)

    def backward(dy: Array, over: bool) -> tuple[Array]:
        dx = np.zeros(data.shape, data.dtype)
        np.add.at(dx, index, dy)  # an index may name an element twice
        return (dx,)

    return record("index", np.asarray(data[index]), (x,), backward)


def _unknown(dy: Array, over: bool) -> tuple[Array]:
    raise NotImplementedError("backward: the gradient of this operation needs values, not shapes")


def _shape_only(name: str, shape: Shape, *inputs: Tensor) -> Tensor:
    """The result of an operation on shape-only arrays."""
    return record(name, ShapeOnly(shape, inputs[0].dtype), inputs, _unknown)


def _without(shape: Shape, axis: Any, keepdims: bool) -> Shape:
    """A shape after a sum along some axes."""
    axes = range(len(shape)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    summed = {i % len(shape) for i in axes}
    lengths = [1 if i in summed else n for i, n in enumerate(shape)]
    return tuple(n for i, n in enumerate(lengths) if keepdims or i not in summed)


def _broadcast(
    name: str,
    function: Callable[[Any, Any], Any],
    a: Tensor,
    b: Tensor,
    gradients: Callable[[Array, Array, Array], tuple[Array, Array]],
) -> Tensor:
    if isinstance(a.data, ShapeOnly) or isinstance(b.data, ShapeOnly):
        return _shape_only(name, np.broadcast_shapes(a.shape, b.shape), a, b)
    x, y = _host(name, a), _host(name, b)

    def backward(dy: Array, over: bool) -> tuple[Array, Array]:
        dx, dz = gradients(dy, x, y)
        return _unbroadcast(dx, x.shape), _unbroadcast(dz, y.shape)

    return record(name, np.asarray(function(x, y)), (a, b), backward)


def _unbroadcast(d: Array, shape: Shape) -> Array:
    """The gradient of an operand of `shape` from that of the broadcast result."""
    extra = d.ndim - len(shape)
    axes = [*range(extra)]
    axes += [extra + i for i, n in enumerate(shape) if n == 1 and d.shape[extra + i] != 1]
    return np.asarray(d.sum(axis=tuple(axes))).reshape(shape) if axes else d


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
    return as_tensor(a), as_tensor(b)


def _is_number(value: Any) -> bool:
    return isinstance(value, Number) and not isinstance(value, bool)
