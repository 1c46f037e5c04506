"""Proved bounds: what an operation may return in float32, from its definition in float64.

Each entry of `EXPECTED` takes an operation's arguments, floats as float64, and gives its exact
results with a bound of each one's absolute error, for a computation in any order. A sum of n
products is off by at most gamma(n) times the sum of their absolute values (Higham 2002, chapter 3),
which is the operation itself on absolute values. A bound of 0 stands for a result that must be
equal. So nothing is measured, and nothing depends on a device.
"""

import math

import numpy as np

from gpuconv import ops
from gpuconv.ops.activation import ACTIVATIONS
from gpuconv.shapes import window

U32 = 2.0**-24
TINY = 1e-37  # results below float32's normal numbers
# exp and tanh are within 2 units in the last place of CUDA's, 4 of NumPy's; slope and amplitude
# round, too.
ACTIVATION = 16 * U32
LIPSCHITZ = {"tanh": 1.0, "scaled_tanh": 1.7159 * 2 / 3, "sigmoid": 0.25, "relu": 1.0}


def gamma(terms, unit=U32):
    """The relative error of a sum of `terms` products, in any order."""
    return terms * unit / (1 - terms * unit)


def activated(plain, bound, activation):
    """An activation of what is known within a bound."""
    if activation is None:
        return plain, bound
    y = ACTIVATIONS[activation][0].definition(plain)
    own = 0 if activation == "relu" else ACTIVATION * abs(y)
    return y, LIPSCHITZ[activation] * bound + own


def before_activation(dy, y, activation):
    """The gradient before an activation, and its bound."""
    if activation is None:
        return dy, 0 * dy
    dx = ACTIVATIONS[activation][1].definition(dy, y)
    if activation == "relu":
        return dx, 0 * dx
    amplitude, factor = {"tanh": (1, 1), "scaled_tanh": (1.7159, 2 / 3), "sigmoid": (1, abs(y))}[
        activation
    ]
    size = abs(y) if activation == "sigmoid" else y * y / amplitude
    return dx, gamma(8) * abs(dy) * factor * (amplitude + size)


def conv2d(x, w, b, stride, padding, dilation, groups, activation, precision="ieee"):
    geometry = stride, padding, dilation, groups
    plain = ops.conv2d.definition(x, w, b, *geometry)
    size = ops.conv2d.definition(abs(x), abs(w), None if b is None else abs(b), *geometry)
    return [activated(plain, gamma(w[0].size + 2) * size, activation)]


def conv2d_backward(
    dy,
    x,
    w,
    b,
    stride,
    padding,
    dilation,
    groups,
    activation,
    y,
    need_dx,
    rest,
    rectify,
    precision="ieee",
):
    passed, off = before_activation(dy, y, activation)
    geometry = stride, padding, dilation, groups
    (dx, bound), *weights = conv_gradients(passed, off, x, w, b, geometry, need_dx)
    if need_dx and rest is not None:
        dx = rounded32(dx) + rest
        bound = bound + 2 * U32 * (abs(dx) + abs(rest))
    return [(np.where(x <= 0, 0, dx) if need_dx and rectify else dx, bound), *weights]


def rounded32(a):
    """To float32, as what lies between two operations is, and back."""
    return a.astype(np.float32).astype(np.float64)


def conv_gradients(dy, off, x, w, b, geometry, need_dx, more=2):
    """Gradients for a dy that is known within `off`, itself after `more` roundings."""
    tail = *geometry, None, None, need_dx
    exact = ops.conv2d_backward.definition(dy, x, w, b, *tail)
    size, spread = (
        ops.conv2d_backward.definition(each, abs(x), abs(w), b, *tail) for each in (abs(dy), off)
    )
    terms = w[:, 0].size, dy[:, 0].size, dy[:, 0].size
    return pairs(exact, [
        None if s is None else gamma(n + more) * s + (1 + gamma(n + more)) * o
        for s, o, n in zip(size, spread, terms, strict=True)
    ])  # fmt: skip


def pairs(exact, bounds):
    return list(zip(exact, bounds, strict=True))


