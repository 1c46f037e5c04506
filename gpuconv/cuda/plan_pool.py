"""Launch plans of pooling. Kernels: kernels/maxpool.cu, kernels/avgpool.cu,
kernels/bias_relu_pool.cu.
"""

from __future__ import annotations

from gpuconv.cuda.plan import (
    STRIDE_BLOCKS,
    THREADS,
    Launch,
    Plan,
    ceil_div,
    defines,
    magics,
    require_int,
    vector,
)
from gpuconv.shapes import Window

Shape = tuple[int, int, int, int]


def max_pool2d(x_shape: Shape, window: Window) -> Plan:
    """y (N,P,Q,C) and argmax, uint8, from x (N,H,W,C); x_shape is (N, C, H, W)."""
    return _plan("max_pool2d", "maxpool.cu", "max_pool2d_forward", x_shape, window, True)


def max_pool2d_backward(x_shape: Shape, window: Window) -> Plan:
    """dx (N,H,W,C) from dy and argmax (N,P,Q,C)."""
    name = "max_pool2d_backward"
    return _plan(name, "maxpool.cu", name, x_shape, window, False)


def in_halves(window: Window) -> bool:
    """Whether it is the window that bias_relu_pool.cu knows: 2x2, stride 2, without padding."""
    plain = window.padding == "valid" or window.padding == ((0, 0), (0, 0))
    return plain and (window.kernel_size, window.stride, window.dilation) == (
        (2, 2),
        (2, 2),
        (1, 1),
    )


def bias_relu_max_pool2d(x_shape: Shape, window: Window, bias: bool) -> Plan:
    """y (N,P,Q,C) and argmax from a convolution's sums x (N,H,W,C) and b (C); without bias, give
    x for b. The window must be `in_halves`.
    """
    P, Q = window.output_size(*x_shape[2:])
    scalars = {**magics(p=P, q=Q), "use_bias": int(bias)}
    return _halves("forward", x_shape, window, {"pixels": x_shape[0] * P * Q}, scalars)


def bias_relu_max_pool2d_backward(x_shape: Shape, window: Window) -> Plan:
    """dx (N,H,W,C), the gradient of the convolution's sums, from dy, y and argmax (N,P,Q,C)."""
    rows, columns = (ceil_div(size, 2) for size in x_shape[2:])
    scalars = {"rows": rows, "columns": columns, **magics(rows=rows, columns=columns)}
    return _halves("backward", x_shape, window, {"cells": x_shape[0] * rows * columns}, scalars)


def _halves(
    way: str, x_shape: Shape, window: Window, work: dict[str, int], more: dict[str, int]
) -> Plan:
    N, C, H, W = x_shape
    P, Q = window.output_size(H, W)
    kernel = f"bias_relu_max_pool2d_{way}"
    if not in_halves(window):
        raise ValueError(f"{kernel}: the window must be 2x2, stride 2, no padding, got {window}")
    require_int(kernel, input_pixels=N * H * W)
    (count,), vec = work.values(), vector(C)
    lanes = min(ceil_div(C, vec), THREADS)
    scalars = {**work, "lanes": lanes, "H": H, "W": W, "C": C, "P": P, "Q": Q, **more}
    grid = min(ceil_div(count, THREADS // lanes), STRIDE_BLOCKS), 1, 1
    return Plan((Launch("bias_relu_pool.cu", kernel, grid, THREADS, defines(VEC=vec), scalars),))


def avg_pool2d(
    x_shape: Shape, window: Window, average: bool = True, count_include_pad: bool = True
) -> Plan:
    """y (N,P,Q,C) from x (N,H,W,C): means, or with average False sums."""
    edges = _edges(x_shape, window, count_include_pad)
    name, kernel = "avg_pool2d", "avg_pool2d_forward"
    return _plan(name, "avgpool.cu", kernel, x_shape, window, True, edges, AVERAGE=average)


def avg_pool2d_backward(
    x_shape: Shape, window: Window, average: bool = True, count_include_pad: bool = True
) -> Plan:
    """dx (N,H,W,C) from dy (N,P,Q,C)."""
    edges = _edges(x_shape, window, count_include_pad)
    name = "avg_pool2d_backward"
    return _plan(name, "avgpool.cu", name, x_shape, window, False, edges, AVERAGE=average)


def _edges(x_shape: Shape, window: Window, include_pad: bool) -> dict[str, int]:
    """Between which rows and columns a tap counts."""
    H, W = x_shape[2:]
    (top, bottom), (left, right) = window.pads(H, W) if include_pad else ((0, 0), (0, 0))
    return {"low_h": -top, "high_h": H + bottom, "low_w": -left, "high_w": W + right}


def _plan(
    name: str,
    file: str,
    kernel: str,
    x_shape: Shape,
    window: Window,
    per_output: bool,
    edges: dict[str, int] | None = None,
    **macros: bool,
) -> Plan:
    N, C, H, W = x_shape
    P, Q = window.output_size(H, W)
    (top, _), (left, _) = window.pads(H, W)
    (R, S), (stride_h, stride_w), (dil_h, dil_w) = (
        window.kernel_size,
        window.stride,
        window.dilation,
    )
    require_int(
        name,
        input_pixels=N * H * W,
        output_pixels=N * P * Q,
        rows_with_padding=H + top + (R - 1) * dil_h + P * stride_h,
        columns_with_padding=W + left + (S - 1) * dil_w + Q * stride_w,
    )
    pixels, vec = N * (P * Q if per_output else H * W), vector(C)
    lanes = min(ceil_div(C, vec), THREADS)
    scalars = {
        **{"pixels": pixels, "lanes": lanes, "H": H, "W": W, "C": C, "P": P, "Q": Q},
        **{"R": R, "S": S, "stride_h": stride_h, "stride_w": stride_w},
        **{"pad_h": top, "pad_w": left, "dil_h": dil_h, "dil_w": dil_w},
        **(edges or {}),
    }
    grid = min(ceil_div(max(pixels, 1), THREADS // lanes), STRIDE_BLOCKS), 1, 1
    return Plan((Launch(file, kernel, grid, THREADS, defines(VEC=vec, **macros), scalars),))
