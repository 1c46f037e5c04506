"""Local response normalisation across neighbouring channels.

Source: Krizhevsky et al. 2012, section 3.3; torch.nn.functional.local_response_norm; ONNX LRN.
"""

from __future__ import annotations

import numpy as np

from gpuconv.arguments import number, whole
from gpuconv.cpu import response_norm as fast
from gpuconv.ops import local_response_norm_launch as config
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


@local_response_norm.launch
def local_response_norm_launch(runtime, x, size, alpha, beta, k, convention):
    numbers = {"a": scaled(alpha, size, convention), "beta": beta, "k": k}
    return runtime.image(config.config_forward(x.shape, size), "y", x.shape, numbers, x=x)


@local_response_norm_backward.launch
def local_response_norm_backward_launch(runtime, dy, x, size, alpha, beta, k, convention):
    a = scaled(alpha, size, convention)
    numbers = {"a": a, "beta": beta, "k": k, "slope": 2 * a * beta}
    launches = config.config_backward(x.shape, size)
    return runtime.image(launches, "dx", x.shape, numbers, dy=dy, x=x)
