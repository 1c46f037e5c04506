"""The same network in PyTorch: an independent witness for whole models, and a rival to time.

Simple layers are replaced by PyTorch's functions on copies of the weights; what connects them is
the network's own `forward`, run on PyTorch's tensors.
"""

import contextlib
from unittest import mock

import numpy as np
import torch
from torch.nn import functional as F

from gpuconv import nn, ops
from gpuconv.nn import containers, functional


class Twin:
    """tensors: by name, as the network's state_dict. Dropout takes the masks that the network's own
    layers would draw next.
    """

    def __init__(self, network):
        self.network = network
        self.tensors, by_array = {}, {}
        trained = {id(p.data): p.requires_grad for p in network.parameters()}
        for name, array in network.state_dict().items():
            if id(array) not in by_array:
                tensor = torch.tensor(array)
                tensor.requires_grad_(trained.get(id(array), False))
                by_array[id(array)] = tensor
            self.tensors[name] = by_array[id(array)]
        self.by_array = by_array

    def __call__(self, x):
        def call(module, x):
            kind = type(module).__name__
            if module is self.network or next(module.children(), None) is not None:
                return module.forward(x)
            return SIMPLE[kind](module, x, self.of)

        with mock.patch.object(nn.Module, "__call__", call), functions():
            return self.network(x)

    def of(self, holder):
        return None if holder is None else self.by_array[id(holder.data)]


class ChannelBuffer:
    """As functional.ChannelBuffer, by joining."""

    def __init__(self, channels):
        self.parts = []

    def append(self, x):
        self.parts.append(x)
        return torch.cat(self.parts, 1)


def _max_pool2d(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
    return F.max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode)


@contextlib.contextmanager
def functions():
    """Within, what forward methods call of nn.functional works on PyTorch's tensors."""
    import random_networks

    with contextlib.ExitStack() as stack:
        for module in (containers, functional):
            stack.enter_context(mock.patch.object(module, "cat", lambda ts: torch.cat(ts, 1)))
            stack.enter_context(mock.patch.object(module, "ChannelBuffer", ChannelBuffer))
        replaced = {
            "relu": F.relu,
            "tanh": torch.tanh,
            "scaled_tanh": lambda x: 1.7159 * torch.tanh(2 / 3 * x),
            "sigmoid": torch.sigmoid,
            "max_pool2d": _max_pool2d,
        }
        for name, function in replaced.items():
            stack.enter_context(mock.patch.object(functional, name, function))
        plain = mock.patch.object(random_networks, "checkpoint", lambda f, x: f(x))
        stack.enter_context(plain)
        yield


def _conv2d(layer, x, of):
    (top, bottom), (left, right) = layer.window.pads(*x.shape[2:])
    assert (top, left) == (bottom, right)
    w = of(layer.weight)
    if layer.connections is not None:
        w = w * torch.tensor(layer.connections)[:, :, None, None]
    geometry = layer.window.stride, (top, left), layer.window.dilation, layer.groups
    return F.conv2d(x, w, of(layer.bias), *geometry)


def _batch_norm(layer, x, of):
    state = [of(h) for h in (layer.running_mean, layer.running_var, layer.weight, layer.bias)]
    return F.batch_norm(x, *state, layer.training, layer.momentum, layer.eps)


def _response_norm(layer, x, of):
    size, alpha, beta, k, convention = layer.arguments
    return F.local_response_norm(x, size, alpha if convention == "torch" else alpha * size, beta, k)


def _avg_pool(layer, x, of):
    size, stride, padding, _, ceil_mode = layer.arguments
    return F.avg_pool2d(x, size, stride, padding, ceil_mode, layer.count_include_pad)


def _sum_pool(layer, x, of):
    size, stride, padding, _, ceil_mode = layer.arguments
    return F.avg_pool2d(x, size, stride, padding, ceil_mode, divisor_override=1)


def _dropout(layer, x):
    if not layer.training or layer.p == 0:
        return x
    mask = ops.dropout.reference(np.ones(x.shape), layer.p, *layer._next_mask(0))
    return x * torch.tensor(mask, dtype=x.dtype)


SIMPLE = {
    "Conv2d": _conv2d,
    "Linear": lambda layer, x, of: F.linear(x, of(layer.weight), of(layer.bias)),
    "BatchNorm2d": _batch_norm,
    "ReLU": lambda layer, x, of: F.relu(x),
    "Tanh": lambda layer, x, of: torch.tanh(x),
    "ScaledTanh": lambda layer, x, of: 1.7159 * torch.tanh(2 / 3 * x),
    "Sigmoid": lambda layer, x, of: torch.sigmoid(x),
    "MaxPool2d": lambda layer, x, of: F.max_pool2d(x, *layer.arguments),
    "AvgPool2d": _avg_pool,
    "SumPool2d": _sum_pool,
    "AdaptiveAvgPool2d": lambda layer, x, of: F.adaptive_avg_pool2d(x, layer.size),
    "LocalResponseNorm": _response_norm,
    "Flatten": lambda layer, x, of: torch.flatten(x, 1),
    "Dropout": lambda layer, x, of: _dropout(layer, x),
    "Identity": lambda layer, x, of: x,
}


def loss(scores, labels):
    """The cross-entropy of the main scores, and 0.3 times that of each auxiliary head's."""
    main, *others = scores if isinstance(scores, tuple) else (scores,)
    return F.cross_entropy(main, labels) + 0.3 * sum(F.cross_entropy(s, labels) for s in others)


def without_dropout(network):
    for layer in network.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return network
