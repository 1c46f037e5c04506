"""Local response normalisation across neighbouring channels. Kernels: kernels/lrn.cu.

Source: Krizhevsky et al. 2012, section 3.3; torch.nn.functional.local_response_norm; ONNX LRN.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np

from gpuconv.arguments import number, whole
from gpuconv.cpu import response_norm as fast
from gpuconv.cuda.launch_config import (
    CACHED,
    MAX_SHARED,
    THREADS,
    Launch,
    LaunchConfig,
    defines,
    pixel_loop,
    vector_width,
)
from gpuconv.cuda.layout import Shape, require_channels
from gpuconv.ops.op import Array, elementwise, in_float64, op, require_rank

CONVENTIONS = ("torch", "paper")


@op
@in_float64
def local_response_norm(
    x: Array,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    convention: str = "torch",
) -> Array:
    """y[c] = x[c] / (k + a * sum of x[j]**2)**beta, j over the `size` channels around c.

    x: floats (N, C, H, W). The neighbours are c - size//2 ... c + (size - 1)//2, where they exist.
    convention: "torch" (also ONNX's and Caffe's) has a = alpha / size; "paper" (Krizhevsky et al.)
    has a = alpha. So the paper's alpha 1e-4 with size 5 is torch's 5e-4.
    Returns y, x's shape and dtype.

    >>> x = np.ones((1, 1, 1, 1))
    >>> float(local_response_norm(x, 2, alpha=6.0, beta=1.0)[0, 0, 0, 0])
    0.25
    >>> float(local_response_norm(x, 2, alpha=6.0, beta=1.0, convention="paper").round(6).item())
    0.142857
    """
    return x * _denominator(x, size, alpha, k, convention) ** x.dtype.type(-beta)


@op
@in_float64
def local_response_norm_backward(
    dy: Array,
    x: Array,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    convention: str = "torch",
) -> Array:
    """dx[c] = dy[c] / d[c]**beta - 2 a beta x[c] * sum of dy[i] y[i] / d[i].

    d is the forward pass's k + a * sum, and i goes over the channels that have c for a neighbour.
    dy, x: floats (N, C, H, W). The rest as local_response_norm had it.
    """
    kind = x.dtype.type
    d = _denominator(x, size, alpha, k, convention)
    share = d ** kind(-beta)
    around = _window_sum(dy * x * share / d, (size - 1) // 2, size // 2)
    return dy * share - kind(2 * beta * scaled(alpha, size, convention)) * x * around


def scaled(alpha: float, size: int, convention: str) -> float:
    """What multiplies the sum of squares."""
    return alpha / size if convention == "torch" else alpha


def _denominator(x, size, alpha, k, convention):
    squares = _window_sum(x * x, size // 2, (size - 1) // 2)
    kind = x.dtype.type
    return kind(k) + kind(scaled(alpha, size, convention)) * squares


def _window_sum(a, below, above):
    """For each channel c the sum of a's channels c - below ... c + above."""
    C = a.shape[1]
    total = np.zeros_like(a)
    for offset in range(max(-below, 1 - C), min(above, C - 1) + 1):
        first, end = max(0, -offset), min(C, C - offset)
        total[:, first:end] += a[:, first + offset : end + offset]
    return total


elementwise(local_response_norm)
elementwise(local_response_norm_backward)


@local_response_norm.check
@local_response_norm_backward.check
def local_response_norm_check(*arguments):
    *_, x, size, _, _, k, convention = arguments
    require_rank(4, "(N, C, H, W)", x=x)
    whole("size", size)
    number("k", k, above=0)  # the sum of squares can be 0
    if convention not in CONVENTIONS:
        raise ValueError(f'convention must be "torch" or "paper", got {convention!r}')


@local_response_norm.cpu
def local_response_norm_cpu(x, size, alpha, beta, k, convention):
    return fast.forward(x, size, scaled(alpha, size, convention), beta, k)


@local_response_norm_backward.cpu
def local_response_norm_backward_cpu(dy, x, size, alpha, beta, k, convention):
    return fast.backward(dy, x, size, scaled(alpha, size, convention), beta, k)


@lru_cache(maxsize=CACHED)
def config_local_response_norm(shape: Shape, size: int) -> LaunchConfig:
    """y from x, (N, H, W, C); shape is (N, C, H, W), size the channels of a window."""
    return LaunchConfig((_launch("local_response_norm_forward", shape, size, ("y", "x")),))


@lru_cache(maxsize=CACHED)
def config_local_response_norm_backward(shape: Shape, size: int) -> LaunchConfig:
    """dx from dy and x, (N, H, W, C)."""
    name, C = "local_response_norm_backward", shape[1]
    launch = _launch(name, shape, size, ("dx", "dy", "x"))
    rows = THREADS // launch.scalars["lanes"]
    shared = rows * 2 * C * 4
    if shared > MAX_SHARED:
        raise NotImplementedError(
            f"{name}: two rows of {C} channels do not fit {MAX_SHARED} bytes of shared memory; "
            f"at most {MAX_SHARED // 8} channels do: use cpu"
        )
    return LaunchConfig((replace(launch, shared=shared),))


def _launch(kernel: str, shape: Shape, size: int, arrays: tuple[str, ...]) -> Launch:
    pixels, C = require_channels(kernel.removesuffix("_forward"), shape)
    vec = vector_width(C)
    grid, lanes = pixel_loop(pixels, C, vec)
    window = {"below": min(size // 2, C), "above": min((size - 1) // 2, C)}
    scalars = {"pixels": pixels, "lanes": lanes, "C": C, **window}
    sizes = dict.fromkeys(arrays, pixels * C)
    return Launch("lrn.cu", kernel, grid, THREADS, defines(VEC=vec), scalars, sizes)


@local_response_norm.launch
def local_response_norm_launch(runtime, x, size, alpha, beta, k, convention):
    numbers = {"a": scaled(alpha, size, convention), "beta": beta, "k": k}
    return runtime.image(config_local_response_norm(x.shape, size), "y", x.shape, numbers, x=x)


@local_response_norm_backward.launch
def local_response_norm_backward_launch(runtime, dy, x, size, alpha, beta, k, convention):
    a = scaled(alpha, size, convention)
    numbers = {"a": a, "beta": beta, "k": k, "slope": 2 * a * beta}
    launches = config_local_response_norm_backward(x.shape, size)
    return runtime.image(launches, "dx", x.shape, numbers, dy=dy, x=x)
