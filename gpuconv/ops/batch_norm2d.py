"""Batch normalisation over the images and pixels of each channel.

Source: Ioffe and Szegedy 2015; torch.nn.functional.batch_norm; ONNX BatchNormalization.
"""

from __future__ import annotations

import numpy as np

from gpuconv.arguments import number, whole
from gpuconv.arrays import ShapeOnly
from gpuconv.cpu import batch_norm as fast
from gpuconv.cuda.recording import derived
from gpuconv.ops import batch_norm2d_launch as config
from gpuconv.ops.cost import Cost, moved, nbytes
from gpuconv.ops.op import (
    Array,
    in_float64,
    op,
    require_floats,
    require_rank,
    require_shape,
)

EPS = 1e-5


@op
def batch_norm2d(
    x: Array,
    w: Array = None,
    b: Array = None,
    mean: Array = None,
    var: Array = None,
    eps: float = EPS,
    activation: str | None = None,
    other: Array = None,
) -> tuple[Array, ...]:
    """y = activation(w[c] * (x - mean[c]) / sqrt(var[c] + eps) + b[c] + other); returns
    (y, mean, var).

    x: floats (N, C, H, W). w, b: (C,) or None, which is 1 and 0. mean, var: (C,), the running
    statistics of evaluation; None in training, where they are x's own over N, H and W, var being
    the biased variance: the mean of (x - mean)**2. activation: None or "relu", in the same pass.
    other: another summand of x's shape, as in a residual block, or None.
    Returns y, x's shape, and the mean and var it used, each (C,). Raises ValueError for shapes that
    do not fit, and for statistics of an empty x.

    >>> y, mean, var = batch_norm2d(np.float64([[[[1, 3]]]]), eps=0.0)
    >>> y.tolist(), mean.tolist(), var.tolist()
    ([[[[-1.0, 1.0]]]], [2.0], [1.0])
    """
    if mean is None:
        mean, var = _statistics(x)
    y = _transformed(x, w, b, mean, var, eps)
    y = y if other is None else y + other
    return np.maximum(y, 0) if activation == "relu" else y, mean, var


@in_float64
def _statistics(x):
    mean = x.mean((0, 2, 3))
    return mean, np.square(x - _over_pixels(mean)).mean((0, 2, 3))


@in_float64
def _transformed(x, w, b, mean, var, eps):
    y = _normalised(x, mean, var, eps)
    y = y if w is None else y * _over_pixels(w)
    return y if b is None else y + _over_pixels(b)


@op
@in_float64
def batch_norm2d_backward(
    dy: Array,
    x: Array,
    w: Array,
    b: Array,
    mean: Array,
    var: Array,
    eps: float = EPS,
    activation: str | None = None,
    of_batch: bool = True,
    need_dx: bool = True,
) -> tuple[Array, ...]:
    """The gradients of `batch_norm2d` for x, w and b.

    dy: (N, C, H, W). x, w, b, eps, activation: as batch_norm2d had them. mean, var: as it returned
    them; of_batch: whether they were x's own, so that they depend on it, or given to it.
    With z = (x - mean) / sqrt(var + eps) and dy through the activation:
    db = sum dy, dw = sum dy*z, dx = w / sqrt(var + eps) * (dy - [mean dy + z * mean dy*z]),
    the sums and means over N, H, W, the part in brackets only with of_batch.
    Returns (dx, dw, db), shaped as x, w and b; dx is None without need_dx, dw where w is None and
    db where b is None.
    """
    z = _normalised(x, mean, var, eps)
    if activation == "relu":
        dy = np.where(_transformed(x, w, b, mean, var, eps) <= 0, 0, dy)
    db, dw = dy.sum((0, 2, 3)), (dy * z).sum((0, 2, 3))
    dx = None
    if need_dx:
        count = x.size // max(x.shape[1], 1)
        dx = dy - (_over_pixels(db) + z * _over_pixels(dw)) / count if of_batch else dy
        scale = 1 / np.sqrt(var + eps) if w is None else w / np.sqrt(var + eps)
        dx = dx * _over_pixels(scale.astype(x.dtype))
    return dx, None if w is None else dw, None if b is None else db


