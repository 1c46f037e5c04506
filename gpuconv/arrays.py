"""Which device an array is on, moves between devices, and arrays that are a shape alone.

Imports no device's library.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from gpuconv.interchange import Library, bring, library_of
from gpuconv.strides import pixel_stride

Shape = tuple[int, ...]


class ShapeOnly:
    """An array without memory: a shape and a dtype, in C order, but no values.

    Operations called on one check their arguments as ever and return shape-only results: shape
    inference, at no cost in arithmetic or memory. Slices and views of it are shape-only too;
    whatever needs a value raises TypeError. Its device is "meta", as PyTorch calls it.

    >>> ShapeOnly((2, 3, 8, 8))[:, 1:].reshape(2, -1)
    ShapeOnly(shape=(2, 128), dtype=float32)
    """

    __slots__ = ("base", "dtype", "shape")
    __array_ufunc__ = None  # NumPy's operators leave it alone: it has no values to work on

    def __init__(
        self, shape: Shape, dtype: Any = np.float32, base: ShapeOnly | None = None
    ) -> None:
        """base: the array of which this one is a view."""
        self.base: ShapeOnly | None = base if base is None or base.base is None else base.base
        self.shape: Shape = tuple(map(operator.index, shape))
        if any(length < 0 for length in self.shape):
            raise ValueError(f"ShapeOnly: a length cannot be negative, got shape {self.shape}")
        self.dtype = np.dtype(dtype)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes that a real array of this shape takes."""
        return self.size * self.dtype.itemsize

    @property
    def strides(self) -> Shape:
        """Bytes from an element to the next along each axis, in C order."""
        lengths = [max(length, 1) for length in self.shape]
        return tuple(
            math.prod(lengths[axis + 1 :]) * self.dtype.itemsize for axis in range(self.ndim)
        )

    @property
    def T(self) -> ShapeOnly:
        """The axes in reverse order."""
        return self.transpose()

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of an array without axes")
        return self.shape[0]

    def __iter__(self) -> Iterator[ShapeOnly]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"ShapeOnly(shape={self.shape}, dtype={self.dtype})"

    def __getitem__(self, key: Any) -> ShapeOnly:
        """Slices, integers, an ellipsis and new axes; IndexError as NumPy raises it."""
        for part in key if isinstance(key, tuple) else (key,):
            if part is not None and part is not ... and not isinstance(part, slice):
                operator.index(part)  # TypeError for an array of indices: it would have values
        return self._viewed(self._zeros[key])

    def reshape(self, *shape: Any) -> ShapeOnly:
        """As NumPy's, with one length of -1 at most; ValueError for another number of elements."""
        return self._viewed(self._zeros.reshape(*shape))

    def transpose(self, *axes: Any) -> ShapeOnly:
        """The axes in another order, in reverse order if none is given."""
        return self._viewed(self._zeros.transpose(*axes))

    @property
    def _zeros(self) -> np.ndarray:
        """An array of this shape that takes no memory, which knows the rules for views."""
        return np.broadcast_to(np.zeros((), self.dtype), self.shape)

    def _viewed(self, view: np.ndarray) -> ShapeOnly:
        return ShapeOnly(view.shape, self.dtype, self)

    def astype(self, dtype: Any, copy: bool = True) -> ShapeOnly:
        """The same shape, of another dtype."""
        return ShapeOnly(self.shape, dtype)

    def copy(self) -> ShapeOnly:
        return ShapeOnly(self.shape, self.dtype)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"{self!r} has no values")

    __float__ = __int__ = __bool__ = __array__


def device_of(array: Any) -> str | None:
    """The device of an array; None for what is no array.

    "cpu" for NumPy's, "sim" for the simulator's, "cuda" for CuPy's, "meta" for a `ShapeOnly`.
    An array of a library can only exist once that library is imported, so nothing is imported here.
    """
    if isinstance(array, np.ndarray):
        return "cpu"
    if isinstance(array, ShapeOnly):
        return "meta"
    simulated = sys.modules.get("gpuconv.sim.memory")
    if simulated is not None and isinstance(array, simulated.Array):
        return "sim"
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(array, getattr(cupy, "ndarray", ())):
        return "cuda"
    return None


def foreign(values: Iterable[Any]) -> Library | None:
    """The library of the first of them that is another library's array, or a NumPy subclass's."""
    for a in values:
        if device_of(a) in (None, "cpu") and (library := library_of(a)) is not None:
            return library
    return None


