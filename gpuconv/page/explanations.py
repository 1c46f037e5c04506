"""Evidence for a class in a picture: the methods of `gpuconv.explain` that the page offers."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuconv import explain
from gpuconv.page.graph import Graph

WINDOWS = 32  # places along a side that occlusion covers
# How many times a method's work is a forward pass; the others' is three at most.
PASSES = {"smooth-grad": 3 * 25, "occlusion": WINDOWS**2}
MAX_WORK = 150_000_000_000  # multiply-adds: some seconds
OCCLUDED_VALUES = 64_000_000  # of the maps of the covered pictures that run at a time


def offered(graph: Graph) -> dict[str, explain.Method]:
    """The methods by name: those that do not take long, Grad-CAM where there are maps."""
    maps = any(len(node.shape) == 3 for node in graph.nodes[1:])
    return {
        name: method
        for name, method in explain.METHODS.items()
        if graph.multiply_adds * PASSES.get(name, 1) <= MAX_WORK
        and (maps or "layer" not in method.options)  # Grad-CAM's
    }


def options(name: str, graph: Graph, x: np.ndarray) -> dict[str, Any]:
    """The further arguments that the page gives a method for the picture x, (1, C, H, W).

    Occlusion's window is an eighth of the picture, at least 3 pixels, in its darkest colour.
    """
    if name != "occlusion":
        return {}
    sides = x.shape[2:]
    stride = tuple(max(1, side // WINDOWS) for side in sides)
    window = tuple(
        min(side, max(3, side // 8, step)) for side, step in zip(sides, stride, strict=True)
    )
    dark = [float(least) for least in x.min(axis=(0, 2, 3))]
    batch = max(1, min(128, OCCLUDED_VALUES // graph.values))
    return {"window": window, "stride": stride, "value": dark, "batch": batch}


def attribution_map(name: str, graph: Graph, x: np.ndarray, target: int) -> np.ndarray:
    """The method's map for one picture, float32 (1, H, W). Of the class's score, also where the
    network itself ends with softmax.
    """
    of = graph.layer_name(graph.scores) if graph.ends_with_softmax else ""
    function = explain.method(name).function
    found = function(graph.model, x, target, of, **options(name, graph, x))
    return explain.as_map(found).astype(np.float32)
