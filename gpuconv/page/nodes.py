"""How one number of a network came about: its window, weights, products, sum and so on.

`explain` gives what the page's inspector shows, as a dict that JSON can hold; the exported page's
static/net.js computes the same dict from the weights inside it. Numbers are float32 values, written
as Python floats; one that is not finite is None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpuconv.page.graph import Graph, Node

Shape = tuple[int, ...]
Answer = dict[str, Any]
Arrays = Sequence[np.ndarray]
Index = tuple[int, ...]


def explain(graph: Graph, outputs: Arrays, number: int, index: Index) -> Answer:
    """What made element `index` of node `number`'s output.

    outputs: as `Graph.outputs` gave them. Always there: "layer", "index", "kind", "value". Beside
    them, by kind: "window" (which elements of node "from": "channels", the "top" row and "left"
    column, which may lie in the padding, "rows", "columns", "dilation"), their values "x", and
    - conv, linear: "w", "products" x*w, their "sum", "bias" (None without);
    - max_pool: "winner", its place in the window; the other pools: "divisor", what the sum is over;
    - activations, dropout, flatten, concat: "x", and "at", the element of "from" that was read;
    - batch_norm: "x", "mean", "var", "eps", "weight", "bias"; response_norm: "center", "a",
      "beta", "k";
    - add: "x" and "from", one of each for both sides; softmax: "x", the scores, "exps" = e**(x -
      largest), and their "sum".
    Raises ValueError for a node or an index that is not there.
    """
    if not 0 <= number < len(graph):
        raise ValueError(f"there is no layer {number}, the last is {len(graph) - 1}")
    node = graph[number]
    inside = len(index) == len(node.shape) and all(
        0 <= i < size for i, size in zip(index, node.shape, strict=True)
    )
    if not inside:
        raise ValueError(f"{node.name} has shape {node.shape}, there is no element {index}")
    given = [outputs[source] for source in node.sources]
    found: Answer = {
        "layer": number,
        "index": list(index),
        "kind": node.kind,
        "value": _number(outputs[number][index]),
    }
    if node.kind in _EXPLAIN:
        found |= _EXPLAIN[node.kind](node, given, index)
    return found


def geometry(node: Node, sources: Sequence[Shape]) -> Answer:
    """What the page needs to know of a layer to draw its windows, and the export to compute it."""
    layer: Any = node.layer
    if node.kind == "conv":
        return {**_window(node.window, sources[0]), "groups": layer.groups, "links": _links(layer)}
    if node.kind in ("max_pool", "avg_pool", "sum_pool"):
        return _window(node.window, sources[0]) | {"count_include_pad": node.count_include_pad}
    if node.kind == "batch_norm":
        return {"eps": layer.eps}
    if node.kind == "response_norm":
        size, alpha, beta, k, convention = layer.arguments
        a = alpha / size if convention == "torch" else alpha
        return {"size": size, "a": a, "beta": beta, "k": k}
    return {}


def _window(window: Any, image: Shape) -> Answer:
    return {
        "kernel": list(window.kernel_size),
        "stride": list(window.stride),
        "pads": [list(side) for side in window.pads(*image[1:])],
        "dilation": list(window.dilation),
    }


def _links(layer: Any) -> list[list[int]] | None:
    """For each filter the input channels it sees; None where the groups say it."""
    if layer.connections is None:
        return None
    return [np.flatnonzero(row).tolist() for row in layer.connections]


def _seen(layer: Any, k: int) -> list[int]:
    links = _links(layer)
    if links is not None:
        return links[k]
    each = layer.in_channels // layer.groups
    begin = k // (layer.out_channels // layer.groups) * each
    return list(range(begin, begin + each))


def _cut(x: np.ndarray, channels: list[int], window: Any, p: int, q: int) -> tuple[Any, Answer]:
    """x under the window at (p, q), (channels, R, S), zero in the padding, and where that is."""
    (top, _), (left, _) = window.pads(*x.shape[1:])
    place = {
        "channels": channels,
        "top": p * window.stride[0] - top,
        "left": q * window.stride[1] - left,
        "rows": window.kernel_size[0],
        "columns": window.kernel_size[1],
        "dilation": list(window.dilation),
    }
    rows = place["top"] + np.arange(place["rows"]) * window.dilation[0]
    columns = place["left"] + np.arange(place["columns"]) * window.dilation[1]
    inside_rows, inside_columns = (
        (at >= 0) & (at < size) for at, size in zip((rows, columns), x.shape[1:], strict=True)
    )
    values = np.zeros((len(channels), len(rows), len(columns)), x.dtype)
    values[np.ix_(range(len(channels)), inside_rows, inside_columns)] = x[
        np.ix_(channels, rows[inside_rows], columns[inside_columns])
    ]
    place["inside"] = np.outer(inside_rows, inside_columns).ravel().tolist()
    return values, place


def _dot(x: np.ndarray, w: np.ndarray, bias: Any) -> Answer:
    products = x * w
    return {
        "x": _numbers(x),
        "w": _numbers(w),
        "products": _numbers(products),
        "sum": _number(np.float32(np.sum(products, dtype=np.float64))),
        "bias": None if bias is None else _number(bias),
    }


def _conv(node: Node, given: Arrays, index: Index) -> Answer:
    layer: Any = node.layer
    k, p, q = index
    channels = _seen(layer, k)
    x, place = _cut(given[0], channels, node.window, p, q)
    w = layer.weight.data[k]
    if layer.connections is not None:
        w = w[channels]
    bias = None if layer.bias is None else layer.bias.data[k]
    return {"window": {"from": node.sources[0], **place}, **_dot(x, w, bias)}


def _linear(node: Node, given: Arrays, index: Index) -> Answer:
    layer: Any = node.layer
    bias = None if layer.bias is None else layer.bias.data[index[0]]
    return {
        "window": {"from": node.sources[0]},
        **_dot(given[0], layer.weight.data[index[0]], bias),
    }


def _pool(node: Node, given: Arrays, index: Index) -> Answer:
    c, p, q = index
    x, place = _cut(given[0], [c], node.window, p, q)
    found: Answer = {"window": {"from": node.sources[0], **place}, "x": _numbers(x)}
    inside = np.array(place["inside"])
    if node.kind == "max_pool":
        values = np.where(inside, x.ravel(), -np.inf)
        bad = np.flatnonzero(np.isnan(values))
        winner = int(bad[-1]) if len(bad) else int(values.argmax())
        return found | {"winner": winner if inside.any() else None}
    if node.kind == "sum_pool":
        return found | {"divisor": 1}
    if node.count_include_pad:
        inside = _on_the_padded_image(place, node.window.pads(*given[0].shape[1:]), given[0].shape)
    return found | {"divisor": max(1, int(inside.sum()))}


def _on_the_padded_image(place: Answer, pads: Any, shape: Shape) -> np.ndarray:
    axes = []
    for first, count, step, (before, after), size in zip(
        (place["top"], place["left"]),
        (place["rows"], place["columns"]),
        place["dilation"],
        pads,
        shape[1:],
        strict=True,
    ):
        at = first + np.arange(count) * step
        axes.append((at >= -before) & (at < size + after))
    return np.outer(*axes)


def _adaptive(node: Node, given: Arrays, index: Index) -> Answer:
    c, p, q = index
    (H, W), (P, Q) = given[0].shape[1:], node.shape[1:]
    top, bottom = p * H // P, -(-(p + 1) * H // P)
    left, right = q * W // Q, -(-(q + 1) * W // Q)
    x = given[0][c, top:bottom, left:right]
    place = {"channels": [c], "top": top, "left": left, "rows": bottom - top}
    place |= {"columns": right - left, "dilation": [1, 1], "inside": [True] * x.size}
    window = {"from": node.sources[0], **place}
    return {"window": window, "x": _numbers(x), "divisor": x.size}


def _element(node: Node, given: Arrays, index: Index) -> Answer:
    return {"from": node.sources[0], "at": list(index), "x": _number(given[0][index])}


def _flatten(node: Node, given: Arrays, index: Index) -> Answer:
    at = tuple(int(i) for i in np.unravel_index(index[0], given[0].shape))
    return {"from": node.sources[0], "at": list(at), "x": _number(given[0][at])}


def _concat(node: Node, given: Arrays, index: Index) -> Answer:
    channel = index[0]
    for source, x in zip(node.sources, given, strict=True):
        if channel < len(x):
            at = (channel, *index[1:])
            return {"from": source, "at": list(at), "x": _number(x[at])}
        channel -= len(x)
    raise AssertionError("the index was inside the joined shape")


def _add(node: Node, given: Arrays, index: Index) -> Answer:
    return {
        "from": list(node.sources),
        "at": list(index),
        "x": [_number(x[index]) for x in given],
    }


def _batch_norm(node: Node, given: Arrays, index: Index) -> Answer:
    layer: Any = node.layer
    c = index[0]
    return {
        **_element(node, given, index),
        "mean": _number(layer.running_mean.data[c]),
        "var": _number(layer.running_var.data[c]),
        "eps": layer.eps,
        "weight": 1.0 if layer.weight is None else _number(layer.weight.data[c]),
        "bias": 0.0 if layer.bias is None else _number(layer.bias.data[c]),
    }


def _response_norm(node: Node, given: Arrays, index: Index) -> Answer:
    c, p, q = index
    known = geometry(node, [])
    first = max(0, c - known["size"] // 2)
    last = min(len(given[0]) - 1, c + (known["size"] - 1) // 2)
    channels = list(range(first, last + 1))
    place = {"channels": channels, "top": p, "left": q, "rows": 1, "columns": 1}
    window = {"from": node.sources[0], **place, "dilation": [1, 1], "inside": [True]}
    found = {"window": window, "x": _numbers(given[0][first : last + 1, p, q]), "center": c - first}
    return found | {name: known[name] for name in ("a", "beta", "k")}


def _softmax(node: Node, given: Arrays, index: Index) -> Answer:
    x = given[0]
    if x.ndim != 1:
        return _element(node, given, index)
    exps = np.exp(x - x.max())
    total = _number(np.float32(np.sum(exps, dtype=np.float64)))
    return {
        "window": {"from": node.sources[0]},
        "x": _numbers(x),
        "exps": _numbers(exps),
        "sum": total,
    }


_EXPLAIN: dict[str, Callable[[Node, Arrays, Index], Answer]] = {
    "conv": _conv,
    "linear": _linear,
    "max_pool": _pool,
    "avg_pool": _pool,
    "sum_pool": _pool,
    "adaptive_avg_pool": _adaptive,
    "relu": _element,
    "tanh": _element,
    "scaled_tanh": _element,
    "sigmoid": _element,
    "dropout": _element,
    "identity": _element,
    "flatten": _flatten,
    "concat": _concat,
    "add": _add,
    "batch_norm": _batch_norm,
    "response_norm": _response_norm,
    "softmax": _softmax,
}


def _number(value: Any) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None


def _numbers(values: np.ndarray) -> list[float | None]:
    flat = values.ravel()
    if np.isfinite(flat).all():
        return flat.tolist()
    return [_number(value) for value in flat]
