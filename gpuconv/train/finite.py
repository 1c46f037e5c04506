"""NaN and infinity: where a run that broke was first broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv.arrays import to_device
from gpuconv.nn import Module, no_grad

CURE = "lower the learning rate (--lr) or clip the gradients (--clip, clip_norm)"


def diagnose_non_finite(
    model: Module, x: np.ndarray, where: str, what: str = "the loss", cure: str = CURE
) -> Exception:
    """The error for a batch whose loss is not finite: ValueError if its input is to blame, else
    FloatingPointError that names the first layer whose output is not finite.

    what: is not finite, if it is not the loss. cure: the way out.

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
        return FloatingPointError(f"{where}: {what} is not finite, every layer's output is")
    name, layer, y = found
    label = f"layer {name} ({type(layer).__name__})" if name else type(layer).__name__
    text = f"{where}: {what} is not finite; first broken is the output of {label}, which holds"
    text += f" {_kinds(y)} in {_bad(y)} of {y.size} values"
    if broken := broken_parameter(layer):
        text += f", because its {broken} is not finite since an earlier update"
    return FloatingPointError(f"{text}; {cure}")


def first_broken_layer(model: Module, x: np.ndarray) -> tuple[str, Module, np.ndarray] | None:
    """Name, layer and output of the first layer whose output is not finite, in the order in which
    the layers finish; None if all are finite.
    """
    found: list[tuple[str, Module, np.ndarray]] = []

    def watch(name: str) -> Callable[[Module, Any, Any], None]:
        def look(module: Module, inputs: Any, y: Any) -> None:
            if not found and not isinstance(y, tuple) and _bad(host := y.numpy()):
                found.append((name, module, host))

        return look

    # Inner layers finish before what contains them, so they are named rather than it; a watched
    # layer is not fused with the next.
    hooks = [m.register_forward_hook(watch(name)) for name, m in model.named_modules()]
    try:
        with np.errstate(all="ignore"), no_grad():
            model(to_device(x, model.device))
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def broken_parameter(layer: Module) -> str | None:
    """The first parameter or buffer in the layer that holds NaN or infinity, if any."""
    return next((name for name, array in layer.state_dict().items() if _bad(array)), None)


def _bad(array: Any) -> int:
    if array.dtype.kind != "f":
        return 0
    return int(array.size - np.count_nonzero(np.isfinite(array)))


def _kinds(array: np.ndarray) -> str:
    nan, infinite = np.isnan(array).any(), np.isinf(array).any()
    return " and ".join(["NaN"] * bool(nan) + ["infinity"] * bool(infinite))
