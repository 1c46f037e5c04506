"""The operations on tensors: each runs one of `gpuconv.ops` and records its gradient.

Arguments are those of the operation of the same name, with tensors (or arrays) for its arrays; the
result is a tensor. A model's `forward` is written with these and with layers. Their meaning is the
operation's, whose docstring they have.

    from gpuconv.nn import functional as F
    y = F.relu(F.conv2d(x, w, b, padding=1))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, update_wrapper
from itertools import accumulate, pairwise
from typing import Any, ParamSpec

import numpy as np

from gpuconv import ops
from gpuconv.arrays import as_kernels_read, device_of, empty_images, is_device, native
from gpuconv.autograd import (
    Array,
    Tensor,
    activated,
    as_tensor,
    defer,
    once,
    pooled,
    record,
    state,
    statistics_of,
)
from gpuconv.autograd.operators import add, flatten, relu_backward
from gpuconv.autograd.walk import adding, ends_with_relu, rectified
from gpuconv.nn import linear_chain, precise
from gpuconv.nn.linear_chain import weighted_backward
from gpuconv.ops import in_place
from gpuconv.ops.activation import ACTIVATIONS
from gpuconv.ops.batch_norm2d_max_pool2d import (
    batch_norm2d_relu_max_pool2d,
    batch_norm2d_relu_max_pool2d_backward,
)
from gpuconv.ops.conv2d import y_shape
from gpuconv.ops.losses import one_launch
from gpuconv.ops.op import Op
from gpuconv.ops.statistics import batch_norm2d_statistics, conv2d_statistics
from gpuconv.precision import STORAGE, is_stored

P = ParamSpec("P")
PLAIN = frozenset(
    (np.ndarray, int, float, bool, str, tuple, type(None))
)  # other libraries' are not

__all__ = [
    "ChannelBuffer",
    "adaptive_avg_pool2d",
    "add",
    "avg_pool2d",
    "batch_norm",
    "cat",
    "conv2d",
    "cross_entropy",
    "dropout",
    "flatten",
    "half_squared_error",
    "hinge",
    "leaky_relu",
    "linear",
    "local_response_norm",
    "max_pool2d",
    "relu",
    "scaled_tanh",
    "sigmoid",
    "softmax",
    "sum_pool2d",
    "tanh",
]


# ---- from operations -----------------------------------------------------------------------------


def _lifted(op: Op[P, Any], backward_op: Op[..., Any]) -> Callable[P, Tensor]:
    """An operation on an array as a function on a tensor.

    The names of the gradient's parameters after dy say what is kept for it: x, the shape of x, y
    or whatever else the operation returned, and arguments of the operation.
    """
    names = tuple(op.parameters)
    defaults = {
        n: each.default for n, each in op.parameters.items() if each.default is not each.empty
    }
    kept, *rest = [name for name in backward_op.parameters if name != "dy"]
    is_loss = "dy" not in backward_op.parameters
    backward = _loss_backward if is_loss else _plain_backward

    def function(*args: P.args, **options: P.kwargs) -> Tensor:
        given = {**defaults, **dict(zip(names, args, strict=False)), **options}
        if names[0] not in given or len(args) > len(names):
            return op(*args, **options)  # refuses it
        x = as_tensor(given.pop(names[0]))
        for name, value in given.items():
            if isinstance(value, Tensor):
                given[name] = value.data
            elif type(value) not in PLAIN:
                given[name] = native(value, f"{op.__name__}: {name}")
        y = _on(op, x.reference, x.data)(x.data, **given)
        result, kept_of_result = y if is_loss else (y, y)
        known = {"x": x.data, "x_shape": x.data.shape}.get(kept, kept_of_result)
        saved = known, *map(given.__getitem__, rest)
        run_backward = _on(backward_op, x.reference, x.data)
        return record(
            op.__name__, np.asarray(result) if is_loss else y, (x,), backward, run_backward, *saved
        )

    return update_wrapper(function, op.definition)


def _plain_backward(dy: Array, over: bool, run_backward: Any, *saved: Any) -> tuple[Array, ...]:
    found = run_backward(dy, *saved)
    return found if isinstance(found, tuple) else (found,)


def _loss_backward(dy: Array, over: bool, run_backward: Any, *saved: Any) -> tuple[Array]:
    return _scaled(dy, over, run_backward(*saved))


def _optional(x: Any) -> Tensor | None:
    return None if x is None else as_tensor(x)


def _on(op: Op, reference: bool, data: Array) -> Any:
    """The operation, its definition, or what it is for arrays of 16 bits."""
    if reference:
        return op.reference
    return op.stored if is_stored(data) else op


# ---- with weights ------------------------------------------------------------------------------


def conv2d(
    x: Any,
    w: Any,
    b: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`ops.conv2d`: x (N, C, H, W), w (K, C/groups, R, S), b (K,) or None -> (N, K, P, Q).

    An activation that follows it within a module, and a max-pool after a ReLU, are done in the
    same pass over memory.
    """
    if not isinstance(x, Tensor) or not isinstance(w, Tensor):
        return _at_once(conv2d(as_tensor(x), as_tensor(w), b, stride, padding, dilation, groups))
    b = b if isinstance(b, Tensor) else _optional(b)
    options = (stride, padding, dilation, groups)
    data = x.data if isinstance(x.data, np.ndarray) else as_kernels_read(x.data)
    reference = x.reference or w.reference
    precision = precise.of(data, reference, True)

    def with_pool(window: Any, c_order: bool) -> Tensor:
        arrays = (data, w.data, None if b is None else b.data)
        y, argmax = ops.conv2d_relu_max_pool2d(*arrays, *options, window, c_order)
        run_backward = ops.conv2d_relu_max_pool2d_backward
        saved = (run_backward, y, argmax, *arrays, *options, window, x.requires_grad)
        return record("conv2d_relu_max_pool2d", y, (x, w, b), _plain_backward, *saved)

    def with_statistics(running: Callable[[], tuple[Any, ...]]) -> Any:
        arrays = (data, w.data, None if b is None else b.data)
        N, _, P, Q = y_shape(*arrays[:2], *options)
        if N * P * Q < 2:
            return None
        both = conv2d_statistics, ops.conv2d_backward
        run, run_backward = precise.run(reference, precision, *both)
        y, mean, var, *_ = run(*arrays, *options, *running())
        saved = (run_backward, *arrays, *options, None, None, x.requires_grad)
        return record("conv2d", y, (x, w, b), _conv_backward, *saved), mean, var

    how = ops.conv2d, ops.conv2d_backward, _conv_backward, _conv_relu_backward
    pool = with_pool if precision == "ieee" else None
    return _weighted(how, x, data, w, b, options, precision, pool, with_statistics)


