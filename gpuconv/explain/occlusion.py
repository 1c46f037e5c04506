"""The occlusion map: how much the score falls while a part of the image is covered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpuconv.arguments import pair
from gpuconv.explain.gradients import Target, scores, units, where
from gpuconv.explain.observe import Observer
from gpuconv.nn import Module


def occlusion(
    model: Module,
    x: np.ndarray,
    target: Target = None,
    of: str = "",
    window: Any = 5,
    stride: Any = 1,
    value: float | Sequence[float] = 0.0,
    batch: int = 128,
) -> np.ndarray:
    """How much the unit's value falls, on average, while a pixel is covered: (N, H, W), x's dtype.

    A window moves over the image from the top left corner by `stride`, until every pixel has been
    covered; the last ones are cut off by the border. Whatever lies under it becomes `value`, in
    all channels. A pixel's result is the mean of (value without window - value with it), over the
    windows that cover it: positive where the image is evidence for the unit.
    x, target, of: as for `gradient`. window, stride: an int or (rows, columns), the stride no
    larger than the window. value: a number, or one for each channel. batch: images run at a time.
    Raises ValueError for those that do not fit the image. The network is left as it was.
    Source: Zeiler and Fergus 2014, section 4.2; Captum's Occlusion.

    >>> from gpuconv import models
    >>> x = np.random.default_rng(0).random((2, 1, 32, 32), np.float32)
    >>> occlusion(models.lenet(), x, target=7, window=8, stride=8).shape
    (2, 32, 32)
    """
    observer = Observer(model, (of,))
    y = observer.run(x, gradients=False).output(of)
    chosen = units(target, y, where(of))
    before = scores(y, chosen)
    places, cover = windows(x.shape[2:], window, stride), _cover(value, x)
    total = np.zeros((len(x), *x.shape[2:]))
    count = np.zeros(x.shape[2:])
    for place in places:
        count[place] += 1
    jobs = [(n, place) for n in range(len(x)) for place in places]
    for begin in range(0, len(jobs), batch):
        part = jobs[begin : begin + batch]
        covered = np.stack([x[n] for n, _ in part])
        for image, (_, place) in zip(covered, part, strict=True):
            image[:, *place] = cover
        y = observer.run(covered, gradients=False).output(of)
        after = scores(y, [chosen[n] for n, _ in part])
        for (n, place), score in zip(part, after, strict=True):
            total[n][place] += before[n] - score
    return (total / count).astype(x.dtype)


def windows(size: Sequence[int], window: Any, stride: Any) -> list[tuple[slice, slice]]:
    """The occluder's places on an image of (H, W), row by row."""
    sides, steps = pair("window", window, 1), pair("stride", stride, 1)
    for side, step, length in zip(sides, steps, size, strict=True):
        if side > length:
            raise ValueError(f"occlusion: a window of {sides} does not fit an image of {size}")
        if step > side:
            raise ValueError(
                f"occlusion: a stride of {steps} leaves pixels out between windows of {sides}"
            )
    rows, columns = (
        [slice(i, min(i + side, length)) for i in range(0, length - side + step, step)]
        for side, step, length in zip(sides, steps, size, strict=True)
    )
    return [(row, column) for row in rows for column in columns]


def _cover(value: float | Sequence[float], x: np.ndarray) -> np.ndarray:
    """What covers: (C, 1, 1) or a scalar, in x's dtype."""
    cover = np.asarray(value, x.dtype)
    if cover.shape not in ((), (1,), (x.shape[1],)):
        raise ValueError(
            f"occlusion: value has {cover.size} numbers, expected 1 or {x.shape[1]} (channels)"
        )
    return cover.reshape(-1, 1, 1)
