"""Sums, products and copies of arrays: residual branches, gates, joined channels, gradients.

Source: He et al. 2015.
"""

from __future__ import annotations

import numpy as np

from gpuconv.cpu import elementwise as fast
from gpuconv.cuda.launch_config import config_elementwise
from gpuconv.ops.cost import moved
from gpuconv.ops.op import Array, elementwise, op, require_rank
from gpuconv.strides import pixel_stride
from gpuconv.threads import over_shards


@op
def add(a: Array, b: Array, activation: str | None = None) -> Array:
    """activation(a + b), element by element.

    a, b: floats of one shape. activation: None or "relu". Returns that shape.
    The gradient of both is dy, or with "relu" relu_backward(dy, y).

    >>> add(np.float32([1, -2]), np.float32([1, 1]), "relu")
    array([2., 0.], dtype=float32)
    """
    return np.maximum(a + b, 0) if activation == "relu" else a + b


@op
def accumulate(total: Array, b: Array) -> Array:
    """total += b, in place; returns total. total, b: floats of one shape, with any strides."""
    total += b
    return total


@op
def assign(part: Array, x: Array) -> Array:
    """part[...] = x, in place; returns part.

    part, x: floats (N, C, H, W) of any strides; on a device part is channels of a channels-last
    image.
    """
    part[...] = x
    return part


@op
def multiply(a: Array, b: Array) -> Array:
    """a * b, element by element. a, b: floats of one shape. Returns that shape.

    The gradient of a is multiply(dy, b), that of b multiply(dy, a).

    >>> multiply(np.float32([1, -2]), np.float32([3, 4]))
    array([ 3., -8.], dtype=float32)
    """
    return a * b


@op
def scale(x: Array, factor: float) -> Array:
    """x * factor, element by element. x: floats of any shape; factor: a finite number."""
    return x * x.dtype.type(factor)


accumulate.in_place = assign.in_place = True
for each in (add, accumulate, assign, multiply, scale):
    each.stores_16 = True
elementwise(add)
elementwise(accumulate)
elementwise(assign)
elementwise(multiply, cpu=np.multiply)
elementwise(scale)


@add.check
def add_check(a, b, activation):
    if activation not in (None, "relu"):
        raise ValueError(f'activation must be None or "relu", got {activation!r}')


@accumulate.check
def accumulate_check(total, b):
    if total.ndim == 0:
        raise ValueError("total must have an axis, got shape ()")


@assign.check
def assign_check(part, x):
    require_rank(4, "(N, C, H, W)", part=part)


@assign.cost
def assign_cost(part, x):
    return moved(x, x)


@add.cpu
def add_cpu(a, b, activation):
    return fast.elementwise(fast.add_relu if activation == "relu" else np.add, a, b)


@accumulate.cpu
def accumulate_cpu(total, b):
    over_shards(np.add, (total, b, total), grain=fast.GRAIN * len(total) / total.size)
    return total


@add.launch
def add_launch(runtime, a, b, activation):
    kernel = "add_relu" if activation == "relu" else "add"
    return runtime.each("elementwise.cu", kernel, "to", a=a, b=b)


@accumulate.launch
def accumulate_launch(runtime, total, b):
    if pixel_stride(total) is not None:
        runtime.channels("add_channels", total, b)
        return total
    config = config_elementwise("elementwise.cu", "add", int(total.size))
    runtime.run(config, to=total, a=total, b=runtime.contiguous(b))
    return total


@assign.launch
def assign_launch(runtime, part, x):
    runtime.channels("copy_channels", part, x)
    return part


@multiply.launch
def multiply_launch(runtime, a, b):
    return runtime.each("elementwise.cu", "multiply", "to", a=a, b=b)


@scale.launch
def scale_launch(runtime, x, factor):
    return runtime.each("elementwise.cu", "scale", "to", {"factor": factor}, a=x)