def linear(x: Any, w: Any, b: Any = None) -> Tensor:
    """`ops.linear`: x (N, features), w (outputs, features), b (outputs,) or None."""
    if not isinstance(x, Tensor) or not isinstance(w, Tensor):
        return _at_once(linear(as_tensor(x), as_tensor(w), b))
    b = b if isinstance(b, Tensor) else _optional(b)
    ieee = state.precision in ("ieee", "tf32-conv")
    if ieee and not x.reference and not w.reference and not isinstance(w.data, np.ndarray):
        if (y := linear_chain.appended(x, w, b)) is not None:
            return y
        if linear_chain.serves(x, w):
            chain = linear_chain.Chain(linear_chain.Layer(x, w, b))
            return defer(chain.compute, (x, w, b), ACTIVATION_NAMES, chain=chain)
    how = ops.linear, ops.linear_backward, weighted_backward, weighted_backward
    precision = precise.of(x.data, x.reference or w.reference, False)
    return _weighted(how, x, x.data, w, b, (), precision)


def _at_once(y: Tensor) -> Tensor:
    """y computed now: an array given in place of a tensor is the caller's, who may overwrite it."""
    _ = y.data
    return y


def _weighted(
    how: tuple[Op, Op, Any, Any],
    x: Tensor,
    data: Array,
    w: Tensor,
    b: Tensor | None,
    options: tuple[Any, ...],
    precision: str,
    with_pool: Any = None,
    with_statistics: Any = None,
) -> Tensor:
    op, backward_op, plain, under_relu = how
    arrays = (data, w.data, None if b is None else b.data)
    reference = x.reference or w.reference
    run, run_backward = precise.run(reference, precision, op, backward_op)

    def compute(activation: str | None) -> Tensor:
        y = run(*arrays, *options, activation)
        kept = None if activation is None else y
        saved = (run_backward, *arrays, *options, activation, kept, x.requires_grad)
        name = op.__name__ if activation is None else f"{op.__name__}_{activation}"
        gradient = under_relu if activation == "relu" else plain
        return record(name, y, (x, w, b), gradient, *saved)

    if isinstance(data, np.ndarray) or not _has_kernels(data):
        with_statistics = None
    activations = ("relu",) if precision in STORAGE else ACTIVATION_NAMES
    return defer(compute, (x, w, b), activations, with_pool, with_statistics)


