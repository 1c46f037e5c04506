"""Which device an array is on, and the ways between devices. Imports no device's library."""

from __future__ import annotations

import math
import sys
from functools import lru_cache
from typing import Any

import numpy as np

from gpuconv.cuda.outline import Outline

Shape = tuple[int, ...]


def device_of(array: Any) -> str | None:
    """ "cpu" for NumPy's arrays and outlines of them, "sim", "cuda" for CuPy's; None for what is no
    array.

    An array of a library can only exist once that library is imported, so nothing is imported here.
    """
    if isinstance(array, (np.ndarray, Outline)):
        return "cpu"
    simulated = sys.modules.get("gpuconv.sim.memory")
    if simulated is not None and isinstance(array, simulated.Array):
        return "sim"
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(array, getattr(cupy, "ndarray", ())):
        return "cuda"
    return None


def is_device(device: str) -> bool:
    """Whether kernels run there: "sim" or "cuda"."""
    return device in ("sim", "cuda")


def require(device: str) -> None:
    """DeviceError, one line with the way out, unless the device works here."""
    if is_device(device):
        from gpuconv.cuda.runtime import runtime

        runtime(device)


def empty_images(shape: Shape, like: Any) -> Any:
    """A new (N, C, H, W) array where `like` is and of its dtype, its contents undefined.

    On a device it lies in memory as (N, H, W, C), as kernels write it.
    """
    device = device_of(like)
    if device in (None, "cpu"):
        return np.empty(shape, like.dtype, like=like)
    from gpuconv.cuda.runtime import runtime

    N, C, H, W = shape
    target = runtime(device)
    with target.inside(like):
        return target.as_nchw(target.empty((N, H, W, C), like.dtype))


def to_numpy(array: Any) -> np.ndarray:
    """As a NumPy array in C order: itself if it is one, else a copy of the device's."""
    device = device_of(array)
    if device in (None, "cpu"):
        return array
    from gpuconv.cuda.runtime import runtime

    return runtime(device).asnumpy(array)


def to_device(array: Any, device: str, weights: bool = False) -> Any:
    """The array on a device, itself if it is there; from one device to another by way of NumPy.

    weights: keep (K, C, R, S) filters channels-last in memory, as every kernel reads them, so that
    no step need convert them.
    """
    wanted = device if is_device(device) else "cpu"
    if device_of(array) == wanted:
        return array
    host = to_numpy(array)
    if wanted == "cpu":
        return host
    from gpuconv.cuda.runtime import runtime

    target = runtime(wanted)
    if weights and host.ndim == 4:
        return target.as_nchw(target.asarray(host.transpose(0, 2, 3, 1)))
    return target.asarray(host)


def contiguous(array: Any) -> Any:
    """In C order, by the layout kernel where it is on a device; NumPy's arrays as they are."""
    device = device_of(array)
    if device in (None, "cpu"):
        return array
    from gpuconv.cuda.runtime import runtime

    return runtime(device).contiguous(array)


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
    """Whether a (N, C, H, W) array lies in memory as (N, H, W, C)."""
    if array.ndim != 4:
        return False
    order = (0, 2, 3, 1)
    shape = tuple(array.shape[axis] for axis in order)
    return in_c_order(shape, tuple(array.strides[axis] for axis in order), array.dtype.itemsize)