def conv2d_relu_max_pool2d(x, w, b, stride, padding, dilation, groups, pool, c_order):
    """A maximum is off by no more than what it is taken of; `chosen` judges argmax."""
    ((plain, bound),) = conv2d(x, w, b, stride, padding, dilation, groups, "relu")
    y, argmax = ops.max_pool2d.definition(plain, *pool)
    bounds = ops.max_pool2d.definition(bound, *pool)[0]

    def right(found):
        return (y - chosen(plain, found, pool) <= 2 * bounds).all()

    return [(y, bounds), (argmax, right)]


def chosen(x, argmax, pool):
    """The values at the taps of argmax."""
    geometry = window(*pool) if len(pool) > 1 else window(*pool, None)
    P, Q = geometry.output_size(*x.shape[2:])
    (top, left), (down, right) = (
        [before for before, _ in geometry.pads(*x.shape[2:])], geometry.stride)  # fmt: skip
    N, C, p, q = np.indices((*x.shape[:2], P, Q))
    r, s = np.divmod(argmax.astype(np.int64), geometry.kernel_size[1])
    rows = p * down - top + r * geometry.dilation[0]
    columns = q * right - left + s * geometry.dilation[1]
    return x[N, C, rows, columns]


def conv2d_relu_max_pool2d_backward(
    dy, y, argmax, x, w, b, stride, padding, dilation, groups, pool, need_dx
):
    size = window(w.shape[2:], stride, padding, dilation).output_size(*x.shape[2:])
    passed = np.where(y <= 0, 0, dy)
    spread = ops.max_pool2d_backward.definition(passed, argmax, (len(x), len(w), *size), *pool)
    at_once = ops.max_pool2d_backward.definition(
        abs(passed), argmax, (len(x), len(w), *size), *pool
    )
    off = gamma(taps(*pool)) * at_once
    geometry = stride, padding, dilation, groups
    return conv_gradients(spread, off, x, w, b, geometry, need_dx)


def taps(kernel_size, *_):
    return kernel_size**2 if isinstance(kernel_size, int) else math.prod(kernel_size)


def linear(x, w, b, activation, precision="ieee"):
    plain = ops.linear.definition(x, w, b)
    size = ops.linear.definition(abs(x), abs(w), None if b is None else abs(b))
    return [activated(plain, gamma(x.shape[1] + 2) * size, activation)]


def linear_chain(x, layers):
    """Layer by layer; the next goes on from the rounded result."""
    found, off = [], 0 * x
    for w, b, activation in layers:
        ((y, bound),) = linear(x, w, b, activation)
        # the layer before may be off by its bound, and was rounded here
        before = ops.linear.definition(off, abs(w))
        found.append((y, bound * (1 + gamma(x.shape[1] + 2)) + 2 * before))
        x, off = y.astype(np.float32).astype(np.float64), found[-1][1] + U32 * abs(y)
    return found


def linear_backward(dy, x, w, b, activation, y, need_dx, precision="ieee"):
    passed, off = before_activation(dy, y, activation)
    tail = b, None, None, need_dx
    exact = ops.linear_backward.definition(passed, x, w, *tail)
    size, spread = (
        ops.linear_backward.definition(each, abs(x), abs(w), *tail) for each in (abs(passed), off)
    )
    terms = len(w), len(x), len(x)
    return pairs(exact, [
        None if s is None else gamma(n + 2) * s + (1 + gamma(n + 2)) * o
        for s, o, n in zip(size, spread, terms, strict=True)
    ])  # fmt: skip


