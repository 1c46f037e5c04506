"""Dropout, with a mask that every device computes alike.

Source: Srivastava et al. 2014; SplitMix64 (Steele et al. 2014).
"""

from __future__ import annotations

import numpy as np

from gpuconv.arguments import number, whole
from gpuconv.cpu import elementwise as fast
from gpuconv.cuda.launch_config import config_elementwise
from gpuconv.ops.op import Array, elementwise, op
from gpuconv.threads import parallel, shards

GOLDEN = 0x9E3779B97F4A7C15  # SplitMix64's step


@op
def dropout(x: Array, p: float, seed: int) -> Array:
    """y = x / (1 - p) where an element is kept, 0 where it is dropped, each with probability p.

    x: floats of any shape. p: in [0, 1], all 0 for 1. seed: an int. Element i, in C order, is kept
    if the upper 32 bits of SplitMix64's number i for that seed are at least p * 2**32: the same
    mask on every device and in the backward pass, which is dropout(dy, p, seed) itself.
    """
    i = np.arange(1, x.size + 1, dtype=np.uint64)
    z = np.uint64(seed) + i * np.uint64(GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    keep = (z >> np.uint64(32)) >= np.uint64(_threshold(p))
    return np.where(keep.reshape(x.shape), x * x.dtype.type(_factor(p)), np.zeros((), x.dtype))


def mask_from(seed: int, element: int) -> int:
    """The seed of the mask that begins with this element of another seed's mask."""
    return (seed + element * GOLDEN) % 2**64


def _threshold(p: float) -> int:
    return round(p * 2**32)


def _factor(p: float) -> float:
    return 0.0 if p == 1 else 1 / (1 - p)


@dropout.check
def dropout_check(x, p, seed):
    number("p", p, 0, 1)
    whole("seed", seed, 0, 2**64 - 1)


elementwise(dropout)


@dropout.cpu
def dropout_cpu(x, p, seed):
    flat, y = fast.contiguous(x).reshape(-1), np.empty(x.shape, x.dtype)
    out, scale = y.reshape(-1), x.dtype.type(_factor(p))
    parallel(
        lambda b, e: fast.dropout(
            flat[b:e], out[b:e], b, np.uint64(seed), np.uint64(_threshold(p)), scale
        ),
        shards(x.size, fast.GRAIN),
    )
    return y


@dropout.launch
def dropout_launch(runtime, x, p, seed):
    y = runtime.empty(x.shape)  # the mask counts in C order
    numbers = {"seed": seed, "threshold": _threshold(p), "factor": _factor(p)}
    config = config_elementwise("elementwise.cu", "dropout", int(x.size))
    step = runtime.nought(np.uint64)
    runtime.run(config, numbers, y=y, x=runtime.contiguous(x), step=step)
    return y
