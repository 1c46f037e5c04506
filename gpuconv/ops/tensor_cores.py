"""Convolutions and linear layers on tensor cores: what `conv2d` and `linear` launch in a precision.

tf32: arrays of float32, multiplied with 10 bits of mantissa. bf16, fp16: images and their gradients
are stored in 16 bits (gpuconv/precision.py); filters, biases and their gradients stay float32. All
sums are float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuconv.arrays import ShapeOnly
from gpuconv.ops import conv2d_launch_mma as config
from gpuconv.ops import conv2d_launch_small as small
from gpuconv.ops import linear_launch as linear_small
from gpuconv.ops.activation import activation_backward
from gpuconv.ops.conv2d_launch import MASK_COLUMNS, MASK_ROWS, Conv2dShape
from gpuconv.ops.conv2d_launch_mma import FORMATS, Format
from gpuconv.ops.relu import relu_backward
from gpuconv.strides import channels_last

F4 = np.dtype(np.float32)
Array = Any


def require_precision(precision: Any, activation: str | None, x: Array) -> None:
    """ValueError unless an operation on x has this precision."""
    if precision == "ieee":
        return
    if precision not in FORMATS:
        names = ", ".join(map(repr, ("ieee", *FORMATS)))
        raise ValueError(f"precision must be one of {names}, got {precision!r}")
    if isinstance(x, np.ndarray):
        raise ValueError(
            f"precision={precision!r} is for arrays on sim and cuda: move them there, or use 'ieee'"
        )
    if precision != "tf32" and activation not in (None, "relu"):
        raise ValueError(
            f"activation={activation!r} with precision={precision!r}: only None and 'relu' are "
            f"fused in 16 bits; call it on the result"
        )


def as_floats(precision: str, **arrays: Array) -> dict[str, Array]:
    """Arrays for a check of floats: those that are stored in this precision's 16 bits as their
    shapes.
    """
    if precision in ("ieee", "tf32"):
        return arrays
    stored = FORMATS[precision].dtype
    return {
        name: ShapeOnly(a.shape) if getattr(a, "dtype", F4) == stored else a
        for name, a in arrays.items()
    }


def applies(runtime: Any, conv: Conv2dShape, precision: str) -> bool:
    """Whether tensor cores compute this convolution. TF32 leaves to the float32 kernels what tensor
    cores would not speed up, and everything where the card has none.
    """
    if precision == "ieee":
        return False
    takes = runtime.tensor_cores and config.applies(conv)
    if precision == "tf32":
        return takes and not (small.applies(conv) or few_rows(conv))
    if not takes:
        raise NotImplementedError(
            f"precision={precision!r}: {runtime.name} has no 16-bit kernel for this convolution "
            f"(depthwise, a window above {MASK_ROWS}x{MASK_COLUMNS}, or a card below cc 8.0): "
            f"convert x to float32 and use 'ieee'"
        )
    return True


def few_rows(conv: Conv2dShape) -> bool:
    """A linear layer that linear_small.cu computes."""
    return conv.is_linear and linear_small.applies(conv.N, (conv.C * conv.R * conv.S, conv.K))


def before_activation(dy: Array, y: Array, activation: str | None, precision: str) -> Array:
    """The gradient of an activation's input."""
    if activation is not None and precision != "tf32":
        return relu_backward.stored(dy, y)  # type: ignore[attr-defined]
    return activation_backward(dy, y, activation)


def pixels(runtime: Any, rows: Array) -> Array:
    """(N, features) as images of one pixel."""
    return runtime.as_nchw(runtime.contiguous(rows).reshape(len(rows), 1, 1, -1))


def _bits(array: Array) -> Array:
    """An array of 16 bits as the kernels declare it."""
    return array.view(np.uint16) if array.dtype == np.float16 else array