def batch_norm2d(x, w, b, mean, var, eps, activation, other=None):
    """y from the statistics as they are returned, and the statistics themselves."""
    dm, dv = (0 * mean, 0 * var) if mean is not None else statistics(x)
    if mean is None:
        mean, var = map(rounded32, ops.batch_norm2d.definition(x, eps=1.0)[1:])
    y, mean_of, var_of = ops.batch_norm2d.definition(x, w, b, mean, var, eps)
    lower = 1 / np.sqrt(np.maximum(var_of - dv, 0) + eps)
    scale = 1 / np.sqrt(var_of + eps)
    spread = np.maximum(lower - scale, scale - 1 / np.sqrt(var_of + dv + eps))
    over = [np.asarray(a)[..., None, None] for a in (mean_of, scale, dm, spread)]
    w, b = (1 if w is None else abs(w[:, None, None])), (0 if b is None else abs(b[:, None, None]))
    away = abs(x - over[0])
    size = w * (away + over[2]) * (over[1] + over[3])
    bound = size - w * away * over[1] + gamma(8) * (size + w * over[1] * abs(over[0]) + b) + TINY
    if other is not None:
        y = rounded32(y) + other
        bound = bound + 2 * U32 * (abs(y) + abs(other))
    return [(np.maximum(y, 0) if activation else y, bound), (mean_of, dm), (var_of, dv)]


def statistics(x):
    """Bounds of a channel's mean and variance, by merging the statistics of parts in any order.

    Let t = x less one of its values, |t| <= a, and n values, so at most n merges in a row. To take
    t from one such value to another rounds twice. A merge forms m + (m' - m) n' / n: its roundings
    are at most 10 u a. So every mean is within e = (10 + 10 n) u a. n var is the squared length of
    a vector with an entry x - m for each value and sqrt(w) (m' - m) for each merge, w =
    n' n'' / (n' + n'') <= min(n', n''). The first are off by 9 u a, the others by
    sqrt(w) (2 e + 2 u a); all w add up to at most n log2(n) / 2, in any order. So its length is off
    by sqrt(n) E, E = 9 u a + sqrt(log2(n) / 2) (2 e + 2 u a), and its square by the sums' own gamma
    besides.
    """
    pixels = x.swapaxes(0, 1).reshape(x.shape[1], -1)
    n = pixels.shape[1]
    a = pixels.max(1) - pixels.min(1)
    e = (10 + 10 * n) * U32 * a
    E = 9 * U32 * a + math.sqrt(math.log2(n) / 2) * (2 * e + 2 * U32 * a)
    deviation = pixels.std(1)
    var = gamma(10 + 6 * n) * (deviation + E) ** 2 + 2 * deviation * E + E**2
    return e + 2 * U32 * abs(pixels.mean(1)) + TINY, var + U32 * deviation**2 + TINY


def batch_norm2d_statistics(x, running_mean, running_var, momentum, off=0.0):
    """off: what each value of x may be away from the one given."""
    mean, var = map(rounded32, ops.batch_norm2d.definition(x, eps=1.0)[1:])
    dm, dv = statistics(x)
    dm = dm + off
    dv = dv + 4 * off * np.sqrt(var) + 4 * off**2
    found = [(mean, dm), (var, dv)]
    if running_mean is None:
        return [*found, (None, None), (None, None)]
    count = x.size // x.shape[1]
    tracked = batch_norm2d_track(running_mean, running_var, mean, var, count, momentum)
    moved = (momentum * dm, momentum * dv * count / (count - 1))
    return [
        *found,
        *((exact, own + more) for (exact, own), more in zip(tracked, moved, strict=True)),
    ]


def conv2d_statistics(x, w, b, stride, padding, dilation, groups, *options):
    *running, _ = options  # the last is the precision
    ((y, bound),) = conv2d(x, w, b, stride, padding, dilation, groups, None)
    return [(y, bound), *batch_norm2d_statistics(rounded32(y), *running, off=bound.max() + TINY)]