@op
def batch_norm2d_track(
    running_mean: Array, running_var: Array, mean: Array, var: Array, count: int, momentum: float
) -> Array:
    """running = (1 - momentum) * running + momentum * new, in place; returns both.

    All (C,) floats. new: mean, and the unbiased variance var * count / (count - 1), count being
    N*H*W of the batch that mean and var are of. Source: torch.nn.BatchNorm2d.
    """
    unbiased = var * var.dtype.type(count / (count - 1))
    for running, new in ((running_mean, mean), (running_var, unbiased)):
        running *= 1 - momentum
        running += momentum * new
    return running_mean, running_var


batch_norm2d_track.in_place = True
batch_norm2d.stores_16 = batch_norm2d_backward.stores_16 = True


def _over_pixels(channels):
    return channels[:, None, None]


def _normalised(x, mean, var, eps):
    return (x - _over_pixels(mean)) / np.sqrt(_over_pixels(var) + x.dtype.type(eps))


@batch_norm2d.check
def batch_norm2d_check(x, w, b, mean, var, eps, activation, other):
    _require(x, w, b, mean, var, eps, activation)
    require_floats(("other",), x=x, other=other)
    require_shape({"other": x.shape}, other=other)
    if (mean is None) != (var is None):
        raise ValueError("give both mean and var, or neither")
    if mean is None and x.size == 0:
        raise ValueError(f"an empty batch has no mean; x.shape={x.shape}")


@batch_norm2d_backward.check
def batch_norm2d_backward_check(dy, x, w, b, mean, var, eps, activation, of_batch, need_dx):
    _require(x, w, b, mean, var, eps, activation)
    require_floats(x=x, dy=dy, mean=mean, var=var)
    require_shape({"dy": x.shape}, dy=dy)


@batch_norm2d_track.check
def batch_norm2d_track_check(running_mean, running_var, mean, var, count, momentum):
    given = {"running_var": running_var, "mean": mean, "var": var}
    require_floats(running_mean=running_mean, **given)
    require_rank(1, "(C)", running_mean=running_mean)
    require_shape(dict.fromkeys(given, running_mean.shape), **given)
    number("momentum", momentum)
    whole("count", count, most=2**63)
    if count < 2:
        raise ValueError(f"one value a channel has no unbiased variance; count={count}")


def _require(x, w, b, mean, var, eps, activation):
    require_floats(("w", "b", "mean", "var"), x=x, w=w, b=b, mean=mean, var=var)
    require_rank(4, "(N, C, H, W)", x=x)
    C = x.shape[1]
    shapes: dict[str, tuple[int, ...]] = {"w": (C,), "b": (C,), "mean": (C,), "var": (C,)}
    require_shape(shapes, w=w, b=b, mean=mean, var=var)
    number("eps", eps, least=0)
    if activation not in (None, "relu"):
        raise ValueError(f'activation must be None or "relu", got {activation!r}')


@batch_norm2d.output
def batch_norm2d_output(x, w, b, mean, var, eps, activation, other):
    statistics = ShapeOnly(x.shape[1:2], x.dtype)
    return ShapeOnly(x.shape, x.dtype), statistics, statistics


@batch_norm2d_track.output
def batch_norm2d_track_output(running_mean, running_var, mean, var, count, momentum):
    return running_mean, running_var


@batch_norm2d.cost
def batch_norm2d_cost(x, w, b, mean, var, eps, activation, other):
    statistics = 2 * x.shape[1] * x.dtype.itemsize  # in where they are given, else out
    return Cost(0, nbytes(x, w, b, other, x) + statistics)


@batch_norm2d_backward.cost
def batch_norm2d_backward_cost(dy, x, w, b, mean, var, eps, activation, of_batch, need_dx):
    read = nbytes(dy, x, w, mean, var) + (nbytes(b) if activation else 0)
    return Cost(0, read + nbytes(w, b) + (nbytes(x) if need_dx else 0))


@batch_norm2d_track.cost
def batch_norm2d_track_cost(running_mean, running_var, mean, var, count, momentum):
    return moved(running_mean, running_var, mean, var, running_mean, running_var)


