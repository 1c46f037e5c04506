"""What of a picture speaks for a class: the methods that the page offers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gpuconv.nn.layer import Layer
from gpuconv.runtime.arrays import to_numpy

Method = Callable[[Layer, np.ndarray, int], np.ndarray]


def METHODS() -> dict[str, Method]:
    """The methods by name."""
    return {"saliency": saliency}


def explanation(model: Layer, x: np.ndarray, method: str, target: int) -> np.ndarray:
    """The map of a method for class `target`: float32 (C, H, W) of the input, or (1, H, W).

    x: (1, C, H, W). Raises ValueError for an unknown method.
    """
    known = METHODS()
    if method not in known:
        raise ValueError(f"unknown method {method!r} (known: {', '.join(known)})")
    found = np.asarray(known[method](model, x, target), np.float32)
    found = found[0] if found.ndim == 4 else found
    return found[None] if found.ndim == 2 else found


def saliency(model: Layer, x: np.ndarray, target: int) -> np.ndarray:
    """The gradient of the class's score with respect to the pixels: (1, C, H, W).

    The model must be in evaluation mode. Its parameters' gradients are left as they were found.
    Source: Simonyan et al. 2013, "Deep inside convolutional networks".
    """
    kept = [(parameter, parameter.grad) for parameter in model.parameters()]
    model.zero_grad()
    try:
        scores = model.forward(x)
        dy = np.zeros_like(scores)
        dy[0, target] = 1
        dx = model.backward(dy)
    finally:
        for parameter, grad in kept:
            parameter.grad = grad
    assert dx is not None
    return to_numpy(dx)