def operand(runtime: Any, image: Array, groups: int, form: Format) -> Array:
    """(N, C, H, W) as (N, H, W, padded channels), rounded where it is float32 and 16 bits are
    wanted; without a copy where it lies so in memory.
    """
    N, C, H, W = image.shape
    ready = image.dtype == form.dtype and C // groups % form.width == 0 and channels_last(image)
    if ready and runtime.address(image) % 16 == 0:
        return _bits(image.transpose(0, 2, 3, 1))
    if min(image.strides) < 0:
        image = runtime.copy(image)
    source = "float" if image.dtype == np.float32 else form.element
    strides = tuple(stride // image.dtype.itemsize for stride in image.strides)
    memory = _bits(runtime.span(image))
    launches = config.config_pad(image.shape, strides, int(memory.size), groups, form, source)
    to = runtime.empty((N, H, W, groups * form.whole(C // groups)), _bits_type(form))
    runtime.run(launches, **{"to": to, "from": memory})
    return to


def _bits_type(form: Format) -> np.dtype:
    return form.dtype if form.width == 4 else np.dtype(np.uint16)


def _filters(runtime: Any, conv: Conv2dShape, w: Array, form: Format, backward: bool) -> Array:
    filters = runtime.empty(config.filters_size(conv, form, backward), _bits_type(form))
    launches = config.config_filters(conv, form, backward)
    runtime.run(launches, filters=filters, w=runtime.as_nhwc(w))
    return filters


def forward(
    runtime: Any,
    conv: Conv2dShape,
    precision: str,
    x: Array,
    w: Array,
    b: Array,
    relu: bool,
    moments: bool = False,
) -> tuple[Array, Array]:
    """(y as users see it, the partial moments or None)."""
    form = FORMATS[precision]
    y = runtime.empty((conv.N, conv.P, conv.Q, conv.K), form.dtype)
    launches = config.config_forward(config.padded(conv, form), form, b is not None, relu, moments)
    filters = _filters(runtime, conv, w, form, False)
    arrays = {"x": operand(runtime, x, conv.groups, form), "filters": filters}
    arrays["b"] = runtime.nought(np.float32) if b is None else runtime.contiguous(b)
    if moments:
        arrays["partials"] = runtime.empty(launches.launches[0].sizes["partials"])
    runtime.run(launches, y=_bits(y), **arrays)
    return runtime.as_nchw(y), arrays.get("partials")


def backward(
    runtime: Any,
    conv: Conv2dShape,
    precision: str,
    dy: Array,
    x: Array,
    w: Array,
    bias: bool,
    need_dx: bool,
    rest: Array = None,
    rectify: bool = False,
) -> tuple[Array, Array, Array]:
    """(dx, dw, db) as users see them; dx is None without need_dx, db without bias."""
    form = FORMATS[precision]
    gradients, dx = operand(runtime, dy, conv.groups, form), None
    if need_dx:
        dx = runtime.empty((conv.N, conv.H, conv.W, conv.C), form.dtype)
        padded = config.padded_filters(conv, form)
        launches = config.config_backward_data(padded, form, rectify, rest is not None)
        arrays = {"dy": gradients, "filters": _filters(runtime, conv, w, form, True)}
        arrays["x"] = _stored(runtime, x, form) if rectify else gradients
        if rest is not None:
            arrays["onto"] = _stored(runtime, rest, form)
        runtime.run(launches, dx=_bits(dx), b=runtime.nought(np.float32), **arrays)
        dx = runtime.as_nchw(dx)
    dw = runtime.empty((conv.K, conv.R, conv.S, conv.channels))
    db = runtime.empty(conv.K) if bias else None
    whole = config.padded_filters(config.padded(conv, form), form)
    launches = config.config_backward_weight(whole, form, (conv.channels, conv.filters), bias)
    arrays = {"dw": dw, "dy": gradients, "x": operand(runtime, x, conv.groups, form)}
    runtime.run(launches, **arrays, **({"db": db} if bias else {}))
    return dx, runtime.as_nchw(dw), db


def _stored(runtime: Any, image: Array, form: Format) -> Array:
    """(N, C, H, W) as (N, H, W, C) of the format's elements, without padding."""
    if image.dtype == form.dtype:
        return _bits(runtime.as_nhwc(image))
    raise TypeError(
        f"rest and x of a fused ReLU must be {form.dtype} in {form.name}, got {image.dtype}"
    )
