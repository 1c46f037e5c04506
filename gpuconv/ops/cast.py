"""Arrays of 16 bits on a device, from floats and back: kernels/cast.cu.

Source: Micikevicius et al. 2018, "Mixed precision training".
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuconv.arrays import device_of
from gpuconv.cuda import runtime as runtimes
from gpuconv.precision import STORAGE

Array = Any  # of CuPy or the simulator


def cast(x: Array, precision: str, factor: Array = None) -> Array:
    """x * factor, stored in 16 bits: float16, or for "bf16" uint16.

    x: float32 of any shape, on sim or cuda; its layout in memory stays. factor: None for 1, or one
    float32 on the same device, which is read when the kernel runs. Each is rounded to the nearest,
    of two to the even one; what is too large becomes infinite.
    """
    on = _runtime(x)
    with on.inside(x):
        if factor is None:
            return _each(on, "narrow", x, STORAGE[precision])
        return _each(on, "narrow_scaled", x, STORAGE[precision], factor=factor)


def uncast(x: Array) -> Array:
    """The float32 numbers that a device's array of 16 bits stands for, exactly."""
    on = _runtime(x)
    with on.inside(x):
        return _each(on, "widen", x, np.float32)


def _runtime(x: Array) -> Any:
    return runtimes.runtime(device_of(x) or "cpu")


def _each(on: Any, kernel: str, x: Array, dtype: Any, **more: Array) -> Array:
    if not x.size:
        return on.empty(x.shape, dtype)
    return on.each("cast.cu", kernel, "y", dtype=dtype, more=more, x=x)
