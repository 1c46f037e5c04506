"""The same network in PyTorch: an independent witness for whole models, and a rival to time."""

import torch
from torch.nn import functional as F

from gpuconv import nn


class Twin:
    """PyTorch's functions in the order of a gpuconv network's layers, on copies of its weights.

    tensors: by name, as the network's state_dict. Dropout must be off.
    """

    def __init__(self, network):
        self.tensors = {}
        self._by_array = {}
        trained = {id(p.data) for p in network.parameters()}
        for name, array in network.state_dict().items():
            tensor = torch.tensor(array)
            tensor.requires_grad_(id(array) in trained)
            self.tensors[name] = self._by_array[id(array)] = tensor
        self.forward = self._function(network)

    def __call__(self, x):
        return self.forward(x)

    def _of(self, holder):
        return None if holder is None else self._by_array[id(holder.data)]

    def _function(self, layer):
        kind = type(layer).__name__
        if kind in CONTAINERS:
            return getattr(self, f"_{kind.lower()}")(layer)
        if kind in ("Conv2d", "Linear"):
            w, b = self._of(layer.weight), self._of(layer.bias)
            if kind == "Linear":
                return lambda x: F.linear(x, w, b)
            (top, _), (left, _) = layer.window.padding
            geometry = layer.window.stride, (top, left), layer.window.dilation, layer.groups
            return lambda x: F.conv2d(x, w, b, *geometry)
        if kind == "PartialConv2d":
            return self._partial(layer)
        if kind == "BatchNorm2d":
            state = [self._of(h) for h in (layer.running_mean, layer.running_var)]
            state += [self._of(h) for h in (layer.weight, layer.bias)]
            return lambda x: F.batch_norm(x, *state, layer.training, layer.momentum, layer.eps)
        return lambda x: SIMPLE[kind](layer, x)

    def _partial(self, layer):
        """A whole convolution, with zeros where the table links nothing."""
        w, b = self._of(layer.weight), self._of(layer.bias)
        filters, channels = layer.out_channels, layer.in_channels
        places = torch.tensor(layer._places, dtype=torch.int64)

        def forward(x):
            whole = torch.zeros(filters * channels, *w.shape[1:], dtype=w.dtype)
            whole = whole.index_put((places,), w).reshape(filters, channels, *w.shape[1:])
            return F.conv2d(x, whole, b)

        return forward

    def _sequential(self, layer):
        steps = [self._function(child) for child in layer]

        def forward(x):
            for step in steps:
                x = step(x)
            return x

        return forward

    def _auxiliaryheads(self, layer):
        rows = [
            ([self._function(child) for _, child in part], name and self._function(layer[name]))
            for part, name in layer._rows()
        ]

        def forward(x):
            scores = []
            for steps, head in rows:
                for step in steps:
                    x = step(x)
                if head is not None and layer.training:
                    scores.append(head(x))
            return (x, *scores) if scores else x

        return forward

    def _residual(self, layer):
        body = self._function(layer.body)
        around = (lambda x: x) if layer.shortcut is None else self._function(layer.shortcut)
        return lambda x: body(x) + around(x)

    def _concat(self, layer):
        branches = [self._function(child) for child in layer]
        return lambda x: torch.cat([branch(x) for branch in branches], 1)

    def _denseblock(self, layer):
        steps = [self._function(child) for child in layer]

        def forward(x):
            parts = [x]
            for step in steps:
                parts.append(step(torch.cat(parts, 1)))
            return torch.cat(parts, 1)

        return forward


def _response_norm(x, size, alpha, beta, k, convention):
    return F.local_response_norm(x, size, alpha if convention == "torch" else alpha * size, beta, k)


CONTAINERS = ("Sequential", "AuxiliaryHeads", "Residual", "Concat", "DenseBlock")
SIMPLE = {
    "ReLU": lambda layer, x: F.relu(x, inplace=True),
    "Tanh": lambda layer, x: torch.tanh(x),
    "ScaledTanh": lambda layer, x: 1.7159 * torch.tanh(2 / 3 * x),
    "MaxPool2d": lambda layer, x: F.max_pool2d(x, *layer.arguments),
    "AvgPool2d": lambda layer, x: F.avg_pool2d(x, layer.kernel_size, layer.stride),
    "AdaptiveAvgPool2d": lambda layer, x: F.adaptive_avg_pool2d(x, layer.size),
    "LocalResponseNorm": lambda layer, x: _response_norm(x, *layer.arguments),
    "Flatten": lambda layer, x: torch.flatten(x, 1),
    "Dropout": lambda layer, x: x,
}


def loss(scores, labels):
    """The cross-entropy of the main scores, and 0.3 times that of each auxiliary head's."""
    main, *others = scores if isinstance(scores, tuple) else (scores,)
    return F.cross_entropy(main, labels) + 0.3 * sum(F.cross_entropy(s, labels) for s in others)


def without_dropout(network):
    for _, layer in network.layers():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return network