def batch_norm2d_backward(dy, x, w, b, mean, var, eps, activation, of_batch, need_dx):
    """Sums of n terms, then at most 20 roundings of each part of dx. On the very edge of the ReLU
    either side is right: what passes there may be missing everywhere.
    """
    exact = ops.batch_norm2d_backward.definition(
        dy, x, w, b, mean, var, eps, activation, of_batch, need_dx
    )
    n, C = x.size // x.shape[1], x.shape[1]
    deviation = np.sqrt(var + eps)[:, None, None]
    z = abs((x - mean[:, None, None]) / deviation)
    scale = (1 if w is None else abs(w[:, None, None])) / deviation
    passed, unsure = abs(dy), np.zeros(dy.shape)
    if activation is not None:
        ((y, bound), *_) = batch_norm2d(x, w, b, mean, var, eps, None)
        passed = np.where(y > -bound, passed, 0)
        unsure = np.where(abs(y) <= bound, passed, 0)
    near = 1 + abs(mean[:, None, None]) / deviation + z  # z of a rounded mean
    off = [unsure, unsure * z]
    size = [passed, passed * near]
    db, dw = (
        gamma(n + 8) * s.sum((0, 2, 3)) + o.sum((0, 2, 3)) for s, o in zip(size, off, strict=True)
    )
    dx = None
    if need_dx:
        whole, missing = passed, unsure
        if of_batch:
            sums = [s.sum((0, 2, 3)).reshape(C, 1, 1) / n for s in (*size, *off)]
            whole = whole + sums[0] + near * sums[1]
            missing = missing + sums[2] + z * sums[3]
        dx = scale * (gamma(n + 20) * whole + missing)
    return pairs(exact, [dx, None if w is None else dw, None if b is None else db])


def batch_norm2d_relu_max_pool2d(x, w, b, mean, var, eps, pool):
    ((plain, bound), *_) = batch_norm2d(x, w, b, mean, var, eps, "relu")
    plain = rounded32(plain)
    y, argmax = ops.max_pool2d.definition(plain, *pool)
    bounds = ops.max_pool2d.definition(bound + U32 * abs(plain), *pool)[0]

    def right(found):
        return (y - chosen(plain, found, pool) <= 2 * bounds).all()

    return [(y, bounds), (argmax, right)]


