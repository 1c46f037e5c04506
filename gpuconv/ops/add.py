"""The sum of two branches, and its rectifier in the same pass; what joins and weighs branches.

Source: He et al. 2015.
"""

from __future__ import annotations

import numpy as np

from gpuconv.arrays import pixel_stride
from gpuconv.cpu import elementwise as fast
from gpuconv.cuda.launch_config import config_elementwise
from gpuconv.ops.cost import moved
from gpuconv.ops.op import (
    op,
    require_finite,
    require_floats,
    require_rank,
    require_shape,
)
from gpuconv.threads import parallel, shards


@op
def add(a, b, activation=None):
    """activation(a + b), element by element.

    a, b: floats of one shape. activation: None or "relu". Returns that shape. The gradient of both
    is dy, or relu_backward(dy, y).

    >>> add(np.float32([1, -2]), np.float32([1, 1]), "relu")
    array([2., 0.], dtype=float32)
    """
    return np.maximum(a + b, 0) if activation == "relu" else a + b


@op
def accumulate(total, b):
    """total += b, in place; returns total. total, b: floats of one shape, with any strides."""
    total += b
    return total


@op
def assign(part, x):
    """part[...] = x, in place; returns part.

    part, x: floats (N, C, H, W), part being channels of a wider image, with any strides; on a
    device that image is channels-last.
    """
    part[...] = x
    return part


@op
def scale(x, factor):
    """x * factor, element by element. x: floats of any shape; factor: a finite number."""
    return x * x.dtype.type(factor)


@add.check
def _(a, b, activation):
    require_floats("add", a=a, b=b)
    require_shape("add", {"b": a.shape}, b=b)
    if activation not in (None, "relu"):
        raise ValueError(f'add: activation must be None or "relu", got {activation!r}')


@accumulate.check
def _(total, b):
    require_floats("accumulate", total=total, b=b)
    require_shape("accumulate", {"b": total.shape}, b=b)
    if total.ndim == 0:
        raise ValueError("accumulate: total must have an axis, got shape ()")


@assign.check
def _(part, x):
    require_floats("assign", part=part, x=x)
    require_rank("assign", 4, "(N, C, H, W)", part=part)
    require_shape("assign", {"x": part.shape}, x=x)


@scale.check
def _(x, factor):
    require_floats("scale", x=x)
    require_finite("scale", factor=factor)


@add.cost
def _(a, b, activation):
    return moved(a, b, a)


@accumulate.cost
def _(total, b):
    return moved(total, b, total)


@assign.cost
def _(part, x):
    return moved(x, x)


@scale.cost
def _(x, factor):
    return moved(x, x)


@add.cpu
def _(a, b, activation):
    if activation == "relu":
        return fast.elementwise(fast.add_relu, a, b)
    return fast.elementwise(lambda a, b, y: np.add(a, b, out=y), a, b)


@accumulate.cpu
def _(total, b):
    def part(first, end):
        np.add(total[first:end], b[first:end], out=total[first:end])

    parallel(part, shards(len(total), -(-fast.GRAIN * len(total) // total.size)), blas=False)
    return total


@accumulate.memory
def _(total, b):
    return total


@assign.memory
def _(part, x):
    return part


@add.launch
def _(runtime, a, b, activation):
    kernel = "add_relu" if activation == "relu" else "add"
    return runtime.each("elementwise.cu", kernel, "to", a=a, b=b)


@accumulate.launch
def _(runtime, total, b):
    if pixel_stride(total) is not None:
        runtime.channels("add_channels", total, b)
        return total
    config = config_elementwise("elementwise.cu", "add", int(total.size))
    runtime.run(config, to=total, a=total, b=runtime.contiguous(b))
    return total


@assign.launch
def _(runtime, part, x):
    runtime.channels("copy_channels", part, x)
    return part


@scale.launch
def _(runtime, x, factor):
    return runtime.each("elementwise.cu", "scale", "to", {"factor": factor}, a=x)
