"""The ONNX nodes of each recorded operation.

A function of NODES takes the graph, the operation's inputs and what it saved for its gradient (see
gpuconv/nn/functional.py and gpuconv/autograd/operators.py); `graph.step` is the traced step. It
adds nodes and returns the name of the last one's output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpuconv import ops
from gpuconv.ops.avg_pool2d import taps_counted
from gpuconv.ops.tanh import AMPLITUDE, SLOPE
from gpuconv.shapes import Window

Inputs = Sequence[Any]
Saved = Sequence[Any]


def _plain(op: str, **attributes: Any) -> Callable[[Any, Inputs, Saved], str]:
    """An operation that is one node."""
    return lambda graph, inputs, saved: graph.node(op, *inputs, **attributes)


def _like(x: Any, values: Any) -> np.ndarray:
    """An array of x's dtype."""
    return np.asarray(values, x.dtype)


# ---- with weights --------------------------------------------------------------------------------


def _conv2d(graph: Any, inputs: Inputs, saved: Saved) -> str:
    window, groups = graph.step.window, saved[7]
    given = [x for x in inputs if x is not None]
    pads = _begin_and_end(window.pads(*inputs[0].shape[2:]))
    return graph.node("Conv", *given, group=groups, pads=pads, **_sizes(window))


def _linear(graph: Any, inputs: Inputs, saved: Saved) -> str:
    return graph.node("Gemm", *(x for x in inputs if x is not None), transB=1)


def _batch_norm(graph: Any, inputs: Inputs, saved: Saved) -> str:
    mean, var, eps, _, of_batch = saved[4:9]
    if of_batch:
        raise ValueError("export: a batch norm without running statistics mixes the images")
    x, w, b = inputs
    w = _like(x, np.ones(x.shape[1])) if w is None else w
    b = _like(x, np.zeros(x.shape[1])) if b is None else b
    return graph.node("BatchNormalization", x, w, b, mean, var, epsilon=eps)


# ---- pooling -------------------------------------------------------------------------------------


def _sizes(window: Window) -> dict[str, Any]:
    return {
        "kernel_shape": window.kernel_size, "strides": window.stride, "dilations": window.dilation
    }  # fmt: skip


def _begin_and_end(pads: Any) -> list[int]:
    """((top, bottom), (left, right)) in ONNX's order."""
    return [before for before, _ in pads] + [after for _, after in pads]


def _whole_windows(window: Window, H: int, W: int) -> list[tuple[int, int]]:
    """The padding with which windows are as many without ceil_mode, all of them whole."""
    pads = []
    axes = zip((H, W), window.pads(H, W), window.output_size(H, W), strict=True)
    for i, (size, (before, after), outputs) in enumerate(axes):
        end = (outputs - 1) * window.stride[i] + window.extent[i] - size - before
        pads.append((before, min(max(after, end), end + window.stride[i] - 1)))
    return pads


def _padded(graph: Any, x: Any, pads: Any, value: float, kernel_size: Any) -> tuple[Any, Any]:
    """x and its padding; a node pads where that is more than a pool of ONNX takes."""
    if _fits(pads, kernel_size):
        return x, pads
    pads_of_axes = np.asarray(_begin_and_end(pads), np.int64)
    axes = np.asarray([2, 3], np.int64)
    return graph.node("Pad", x, pads_of_axes, _like(x, value), axes), ((0, 0), (0, 0))


def _fits(pads: Any, kernel_size: Any) -> bool:
    return all(max(pad) < length for pad, length in zip(pads, kernel_size, strict=True))


def _max_pool2d(graph: Any, inputs: Inputs, saved: Saved) -> str:
    (x,), window = inputs, graph.step.window
    pads = _whole_windows(window, *x.shape[2:])
    x, pads = _padded(graph, x, pads, -math.inf, window.kernel_size)
    return graph.node("MaxPool", x, pads=_begin_and_end(pads), **_sizes(window))


def _sum_pool2d(graph: Any, inputs: Inputs, saved: Saved) -> str:
    (x,), window = inputs, graph.step.window
    return graph.node("Mul", _mean_with_zeros(graph, x, window), _like(x, window.taps_count))


