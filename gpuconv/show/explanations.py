"""What of a picture speaks for a class: the methods of `gpuconv.explain` that the page offers."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv.nn.layer import Layer
from gpuconv.runtime.arrays import to_numpy

Method = Callable[[Layer, np.ndarray, int], np.ndarray]

# of gpuconv.explain, each called with (model, x, target)
OFFERED = (
    "gradient",
    "input_x_gradient",
    "smooth_grad",
    "guided_backprop",
    "deconvnet",
    "grad_cam",
)
WINDOWS = 32  # places along a side that occlusion covers
MOST_OCCLUDED = 10_000_000_000  # multiply-adds: some seconds


def methods(multiply_adds: int) -> dict[str, Method]:
    """The methods by name, for a network of that many multiply-adds: only those that are quick."""
    if importlib.util.find_spec("gpuconv.explain") is None:
        return {"gradient": gradient}
    explain: Any = importlib.import_module("gpuconv.explain")
    found: dict[str, Method] = {name: getattr(explain, name) for name in OFFERED}
    if multiply_adds * WINDOWS**2 <= MOST_OCCLUDED:
        found["occlusion"] = lambda model, x, target: _occlusion(
            explain.occlusion, model, x, target
        )
    return found


def _occlusion(occlusion: Any, model: Layer, x: np.ndarray, target: int) -> np.ndarray:
    """Occlusion by a window of an eighth of the picture, in the colour of its darkest pixel."""
    sides = x.shape[2:]
    stride = tuple(max(1, side // WINDOWS) for side in sides)
    window = tuple(max(3, side // 8, step) for side, step in zip(sides, stride, strict=True))
    window = tuple(min(size, side) for size, side in zip(window, sides, strict=True))
    dark = [float(least) for least in x.min(axis=(0, 2, 3))]
    found: np.ndarray = occlusion(model, x, target, window=window, stride=stride, value=dark)
    return found


def as_maps(found: Any) -> np.ndarray:
    """A method's answer for one picture as float32 (C, H, W), or (1, H, W)."""
    one = np.asarray(to_numpy(found), np.float32)[0]
    return one[None] if one.ndim == 2 else one


def gradient(model: Layer, x: np.ndarray, target: int) -> np.ndarray:
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
    return dx