@batch_norm2d.cpu
def batch_norm2d_cpu(x, w, b, mean, var, eps, activation, other):
    return fast.forward(x, w, b, mean, var, eps, activation == "relu", other)


@batch_norm2d_backward.cpu
def batch_norm2d_backward_cpu(dy, x, w, b, mean, var, eps, activation, of_batch, need_dx):
    return fast.backward(dy, x, w, b, mean, var, eps, activation == "relu", of_batch, need_dx)


@batch_norm2d.launch
def batch_norm2d_launch(runtime, x, w, b, mean, var, eps, activation, other):
    N, C, H, W = x.shape
    pixels, arrays, stride = runtime.pixels(x), {}, None
    vec = pixels.vector
    if mean is None:
        mean, var = runtime.empty(C), runtime.empty(C)
        launches = config.config_statistics(x.shape, pixels.stride, pixels.vector, False)
        numbers, given = tracking(runtime, 0, None)
        runtime.run(launches, numbers, mean=mean, var=var, x=pixels.memory, **given)
    if other is not None:
        more = runtime.pixels(other)
        arrays, stride, vec = {"other": more.memory}, more.stride, min(vec, more.vector)
    y = runtime.empty((N, H, W, C), x.dtype)
    flags = w is not None, b is not None, activation == "relu"
    launches = config.config_forward(x.shape, pixels.stride, vec, *flags, stride)
    arrays |= kernel_parameters(runtime, w, b, mean, var)
    runtime.run(launches, {"eps": eps}, y=y, x=pixels.memory, **arrays)
    return runtime.as_nchw(y), mean, var


@batch_norm2d_backward.launch
def batch_norm2d_backward_launch(
    runtime, dy, x, w, b, mean, var, eps, activation, of_batch, need_dx
):
    N, C, H, W = x.shape
    from_dy, from_x = runtime.pixels(dy), runtime.pixels(x)
    vec = min(from_dy.vector, from_x.vector)
    flags = w is not None, b is not None, activation == "relu"
    key = x.shape, from_dy.stride, from_x.stride, vec, *flags
    arrays = kernel_parameters(runtime, w, b, mean, var)
    arrays |= {"dy": from_dy.memory, "x": from_x.memory}
    dw = db = arrays["mean"]  # read by nobody unless they are made
    if w is not None or b is not None or (of_batch and need_dx):
        dw, db = runtime.empty(C), runtime.empty(C)
        runtime.run(config.config_backward_sums(*key), {"eps": eps}, dw=dw, db=db, **arrays)
    dx = None
    if need_dx:
        dx = runtime.empty((N, H, W, C), x.dtype)
        launches = config.config_backward(*key, of_batch)
        runtime.run(launches, {"eps": eps}, dx=dx, dw=dw, db=db, **arrays)
        dx = runtime.as_nchw(dx)
    return dx, None if w is None else dw, None if b is None else db


@batch_norm2d_track.launch
def batch_norm2d_track_launch(runtime, running_mean, running_var, mean, var, count, momentum):
    arrays = {"running_mean": running_mean, "running_var": running_var, "mean": mean, "var": var}
    numbers, given = tracking(runtime, count, momentum)
    runtime.run(config.config_track(len(mean)), numbers, **arrays, **given)
    return running_mean, running_var


def tracking(runtime, count, momentum):
    """(numbers, arrays) by which kernels move running statistics towards those of `count` values;
    those of none for momentum None.
    """
    given = {"step": runtime.nought(np.float32, 2), "stop": runtime.nought(np.uint32)}
    if momentum is None:
        return dict.fromkeys(("keep", "momentum", "unbiased"), 0.0), given
    keep, momentum = derived(lambda momentum: (1 - momentum, momentum), momentum)
    return {"keep": keep, "momentum": momentum, "unbiased": count / (count - 1)}, given


def kernel_parameters(runtime, w, b, mean, var):
    """The arrays that every kernel of batchnorm.cu takes; mean stands in for a missing w or b."""
    arrays = {"mean": runtime.contiguous(mean), "var": runtime.contiguous(var)}
    for name, array in (("w", w), ("b", b)):
        arrays[name] = arrays["mean"] if array is None else runtime.contiguous(array)
    return arrays
