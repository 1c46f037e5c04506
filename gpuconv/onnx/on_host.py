"""Operators on arrays that do not depend on the input's values: shapes, and stored constants."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv.onnx.node import Node
from gpuconv.onnx.package import onnx_package

MAX_VALUES = 1 << 27  # of an array that a node makes, and of one example


def _constant(node: Node) -> Callable[[], np.ndarray]:
    for name, dtype in (
        ("int", np.int64),
        ("ints", np.int64),
        ("float", np.float32),
        ("floats", np.float32),
    ):
        if (value := node.attribute(f"value_{name}", None)) is not None:
            return lambda: np.asarray(value, dtype)
    value = node.attribute("value", None)
    if value is None:
        raise NotImplementedError(f"{node.name}: only numbers are supported")
    return lambda: onnx_package().numpy_helper.to_array(value)


def _filled(node: Node) -> Callable[[Any], np.ndarray]:
    value = node.attribute("value", None)
    one = np.zeros(1, np.float32) if value is None else onnx_package().numpy_helper.to_array(value)

    def fill(shape: Any) -> np.ndarray:
        if math.prod(map(int, shape)) > MAX_VALUES:
            raise ValueError(f"{node.name}: an array of shape {list(map(int, shape))} is too large")
        return np.full(tuple(map(int, shape)), one.reshape(-1)[0])

    return fill


def _shape(node: Node) -> Callable[[Any], np.ndarray]:
    part = slice(node.attribute("start", 0), node.attribute("end", None))
    return lambda x: np.asarray(x.shape[part], np.int64)


def _gather(node: Node) -> Callable[..., np.ndarray]:
    axis = node.attribute("axis", 0)
    return lambda x, at: np.take(x, at, axis)


def _concat(node: Node) -> Callable[..., np.ndarray]:
    axis = node.attribute("axis", 0)
    return lambda *xs: np.concatenate([np.atleast_1d(x) for x in xs], axis)


def _axes(node: Node, axes: tuple[Any, ...]) -> tuple[int, ...] | None:
    given = axes[0] if axes and axes[0] is not None else node.attribute("axes", None)
    return None if given is None else tuple(map(int, given))


def _unsqueeze(node: Node) -> Callable[..., np.ndarray]:
    return lambda x, *axes: np.expand_dims(x, _axes(node, axes) or ())


def _squeeze(node: Node) -> Callable[..., np.ndarray]:
    return lambda x, *axes: np.squeeze(x, _axes(node, axes))


def _reshape(node: Node) -> Callable[..., np.ndarray]:
    def reshape(x: Any, *given: Any) -> np.ndarray:
        shape = given[0] if given else node.attribute("shape", ())
        return np.reshape(x, tuple(x.shape[i] if n == 0 else int(n) for i, n in enumerate(shape)))

    return reshape


def _slice(node: Node) -> Callable[..., np.ndarray]:
    def cut(x: Any, *given: Any) -> np.ndarray:
        begins, ends, axes, steps = (
            given[i] if len(given) > i else node.attribute(name, None)
            for i, name in enumerate(("starts", "ends", "axes", "steps"))
        )
        index = [slice(None)] * np.ndim(x)
        for i in range(len(begins)):
            axis = i if axes is None else int(axes[i])
            step = 1 if steps is None else int(steps[i])
            index[axis] = slice(int(begins[i]), int(ends[i]), step)
        return x[tuple(index)]

    return cut


def _cast(node: Node) -> Callable[[Any], np.ndarray]:
    dtype = onnx_package().helper.tensor_dtype_to_np_dtype(node.attribute("to", 1))
    return lambda x: np.asarray(x).astype(dtype)


def _divide(a: Any, b: Any) -> Any:
    if np.asarray(a).dtype.kind == "f":
        return np.divide(a, b)
    return np.floor_divide(a, b)


def _transpose(node: Node) -> Callable[[Any], np.ndarray]:
    perm = node.attribute("perm", None)
    return lambda x: np.transpose(x, perm)


def _always(function: Callable[..., Any]) -> Callable[[Node], Callable[..., Any]]:
    return lambda node: function


HOST: dict[str, Callable[[Node], Callable[..., Any]]] = {
    "Add": _always(np.add),
    "Cast": _cast,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "Div": _always(_divide),
    "Gather": _gather,
    "Identity": _always(lambda x: x),
    "Mul": _always(np.multiply),
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _always(np.subtract),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
