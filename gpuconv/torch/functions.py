"""Operations on PyTorch's tensors: each is one `torch.autograd.Function` with its own gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor as T

from gpuconv import ops
from gpuconv.ops.op import Op


class _Bridged(NamedTuple):
    """An operation, its gradient, and the names of its results."""

    op: Op[..., Any]
    backward: Op[..., Any]
    results: tuple[str, ...] = ("y",)


class _Operation(torch.autograd.Function):
    """What the gradient's parameters name is saved: inputs, results, shapes and options."""

    @staticmethod
    def forward(ctx: Any, bridged: _Bridged, options: dict[str, Any], *tensors: Any) -> Any:
        values = dict(zip(bridged.op.parameters, tensors, strict=False))
        given = {k: v for k, v in options.items() if k in bridged.op.parameters}
        found = bridged.op(**values, **given)
        parts = found if isinstance(found, tuple) else (found,)
        others = [a for a in parts[1:] if not any(a is b for b in given.values())]
        y = parts[0].to(tensors[0].dtype)
        results = dict(zip(bridged.results, (y, *parts[1:]), strict=True))
        known = {"x_shape": tuple(tensors[0].shape), **values, **options, **results}
        known["need_dx"] = ctx.needs_input_grad[2]
        kept = {name: known[name] for name in bridged.backward.parameters if name in known}
        ctx.saved = [name for name, value in kept.items() if isinstance(value, torch.Tensor)]
        ctx.plain = {name: value for name, value in kept.items() if name not in ctx.saved}
        ctx.save_for_backward(*map(kept.__getitem__, ctx.saved))
        ctx.bridged, ctx.given = bridged, len(tensors)
        ctx.mark_non_differentiable(*others)
        ctx.set_materialize_grads(False)
        return y, *others

    @staticmethod
    def backward(ctx: Any, dy: Any, *_: Any) -> Any:
        refuse_graph()
        if dy is None:
            return None, None, *[None] * ctx.given
        saved = dict(zip(ctx.saved, ctx.saved_tensors, strict=True))
        found = ctx.bridged.backward(dy, **ctx.plain, **saved)
        gradients = found if isinstance(found, tuple) else (found,)
        return None, None, *gradients[: ctx.given]


@torch.compiler.disable
def _run(bridged: _Bridged, tensors: Sequence[Any], **options: Any) -> Any:
    """The operation's results, of which the first has a gradient.

    options: arguments of the operation, of its gradient, or of both.
    """
    return _Operation.apply(bridged, options, *tensors)


_CONV = _Bridged(ops.conv2d, ops.conv2d_backward)
_LINEAR = _Bridged(ops.linear, ops.linear_backward)
_MAX_POOL = _Bridged(ops.max_pool2d, ops.max_pool2d_backward, ("y", "argmax"))
_AVG_POOL = _Bridged(ops.avg_pool2d, ops.avg_pool2d_backward)
_ADAPTIVE = _Bridged(ops.adaptive_avg_pool2d, ops.adaptive_avg_pool2d_backward)
_BATCH_NORM = _Bridged(ops.batch_norm2d, ops.batch_norm2d_backward, ("y", "mean", "var"))
_RELU = _Bridged(ops.relu, ops.relu_backward)
_SIGMOID = _Bridged(ops.sigmoid, ops.sigmoid_backward)
_TANH = _Bridged(ops.tanh, ops.tanh_backward)
_RESPONSE_NORM = _Bridged(ops.local_response_norm, ops.local_response_norm_backward)


def conv2d(
    x: T,
    w: T,
    b: T | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> T:
    """`ops.conv2d`, as torch.nn.functional.conv2d: x (N, C, H, W), w (K, C/groups, R, S)."""
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return _run(_CONV, (x, w, b), **options)[0]


def linear(x: T, w: T, b: T | None = None) -> T:
    """`ops.linear`: x (N, features), w (outputs, features)."""
    return _run(_LINEAR, (x, w, b))[0]


def max_pool2d(
    x: T,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> T:
    """`ops.max_pool2d`, as torch.nn.functional.max_pool2d."""
    window = {"kernel_size": kernel_size, "stride": stride, "padding": padding}
    return _run(_MAX_POOL, (x,), **window, dilation=dilation, ceil_mode=ceil_mode)[0]


def avg_pool2d(
    x: T,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> T:
    """`ops.avg_pool2d`, as torch.nn.functional.avg_pool2d."""
    window = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": 1}
    options = {"ceil_mode": ceil_mode, "count_include_pad": count_include_pad}
    return _run(_AVG_POOL, (x,), **window, **options)[0]


def adaptive_avg_pool2d(x: T, output_size: Any) -> T:
    """`ops.adaptive_avg_pool2d`, as torch.nn.functional.adaptive_avg_pool2d."""
    return _run(_ADAPTIVE, (x,), output_size=output_size)[0]


def batch_norm(
    x: T,
    running_mean: T | None,
    running_var: T | None,
    weight: T | None = None,
    bias: T | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> T:
    """`ops.batch_norm2d`, as torch.nn.functional.batch_norm, for x (N, C, H, W): in training the
    running statistics, unless None, are moved in place.

    Raises ValueError in training for one value per channel.
    """
    count = x.numel() // max(x.shape[1], 1)
    if training and count < 2:
        raise ValueError(f"batch_norm: training needs more than one value a channel, got {x.shape}")
    given = (None, None) if training else (running_mean, running_var)
    options = {"mean": given[0], "var": given[1], "eps": eps, "of_batch": training}
    y, *statistics = _run(_BATCH_NORM, (x, weight, bias), **options)
    if training and running_mean is not None and running_var is not None:
        _track(running_mean, running_var, *statistics, count, momentum)
    return y


@torch.compiler.disable
def _track(mean: T, var: T, *of_batch: Any) -> None:
    with torch.no_grad():
        ops.batch_norm2d_track(mean, var, *of_batch)
    torch.autograd.graph.increment_version((mean, var))


def relu(x: T) -> T:
    """`ops.relu`."""
    return _run(_RELU, (x,))[0]


def sigmoid(x: T) -> T:
    """`ops.sigmoid`."""
    return _run(_SIGMOID, (x,))[0]


def tanh(x: T) -> T:
    """`ops.tanh`."""
    return _run(_TANH, (x,))[0]


def local_response_norm(
    x: T, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> T:
    """`ops.local_response_norm`, as torch.nn.functional.local_response_norm."""
    return _run(_RESPONSE_NORM, (x,), size=size, alpha=alpha, beta=beta, k=k)[0]


def refuse_graph() -> None:
    """RuntimeError within a backward pass that is itself to be differentiated."""
    # once_differentiable lets through a gradient penalty, whose own gradient would be silently 0
    if torch.is_grad_enabled():
        raise RuntimeError(
            "gpuconv computes no gradient of a gradient: call backward without create_graph=True, "
            "or use PyTorch's own layers for this part"
        )
