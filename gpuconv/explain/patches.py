"""The image patches that activate a layer's units most, and their projections back to pixels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuconv.explain.gradients import deconvnet
from gpuconv.explain.observe import Observer
from gpuconv.explain.receptive_field import Box, receptive_field
from gpuconv.nn import Module
from gpuconv.train.feed import batches_of


@dataclass(frozen=True)
class Patch:
    """Where the activation of one filter of a layer is largest in one image.

    filter: the channel or, in a layer without maps, the unit. image: the image's number, counted
    over all batches. value: the unit's output. unit: its (row, column) in the map; (0, 0) without
    maps. box: (top, bottom, left, right), the pixels of the network's input that the unit sees,
    see `ReceptiveField.box`.
    """

    filter: int
    image: int
    value: float
    unit: tuple[int, int]
    box: Box


def top_activating_patches(
    model: Module,
    images: Any,
    layer: str,
    count: int = 9,
    filters: Sequence[int] | None = None,
    batch: int = 256,
) -> list[list[Patch]]:
    """For each filter its `count` top-activating patches, the strongest first, one from each image.

    images: floats (N, C, H, W), or batches of them, or of (x, labels) as a `Loader` gives them
    (made with shuffle=False: numbers are those of the data set). filters: which; None for
    all. batch: images run at a time, of an array. Equal values: the earlier image first, within an
    image the upper, then left one. Fewer images than `count` give as many patches.
    Raises ValueError for an unknown layer or filter, a count below 1, and for images of NaN, which
    have no largest value. The network is left as it was.
    Source: Zeiler and Fergus 2014, figure 2.

    >>> from gpuconv import models
    >>> x = np.random.default_rng(0).random((20, 1, 32, 32), np.float32)
    >>> found = top_activating_patches(models.lenet(), x, "conv2", count=3)
    >>> len(found), len(found[0]), found[0][0].value >= found[0][1].value
    (16, 3, True)
    """
    search = PatchSearch(model, layer, count)
    for x in _batches(images, batch):
        search.add(x)
        if search.seen == len(x):  # the first: say now what is wrong with the filters
            _chosen(filters, search.filters, layer)
    return search.patches(filters)


class PatchSearch:
    """`top_activating_patches` for images that arrive in batches, with results in between.

    seen: images so far. filters: how many the layer has, 0 before the first image.

    >>> from gpuconv import models
    >>> search = PatchSearch(models.lenet(), "conv1", count=2)
    >>> search.add(np.random.default_rng(0).random((5, 1, 32, 32), np.float32))
    >>> [patch.filter for patch in search.patches([3])[0]]
    [3, 3]
    """

    def __init__(self, model: Module, layer: str, count: int = 9) -> None:
        if count < 1:
            raise ValueError(f"top_activating_patches: count must be at least 1, got {count}")
        self._model, self._layer, self._count = model, layer, count
        self._observer = Observer(model, (layer,))
        self.seen, self.filters, self._shape = 0, 0, ()
        self._best: Any = None

    def add(self, x: np.ndarray) -> None:
        """Look at some more images, floats (N, C, H, W). Raises ValueError where they give NaN."""
        y = self._observer.run(x, gradients=False).output(self._layer)
        if np.isnan(y).any():
            raise ValueError(
                f"top_activating_patches: layer {self._layer} gives NaN; clean the images"
            )
        maps = y.reshape(*y.shape[:2], -1)  # of one pixel for a layer without
        self._best = _merged(self._best, maps, self.seen, self._count)
        self.seen, self.filters, self._shape = self.seen + len(x), y.shape[1], x.shape[1:]

    def patches(self, filters: Sequence[int] | None = None) -> list[list[Patch]]:
        """Of the images so far, for each filter its top-activating patches, the strongest first.

        Raises ValueError for a filter that the layer lacks, and where there were no images.
        """
        if self._best is None:
            raise ValueError("top_activating_patches: there are no images")
        field = receptive_field(self._model, self._layer, self._shape)

        def patch(k: int, value: Any, number: Any, place: Any) -> Patch:
            unit = divmod(int(place), len(field.columns))
            return Patch(k, int(number), float(value), unit, field.box(*unit))

        chosen = _chosen(filters, self.filters, self._layer)
        ranks = range(len(self._best[0]))
        return [
            [patch(k, *(each[rank, k] for each in self._best)) for rank in ranks] for k in chosen
        ]


def projections(
    model: Module, images: Any, patches: Sequence[Patch], layer: str, batch: int = 64
) -> list[np.ndarray]:
    """Each patch's unit projected back to the pixels by `deconvnet`, cut to the patch.

    images: the array or data that the patches were found in, indexable by image: floats
    (N, C, H, W). Returns for each patch an array (C, bottom - top, right - left), not scaled.
    Raises as `deconvnet` does. Source: Zeiler and Fergus 2014, figure 2.
    """
    found = []
    for begin in range(0, len(patches), batch):
        part = patches[begin : begin + batch]
        x = np.stack([images[patch.image] for patch in part])
        mapped = Observer(model, (layer,)).run(x[:1], gradients=False).output(layer).ndim == 4
        target = [(p.filter, *p.unit) if mapped else (p.filter,) for p in part]
        back = deconvnet(model, x, target, layer)
        found += [cut(each, patch.box) for each, patch in zip(back, part, strict=True)]
    return found


def cut(image: np.ndarray, box: Box) -> np.ndarray:
    """The part of an image (C, H, W) within a box."""
    top, bottom, left, right = box
    return image[:, top:bottom, left:right]


def _batches(images: Any, batch: int) -> Iterable[np.ndarray]:
    if isinstance(images, np.ndarray):
        return (images[i : i + batch] for i in range(0, len(images), batch))
    if getattr(images, "shuffle", False):
        raise ValueError("top_activating_patches: the loader shuffles; make it with shuffle=False")
    return (each[0] if isinstance(each, tuple) else each for each in batches_of(images))


def _merged(best: Any, maps: np.ndarray, seen: int, count: int) -> Any:
    """The strongest so far: values, images' numbers and places, each (at most count, K)."""
    places = maps.argmax(axis=2)
    values = np.take_along_axis(maps, places[..., None], axis=2)[..., 0]
    numbers = np.broadcast_to(np.arange(seen, seen + len(maps))[:, None], values.shape)
    new = values, numbers, places
    if best is not None:
        new = tuple(map(np.concatenate, zip(best, new, strict=True)))  # type: ignore[assignment]
    order = np.argsort(-new[0], axis=0, kind="stable")[:count]
    return tuple(np.take_along_axis(each, order, axis=0) for each in new)


def _chosen(filters: Sequence[int] | None, count: int, layer: str) -> Sequence[int]:
    chosen = range(count) if filters is None else list(filters)
    for k in chosen:
        if not 0 <= k < count:
            raise ValueError(
                f"top_activating_patches: layer {layer} has filters 0 to {count - 1}, not {k}"
            )
    return chosen