def _mean_with_zeros(graph: Any, x: Any, window: Window) -> str:
    """The mean over all taps, those outside the image being 0."""
    x, pads = _padded(graph, x, _whole_windows(window, *x.shape[2:]), 0.0, window.kernel_size)
    pads = _begin_and_end(pads)
    return graph.node("AveragePool", x, pads=pads, count_include_pad=1, **_sizes(window))


def _avg_pool2d(graph: Any, inputs: Inputs, saved: Saved) -> str:
    """One node, but for windows that ONNX's versions and programs count differently."""
    (x,), window, include = inputs, graph.step.window, graph.step.count_include_pad
    pads, whole = window.pads(*x.shape[2:]), _whole_windows(window, *x.shape[2:])
    partial = any(end > after for (_, end), (_, after) in zip(whole, pads, strict=True))
    if partial and not any(map(any, pads)):  # what lies outside the image does not count
        include = False
    counted = taps_counted(window, tuple(x.shape[2:]), include)
    if (partial and include) or not _fits(whole, window.kernel_size):
        mean = _mean_with_zeros(graph, x, window)
        return graph.node("Mul", mean, _like(x, window.taps_count / counted))
    sizes = {"pads": _begin_and_end(whole), **_sizes(window)}
    return graph.node("AveragePool", x, count_include_pad=int(include), **sizes)


def _adaptive_avg_pool2d(graph: Any, inputs: Inputs, saved: Saved) -> str:
    """Windows of one size where they are; else a product with the shares of each row and column."""
    (x,), outputs = inputs, graph.step.shape[2:]
    if outputs == (1, 1):
        return graph.node("GlobalAveragePool", x)
    axes = [_parts(size, count) for size, count in zip(x.shape[2:], outputs, strict=True)]
    even = [_even_window(begins, ends) for begins, ends in axes]
    if None not in even:
        kernel, stride = zip(*even, strict=True)
        return graph.node("AveragePool", x, kernel_shape=kernel, strides=stride)
    rows, columns = (
        _like(
            x, [[(b <= i < e) / (e - b) for i in range(size)] for b, e in zip(*parts, strict=True)]
        )
        for size, parts in zip(x.shape[2:], axes, strict=True)
    )
    return graph.node("MatMul", rows, graph.node("MatMul", x, columns.T))


