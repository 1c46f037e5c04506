"""The patches of the test pictures that activate a layer's filters most, found step by step.

Every question of the page looks at some more pictures and says how far it is; when all are seen it
gets the parts. So no question takes long, the page can draw in between, and nothing is looked for
that nobody waits for.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from gpuconv import explain
from gpuconv.data import Dataset, Preprocessing
from gpuconv.page.description import bytes_of, check_number, floats
from gpuconv.page.graph import Graph

COUNT = 9
MAX_PICTURES = 2000
MAX_WORK = 150_000_000_000  # multiply-adds for all pictures: some seconds
STEP_WORK, STEP_VALUES, STEP_PICTURES = 2_000_000_000, 4_000_000, 200  # of one question
MAX_SEARCHES = 4  # layers whose results are kept

Answer = dict[str, Any]


def searchable(graph: Graph) -> list[int]:
    """The numbers of the nodes with maps that have a layer's name, where every node's receptive
    field is known.
    """
    known = all(node.kind != "other" for node in graph)
    return [
        node.number
        for node in graph.nodes[1:]
        if known and len(node.shape) == 3 and graph.layer_name(node.number)
    ]


class Searches:
    """The searches of a network's layers; the weights' version says when they are to begin anew.

    Every method raises ValueError for a filter that is not there, and must not be called from two
    threads at a time.
    """

    def __init__(self, graph: Graph, preprocessing: Preprocessing, dataset: Dataset) -> None:
        self._graph, self._preprocessing, self._dataset = graph, preprocessing, dataset
        work = max(1, graph.multiply_adds)
        self.pictures = min(len(dataset), MAX_PICTURES, max(COUNT, MAX_WORK // work))
        step = min(STEP_PICTURES, STEP_WORK // work, STEP_VALUES // max(1, graph.values))
        self._step = max(1, step)
        self._search = lru_cache(MAX_SEARCHES)(self._begin)

    def ask(self, version: int, number: int, filter: int) -> Answer:
        """Look at some more pictures for that layer. "seen", "pictures" (to be seen), "of" (all the
        test pictures), and once all are seen "patches": for each "image", "label", "value",
        "index" (the unit), "box", and the part as "pixels", uint8 of "shape" (C, rows, columns),
        and as "projection", float32 (rows, columns), summed over the channels.
        """
        node = self._graph[number]
        check_number(f"filters of {node.name}", filter, node.shape[0])
        search = self._search(version, number)
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

    def _begin(self, version: int, number: int) -> explain.PatchSearch:
        name = self._graph.layer_name(number)
        return explain.PatchSearch(self._graph.model, name, COUNT)

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
                "pixels": bytes_of(picture[:, top:bottom, left:right]),
                "projection": floats(projection.sum(axis=0)),
            }
