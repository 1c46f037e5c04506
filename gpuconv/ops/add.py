"""The sum of two arrays: where branches of a network meet, and where gradients do."""

from __future__ import annotations

from gpuconv.ops.op import op, require_floats, require_shape


@op
def add(a, b):
    """a + b. a, b: floats of one shape and dtype, which the result has too."""
    return a + b


@add.check
def _(a, b):
    require_floats("add", a=a, b=b)
    require_shape("add", {"b": a.shape}, b=b)


@add.launch
def _(runtime, a, b):
    return runtime.each("elementwise.cu", "add", "to", a=a, b=b)
