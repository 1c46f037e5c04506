"""The same passes as `gpuconv.bench.workloads`, by PyTorch and cuDNN, one call each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from gpuconv.bench.workloads import SPLIT, Workload
from gpuconv.precision import STORAGE

aten = torch.ops.aten
Tensors = tuple[torch.Tensor, ...]


def precise(precision: str) -> None:
    """Products of float32 in IEEE float32 or in TF32, and the fastest of cuDNN's algorithms."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True


def rival(workload: Workload, device: str) -> Callable[[], Tensors] | None:
    """PyTorch's call on the workload's arrays, which returns what ours does; None without one.

    Images are channels-last in memory. In 16 bits filters and biases are too: rounded beforehand,
    as autocast does once a step. device: "cuda", or "cpu" in tests.
    """
    make = RIVALS.get((workload.case.op, workload.direction))
    if make is None or workload.case.activation:
        return None
    given = [_tensor(a, device) for a in workload.arguments]
    if workload.case.op in SPLIT:
        given = [a.to(given[0].dtype) if isinstance(a, torch.Tensor) else a for a in given]
    return make(*given)


def _tensor(a: Any, device: str) -> Any:
    if not hasattr(a, "dtype"):
        return a
    if a.dtype == STORAGE["bf16"]:
        a = torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)
    else:
        a = torch.from_numpy(a)
    there = a.to(device)
    return there.contiguous(memory_format=torch.channels_last) if there.ndim == 4 else there


def _two(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _conv(x: Any, w: Any, b: Any, stride: Any, padding: Any, dilation: Any, groups: int, *_: Any):
    geometry = _two(stride), _two(padding), _two(dilation), groups
    return lambda: (F.conv2d(x, w, b, *geometry),)


def _conv_backward(mask: list[bool]) -> Any:
    def make(dy, x, w, b, stride, padding, dilation, groups, *_):
        geometry = _two(stride), _two(padding), _two(dilation), False, [0, 0], groups, mask
        return lambda: _given(aten.convolution_backward(dy, x, w, [len(w)], *geometry), mask)

    return make


def _given(found: Any, mask: list[bool]) -> Tensors:
    return tuple(one for one, wanted in zip(found, mask, strict=True) if wanted)


def _max_pool(x, kernel, stride, padding, dilation, ceil_mode):
    geometry = _two(kernel), _two(stride or kernel), _two(padding), _two(dilation), ceil_mode
    return lambda: (aten.max_pool2d_with_indices(x, *geometry)[0],)


def _max_pool_backward(dy, argmax, x_shape, kernel, stride, padding, dilation, ceil_mode):
    (R, S), (down, across) = _two(kernel), _two(stride or kernel)
    (top, left), (dil_h, dil_w) = _two(padding), _two(dilation)
    P, Q = dy.shape[2:]
    won = argmax.long()  # r*S + s of the window's winner; PyTorch wants its pixel
    rows = torch.arange(P, device=dy.device)[:, None] * down - top + won // S * dil_h
    columns = torch.arange(Q, device=dy.device) * across - left + won % S * dil_w
    x = dy.new_empty(x_shape).contiguous(memory_format=torch.channels_last)
    geometry = [R, S], [down, across], [top, left], [dil_h, dil_w], ceil_mode
    indices = rows * x_shape[3] + columns
    return lambda: (aten.max_pool2d_with_indices_backward(dy, x, *geometry, indices),)


def _avg_pool(x, kernel, stride, padding, dilation, ceil_mode, include_pad):
    return lambda: (F.avg_pool2d(x, kernel, stride, padding, ceil_mode, include_pad),)


def _avg_pool_backward(dy, x_shape, kernel, stride, padding, dilation, ceil_mode, include_pad):
    x = dy.new_empty(x_shape).contiguous(memory_format=torch.channels_last)
    geometry = _two(kernel), _two(stride or kernel), _two(padding), ceil_mode, include_pad, None
    return lambda: (aten.avg_pool2d_backward(dy, x, *geometry),)


def _batch_norm(x, w, b, mean, var, eps, *_):
    return lambda: (aten.native_batch_norm(x, w, b, None, None, True, 0.0, eps)[0],)


def _batch_norm_backward(dy, x, w, b, mean, var, eps, *_):
    saved = mean, 1 / (var + eps).sqrt()
    mask = [True, True, True]
    return lambda: aten.native_batch_norm_backward(dy, x, w, None, None, *saved, True, eps, mask)


RIVALS: dict[tuple[str, str], Callable[..., Callable[[], Tensors]]] = {
    ("conv2d", "forward"): _conv,
    ("conv2d", "backward-data"): _conv_backward([True, False, False]),
    ("conv2d", "backward-weight"): _conv_backward([False, True, True]),
    ("linear", "forward"): lambda x, w, b, *_: lambda: (F.linear(x, w, b),),
    ("linear", "backward-data"): lambda dy, x, w, *_: lambda: (dy @ w,),
    ("linear", "backward-weight"): lambda dy, x, *_: lambda: (dy.T @ x, dy.sum(0)),
    ("max_pool2d", "forward"): _max_pool,
    ("max_pool2d", "backward"): _max_pool_backward,
    ("avg_pool2d", "forward"): _avg_pool,
    ("avg_pool2d", "backward"): _avg_pool_backward,
    ("relu", "forward"): lambda x: lambda: (torch.relu(x),),
    ("relu", "backward"): lambda dy, y: lambda: (aten.threshold_backward(dy, y, 0),),
    ("tanh", "forward"): lambda x: lambda: (torch.tanh(x),),
    ("tanh", "backward"): lambda dy, y: lambda: (aten.tanh_backward(dy, y),),
    ("sigmoid", "forward"): lambda x: lambda: (torch.sigmoid(x),),
    ("sigmoid", "backward"): lambda dy, y: lambda: (aten.sigmoid_backward(dy, y),),
    ("softmax", "forward"): lambda x: lambda: (torch.softmax(x, 1),),
    ("softmax", "backward"): lambda dy, y: (
        lambda: (aten._softmax_backward_data(dy, y, 1, torch.float32),)
    ),
    ("add", "forward"): lambda a, b, _: lambda: (a + b,),
    ("batch_norm2d", "forward"): _batch_norm,
    ("batch_norm2d", "backward"): _batch_norm_backward,
}
