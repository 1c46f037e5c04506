"""Random networks: programs over layers and functions, run by gpuconv and by an interpreter given.

A network is drawn from a seed: layers of every kind, some used twice, residual sums, joined
branches, containers within containers, layers that pass their input on, results read twice,
recomputed parts, frozen parameters, several outputs.
"""

from collections import Counter

import numpy as np

from gpuconv import nn
from gpuconv.autograd import Tensor, checkpoint, no_grad
from gpuconv.nn import functional as F

ACTIVATIONS = ("relu", "relu", "relu", "tanh", "scaled_tanh", "sigmoid")
LAYERS = {"relu": nn.ReLU, "tanh": nn.Tanh, "scaled_tanh": nn.ScaledTanh, "sigmoid": nn.Sigmoid}


class RandomNetwork(nn.Module):
    """program: (operation, operands), each making one value; value 0 is the input."""

    def __init__(self, seed):
        super().__init__()
        self.rng = np.random.default_rng(seed)
        self.program, self.layers_made = [], 0
        self.eval_mode = bool(self.rng.random() < 0.4)
        N, C, H, W = self.pick(2, 3), self.pick(1, 5), self.pick(5, 9), self.pick(5, 9)
        self.x = self.rng.standard_normal((N, C, H, W))
        self.shapes = [self.x.shape]
        for _ in range(self.pick(4, 9)):
            self.grow()
        used = {i for operation in self.program for i in operands(operation)}
        last = len(self.shapes) - 1
        self.outputs = sorted({last} | {i for i in range(1, last) if i not in used})
        self.dys = [self.rng.standard_normal(self.shapes[i]) for i in self.outputs]
        self.together = bool(self.rng.random() < 0.5)  # one backward for all losses, or one each
        for p in self.parameters():
            p.data = self.rng.standard_normal(p.shape) * 0.5
            p.requires_grad = bool(self.rng.random() < 0.85)
        for b in self.buffers():
            if b.data.ndim:
                b.data = 1 + 0.5 * self.rng.random(b.data.shape)

    # ---- running ----

    def forward(self, x):
        values = [x]
        for operation in self.program:
            values.append(self.run(operation, values))
        return tuple(values[i] for i in self.outputs)

    def run(self, operation, values):
        kind, *rest = operation
        if kind == "layer":
            return getattr(self, rest[0])(values[rest[1]])
        if kind == "checkpoint":
            return checkpoint(getattr(self, rest[0]), values[rest[1]])
        if kind == "add":
            return values[rest[0]] + values[rest[1]]
        if kind == "cat":
            return F.cat([values[i] for i in rest[0]])
        if kind == "max_pool2d":
            return F.max_pool2d(values[rest[0]], *rest[1])
        return getattr(F, kind)(values[rest[0]])

    def features(self):
        """What is in it, as words."""
        found, calls = set(), self.layer_calls()
        found |= {op[0] for op in self.program}
        reads = Counter(i for op in self.program for i in operands(op))
        if len({name for _, name, _ in calls}) < len(calls):
            found.add("shared layer")
        for value, op in enumerate(self.program, 1):
            layer = getattr(self, op[1]) if op[0] == "layer" else None
            if isinstance(layer, nn.Conv2d) and reads[value] > 1:
                found.add("head read twice")
            if isinstance(layer, nn.Flatten) and len(self.shapes[op[2]]) == 2:
                found.add("Flatten of 2-D")
        for name, module in self.named_modules():
            found.add(type(module).__name__)
            if name.count(".") >= 3:
                found.add("nested containers")
            if isinstance(module, nn.Dropout) and not module.p:
                found.add("Dropout(0)")
            if isinstance(module, nn.MaxPool2d) and module.kernel_size == 1:
                found.add("MaxPool2d(1)")
            if isinstance(module, nn.Residual) and not list(module.body)[-1].parameters():
                found.add("Residual whose body ends without weights")
        if not all(p.requires_grad for p in self.parameters()):
            found.add("frozen")
        if len(self.outputs) > 1:
            found.add("several outputs")
        return found

    # ---- drawing ----

    def pick(self, low, high):
        return int(self.rng.integers(low, high + 1))

    def add_layer(self, layer):
        name = f"layer{self.layers_made}"
        self.layers_made += 1
        setattr(self, name, layer)
        return name

    def emit(self, *operation):
        """Append an operation and find its shape by running it."""
        self.program.append(operation)
        values = {i: Tensor(np.zeros(self.shapes[i], np.float32)) for i in operands(operation)}
        with no_grad():
            self.shapes.append(self.run(operation, values).shape)
        return len(self.shapes) - 1

    def grow(self):
        """One to three more operations on one of the last values."""
        source = max(0, len(self.shapes) - 1 - (self.pick(0, 2) if self.rng.random() < 0.35 else 0))
        shape = self.shapes[source]
        if len(shape) == 2:
            self.grow_flat(source)
            return
        choice = self.rng.random()
        if choice < 0.28:
            self.conv_and_after(source)
        elif choice < 0.43:
            self.emit("layer", self.add_layer(self.small_layer(shape[1])), source)
        elif choice < 0.51:
            self.emit("layer", self.add_layer(self.container(shape[1], 2)), source)
        elif choice < 0.57:
            self.emit("checkpoint", self.add_layer(self.container(shape[1], 1)), source)
        elif choice < 0.64:
            self.join(source)
        elif choice < 0.69:
            self.emit(ACTIVATIONS[self.pick(0, 5)], source)
        elif choice < 0.75 and min(shape[2:]) >= 2:
            window = (2, self.pick(1, 2), 0, 1, bool(self.pick(0, 1)))
            self.emit("max_pool2d", source, window)
        elif choice < 0.92:
            again = [n for k, n, i in self.layer_calls() if self.shapes[i] == shape]
            if again:
                self.emit("layer", again[self.pick(0, len(again) - 1)], source)
        elif len(self.program) > 3:
            flat = self.emit("layer", self.add_layer(nn.Flatten()), source)
            self.emit("layer", self.add_layer(nn.Linear(self.shapes[flat][1], 4)), flat)

    def layer_calls(self):
        return [op for op in self.program if op[0] == "layer"]

    def grow_flat(self, source):
        features = self.shapes[source][1]
        if self.rng.random() < 0.5:
            source = self.emit("layer", self.add_layer(nn.Flatten()), source)
        after = self.emit("layer", self.add_layer(nn.Linear(features, self.pick(2, 5))), source)
        self.emit(ACTIVATIONS[self.pick(0, 5)], after)

    def conv_and_after(self, source):
        """A convolution, its activation, perhaps a pool, some of them read again."""
        conv = self.emit("layer", self.add_layer(self.conv(self.shapes[source][1])), source)
        act = self.emit(ACTIVATIONS[self.pick(0, 5)], conv)
        if self.rng.random() < 0.5 and min(self.shapes[act][2:]) >= 2:
            self.emit("max_pool2d", act, (2, 2 if self.pick(0, 2) else 1, 0, 1, False))
        if self.rng.random() < 0.3:
            self.emit("add", act, conv)
        if self.rng.random() < 0.2:
            self.emit("sigmoid", conv)

    def join(self, source):
        shape = self.shapes[source]
        same = [i for i, s in enumerate(self.shapes) if s == shape]
        beside = [
            i for i, s in enumerate(self.shapes)
            if len(s) == 4 and (s[0], *s[2:]) == (shape[0], *shape[2:])
        ]  # fmt: skip
        if self.rng.random() < 0.6:
            self.emit("add", source, same[self.pick(0, len(same) - 1)])
            if self.rng.random() < 0.5:
                self.emit("relu", len(self.shapes) - 1)
        else:
            self.emit("cat", [source, *(beside[self.pick(0, len(beside) - 1)] for _ in range(2))])

    def conv(self, channels, out=None, same_size=False):
        out = out or self.pick(1, 6)
        groups = [g for g in (1, 2, 3) if channels % g == 0 and out % g == 0]
        kernel = (1, 3)[self.pick(0, 1)] if same_size else (self.pick(1, 3), self.pick(1, 3))
        options = {"groups": groups[self.pick(0, len(groups) - 1)], "bias": bool(self.pick(0, 2))}
        if same_size:
            return nn.Conv2d(channels, out, kernel, padding=kernel // 2, **options)
        return nn.Conv2d(channels, out, kernel, self.pick(1, 2), 1, **options)

    def small_layer(self, channels):
        return [
            lambda: nn.BatchNorm2d(channels, affine=bool(self.pick(0, 3))),
            lambda: nn.BatchNorm2d(channels),
            lambda: nn.LocalResponseNorm(self.pick(1, 5), 0.5, 0.75, 1.5),
            lambda: nn.MaxPool2d(1),
            lambda: nn.MaxPool2d(3, 1, 1),
            lambda: nn.AvgPool2d(3, 2, 1),
            lambda: nn.SumPool2d(3, 2, 1),
            lambda: nn.AdaptiveAvgPool2d((2, 3)),
            lambda: nn.Dropout(0.0),
            lambda: nn.Dropout(0.4, seed=self.pick(0, 99)),
            lambda: nn.Identity(),
        ][self.pick(0, 10)]()

    def container(self, channels, depth):
        """A container that keeps the image's size."""
        kind = self.pick(0, 4)
        if kind == 0:
            return nn.Residual(self.row(channels, channels, depth))
        if kind == 1:
            out = self.pick(1, 5)
            return nn.Residual(self.row(channels, out, depth), self.conv(channels, out, True))
        if kind == 2:
            return nn.Concat(self.row(channels, self.pick(1, 4), depth), nn.Identity())
        if kind == 3:
            layers = [self.row(channels + 2 * i, 2, depth) for i in range(2)]
            return nn.DenseBlock(2, *layers)
        return self.row(channels, self.pick(1, 5), depth)

    def row(self, channels, out, depth):
        """A Sequential from `channels` to `out`, with pass-through layers at its end."""
        layers = [self.conv(channels, out, True)]
        if self.rng.random() < 0.5:
            layers.append(nn.BatchNorm2d(out))
        if self.rng.random() < 0.7:
            layers.append(LAYERS[ACTIVATIONS[self.pick(0, 5)]]())
        if depth > 1 and self.rng.random() < 0.4:
            inner = nn.Residual(self.row(out, out, depth - 1))
            layers.append(nn.Sequential(inner, nn.ReLU()))
        for layer in (
            nn.Dropout(0.0),
            nn.Dropout(0.3, seed=self.pick(0, 99)),
            nn.Identity(),
            nn.MaxPool2d(1),
            nn.Sequential(nn.Identity()),
        ):
            if self.rng.random() < 0.2:
                layers.append(layer)
        return nn.Sequential(*layers)


def operands(operation):
    """The numbers of the values that an operation reads."""
    kind, *rest = operation
    if kind in ("layer", "checkpoint"):
        return [rest[1]]
    if kind == "add":
        return rest
    return list(rest[0]) if kind == "cat" else [rest[0]]


def results(network, device, dtype, fusing=True):
    """Outputs, the gradients of input and parameters, and buffers, by name, as NumPy arrays."""
    from gpuconv.arrays import to_device, to_numpy

    network.to(device, dtype).train(not network.eval_mode)
    network.fusing = fusing
    x = Tensor(to_device(network.x.astype(dtype), device), True, device)
    ys = network(x)
    alive = [(y, dy) for y, dy in zip(ys, network.dys, strict=True) if y.requires_grad]
    if network.together and device in ("cpu", "reference"):
        total = sum((y * dy.astype(dtype)).sum() for y, dy in alive)
        total.backward()
    else:
        for y, dy in alive:
            y.backward(to_device(dy.astype(dtype), device), retain_graph=True)
    found = {f"y{i}": y.numpy() for i, y in zip(network.outputs, ys, strict=True)}
    found["dx"] = x.grad
    found |= {f"d {name}": p.grad for name, p in network.named_parameters()}
    found |= {name: b.data for name, b in network.named_buffers() if b.data.ndim}
    return {name: None if a is None else np.array(to_numpy(a)) for name, a in found.items()}
