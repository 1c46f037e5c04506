"""Explanations: which pixels of an image a network's units respond to.

Every function takes a network, whatever its `forward` does, images as floats (N, C, H, W), and a
target; runs the network as in evaluation, on the network's device; returns NumPy arrays; and leaves
the network as it was. README.md in this folder says how.

    from gpuconv import explain
    cam = explain.grad_cam(model, x, target=7)      # (N, H, W), on a layer of your choice
    dx = explain.guided_backprop(model, x)          # (N, C, H, W), of each image's likeliest class
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gpuconv.errors import require_known
from gpuconv.explain.grad_cam import grad_cam, grad_cam_layer, guided_grad_cam
from gpuconv.explain.gradients import (
    deconvnet,
    gradient,
    guided_backprop,
    input_x_gradient,
    layer_gradient,
    saliency,
    smooth_grad,
)
from gpuconv.explain.observe import activations
from gpuconv.explain.occlusion import occlusion
from gpuconv.explain.patches import Patch, PatchSearch, projections, top_activating_patches
from gpuconv.explain.receptive_field import ReceptiveField, receptive_field

__all__ = [
    "METHODS",
    "Method",
    "Patch",
    "PatchSearch",
    "ReceptiveField",
    "activations",
    "as_map",
    "deconvnet",
    "grad_cam",
    "grad_cam_layer",
    "gradient",
    "guided_backprop",
    "guided_grad_cam",
    "input_x_gradient",
    "layer_gradient",
    "method",
    "occlusion",
    "projections",
    "receptive_field",
    "saliency",
    "smooth_grad",
    "top_activating_patches",
]


@dataclass(frozen=True)
class Method:
    """One method. function(model, x, target, of, ...) computes it.

    signed: it has negative values, evidence against the unit. areas: it marks parts of the image
    rather than single pixels. options: the names of its further arguments.
    """

    title: str
    function: Callable[..., np.ndarray]
    signed: bool
    areas: bool = False
    options: tuple[str, ...] = ()


METHODS: dict[str, Method] = {
    "gradient": Method("gradient", gradient, signed=True),
    "saliency": Method("saliency", saliency, signed=False),
    "input-x-gradient": Method("input x gradient", input_x_gradient, signed=True),
    "smooth-grad": Method("SmoothGrad", smooth_grad, True, options=("samples", "noise", "rng")),
    "guided-backprop": Method("guided backprop", guided_backprop, signed=True),
    "deconvnet": Method("deconvnet", deconvnet, signed=True),
    "grad-cam": Method("Grad-CAM", grad_cam, False, areas=True, options=("layer",)),
    "guided-grad-cam": Method("guided Grad-CAM", guided_grad_cam, True, options=("layer",)),
    "occlusion": Method("occlusion", occlusion, True, True, options=("window", "stride", "value")),
}


def method(name: str) -> Method:
    """The method of that name. ValueError, with the nearest known name, for an unknown one.

    >>> method("grad-cam").title
    'Grad-CAM'
    """
    return METHODS[require_known("method", name, METHODS)]


def as_map(result: np.ndarray) -> np.ndarray:
    """A method's result as one number for each pixel, (N, H, W): the sum over the channels of
    (N, C, H, W); (N, H, W) as it is.
    """
    return result.sum(axis=1) if result.ndim == 4 else result
