"""The page's questions to `gpuconv.explain`: evidence for a class in a picture, and the patches of
the test pictures that activate a layer's filters most.

The patches are found step by step: every question of the page looks at some more pictures and says
how far it is; when all are seen it gets the parts. So no question takes long, the page can draw in
between, and nothing is looked for that nobody waits for.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from gpuconv import explain
from gpuconv.data import Dataset, Preprocessing
from gpuconv.page.description import Answer, check_number, packed
from gpuconv.page.graph import Graph

WINDOWS = 32  # places along a side that occlusion covers
# How many times a method's work is a forward pass; the others' is three at most.
PASSES = {"smooth-grad": 3 * 25, "occlusion": WINDOWS**2}
MAX_WORK = 150_000_000_000  # multiply-adds, of a method or for all pictures: some seconds
OCCLUDED_VALUES = 64_000_000  # of the maps of the covered pictures that run at a time
COUNT = 9  # patches of a filter
MAX_PICTURES = 2000
STEP_WORK, STEP_VALUES, STEP_PICTURES = 2_000_000_000, 4_000_000, 200  # of one question
MAX_SEARCHES = 4  # layers whose results are kept


def offered(graph: Graph) -> dict[str, explain.Method]:
    """The methods by name: those that do not take long, Grad-CAM where there are maps."""
    maps = any(len(node.shape) == 3 for node in graph[1:])
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


class Searches:
    """The searches of a network's layers; the weights' version says when they are to begin anew.

    layers: the numbers of those that have maps and a name, where all receptive fields are known.
    Every method raises ValueError for a filter that is not there, and must not be called from two
    threads at a time.
    """

    def __init__(self, graph: Graph, preprocessing: Preprocessing, dataset: Dataset) -> None:
        self._graph, self._preprocessing, self._dataset = graph, preprocessing, dataset
        known = all(node.kind != "other" for node in graph)
        self.layers = [
            node.number
            for node in graph[1:]
            if known and len(node.shape) == 3 and graph.layer_name(node.number)
        ]
        work = max(1, graph.multiply_adds)
        self.pictures = min(len(dataset), MAX_PICTURES, max(COUNT, MAX_WORK // work))
        step = min(STEP_PICTURES, STEP_WORK // work, STEP_VALUES // max(1, graph.values))
        self._step = max(1, step)
        self._search = lru_cache(MAX_SEARCHES)(
            lambda version, name: explain.PatchSearch(graph.model, name, COUNT)
        )

    def ask(self, version: int, number: int, filter: int) -> Answer:
        """Look at some more pictures for that layer. "seen", "pictures" (to be seen), "of" (all the
        test pictures), and once all are seen "patches": for each "image", "label", "value",
        "index" (the unit), "box", and the part as "pixels", uint8 of "shape" (C, rows, columns),
        and as "projection", float32 (rows, columns), summed over the channels.
        """
        node = self._graph[number]
        check_number(f"filters of {node.name}", filter, node.shape[0])
        search = self._search(version, self._graph.layer_name(number))
        if search.seen < self.pictures:
            search.add(self._read(range(search.seen, min(self.pictures, search.seen + self._step))))
        found = {
            "layer": number,
            "filter": filter,
            "version": version,
            "seen": search.seen,
            "pictures": self.pictures,
            "of": len(self._dataset),
        }
        if search.seen < self.pictures:
            return found
        (patches,) = search.patches([filter])
        return found | {"patches": list(self._described(number, patches))}

    def _read(self, numbers: range | list[int]) -> np.ndarray:
        return self._preprocessing.to_float(self._dataset.images[np.asarray(numbers)])

    def _described(self, number: int, patches: list[explain.Patch]) -> Iterator[Answer]:
        x = self._read([patch.image for patch in patches])
        pixels = self._preprocessing.to_pixels(x)
        name = self._graph.layer_name(number)
        by_image = {patch.image: each for patch, each in zip(patches, x, strict=True)}
        back = explain.projections(self._graph.model, by_image, patches, name, batch=1)
        for patch, picture, projection in zip(patches, pixels, back, strict=True):
            top, bottom, left, right = patch.box
            yield {
                "image": patch.image,
                "label": int(self._dataset.labels[patch.image]),
                "value": patch.value,
                "index": [patch.filter, *patch.unit],
                "box": list(patch.box),
                "shape": list(projection.shape),
                "pixels": packed(picture[:, top:bottom, left:right]),
                "projection": packed(projection.sum(axis=0)),
            }
