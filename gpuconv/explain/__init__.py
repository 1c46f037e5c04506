"""Explanations: which pixels of an image a network's units respond to.

Every function takes a network, whatever its `forward` does, images as floats (N, C, H, W), and a
target; runs the network as in evaluation, on the network's device; returns NumPy arrays; and leaves
the network as it was. README.md in this folder says how.

    from gpuconv import explain
    cam = explain.grad_cam(model, x, target=7)      # (N, H, W), on a layer of your choice
    dx = explain.guided_backprop(model, x)          # (N, C, H, W), of each image's likeliest class
"""

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
from gpuconv.explain.methods import METHODS, Method, as_map, method
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
