"""What the page is told of a network before it sees an image: one dict that JSON can hold.

The server sends it as /api/model; the offline page has it inside, with "weights" added.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gpuconv.data import Preprocessing
from gpuconv.page.graph import Graph, Node

WITH_FILTERS = ("conv", "linear")  # kinds whose weights the page draws
PAGE_VALUES = 1 << 18  # of one layer that are sent at once: a page of channels
PART_VALUES = 1 << 22  # of one window
MIN_CHANNELS, MAX_CHANNELS = 4, 64

Answer = dict[str, Any]  # that JSON can hold


def describe(
    graph: Graph, title: str, classes: Sequence[str], preprocessing: Preprocessing
) -> Answer:
    """The network for the page. preprocessing: how pictures become the network's input.

    Keys: "title", "classes", "parameters", "scores" (the node that softmax reads), "input" (image
    shape, field size, mean, std, dark_border, resize) and "layers", in order: "number", "name",
    "kind", "type", "from", "shape", "parameters", "filters" (their shape), "page" (channels sent at
    once) and the geometry of its windows.
    """
    parameters = sum(parameter.data.size for parameter in graph.model.parameters())
    return {
        "title": title,
        "classes": list(classes),
        "parameters": parameters,
        "scores": graph.scores,
        "input": {
            "image": list(preprocessing.image_shape),
            "size": list(preprocessing.size),
            "mean": _scale(preprocessing.mean, preprocessing.image_shape[0], 0.0),
            "std": _scale(preprocessing.std, preprocessing.image_shape[0], 1.0),
            "dark_border": preprocessing.dark_border,
            "resize": preprocessing.resize,
        },
        "layers": [_layer(graph, node) for node in graph],
    }


def page_of(node: Node) -> int:
    """How many channels of a node's maps are sent at once."""
    if len(node.shape) != 3:
        return max(1, math.prod(node.shape))
    fit = PAGE_VALUES // max(1, math.prod(node.shape[1:]))
    return min(node.shape[0], max(MIN_CHANNELS, min(MAX_CHANNELS, fit)))


def check_number(what: str, number: int, count: int) -> None:
    """ValueError where there is no such number among `count`."""
    if not 0 <= number < count:
        raise ValueError(f"{what} go from 0 to {count - 1}, got {number}")


def to_json(found: Any) -> bytes:
    """JSON, where a number that is not finite is null."""
    try:
        text = json.dumps(found, separators=(",", ":"), allow_nan=False)
    except ValueError:
        read = json.loads(json.dumps(found), parse_constant=lambda _: None)
        text = json.dumps(read, separators=(",", ":"))
    return text.encode()


def packed(array: np.ndarray) -> dict[str, str]:
    """An array in C order as base64, by its type: "u1" for pixels, "f4", little-endian, for all
    else. The page's `parse` reads it.
    """
    kind = "u1" if array.dtype == np.uint8 else "f4"
    return {kind: base64.b64encode(np.asarray(array, f"<{kind}").tobytes()).decode()}


def weights_of(node: Node) -> dict[str, np.ndarray]:
    """All arrays that a node's output depends on, each with a part for each channel."""
    if node.kind not in (*WITH_FILTERS, "batch_norm"):
        return {}
    names = ("weight", "bias", "running_mean", "running_var")
    found = {name: getattr(node.layer, name, None) for name in names}
    return {name: each.data for name, each in found.items() if each is not None}


class Part(NamedTuple):
    """A window into the output of node `number`, as geometry.js has it."""

    number: int
    channels: list[int]
    top: int  # may lie in the padding, as `left` may
    left: int
    rows: int
    columns: int
    dilation: list[int]


def part_of(y: np.ndarray, part: Part) -> np.ndarray:
    """The window's values in maps (C, H, W), or in a vector as one row: (channels, rows, columns),
    zero in the padding. ValueError for channels that are not there and for too many values.
    """
    _, channels, top, left, rows, columns, (down, right) = part
    maps = y.reshape((1, 1, -1)) if y.ndim == 1 else y
    for channel in channels:
        check_number("channels", channel, len(maps))
    if not 0 <= max(rows, columns, rows * columns * len(channels)) <= PART_VALUES:
        raise ValueError(f"a window may have {PART_VALUES:,} values")
    i, j = top + np.arange(rows) * down, left + np.arange(columns) * right
    height, width = maps.shape[1:]
    inside = np.outer((i >= 0) & (i < height), (j >= 0) & (j < width))
    near = np.ix_(np.array(channels, int), i.clip(0, height - 1), j.clip(0, width - 1))
    return np.where(inside, maps[near], np.float32(0))


def _layer(graph: Graph, node: Node) -> Answer:
    sources = [graph[source].shape for source in node.sources]
    layer = node.layer
    weights = weights_of(node)
    return {
        "number": node.number,
        "name": node.name,
        "kind": node.kind,
        "type": node.type,
        "from": list(node.sources),
        "shape": list(node.shape),
        "parameters": sum(p.data.size for p in layer.parameters()) if layer is not None else 0,
        "filters": list(weights["weight"].shape) if node.kind in WITH_FILTERS else None,
        "page": page_of(node),
        **_geometry(node, sources),
    }


def _geometry(node: Node, sources: Sequence[tuple[int, ...]]) -> Answer:
    """What the page needs to know of a layer to draw its windows, and to compute it."""
    layer: Any = node.layer
    found: Answer = {}
    if node.window is not None and node.kind != "other":
        found = {
            "kernel": list(node.window.kernel_size),
            "stride": list(node.window.stride),
            "pads": [list(side) for side in node.window.pads(*sources[0][1:])],
            "dilation": list(node.window.dilation),
            "count_include_pad": node.count_include_pad,
        }
    if node.kind == "conv":
        table = layer.connections  # for each filter the channels that it sees; else groups say it
        links = None if table is None else [np.flatnonzero(row).tolist() for row in table]
        return found | {"groups": layer.groups, "links": links}
    if node.kind == "batch_norm":
        return {"eps": layer.eps}
    if node.kind == "response_norm":
        size, alpha, beta, k, convention = layer.arguments
        a = alpha / size if convention == "torch" else alpha
        return {"size": size, "a": a, "beta": beta, "k": k}
    return found


def _scale(value: Any, channels: int, usual: float) -> list[float]:
    """One number for each channel."""
    given = np.float32(usual if value is None else value)
    return [float(each) for each in np.broadcast_to(given, (channels,))]
