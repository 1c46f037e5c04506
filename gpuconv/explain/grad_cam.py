"""Grad-CAM: where in a layer's maps the evidence for a class lies."""

from __future__ import annotations

import numpy as np

from gpuconv.explain.gradients import Target, guided_backprop, output_and_gradient
from gpuconv.explain.observe import steps_of
from gpuconv.nn import Module

POOLS = ("max_pool2d", "avg_pool2d", "sum_pool2d", "adaptive_avg_pool2d")


def grad_cam(
    model: Module,
    x: np.ndarray,
    target: Target = None,
    of: str = "",
    layer: str | None = None,
    resize: bool = True,
) -> np.ndarray:
    """relu(sum over channels k of weight[k] * map[k]), weight[k] being the mean of the unit's
    gradient over map k.

    x, target, of: as for `gradient`. layer: whose maps, by name; None for `grad_cam_layer`'s.
    resize: to x's size, bilinear as torch's interpolate does; else the maps' own size.
    Returns (N, H, W) or (N, P, Q), not negative, x's dtype. The network is left as it was.
    Raises ValueError for a layer that is unknown, has no maps, or that the unit does not depend on.
    Source: Selvaraju et al. 2017.

    >>> from gpuconv import models
    >>> x = np.random.default_rng(0).random((2, 1, 32, 32), np.float32)
    >>> grad_cam(models.lenet(), x, target=7).shape
    (2, 32, 32)
    """
    layer = grad_cam_layer(model, x, of) if layer is None else layer
    maps, gradient = output_and_gradient(model, x, layer, target, of)
    if maps.ndim != 4:
        raise ValueError(f"grad_cam: layer {layer} has no maps, its output is {maps.shape[1:]}")
    weights = gradient.mean(axis=(2, 3), keepdims=True)
    cam = np.maximum((weights * maps).sum(axis=1), 0)
    return resize_bilinear(cam, x.shape[2:]) if resize else cam


def guided_grad_cam(
    model: Module, x: np.ndarray, target: Target = None, of: str = "", layer: str | None = None
) -> np.ndarray:
    """Guided backpropagation where Grad-CAM is: their product, (N, C, H, W). As `grad_cam`."""
    cam = grad_cam(model, x, target, of, layer)
    return guided_backprop(model, x, target, of) * cam[:, None]


def grad_cam_layer(model: Module, x: np.ndarray, of: str = "") -> str:
    """The layer that `grad_cam` takes by default: the last one before the unit's own with maps
    larger than one pixel; not a pooling layer, but what it reads.

    Raises ValueError where there is none, and where the forward pass cannot be followed by shapes
    alone.

    >>> from gpuconv import models
    >>> grad_cam_layer(models.lenet(), np.zeros((1, 1, 32, 32), np.float32))
    'relu2'
    """
    steps, names, last = steps_of(model, x.shape[1:], of)
    needed = {last}
    for number in range(last, 0, -1):
        if number not in needed:
            continue
        step = steps[number]
        needed.update(source for source in step.inputs if source is not None)
        maps = len(step.shape) == 4 and min(step.shape[2:]) > 1
        if number != last and maps and step.name not in POOLS and number in names:
            return names[number]
    raise ValueError("grad_cam: no layer before it has maps larger than one pixel")


def resize_bilinear(maps: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Maps (..., P, Q) as (..., H, W): each pixel centre is weighed between the nearest centres.

    As torch.nn.functional.interpolate(mode="bilinear", align_corners=False) and Pillow's corners.
    """
    H, W = size
    rows, columns = (_weights(a, b) for a, b in zip(maps.shape[-2:], (H, W), strict=True))
    return (rows @ maps.astype(np.float64) @ columns.T).astype(maps.dtype)


def _weights(old: int, new: int) -> np.ndarray:
    """(new, old): each new place as a mean of the two old ones around it."""
    place = (np.arange(new) + 0.5) * old / new - 0.5
    return np.stack([np.interp(place, np.arange(old), one) for one in np.eye(old)], axis=1)