def _parts(size: int, count: int) -> tuple[list[int], list[int]]:
    """Where each of so many overlapping parts of an axis begins and ends."""
    begins = [i * size // count for i in range(count)]
    return begins, [-(-(i + 1) * size // count) for i in range(count)]


def _even_window(begins: list[int], ends: list[int]) -> tuple[int, int] | None:
    """(kernel, stride) where all parts are as long and as far apart as the first."""
    kernel, stride = ends[0], begins[1] if len(begins) > 1 else 1
    windows = [(i * stride, i * stride + kernel) for i in range(len(begins))]
    return (kernel, stride) if stride and windows == list(zip(begins, ends, strict=True)) else None


# ---- the others ----------------------------------------------------------------------------------


def one_node(graph: Any, inputs: Inputs, saved: Saved) -> str:
    """An operation that says itself which node it is."""
    operator, attributes = getattr(ops, graph.step.name).onnx
    kept = list(getattr(ops, f"{graph.step.name}_backward").parameters)[1:]
    values = dict(zip(kept, saved[1:], strict=False))
    return graph.node(operator, *inputs, **{name: values[n] for name, n in attributes.items()})


def _scaled_tanh(graph: Any, inputs: Inputs, saved: Saved) -> str:
    (x,) = inputs
    inner = graph.node("Tanh", graph.node("Mul", x, _like(x, SLOPE)))
    return graph.node("Mul", inner, _like(x, AMPLITUDE))


def _local_response_norm(graph: Any, inputs: Inputs, saved: Saved) -> str:
    (x,), (size, alpha, beta, k, convention) = inputs, saved[2:]
    if convention == "paper":
        alpha = alpha * size
    if size % 2:
        return graph.node("LRN", x, size=size, alpha=alpha, beta=beta, bias=k)
    # ONNX's and PyTorch's neighbours differ for an even size, so their sum is a convolution.
    C = x.shape[1]
    away = np.arange(C) - np.arange(C)[:, None]
    near = (-(size // 2) <= away) & (away <= (size - 1) // 2)
    weight = _like(x, near[:, :, None, None] * (alpha / size))
    squares = graph.node("Mul", x, x)
    total = graph.node("Conv", squares, weight, _like(x, np.full(C, k)))
    return graph.node("Div", x, graph.node("Pow", total, _like(x, beta)))


def _append_channels(graph: Any, inputs: Inputs, saved: Saved) -> str:
    return graph.node("Concat", *inputs, axis=1) if len(inputs) > 1 else graph.name(inputs[0])


def _scale(graph: Any, inputs: Inputs, saved: Saved) -> str:
    return graph.node("Mul", *inputs, _like(inputs[0], saved[0]))


def _divide(graph: Any, inputs: Inputs, saved: Saved) -> str:
    return graph.node("Div", *inputs, _like(inputs[0], saved[0]))


def _power(graph: Any, inputs: Inputs, saved: Saved) -> str:
    return graph.node("Pow", *inputs, _like(inputs[0], saved[1]))


def _reshape(graph: Any, inputs: Inputs, saved: Saved) -> str:
    shape = graph.step.shape
    if len(shape) == 2 and inputs[0].ndim > 1:
        return graph.node("Flatten", *inputs, axis=1)
    return graph.node("Reshape", *inputs, np.asarray([-1, *shape[1:]], np.int64))


def _transpose(graph: Any, inputs: Inputs, saved: Saved) -> str:
    return graph.node("Transpose", *inputs, perm=saved[0])


def _sum(graph: Any, inputs: Inputs, saved: Saved) -> str:
    (x,), axis = inputs, saved[1]
    axes = np.asarray(axis if isinstance(axis, tuple) else [axis], np.int64)
    keep = int(len(graph.step.shape) == x.ndim)
    return graph.node("ReduceSum", x, axes, keepdims=keep)


def _index(graph: Any, inputs: Inputs, saved: Saved) -> str:
    """A slice of one pixel for each whole number, whose axis then goes."""
    (x,), (shape, index) = inputs, saved
    index = index if isinstance(index, tuple) else (index,)
    if any(part is not ... and not isinstance(part, slice | int | np.integer) for part in index):
        raise ValueError(
            f"export: of indices only slices and numbers have a form here, got {index}"
        )
    parts = _by_axis(index, len(shape))
    gone = [axis for axis, part in parts if not isinstance(part, slice)]
    spans = [
        (axis, *part.indices(shape[axis])) if isinstance(part, slice)
        else (axis, int(part) % shape[axis], int(part) % shape[axis] + 1, 1)
        for axis, part in parts
        if part != slice(None)
    ]  # fmt: skip
    if any(step < 1 for *_, step in spans):
        raise ValueError(f"export: a slice must go forward, got {index}")
    if not spans:
        return graph.node("Identity", x)
    axes, begins, ends, steps = (
        np.asarray(column, np.int64) for column in zip(*spans, strict=True)
    )
    y = graph.node("Slice", x, begins, ends, axes, steps)
    return graph.node("Squeeze", y, np.asarray(gone, np.int64)) if gone else y


def _by_axis(index: tuple[Any, ...], ndim: int) -> list[tuple[int, Any]]:
    """Each part of an index with its axis."""
    if ... not in index:
        return list(enumerate(index))
    at = index.index(...)
    behind = index[at + 1 :]
    return [*enumerate(index[:at]), *enumerate(behind, ndim - len(behind))]


NODES: dict[str, Callable[[Any, Inputs, Saved], str]] = {
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "add": _plain("Add"),
    "append_channels": _append_channels,
    "avg_pool2d": _avg_pool2d,
    "batch_norm": _batch_norm,
    "cat": _plain("Concat", axis=1),
    "conv2d": _conv2d,
    "divide": _divide,
    "index": _index,
    "linear": _linear,
    "local_response_norm": _local_response_norm,
    "matmul": _plain("MatMul"),
    "max_pool2d": _max_pool2d,
    "multiply": _plain("Mul"),
    "power": _power,
    "reshape": _reshape,
    "scale": _scale,
    "scaled_tanh": _scaled_tanh,
    "softmax": _plain("Softmax", axis=1),
    "sum": _sum,
    "sum_pool2d": _sum_pool2d,
    "transpose": _transpose,
}
