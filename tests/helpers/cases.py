"""Random geometries for the operations' sweeps: small, awkward, and the same on every run."""

import numpy as np


def pair(rng, low, high):
    return int(rng.integers(low, high + 1)), int(rng.integers(low, high + 1))


def conv_case(seed):
    """Arguments of one convolution, with strides other than the window, groups, dilation, odd
    sizes.
    """
    rng = np.random.default_rng([11, seed])
    groups = int(rng.choice([1, 1, 2, 3]))
    cg, kg = int(rng.integers(1, 5)), int(rng.integers(1, 5))
    kernel = pair(rng, 1, 4)
    dilation = pair(rng, 1, 2)
    pads = (pair(rng, 0, 2), pair(rng, 0, 2))
    least = [max(1, dilation[a] * (kernel[a] - 1) + 1 - sum(pads[a])) for a in (0, 1)]
    size = [int(rng.integers(least[a], least[a] + 7)) for a in (0, 1)]
    n = int(rng.choice([1, 2, 3]))
    x = rng.standard_normal((n, groups * cg, *size))
    w = rng.standard_normal((groups * kg, cg, *kernel))
    b = rng.standard_normal(groups * kg) if rng.random() < 0.7 else None
    return x, w, b, pair(rng, 1, 3), pads, dilation, groups


def pool_case(seed):
    """Arguments of one pooling: overlap, gaps, padding, dilation, ceil_mode, ties."""
    rng = np.random.default_rng([12, seed])
    kernel, dilation = pair(rng, 1, 4), pair(rng, 1, 2)
    extent = [dilation[a] * (kernel[a] - 1) + 1 for a in (0, 1)]
    pads = tuple(
        (int(rng.integers(0, extent[a] // 2 + 1)), int(rng.integers(0, extent[a] // 2 + 1)))
        for a in (0, 1)
    )
    least = [max(1, extent[a] - sum(pads[a])) for a in (0, 1)]
    size = [int(rng.integers(least[a], least[a] + 8)) for a in (0, 1)]
    x = rng.standard_normal((int(rng.choice([1, 2, 3])), int(rng.integers(1, 4)), *size))
    if rng.random() < 0.5:
        x = np.round(x)  # ties
    return x, kernel, pair(rng, 1, 4), pads, dilation, bool(rng.random() < 0.5)


def disguises(a):
    """The same values in layouts that fast code may get wrong: reversed, strided, transposed,
    read-only.
    """
    wide = np.empty((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
    wide[...] = np.nan
    wide[..., ::2] = a
    read_only = a.copy()
    read_only.flags.writeable = False
    return {
        "reversed": a[..., ::-1].copy()[..., ::-1],
        "strided": wide[..., ::2],
        "fortran": np.asfortranarray(a),
        "read-only": read_only,
    }
