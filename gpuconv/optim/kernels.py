"""The optimisers' loops: one pass over a tensor reads and writes each array once.

All arrays are flat and of one float type; scalars come in that type, so that float32 stays float32.
Each element's result depends on that element alone, so cutting a tensor into shards changes no bit.
"""

from __future__ import annotations

import numpy as np

from gpuconv.cpu.compiled import compiled, inner

GRAIN = (
    1 << 17
)  # with fewer elements (about 0.1 ms of work) a second thread costs more than it saves


@compiled
def sgd(p, g, lr, decay):
    """p -= lr * (g + decay * p)."""
    for i in range(p.size):
        p[i] -= lr * (g[i] + decay * p[i])


@compiled
def sgd_momentum(p, g, buffer, lr, decay, momentum, nesterov, share):
    """buffer = momentum * buffer + share * d; p -= lr * buffer, with d = g + decay * p; with
    nesterov p -= lr * (d + momentum * buffer): the gradient one step ahead.
    """
    for i in range(p.size):
        d = g[i] + decay * p[i]
        v = momentum * buffer[i] + share * d
        buffer[i] = v
        if nesterov:
            v = d + momentum * v
        p[i] -= lr * v


@inner
def _moments(p, g, m, v, limit, decay, share1, beta2, share2):
    """m and v of one element after they took its gradient in.

    A finite gradient whose square would overflow enters as the limit: v would be infinite, and the
    parameter would never move again. As Adam divides by the gradients' size, the step is the same.
    """
    d = g + decay * p
    if abs(d) > limit and np.isfinite(d):
        d = np.copysign(limit, d)
    return m + (d - m) * share1, beta2 * v + share2 * (d * d)


@compiled
def adam(p, g, m, v, keep, decay, share1, beta2, share2, eps, step_size, root):
    """p = keep * p - step_size * m / (sqrt(v) / root + eps), after m and v took the gradient in."""
    limit = p.dtype.type(1.8e19 if p.itemsize == 4 else 1.3e154)
    for i in range(p.size):
        m[i], v[i] = _moments(p[i], g[i], m[i], v[i], limit, decay, share1, beta2, share2)
        p[i] = keep * p[i] - step_size * (m[i] / (np.sqrt(v[i]) / root + eps))


@compiled
def adam_amsgrad(p, g, m, v, largest, keep, decay, share1, beta2, share2, eps, step_size, root):
    """As `adam`, with the largest v so far in place of v in p's update."""
    limit = p.dtype.type(1.8e19 if p.itemsize == 4 else 1.3e154)
    for i in range(p.size):
        m[i], v[i] = _moments(p[i], g[i], m[i], v[i], limit, decay, share1, beta2, share2)
        if not v[i] <= largest[i]:  # NaN passes
            largest[i] = v[i]
        p[i] = keep * p[i] - step_size * (m[i] / (np.sqrt(largest[i]) / root + eps))


KERNELS = {"sgd": sgd, "sgd_momentum": sgd_momentum, "adam": adam, "adam_amsgrad": adam_amsgrad}


# "reassoc" lets the sum run in vector lanes; the compiled order is fixed, so results repeat.
@compiled(fastmath={"reassoc"})
def sum_of_squares(g):
    """Sum of g * g in float64, whatever g's type: float32 squares overflow at 1.8e19."""
    total = 0.0
    for i in range(g.size):
        value = np.float64(g[i])
        total += value * value
    return total