def _has_kernels(x: Array) -> bool:
    return is_device(device_of(x))


@adding
def _conv_backward(*arguments: Any, **more: Any) -> Any:
    return weighted_backward(*arguments, **more)


@adding
@rectified
def _conv_relu_backward(*arguments: Any, **more: Any) -> Any:
    return weighted_backward(*arguments, **more)


ACTIVATION_NAMES = tuple(ACTIVATIONS)


def batch_norm(
    x: Any,
    running_mean: Array | None,
    running_var: Array | None,
    w: Any = None,
    b: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`ops.batch_norm2d`: x (N, C, H, W) normalised for each channel, times w plus b, (C,) each.

    training: with the statistics of x, towards which the running ones, (C,) arrays or None, are
    moved in place; else with the running ones. A ReLU that follows it within a module is fused
    with it.
    Raises ValueError in training for one value per channel.
    """
    x, w, b = as_tensor(x), _optional(w), _optional(b)
    if type(running_mean) not in PLAIN:
        running_mean, running_var = native(running_mean), native(running_var)
    running = partial(_running, running_mean, running_var, momentum)
    found = statistics_of(x, running) if training else None
    arrays = (x.data, None if w is None else w.data, None if b is None else b.data)
    reference = x.reference or (w is not None and w.reference)
    on_device = _has_kernels(x.data)
    count = x.data.size // max(x.data.shape[1], 1)
    if training and count < 2 and state.trace is None:
        raise ValueError(
            f"batch_norm: training needs more than one value a channel, got x of shape {x.shape}"
        )
    if training and on_device and found is None:
        found = batch_norm2d_statistics.stored(x.data, *running())[:2]
    tracked = not training or running_mean is None or found is not None

    def normalise(activation: str | None, *other: Array) -> tuple[Array, ...]:
        nonlocal tracked
        statistics = (found or (None, None)) if training else (running_mean, running_var)
        run = _on(ops.batch_norm2d, reference, x.data)
        y, mean, var = run(*arrays, *statistics, eps, activation, *other)
        if not tracked:
            tracked = True
            track = _on(ops.batch_norm2d_track, reference, mean)
            once(track, running_mean, running_var, mean, var, count, momentum)
        return y, mean, var

    def compute(activation: str | None) -> Tensor:
        y, mean, var = normalise(activation)
        if state.trace is not None and not training:  # the names of what it reads
            mean, var = running_mean, running_var
        run_backward = _on(ops.batch_norm2d_backward, reference, x.data)
        saved = (run_backward, *arrays, mean, var, eps, activation, training, x.requires_grad)
        name = "batch_norm" if activation is None else "batch_norm_relu"
        return record(name, y, (x, w, b), _batch_norm_backward, *saved)

    def with_other(other: Tensor, activation: str | None) -> Tensor:
        y, mean, var = normalise(activation, other.data)
        kept = None if activation is None else y
        saved = (kept, *arrays, mean, var, eps, None, training, x.requires_grad)
        backward = _batch_norm_add_backward if activation is None else _batch_norm_add_relu_backward
        name = "batch_norm_add" if activation is None else "batch_norm_add_relu"
        return record(name, y, (x, w, b, other), backward, *saved)

    def with_pool(window: Any, c_order: bool) -> Tensor:
        used: Any = found if training else (running_mean, running_var)
        y, argmax = batch_norm2d_relu_max_pool2d.stored(*(*arrays, *used, eps, window))
        run_backward = batch_norm2d_relu_max_pool2d_backward.stored
        saved = (run_backward, argmax, *arrays, *used, eps, window, training, x.requires_grad)
        return record("batch_norm_relu_max_pool2d", y, (x, w, b), _plain_backward, *saved)

    pool = with_pool if on_device else None
    return defer(compute, (x, w, b), ("relu",), pool, added=(x.data.shape, with_other))


def _running(mean: Array | None, var: Array | None, momentum: float) -> tuple[Any, ...]:
    """What a pass that makes a batch's statistics moves towards them: nothing where `checkpoint`
    runs its function for the second time.
    """
    first_time: list[int] = []
    once(first_time.append, 1)
    return (mean, var, momentum) if first_time else (None, None, 0.0)


def _batch_norm_add_backward(
    dy: Array, over: bool, y: Array | None, *saved: Any, masked: bool = False
) -> tuple[Array | None, ...]:
    if y is not None and not masked:
        dy = relu_backward(dy, y, over)
    return *ops.batch_norm2d_backward.stored(dy, *saved), dy


@rectified
def _batch_norm_add_relu_backward(*arguments: Any, **more: Any) -> Any:
    return _batch_norm_add_backward(*arguments, **more)


def _batch_norm_backward(dy: Array, over: bool, run_backward: Any, *saved: Any) -> Any:
    if over and saved[-1] and dy.size and in_place.can_overwrite(dy):
        return in_place.batch_norm2d_backward_into(dy, *saved[:-1])
    return run_backward(dy, *saved)


# ---- activations and the like ------------------------------------------------------------------


def _activation(name: str) -> Callable[[Any], Tensor]:
    """An activation, done in one pass with the function before it where that waits for one."""
    forward, backward = ACTIVATIONS[name]

    def function(x: Any) -> Tensor:
        if not isinstance(x, Tensor):
            x = Tensor(x)
        fused = activated(x, name)
        if fused is not None:
            return fused
        y = _on(forward, x.reference, x.data)(x.data)
        return record(name, y, (x,), _from_output, _on(backward, x.reference, x.data), y)

    return update_wrapper(function, forward.definition)


def _from_output(dy: Array, over: bool, run_backward: Any, y: Array) -> tuple[Array]:
    """The gradient of a function whose derivative is known from its output."""
    is_relu = run_backward is ops.relu_backward
    return (relu_backward(dy, y, over) if is_relu else run_backward(dy, y),)


relu = _activation("relu")
tanh = _activation("tanh")
scaled_tanh = _activation("scaled_tanh")
sigmoid = _activation("sigmoid")
leaky_relu = _lifted(ops.leaky_relu, ops.leaky_relu_backward)
softmax = _lifted(ops.softmax, ops.softmax_backward)
local_response_norm = _lifted(ops.local_response_norm, ops.local_response_norm_backward)


def dropout(x: Any, p: float, seed: int) -> Tensor:
    """`ops.dropout`: each element is 0 with probability p, by the mask number `seed`, else
    multiplied by 1 / (1 - p).
    """
    x = as_tensor(x)
    run = _on(ops.dropout, x.reference, x.data)
    y = run(x.data, p, seed)
    return record("dropout", y, (x,), lambda dy, over: (run(dy, p, seed),))


# ---- pooling -----------------------------------------------------------------------------------


def max_pool2d(
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """`ops.max_pool2d`: the largest value of each window."""
    x, window = as_tensor(x), (kernel_size, stride, padding, dilation, ceil_mode)
    fused = pooled(x, window)
    if fused is not None:
        return fused
    y, argmax = _on(ops.max_pool2d, x.reference, x.data)(x.data, *window)
    run_backward = _on(ops.max_pool2d_backward, x.reference, x.data)
    saved = (run_backward, argmax, x.data.shape, *window)
    if not isinstance(y, np.ndarray) and ends_with_relu(x):
        return record("max_pool2d", y, (x,), _max_pool_relu_backward, x.data, y, *saved)
    return record("max_pool2d", y, (x,), _plain_backward, *saved)


@adding
def _max_pool_relu_backward(
    dy: Array,
    over: bool,
    x: Array,
    y: Array,
    *saved: Any,
    rest: Array | None = None,
    rectify: bool = False,
) -> tuple[Array]:
    """The pixel that a window's gradient goes to has the window's maximum: a ReLU's mask of the
    pooled image is that of the image, and smaller.
    """
    if rectify and rest is None:
        dy = ops.relu_backward.stored(dy, y)
    (dx,) = _plain_backward(dy, over, *saved)
    if rest is not None:
        dx = ops.accumulate.stored(dx, rest)
        dx = ops.relu_backward.stored(dx, x) if rectify else dx
    return (dx,)


sum_pool2d = _lifted(ops.sum_pool2d, ops.sum_pool2d_backward)
adaptive_avg_pool2d = _lifted(ops.adaptive_avg_pool2d, ops.adaptive_avg_pool2d_backward)
_avg_pool2d = _lifted(ops.avg_pool2d, ops.avg_pool2d_backward)


def avg_pool2d(
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    dilation: Any = 1,
) -> Tensor:
    """`ops.avg_pool2d`: the mean of each window; arguments in torch's order."""
    window = (kernel_size, stride, padding, dilation, ceil_mode, count_include_pad)
    return _avg_pool2d(x, *window)


# ---- channels side by side ---------------------------------------------------------------------


def cat(tensors: Sequence[Any]) -> Tensor:
    """Images (N, C_i, H, W) joined along the channels, or on the host (N, features) along those.

    ValueError unless the other sizes agree, TypeError unless the dtypes do.
    """
    xs = [as_tensor(x) for x in tensors]
    if not xs:
        raise ValueError("cat: at least one tensor is needed")
    if len(xs) == 1:
        return xs[0]
    parts = [x.data for x in xs]
    first, ndims = parts[0], (2, 4) if isinstance(parts[0], np.ndarray) else (4,)
    for part in parts[1:]:
        if part.ndim not in ndims or _beside_channels(part) != _beside_channels(first):
            raise ValueError(
                f"cat: shapes {first.shape} and {part.shape} differ in more than their channels"
            )
        if part.dtype != first.dtype:
            raise TypeError(f"cat: arrays of different types: {first.dtype} and {part.dtype}")
    edges = [0, *accumulate(part.shape[1] for part in parts)]
    if all(isinstance(part, np.ndarray) for part in parts):
        y = np.concatenate(parts, axis=1)
    else:
        y = empty_images((len(parts[0]), edges[-1], *parts[0].shape[2:]), parts[0])
        for part, (begin, end) in zip(parts, pairwise(edges), strict=True):
            ops.assign.stored(y[:, begin:end], part)
    return record("cat", y, xs, _cut, edges)


def _beside_channels(x: Array) -> tuple[int, ...]:
    return (x.shape[0], *x.shape[2:])


def _cut(dy: Array, over: bool, edges: list[int]) -> list[Array]:
    return [dy[:, begin:end] for begin, end in pairwise(edges)]


class ChannelBuffer:
    """One array for images whose channels arrive in pieces: what a dense block's layers read.

    channels: of the whole. `append(x)` writes x (N, C, H, W) behind what is there and returns all
    so far, a view: nothing is copied twice, and the gradient of all is one array too.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self._array: Array = None
        self._tensor: Tensor | None = None

    def append(self, x: Any) -> Tensor:
        """All channels so far, with x's behind them. ValueError where x does not fit."""
        x, before = as_tensor(x), self._tensor
        data = x.data
        begin = 0 if before is None else before.data.shape[1]
        end = begin + data.shape[1]
        if before is None:
            self._array = empty_images((len(data), self.channels, *data.shape[2:]), data)
        shape = (self._array.shape[0], end - begin, *self._array.shape[2:])
        if data.shape != shape or end > self.channels:
            raise ValueError(
                f"ChannelBuffer: {data.shape} does not fit behind {begin} of {self.channels} "
                f"channels of {self._array.shape}"
            )
        ops.assign.stored(self._array[:, begin:end], data)
        edges = [0, end] if before is None else [0, begin, end]
        inputs = (x,) if before is None else (before, x)
        self._tensor = record("append_channels", self._array[:, :end], inputs, _cut, edges)
        return self._tensor


# ---- losses ------------------------------------------------------------------------------------

_cross_entropy = _lifted(ops.cross_entropy, ops.cross_entropy_backward)


def _cross_entropy_of(
    scores: Any,
    labels: Any,
    label_smoothing: float = 0.0,
    weight: Any = None,
    ignore_index: int = -100,
) -> Tensor:
    """The loss; where a gradient will be asked for and one kernel gives both, with it."""
    x = as_tensor(scores)
    options = labels, label_smoothing, weight, ignore_index
    if not (x.requires_grad and state.recording and one_launch(x.data)):
        return _cross_entropy(x, *options)
    labels, weight = (a.data if isinstance(a, Tensor) else a for a in (labels, weight))
    loss, dx = ops.loss_and_gradient(x.data, labels, label_smoothing, weight, ignore_index)
    return record("cross_entropy", np.asarray(loss), (x,), _scaled, dx, fresh=False)


def _scaled(dy: Array, over: bool, dx: Array) -> tuple[Array]:
    return (dx if dy == 1 else ops.scale(dx, float(dy)),)


cross_entropy = update_wrapper(_cross_entropy_of, ops.cross_entropy.definition)
half_squared_error = _lifted(ops.half_squared_error, ops.half_squared_error_backward)
hinge = _lifted(ops.hinge, ops.hinge_backward)
