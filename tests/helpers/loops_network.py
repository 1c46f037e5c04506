"""Small networks by definition: every linear layer is a matrix, filled in by loops from its weights
and geometry, and going backward is that matrix transposed.

Nothing here calls the package's operations or backward passes; its layers are only read.
"""

import loops
import numpy as np


def run(layer, x, rule="gradient", seen=None):
    """One image x (C, H, W) or vector through a layer or container, in evaluation.

    rule: what a ReLU makes of the signal g that comes back: "gradient" g where x > 0, "guided"
    that where g > 0, "deconvnet" g where g > 0. seen: a dict that gets every layer's output, by id.
    Returns (y, back), back(g) being the signal at x for g at y.
    """
    kind = type(layer).__name__
    if kind in CONTAINERS:
        y, back = CONTAINERS[kind](layer, x, rule, seen)
    elif kind == "ReLU":
        y, passes = np.where(x > 0, x, 0.0), x > 0

        def back(g):
            open_up, open_down = rule != "deconvnet", rule != "gradient"
            return g * np.where(open_up, passes, True) * np.where(open_down, g > 0, True)
    else:
        matrix, offset, shape = SIMPLE[kind](layer, x)
        y = (matrix @ x.ravel() + np.ravel(offset)).reshape(shape)

        def back(g):
            return (matrix.T @ g.ravel()).reshape(x.shape)

    if seen is not None:
        seen[id(layer)] = y
    return y, back


def places(layer, x):
    """Where each window begins, as loops find it: rows and columns."""
    window = layer.window
    ceil = getattr(layer, "ceil_mode", False)
    size, pads = x.shape[1:], window.pads(*x.shape[1:])
    return loops.geometry(size, window.kernel_size, window.stride, pads, window.dilation, ceil)


def windows(layer, x):
    """(p, q, r, s, h, v): for each output's place the taps that are inside, and what they read."""
    (R, S), (dil_h, dil_w) = layer.window.kernel_size, layer.window.dilation
    rows, columns = places(layer, x)
    for p, top in enumerate(rows):
        for q, left in enumerate(columns):
            for r, s in np.ndindex(R, S):
                h, v = top + r * dil_h, left + s * dil_w
                if 0 <= h < x.shape[1] and 0 <= v < x.shape[2]:
                    yield p, q, r, s, h, v


def conv(layer, x):
    w = layer.weight.data
    rows, columns = places(layer, x)
    shape = (len(w), len(rows), len(columns))
    matrix = np.zeros((*shape, *x.shape))
    for p, q, r, s, h, v in windows(layer, x):
        for k in range(len(w)):
            for c in range(w.shape[1]):
                group = k // (len(w) // layer.groups)
                matrix[k, p, q, group * w.shape[1] + c, h, v] = w[k, c, r, s]
    b = np.zeros(len(w)) if layer.bias is None else layer.bias.data
    return matrix.reshape(-1, x.size), np.repeat(b, len(rows) * len(columns)), shape


def max_pool(layer, x):
    rows, columns = places(layer, x)
    shape = (len(x), len(rows), len(columns))
    best = {}
    for p, q, _, _, h, v in windows(layer, x):
        for c in range(len(x)):
            known = best.get((c, p, q))
            if known is None or x[c, h, v] > x[known]:
                best[c, p, q] = (c, h, v)
    matrix = np.zeros((*shape, *x.shape))
    for output, pixel in best.items():
        matrix[(*output, *pixel)] = 1
    return matrix.reshape(-1, x.size), 0, shape


def batch_norm(layer, x):
    deviation = np.sqrt(layer.running_var.data + layer.eps)
    scale = layer.weight.data / deviation
    offset = layer.bias.data - scale * layer.running_mean.data
    size = x[0].size
    return np.diag(np.repeat(scale, size)), np.repeat(offset, size), x.shape


def global_average(layer, x):
    assert layer.size == (1, 1)
    matrix = np.zeros((len(x), *x.shape))
    for c in range(len(x)):
        matrix[c, c] = 1 / x[c].size
    return matrix.reshape(len(x), -1), 0, (len(x), 1, 1)


def sequential(layer, x, rule, seen):
    backs = []
    for child in layer:
        x, back = run(child, x, rule, seen)
        backs.append(back)

    def backward(g):
        for back in reversed(backs):
            g = back(g)
        return g

    return x, backward


def residual(layer, x, rule, seen):
    body, back = run(layer.body, x, rule, seen)
    return body + x, lambda g: back(g) + g


def block(layer, x, rule, seen):
    """`explained.Block`."""
    body, back = sequential((layer.conv1, layer.bn1), x, rule, seen)
    around, back_around = run(layer.down, x, rule, seen)
    y, back_relu = run(layer.relu, body + around, rule, seen)

    def backward(g):
        g = back_relu(g)
        return back(g) + back_around(g)

    return y, backward


def concat(layer, x, rule, seen):
    parts = [run(branch, x, rule, seen) for branch in layer]
    edges = np.cumsum([0, *(len(y) for y, _ in parts)])

    def backward(g):
        return sum(b(g[i:j]) for (_, b), i, j in zip(parts, edges, edges[1:], strict=False))

    return np.concatenate([y for y, _ in parts]), backward


def dense_block(layer, x, rule, seen):
    y, backs = x, []
    for child in layer:
        more, back = run(child, y, rule, seen)
        backs.append((len(y), back))
        y = np.concatenate([y, more])

    def backward(g):
        for channels, back in reversed(backs):
            g = g[:channels] + back(g[channels:])
        return g

    return y, backward


def identity(layer, x):
    return np.eye(x.size), 0, x.shape


CONTAINERS = {
    "Sequential": sequential,
    "Residual": residual,
    "Block": block,
    "Concat": concat,
    "DenseBlock": dense_block,
}
SIMPLE = {
    "Conv2d": conv,
    "MaxPool2d": max_pool,
    "BatchNorm2d": batch_norm,
    "AdaptiveAvgPool2d": global_average,
    "Linear": lambda layer, x: (layer.weight.data, layer.bias.data, layer.bias.data.shape),
    "Flatten": lambda layer, x: (np.eye(x.size), 0, (x.size,)),
    "Dropout": identity,
}
