"""Switches between speed and precision: sums in float64; no Winograd convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

_float64_sums = ContextVar("float64 sums", default=False)
_no_winograd = ContextVar("no Winograd", default=False)


@contextmanager
def float64_sums() -> Iterator[None]:
    """Within it convolutions and linear layers of float32 arrays on `cpu` sum their products in
    float64 and round the sum, not each step of it.

    For comparisons, at several times the time and memory: where a value lies beside a ReLU's edge
    or two compete in a pool, the order of a float32 sum decides which way a gradient goes.
    It holds for the calling thread; other devices and float64 arrays are as they were.

    >>> with float64_sums():
    ...     sums_in_float64(np.dtype(np.float32))
    True
    """
    token = _float64_sums.set(True)
    try:
        yield
    finally:
        _float64_sums.reset(token)


def sums_in_float64(dtype: np.dtype) -> bool:
    """Whether products of such values are now to be summed in a wider type than their own."""
    return dtype == np.float32 and _float64_sums.get()


@contextmanager
def no_winograd() -> Iterator[None]:
    """Within it 3x3 convolutions on `cpu` are computed directly, never by Winograd's algorithm.

    Winograd's algorithm multiplies less often but rounds more: its outputs' root-mean-square error
    is 11 to 18 times the direct algorithm's at 64 to 256 channels (docs/benchmarks.md). Only 3x3
    convolutions of float32 arrays at stride 1 use it.
    The switch holds for the calling thread while the convolution or its gradient is computed: a
    backward pass outside the block uses Winograd's algorithm again.

    >>> with no_winograd():
    ...     winograd_allowed()
    False
    """
    token = _no_winograd.set(True)
    try:
        yield
    finally:
        _no_winograd.reset(token)


def modes() -> tuple[bool, bool]:
    """Both switches; a choice of algorithm that is kept must be kept for these."""
    return _float64_sums.get(), _no_winograd.get()


def winograd_allowed() -> bool:
    """Whether a convolution may now use Winograd's algorithm."""
    return not _no_winograd.get()