def native(array: Any, what: str = "the array") -> Any:
    """An array as operations work on it: another library's as NumPy's, or on a GPU as CuPy's.

    Memory is shared where that is possible. What is no array is returned as it is.
    Raises TypeError, one line that begins with `what`, for an array that cannot be taken.
    """
    return bring(array, what) if device_of(array) in (None, "cpu") else array


def is_device(device: str | None) -> bool:
    """Whether kernels run there: "sim" or "cuda"."""
    return device in ("sim", "cuda")


def _runtime(device: Any) -> Any:
    from gpuconv.cuda.runtime import runtime  # late: NumPy's arrays need none of it

    return runtime(device)


def require(device: str) -> None:
    """DeviceError, one line with the way out, unless the device works here."""
    if is_device(device):
        _runtime(device)


def empty_images(shape: Shape, like: Any) -> Any:
    """A new (N, C, H, W) array where `like` is and of its dtype, its contents undefined.

    On a device it lies in memory as (N, H, W, C), as kernels write it.
    """
    device = device_of(like)
    if device == "meta":
        return ShapeOnly(shape, like.dtype)
    if device in (None, "cpu"):
        return np.empty(shape, like.dtype, like=like)
    N, C, H, W = shape
    target = _runtime(device)
    with target.inside(like):
        return target.as_nchw(target.empty((N, H, W, C), like.dtype))


def to_numpy(array: Any) -> np.ndarray:
    """As a NumPy array: itself if it is one, else a copy of the device's in C order. Another
    library's array is taken as `native` takes it.

    TypeError for a `ShapeOnly`, which has no values.
    """
    if type(array) is np.ndarray:
        return array
    array = native(array)
    device = device_of(array)
    if device == "meta":
        raise TypeError(f"{array!r} has no values")
    if device in (None, "cpu"):
        return array
    return _runtime(device).asnumpy(array)


def checked_cast(name: str, array: Any, dtype: Any) -> np.ndarray:
    """A NumPy array of a stored state in another dtype, itself if it has that already.

    Raises: ValueError naming it where the dtype cannot hold its values: complex numbers as real
    ones, finite numbers that become infinite, fractions as whole numbers.
    """
    found, wanted = np.asarray(array), np.dtype(dtype)
    if found.dtype == wanted:
        return found
    if found.dtype.kind not in "fiub":
        raise ValueError(f"{name} is {found.dtype}, expected {wanted}")
    with np.errstate(all="ignore"):
        cast = found.astype(wanted)
    if wanted.kind == "f":
        lost = bool(np.any(np.isinf(cast) & np.isfinite(found)))
    else:
        lost = not np.array_equal(cast, found)
    if lost:
        raise ValueError(f"{name} is {found.dtype} with values that {wanted} cannot hold")
    return cast


def to_device(array: Any, device: str, weights: bool = False) -> Any:
    """The array on a device, itself if it is there; from one device to another by way of NumPy.
    A `ShapeOnly` is on every device.

    weights: keep (K, C, R, S) filters channels-last in memory, as every kernel reads them; then no
    training step has to convert them.
    """
    wanted = device if is_device(device) else "cpu"
    if type(array) is not np.ndarray:
        array = native(array)
    if device_of(array) in (wanted, "meta"):
        return array
    host = to_numpy(array)
    if wanted == "cpu":
        return host
    target = _runtime(wanted)
    if weights and host.ndim == 4:
        return target.as_nchw(target.asarray(host.transpose(0, 2, 3, 1)))
    return target.asarray(host)


def as_float32(array: Any) -> Any:
    """An array of another float type as float32, where it lies."""
    if hasattr(array, "astype"):
        return array.astype(np.float32)
    return to_device(to_numpy(array).astype(np.float32), device_of(array) or "cpu")


def contiguous(array: Any) -> Any:
    """In C order, by the layout kernel where it is on a device; NumPy's arrays as they are."""
    device = device_of(array)
    if not is_device(device):
        return array
    return _runtime(device).contiguous(array)


def as_kernels_read(array: Any) -> Any:
    """(N, C, H, W) on a device with its channels last in memory, converted if they are not; all
    else as it is. What a gradient will read again is so converted once.
    """
    device = device_of(array)
    known = not is_device(device) or array.ndim != 4 or array.size == 0
    if known or pixel_stride(array) is not None:
        return array
    target = _runtime(device)
    with target.inside(array):
        return target.as_nchw(target.as_nhwc(array))


def copy(array: Any) -> Any:
    """The same values in memory of their own, in C order."""
    if isinstance(array, np.ndarray):
        return array.copy()
    target = _runtime(device_of(array) or "cpu")
    with target.inside(array):
        return target.copy(array)
