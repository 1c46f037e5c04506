"""What the page is told of a network before it sees an image: one dict that JSON can hold.

The server sends it as /api/model; the offline page has it inside, with "weights" added.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpuconv import nn
from gpuconv.data import Preprocessing
from gpuconv.page.graph import Graph, Node
from gpuconv.page.nodes import geometry

PAGE_VALUES = 1 << 18  # of one layer that are sent at once: a page of channels
MIN_CHANNELS, MAX_CHANNELS = 4, 64


def describe(
    graph: Graph, title: str, classes: Sequence[str], preprocessing: Preprocessing
) -> dict[str, Any]:
    """The network for the page. preprocessing: how pictures become the network's input.

    Keys: "title", "classes", "parameters", "values" (of all maps together), "scores" (the node that
    softmax reads), "input" (image shape, field size, mean, std, dark_border) and "layers", in
    order: "number", "name", "kind", "type", "text" (its arguments), "from", "shape", "parameters",
    "multiply_adds", "page" (channels sent at once) and the geometry of its windows.
    """
    parameters = sum(parameter.data.size for parameter in graph.model.parameters())
    return {
        "title": title,
        "classes": list(classes),
        "parameters": parameters,
        "values": graph.values,
        "scores": graph.scores,
        "device": graph.model.device,
        "input": {
            "image": list(preprocessing.image_shape),
            "size": list(preprocessing.size),
            "mean": _scale(preprocessing.mean, preprocessing.image_shape[0], 0.0),
            "std": _scale(preprocessing.std, preprocessing.image_shape[0], 1.0),
            "dark_border": preprocessing.dark_border,
        },
        "layers": [_layer(graph, node) for node in graph],
    }


def page_of(node: Node) -> int:
    """How many channels of a node's maps are sent at once."""
    if len(node.shape) != 3:
        return max(1, math.prod(node.shape))
    fit = PAGE_VALUES // max(1, math.prod(node.shape[1:]))
    return min(node.shape[0], max(MIN_CHANNELS, min(MAX_CHANNELS, fit)))


def floats(array: np.ndarray) -> str:
    """float32 values in C order, little-endian, as base64."""
    return bytes_of(np.ascontiguousarray(array, "<f4"))


def bytes_of(array: np.ndarray) -> str:
    """An array's bytes in C order as base64, uint8 for pictures."""
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def filters_of(layer: nn.Module | None) -> np.ndarray | None:
    """A layer's weights as the page draws them, (K, C, R, S) or (K, features); None without."""
    weight = getattr(layer, "weight", None)
    if type(layer) not in (nn.Conv2d, nn.Linear) or weight is None:
        return None
    return np.asarray(weight.data)


def weights_of(node: Node) -> dict[str, np.ndarray]:
    """All arrays that a node's output depends on, as net.js reads them."""
    layer: Any = node.layer
    if node.kind in ("conv", "linear"):
        found = {
            "weight": layer.weight.data,
            "bias": None if layer.bias is None else layer.bias.data,
        }
    elif node.kind == "batch_norm":
        found = {
            "weight": None if layer.weight is None else layer.weight.data,
            "bias": None if layer.bias is None else layer.bias.data,
            "mean": layer.running_mean.data,
            "var": layer.running_var.data,
        }
    else:
        return {}
    return {name: array for name, array in found.items() if array is not None}


def _layer(graph: Graph, node: Node) -> dict[str, Any]:
    sources = [graph[source].shape for source in node.sources]
    layer = node.layer
    filters = filters_of(layer)
    return {
        "number": node.number,
        "name": node.name,
        "kind": node.kind,
        "type": node.type,
        "text": layer.extra_repr() if layer is not None else "",
        "from": list(node.sources),
        "shape": list(node.shape),
        "parameters": sum(p.data.size for p in layer.parameters()) if layer is not None else 0,
        "multiply_adds": node.multiply_adds,
        "filters": None if filters is None else list(filters.shape),
        "page": page_of(node),
        **geometry(node, sources),
    }


def _scale(value: Any, channels: int, usual: float) -> list[float]:
    """One number for each channel."""
    given = np.float32(usual if value is None else value)
    return [float(each) for each in np.broadcast_to(given, (channels,))]
