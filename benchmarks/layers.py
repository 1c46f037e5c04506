"""What a training step must move, and what PyTorch's step takes, layer by layer, from shapes.

The rule of the least bytes: every pass of a layer reads each array that its result depends on once
and writes its results once. What lies between layers has the precision's bytes; weights, their
gradients and the optimiser's state are float32. Bias, ReLU and the sums of batch norm's statistics
ride in the pass of the layer before, and a residual sum in that of its last batch norm, which reads
the other operand besides. Batch norm's gradient goes over its arrays twice: it needs two sums over
the whole batch first. A ReLU's gradient reads the sign of its result once, that of the pooled one
where a max-pool follows, and nothing where batch norm's input gives it. Where two gradients of an
image meet, one of them is read once. An argmax is a byte. Losses are not counted.

PyTorch's step: its eager kernels, one after another, each as long as its bytes or its products
take by the model of launches.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import launches

from gpuconv import nn

FLOAT = 4
# Of NVIDIA's stated peak, what cuDNN's convolutions and cuBLAS's products are taken to reach.
CUDNN = (0.5, 0.75)
PEAKS = {"ieee": 2 * launches.PROCESSORS * launches.LANES * launches.CLOCK}
PEAKS |= {form.lower(): flops for form, flops in launches.TENSOR_CORES.items()}


@dataclass
class Pass:
    """A pass of a layer. eager: the bytes of PyTorch's kernels besides the one that multiplies."""

    layer: str
    kind: str
    least: int
    flops: int = 0
    products: str = "ieee"
    eager: list[int] = field(default_factory=list)

    def seconds(self, share: float) -> float:
        """PyTorch's time, its products at this share of the peak."""
        moving = launches.BANDWIDTH * launches.STREAMING
        times = [max(launches.LEAST, nbytes / moving) for nbytes in self.eager]
        if self.flops:
            computing = self.flops / (PEAKS[self.products] * share)
            times.append(max(launches.LEAST, self.least / moving, computing))
        return sum(times)


def passes(model: nn.Module, batch: int, precision: str) -> list[Pass]:
    """All passes of a step of a residual network or one of layers in a row."""
    assert model.input_shape is not None
    size = 2 if precision in ("bf16", "fp16") else FLOAT
    calls = nn.trace(model, model.input_shape, training=True).calls
    found: list[Pass] = []
    blocks = [name for name, module in model.named_modules() if getattr(module, "is_block", False)]
    inside = {name: [call for call in calls if call.name.startswith(f"{name}.")] for name in blocks}
    sums = {id(of_block[-1]) for of_block in inside.values()}  # ReLUs that a residual sum has
    for number, call in enumerate(calls):
        near = [type(calls[i].module).__name__ if 0 <= i < len(calls) else ""
                for i in (number - 1, number + 1)]  # fmt: skip
        x, y = (batch * prod(shape) for shape in (call.input_shape, call.output_shape))
        free = id(call) in sums or near[0] == "BatchNorm2d"
        found += _of_layer(call, x, y, size, precision, near, number == 0, free)
    for name, of_block in inside.items():  # its ReLU's sign too, and where the gradients meet
        x, y = batch * prod(of_block[0].input_shape), batch * prod(of_block[-1].output_shape)
        eager = [3 * size * y, 3 * size * x]
        found.append(Pass(name, "residual sum", size * (y + y + x), eager=eager))
    weights = sum(p.data.size for p in model.parameters())
    found.append(Pass("all", "update", 5 * FLOAT * weights, eager=[8 * FLOAT * weights]))
    if precision == "fp16":
        found.append(Pass("all", "unscale", 2 * FLOAT * weights, eager=[2 * FLOAT * weights]))
    return found


def _of_layer(
    call: Any, x: int, y: int, size: int, precision: str, near: list[str], first: bool, free: bool
) -> Iterator[Pass]:
    """x, y: elements of its input and output. near: the types of the layers before and after. free:
    whether a ReLU's sign is counted elsewhere.
    """
    layer, before, after = type(call.module).__name__, *near
    name = call.name
    if layer in ("Conv2d", "Linear"):
        weights = sum(p.data.size for p in call.module.parameters())
        flops = 2 * y * (call.module.weight.data.size // call.module.weight.data.shape[0])
        given = _products(layer, precision)
        moved = size * (x + y) + FLOAT * weights
        # autocast: the weights once to 16 bits, their gradient back
        casts = [(FLOAT + size) * weights] if size < FLOAT else []
        yield Pass(name, "forward", moved, flops, given, casts)
        if not first:
            yield Pass(name, "input gradient", moved, flops, given)
        yield Pass(name, "weight gradient", moved, flops, given, casts)
    elif layer == "BatchNorm2d":
        yield Pass(name, "batch norm, forward", 2 * size * x, eager=[size * x, 2 * size * x])
        yield Pass(name, "batch norm, backward", 5 * size * x,
                   eager=[2 * size * x, 3 * size * x])  # fmt: skip
    elif layer == "ReLU":
        sign = 0 if free or after == "MaxPool2d" else size * x
        yield Pass(name, "ReLU", sign, eager=[2 * size * x, 3 * size * x])
    elif layer == "MaxPool2d":
        sign = size * y if before == "ReLU" else 0
        least = 2 * (size * (x + y) + y) + sign
        yield Pass(name, "max-pool", least, eager=2 * [size * (x + y) + 8 * y])
    elif layer == "Dropout":
        yield Pass(name, "dropout", 4 * size * x, eager=2 * [(2 * size + 1) * x])
    elif layer in ("AdaptiveAvgPool2d", "AvgPool2d"):
        yield Pass(name, "average", 2 * size * (x + y), eager=2 * [size * (x + y)])
    elif layer not in ("Identity", "Flatten"):
        raise NotImplementedError(f"layers: no rule for {layer}")


def _products(layer: str, precision: str) -> str:
    if precision == "tf32-conv":
        return "tf32" if layer == "Conv2d" else "ieee"
    return precision


def pytorch_seconds(model: nn.Module, batch: int, precision: str) -> tuple[float, float]:
    """The estimate of PyTorch's eager step, its products at the higher and the lower of CUDNN."""
    found = passes(model, batch, precision)
    low, high = (sum(one.seconds(share) for one in found) for share in reversed(CUDNN))
    return low, high
