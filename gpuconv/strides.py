"""How an array lies in memory, from its shape and strides alone."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

Shape = tuple[int, ...]


@lru_cache(maxsize=4096)
def in_c_order(shape: Shape, strides: Shape, itemsize: int) -> bool:
    """Whether elements follow each other as C stores them; lengths of 1 have any stride."""
    if math.prod(shape) == 0:
        return True
    step = itemsize
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != step:
            return False
        step *= length
    return True


def pixel_stride(array: Any) -> int | None:
    """Elements from a pixel of (N, C, H, W) to the next, where its channels follow each other and
    its pixels lie evenly in memory, as in (N, H, W, C) and in the first channels of it. Else None.
    """
    if array.ndim != 4:
        return None
    return _pixel_stride(array.shape, array.strides, array.dtype.itemsize)


@lru_cache(maxsize=4096)
def _pixel_stride(shape: Shape, strides: Shape, itemsize: int) -> int | None:
    N, C, H, W = shape
    if math.prod(shape) == 0:
        return None
    image, channel, line, pixel = (stride // itemsize for stride in strides)
    apart = ((W, pixel, 1), (H, line, W), (N, image, H * W))
    step = next((stride // count for length, stride, count in apart if length > 1), C)
    even = all(length == 1 or stride == count * step for length, stride, count in apart)
    return step if even and step >= C and (C == 1 or channel == 1) else None


def channels_last(array: Any) -> bool:
    """Whether a (N, C, H, W) array that is not empty lies in memory as (N, H, W, C)."""
    return array.ndim == 4 and pixel_stride(array) == array.shape[1]
