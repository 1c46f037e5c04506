"""Precisions of training, and numbers of 16 bits.

ieee: float32 throughout. tf32: convolutions and linear layers multiply with 10 bits of mantissa, on
tensor cores; tf32-conv: convolutions alone, as PyTorch's default. bf16, fp16: activations and their
gradients are stored in 16 bits; sums, weights, statistics and losses stay float32.

On a device an array of float16 holds fp16, one of uint16 the bits of bf16: float32's upper half,
for which NumPy and CuPy have no type.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuconv.errors import require_known

PRECISIONS = ("ieee", "tf32", "tf32-conv", "bf16", "fp16")
STORAGE = {"bf16": np.dtype(np.uint16), "fp16": np.dtype(np.float16)}
NAMES = {dtype: name for name, dtype in STORAGE.items()}
C_TYPES = {STORAGE["bf16"]: "brain16", STORAGE["fp16"]: "half16"}  # kernels/common.cuh


def require_precision(what: str, name: Any, device: str) -> str:
    """The precision's name. ValueError for an unknown one, and for one that a device lacks."""
    require_known("precision", name, PRECISIONS)
    if device == "cpu" and name != "ieee":
        raise ValueError(
            f"{what} {name}: the device cpu has ieee alone (float32 throughout); use cuda, sim or "
            "reference"
        )
    return str(name)


def is_stored(array: Any) -> bool:
    """Whether a device's array holds numbers of 16 bits."""
    return not isinstance(array, np.ndarray) and getattr(array, "dtype", None) in NAMES


def rounded(a: np.ndarray, precision: str) -> np.ndarray:
    """Floats as this precision's operands have them, still float32: the nearest number, of two the
    even one (in tf32 the larger one, as hardware rounds); what is too large becomes infinite. An
    array without values is passed on.

    >>> rounded(np.float32([1 + 2**-9, 1 + 2**-7]), "bf16")
    array([1.       , 1.0078125], dtype=float32)
    """
    if not isinstance(a, np.ndarray | np.generic):
        return a
    if precision == "fp16":
        with np.errstate(over="ignore"):
            return a.astype(np.float16).astype(np.float32)
    bits = np.asarray(a, np.float32).view(np.uint32)
    if precision == "bf16":
        odd = bits >> np.uint32(16) & np.uint32(1)
        nearest = (bits + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000)
    else:
        nearest = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isnan(a), np.float32(np.nan), nearest.view(np.float32))


def stored(a: np.ndarray, precision: str) -> np.ndarray:
    """Floats as a device stores them in 16 bits."""
    if precision == "fp16":
        with np.errstate(over="ignore"):
            return a.astype(np.float16)
    return (rounded(a, precision).view(np.uint32) >> 16).astype(np.uint16)


def as_floats(a: np.ndarray) -> np.ndarray:
    """The float32 numbers that stored ones stand for; any other array as it is."""
    if a.dtype == STORAGE["bf16"]:
        return (a.astype(np.uint32) << 16).view(np.float32)
    return a.astype(np.float32) if a.dtype == STORAGE["fp16"] else a
