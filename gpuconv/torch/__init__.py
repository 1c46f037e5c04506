"""gpuconv's operations and layers within PyTorch, with PyTorch's gradients.

    import gpuconv.torch as G
    y = G.relu(G.conv2d(x, w, b, padding=1))    # PyTorch's tensors, as torch.nn.functional
    network = G.Module(models.resnet18())       # a torch.nn.Module, for torch.optim and the rest

On CPU tensors, and on CUDA tensors through CuPy, on PyTorch's current stream. Memory is shared.
Half precision is computed in float32 and rounded to the input's type. Gradients are computed by the
operations' own `*_backward`, once: a gradient of a gradient (create_graph=True) is refused.
"""

from gpuconv.torch.functions import (
    adaptive_avg_pool2d,
    avg_pool2d,
    batch_norm,
    conv2d,
    linear,
    local_response_norm,
    max_pool2d,
    relu,
    sigmoid,
    tanh,
)
from gpuconv.torch.module import Module

__all__ = [
    "Module",
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "batch_norm",
    "conv2d",
    "linear",
    "local_response_norm",
    "max_pool2d",
    "relu",
    "sigmoid",
    "tanh",
]
