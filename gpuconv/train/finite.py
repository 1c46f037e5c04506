"""NaN and infinity: where a run that broke was first broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv.arrays import to_device, to_numpy
from gpuconv.nn.containers import Sequential
from gpuconv.nn.layer import Layer

CURE = "lower the learning rate or set clip_norm"


def explain(model: Layer, x: np.ndarray, where: str) -> Exception:
    """The error for a batch whose loss is not finite: ValueError if its input is to blame, else
    FloatingPointError that names the first layer whose output is not finite.

    Runs the batch again, layer by layer; the model must stand as it stood before the batch.
    """
    bad = _bad(x)
    if bad:
        rows = ~np.isfinite(x).reshape(len(x), -1).all(axis=1)
        return ValueError(
            f"{where}: the input holds {_kinds(x)} ({bad} values, first in image"
            f" {int(np.argmax(rows))} of the batch); clean the data"
        )
    found = first_broken_layer(model, x)
    if found is None:
        return FloatingPointError(f"{where}: the loss is not finite, every layer's output is")
    name, layer, y = found
    label = f"layer {name} ({type(layer).__name__})" if name else type(layer).__name__
    text = f"{where}: the loss is not finite; first broken is the output of {label}, which holds"
    text += f" {_kinds(y)} in {_bad(y)} of {y.size} values"
    if broken := broken_parameter(layer):
        text += f", because its {broken} is not finite since an earlier update"
    return FloatingPointError(f"{text}; {CURE}")


def first_broken_layer(model: Layer, x: np.ndarray) -> tuple[str, Layer, np.ndarray] | None:
    """Name, layer and output of the first layer whose output is not finite, in the order in which
    the layers finish; None if all are finite.
    """
    found: list[tuple[str, Layer, np.ndarray]] = []
    wrapped: list[Layer] = []
    try:
        for name, layer in model.layers():
            # Inner layers finish before what contains them, so they are named rather than it.
            setattr(layer, "forward", _watched(name, layer, found))  # noqa: B010  mypy
            wrapped.append(layer)
            if isinstance(layer, Sequential):
                layer.fusing = False  # one by one: two joined layers have one output
        with np.errstate(all="ignore"):
            model.forward(to_device(x, model.device))
    finally:
        for layer in wrapped:
            vars(layer).pop("forward", None)
            vars(layer).pop("fusing", None)
    return found[0] if found else None


def _watched(
    name: str, layer: Layer, found: list[tuple[str, Layer, np.ndarray]]
) -> Callable[[np.ndarray], np.ndarray]:
    forward = layer.forward

    def watched(x: np.ndarray) -> np.ndarray:
        y = forward(x)
        if not found and not isinstance(y, tuple) and _bad(host := to_numpy(y)):
            found.append((name, layer, host))
        return y

    return watched


def broken_parameter(layer: Layer) -> str | None:
    """The first parameter or buffer in the layer that holds NaN or infinity, if any."""
    for name, array in layer.state_dict().items():
        if _bad(array):
            return name
    return None


def _bad(array: Any) -> int:
    if array.dtype.kind != "f":
        return 0
    return int(array.size - np.count_nonzero(np.isfinite(array)))


def _kinds(array: np.ndarray) -> str:
    nan, infinite = np.isnan(array).any(), np.isinf(array).any()
    return " and ".join(["NaN"] * bool(nan) + ["infinity"] * bool(infinite))