def batch_norm2d_relu_max_pool2d_backward(
    dy, argmax, x, w, b, mean, var, eps, pool, of_batch, need_dx
):
    """The sums of the pool's gradient round too: what they are off goes through the other's."""
    spread, size = (
        ops.max_pool2d_backward.definition(each, argmax, x.shape, *pool) for each in (dy, abs(dy))
    )
    given = (x, w, b, mean, var, eps, "relu", of_batch, need_dx)
    found = batch_norm2d_backward(rounded32(spread), *given)
    more = batch_norm2d_backward(size, *given)
    share = gamma(taps(*pool)) / gamma(x.size // x.shape[1] + 8)  # `more` is of n + 8 roundings
    return [
        (exact, None if exact is None else bound + share * other)
        for (exact, bound), (_, other) in zip(found, more, strict=True)
    ]


def batch_norm2d_track(running_mean, running_var, mean, var, count, momentum):
    bounds = [
        gamma(6) * ((1 - momentum) * abs(running) + momentum * abs(new) * count / (count - 1))
        for running, new in ((running_mean, mean), (running_var, var))
    ]
    exact = [running_mean.copy(), running_var.copy()]
    return pairs(ops.batch_norm2d_track.definition(*exact, mean, var, count, momentum), bounds)


def local_response_norm(x, size, alpha, beta, k, convention):
    """beta times the relative error of a sum of positive terms, and the power's own."""
    y = ops.local_response_norm.definition(x, size, alpha, beta, k, convention)
    return [(y, ((min(size, x.shape[1]) + 4) * beta + 16) * U32 * abs(y))]


def local_response_norm_backward(dy, x, size, alpha, beta, k, convention):
    exact = ops.local_response_norm_backward.definition(dy, x, size, alpha, beta, k, convention)
    factor = 2 * (min(size, x.shape[1]) + 4) * (beta + 1) + 32
    return [(exact, factor * U32 * response_terms(dy, x, size, alpha, beta, k, convention))]


def response_terms(dy, x, size, alpha, beta, k, convention):
    """The sum of the absolute values of dx's terms: the direct one and its neighbours'."""
    a = alpha / size if convention == "torch" else alpha
    C, low, high = x.shape[1], size // 2, (size - 1) // 2
    d = np.empty_like(x)
    for c in range(C):
        d[:, c] = k + a * np.square(x[:, max(0, c - low) : c + high + 1]).sum(1)
    terms = np.abs(dy * x) * d ** (-beta - 1)
    total = np.abs(dy) * d**-beta
    for c in range(C):
        around = terms[:, max(0, c - high) : c + low + 1].sum(1)
        total[:, c] += 2 * a * beta * np.abs(x[:, c]) * around
    return total


def sum_of_products(op, terms):
    """For an operation that adds up elements of its first argument, each times a number."""

    def expected(x, *rest):
        return [(op.definition(x, *rest), gamma(terms(x, *rest)) * op.definition(abs(x), *rest))]

    return expected


def equal(op):
    """For an operation that copies or selects."""

    def expected(*arguments):
        found = op.definition(*arguments)
        return [(a, 0) for a in (found if isinstance(found, tuple) else (found,))]

    return expected


def rounded(op, times=1):
    """For an operation that computes each element by a few roundings, none of which cancels."""

    def expected(*arguments):
        exact = op.definition(*(a.copy() if isinstance(a, np.ndarray) else a for a in arguments))
        return [(exact, gamma(times) * abs(exact))]

    return expected


def from_output(name):
    return lambda dy, y: [before_activation(dy, y, name)]


def function(name):
    return lambda x: [activated(x, 0 * x, name)]


EXPECTED = {
    "conv2d": conv2d,
    "conv2d_backward": conv2d_backward,
    "conv2d_relu_max_pool2d": conv2d_relu_max_pool2d,
    "conv2d_relu_max_pool2d_backward": conv2d_relu_max_pool2d_backward,
    "linear": linear,
    "linear_chain": linear_chain,
    "linear_backward": linear_backward,
    "batch_norm2d": batch_norm2d,
    "batch_norm2d_backward": batch_norm2d_backward,
    "batch_norm2d_track": batch_norm2d_track,
    "batch_norm2d_statistics": batch_norm2d_statistics,
    "conv2d_statistics": conv2d_statistics,
    "batch_norm2d_relu_max_pool2d": batch_norm2d_relu_max_pool2d,
    "batch_norm2d_relu_max_pool2d_backward": batch_norm2d_relu_max_pool2d_backward,
    "local_response_norm": local_response_norm,
    "local_response_norm_backward": local_response_norm_backward,
    "max_pool2d": equal(ops.max_pool2d),
    "max_pool2d_backward": lambda dy, argmax, shape, *pool: [
        (
            ops.max_pool2d_backward.definition(dy, argmax, shape, *pool),
            gamma(taps(*pool)) * ops.max_pool2d_backward.definition(abs(dy), argmax, shape, *pool),
        )
    ],
    "sum_pool2d": sum_of_products(ops.sum_pool2d, lambda x, *pool: taps(*pool)),
    "avg_pool2d": sum_of_products(ops.avg_pool2d, lambda x, *pool: taps(*pool) + 2),
    "adaptive_avg_pool2d": sum_of_products(
        ops.adaptive_avg_pool2d, lambda x, size: x[0, 0].size + 1
    ),
    "sum_pool2d_backward": sum_of_products(
        ops.sum_pool2d_backward, lambda dy, shape, *pool: taps(*pool)
    ),
    "avg_pool2d_backward": sum_of_products(
        ops.avg_pool2d_backward, lambda dy, shape, *pool: taps(*pool) + 2
    ),
    "adaptive_avg_pool2d_backward": sum_of_products(
        ops.adaptive_avg_pool2d_backward, lambda dy, shape: dy[0, 0].size + 1
    ),
    "add": rounded(ops.add),
    "accumulate": rounded(ops.accumulate),
    "assign": equal(ops.assign),
    "multiply": rounded(ops.multiply),
    "scale": rounded(ops.scale, 2),
    "dropout": rounded(ops.dropout, 2),
} | {name: function(name) for name in ACTIVATIONS}
EXPECTED |= {f"{name}_backward": from_output(name) for name in ACTIVATIONS}


def assert_within(found, exact, bound, where=""):
    """Each element within its bound; a NaN is not."""
    if exact is None:
        assert found is None, where
        return
    if callable(bound):
        assert bound(found), where
        return
    assert found.shape == exact.shape, where
    if np.isscalar(bound) and bound == 0:
        np.testing.assert_array_equal(found, exact, err_msg=str(where))
        return
    error, limit = np.abs(found - exact), bound + TINY
    assert (error <= limit).all(), (where, float(np.max(error / limit)))
