"""Batch normalisation with given statistics, ReLU and max-pool in one pass: the stem of a ResNet.

nn.functional calls it where kernels run; the steps in between are then never stored.
"""

from __future__ import annotations

from typing import Any

from gpuconv.arrays import ShapeOnly
from gpuconv.ops import batch_norm2d_launch as config
from gpuconv.ops.batch_norm2d import (
    batch_norm2d,
    batch_norm2d_backward,
    batch_norm2d_check,
    kernel_parameters,
)
from gpuconv.ops.cost import Cost, like, nbytes
from gpuconv.ops.max_pool2d import (
    max_pool2d,
    max_pool2d_backward,
    max_pool2d_output,
    require_pool,
)
from gpuconv.ops.op import Array, op, require_floats, require_shape
from gpuconv.shapes import window


@op
def batch_norm2d_relu_max_pool2d(
    x: Array,
    w: Array,
    b: Array,
    mean: Array,
    var: Array,
    eps: float,
    pool: tuple[Any, ...],
) -> tuple[Array, ...]:
    """`max_pool2d(relu(batch_norm2d(x, w, b, mean, var, eps)), *pool)`: (y, argmax).

    The arguments are those of the two operations; mean and var must be given.
    """
    between = batch_norm2d.definition(x, w, b, mean, var, eps, "relu")[0]
    return max_pool2d.definition(between, *pool)


@op
def batch_norm2d_relu_max_pool2d_backward(
    dy: Array,
    argmax: Array,
    x: Array,
    w: Array,
    b: Array,
    mean: Array,
    var: Array,
    eps: float,
    pool: tuple[Any, ...],
    of_batch: bool = True,
    need_dx: bool = True,
) -> tuple[Array, ...]:
    """The gradients of `batch_norm2d_relu_max_pool2d` for x, w and b, as `batch_norm2d_backward`
    returns them. dy, argmax: (N, C, P, Q), argmax as the forward operation returned it.
    """
    spread = max_pool2d_backward.definition(dy, argmax, x.shape, *pool)
    given = (x, w, b, mean, var, eps, "relu", of_batch, need_dx)
    return batch_norm2d_backward.definition(spread, *given)


batch_norm2d_relu_max_pool2d.stores_16 = batch_norm2d_relu_max_pool2d_backward.stores_16 = True


def _geometry(pool):
    return window(*pool) if len(pool) > 1 else window(pool[0], None)


@batch_norm2d_relu_max_pool2d.check
def batch_norm2d_relu_max_pool2d_check(x, w, b, mean, var, eps, pool):
    batch_norm2d_check(x, w, b, mean, var, eps, "relu", None)
    require_floats(mean=mean, var=var)
    require_pool(x.shape, _geometry(pool))


@batch_norm2d_relu_max_pool2d_backward.check
def batch_norm2d_relu_max_pool2d_backward_check(dy, argmax, x, w, b, mean, var, eps, pool, *_):
    batch_norm2d_relu_max_pool2d_check(x, w, b, mean, var, eps, pool)
    require_floats(x=x, dy=dy)
    shape = (*x.shape[:2], *_geometry(pool).output_size(*x.shape[2:]))
    require_shape({"dy": shape, "argmax": shape}, dy=dy, argmax=argmax)


@batch_norm2d_relu_max_pool2d.output
def batch_norm2d_relu_max_pool2d_output(x, w, b, mean, var, eps, pool):
    return max_pool2d_output(
        ShapeOnly(x.shape, x.dtype), *(pool if len(pool) > 1 else (*pool, None))
    )


@batch_norm2d_relu_max_pool2d.cost
def batch_norm2d_relu_max_pool2d_cost(x, w, b, mean, var, eps, pool):
    pooled = max_pool2d.work(like(x.shape, x.dtype), *pool).bytes
    return Cost(0, pooled + nbytes(w, b, mean, var))


@batch_norm2d_relu_max_pool2d_backward.cost
def batch_norm2d_relu_max_pool2d_backward_cost(
    dy, argmax, x, w, b, mean, var, eps, pool, of_batch, need_dx
):
    return Cost(0, nbytes(dy, argmax, x, w, mean, var, b, w, b) + (nbytes(x) if need_dx else 0))


@batch_norm2d_relu_max_pool2d.launch
def batch_norm2d_relu_max_pool2d_launch(runtime, x, w, b, mean, var, eps, pool):
    geometry, pixels = _geometry(pool), runtime.pixels(x)
    N, C, H, W = x.shape
    shape = (N, *geometry.output_size(H, W), C)
    y, argmax = runtime.empty(shape, x.dtype), runtime.empty(shape, geometry.tap_type)
    flags = w is not None, b is not None
    launches = config.config_pooled(x.shape, geometry, pixels.stride, pixels.vector, *flags)
    arrays = kernel_parameters(runtime, w, b, mean, var)
    runtime.run(launches, {"eps": eps}, y=y, argmax=argmax, x=pixels.memory, **arrays)
    return runtime.as_nchw(y), runtime.as_nchw(argmax)


@batch_norm2d_relu_max_pool2d_backward.launch
def batch_norm2d_relu_max_pool2d_backward_launch(
    runtime, dy, argmax, x, w, b, mean, var, eps, pool, of_batch, need_dx
):
    N, C, H, W = x.shape
    pixels, flags = runtime.pixels(x), (w is not None, b is not None)
    key = x.shape, _geometry(pool), pixels.stride, pixels.vector, *flags
    arrays = kernel_parameters(runtime, w, b, mean, var)
    arrays |= {"dy": runtime.as_nhwc(dy), "argmax": runtime.as_nhwc(argmax), "x": pixels.memory}
    dw, db, dx = runtime.empty(C), runtime.empty(C), None
    runtime.run(config.config_pooled_sums(*key), {"eps": eps}, dw=dw, db=db, **arrays)
    if need_dx:
        dx = runtime.empty((N, H, W, C), x.dtype)
        launches = config.config_pooled_backward(*key, of_batch)
        runtime.run(launches, {"eps": eps}, dx=dx, dw=dw, db=db, **arrays)
        dx = runtime.as_nchw(dx)
    return dx, None if w is None else dw, None if b is None else db
