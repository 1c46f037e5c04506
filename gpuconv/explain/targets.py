"""What is explained: one unit of a layer's output, a class of the network's or a channel's sum."""

from __future__ import annotations

from typing import Any

import numpy as np

Target = Any  # None, an int, a tuple, or a list or array of either, one for each example


def units(target: Target, y: np.ndarray, where: str) -> list[tuple[int, ...]]:
    """Each example's unit: an index into y's axes after the first, (k,) or (k, p, q).

    y: the output (N, K) or (N, K, P, Q) of the layer that `where` names in errors.
    target: None, the largest of each example's K scores; an int or a tuple, the same unit for all;
    or a list or array of N of them, as Captum has it.
    Raises ValueError for a unit that the layer lacks, and for None where the output is no scores.
    """
    if target is None:
        if y.ndim != 2:
            raise ValueError(f"explain: name a target: the output of {where} is maps, not scores")
        return [(int(k),) for k in y.argmax(axis=1)]
    several = isinstance(target, list) or (isinstance(target, np.ndarray) and target.ndim > 0)
    chosen = list(target) if several else [target] * len(y)
    if len(chosen) != len(y):
        raise ValueError(f"explain: {len(chosen)} targets for {len(y)} images, expected as many")
    return [_unit(each, y.shape[1:], where) for each in chosen]


def seed(y: np.ndarray, chosen: list[tuple[int, ...]]) -> np.ndarray:
    """dy of y's shape: 1 at each example's unit, or all over its channel's map, and 0 elsewhere."""
    dy = np.zeros_like(y)
    for n, unit in enumerate(chosen):
        dy[(n, *unit)] = 1
    return dy


def scores(y: np.ndarray, chosen: list[tuple[int, ...]]) -> np.ndarray:
    """The value of each example's unit, or the sum of its channel's map: float64 (N,)."""
    values = [y[(n, *unit)].sum(dtype=np.float64) for n, unit in enumerate(chosen)]
    return np.array(values, np.float64)


def _unit(target: Any, shape: tuple[int, ...], where: str) -> tuple[int, ...]:
    unit = tuple(np.atleast_1d(target).tolist())
    if not all(isinstance(k, int) for k in unit) or len(unit) not in (1, len(shape)):
        forms = "an int" if len(shape) == 1 else "an int (a channel) or (channel, row, column)"
        raise ValueError(f"explain: a target of {where} is {forms}, got {target!r}")
    if not all(0 <= k < size for k, size in zip(unit, shape, strict=False)):
        size = "x".join(map(str, shape))
        raise ValueError(
            f"explain: {where} has no unit {target!r}: its output is {size}, counted from 0"
        )
    return unit
