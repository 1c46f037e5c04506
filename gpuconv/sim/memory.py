"""Arrays of the simulated device: memory that kernels may access and NumPy may not.

`transpose` permutes the axes, as for channels-last images, and `a[:, i:j]` slices them; both are
views. Kernels take arrays in C order.

`asarray` and `asnumpy` are the only conversions. Every allocation lies between guard bytes and is
registered by its address, so that checked mode can verify accesses.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from gpuconv.sim import layout

GUARD = 512  # guard bytes before and after an allocation
POISON = 0xFF  # fills new memory: NaN as a float, -1 as an integer

_ADDRESSES = (np.dtype(np.uint64), np.dtype(np.int64))
quarantine = False  # set by checked mode: freed memory is not reused at once
_MAX_QUARANTINE = 64 << 20  # bytes
_freed: deque[np.ndarray] = deque()
_live: weakref.WeakValueDictionary[int, _Memory] = weakref.WeakValueDictionary()


def aligned(nbytes: int) -> np.ndarray:
    """Poisoned bytes on a 1024-byte boundary."""
    raw = np.full(nbytes + 1024, POISON, np.uint8)
    start = -raw.ctypes.data % 1024
    return raw[start : start + nbytes]


class _Memory:
    """One allocation; views share it."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._raw = aligned(nbytes + 2 * GUARD)
        self.bytes = self._raw[GUARD : GUARD + nbytes]
        self.begin = self._raw.ctypes.data + GUARD
        # one byte for each byte, 1 once written; None where all counts as written
        self.shadow: np.ndarray | None = None
        self.traces = Traces(nbytes)  # the last accesses of checked launches
        _live[self.begin] = self

    def __del__(self) -> None:
        if quarantine and self._raw.nbytes <= _MAX_QUARANTINE:
            _freed.append(self._raw)
            while sum(raw.nbytes for raw in _freed) > _MAX_QUARANTINE or len(_freed) > 256:
                _freed.popleft()


class Traces:
    """Records of the last accesses to some memory (Trace of layout.py), for each worker of its own.

    They hold the times of launches, so they end with the generation of these (launch.py).
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes, self.generation = nbytes, 0
        self.granule = 8  # bytes for which one record stands
        self.arrays: list[np.ndarray] = []

    def address(self, worker: int, granule: int, generation: int) -> int:
        """Address of a worker's records, which are at least as fine as `granule`."""
        if granule < self.granule or generation != self.generation:
            self.granule, self.generation, self.arrays = granule, generation, []
        while len(self.arrays) <= worker:
            size = (self.nbytes // self.granule + 2) * layout.DTYPES["Trace"].itemsize
            self.arrays.append(np.zeros(size, np.uint8))
        return self.arrays[worker].ctypes.data


class _Borrowed(_Memory):
    """Memory that belongs to a module: a __device__ or __constant__ variable."""

    def __init__(self, begin: int, nbytes: int, owner: object) -> None:
        self.nbytes, self.begin, self.shadow = nbytes, begin, None
        self._owner = owner
        self.bytes = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(begin))

    def __del__(self) -> None:
        """Does nothing: the module frees this memory."""


def borrow(begin: int, nbytes: int, dtype: npt.DTypeLike, owner: object) -> Array:
    """An array over memory of a module, which the array keeps alive."""
    memory = _Borrowed(begin, nbytes, owner)
    return Array(memory, memory.bytes.view(dtype))


def live() -> list[_Memory]:
    """All live allocations.

    The list of references is a copy, because another Python thread may allocate meanwhile.
    """
    return [memory for ref in _live.valuerefs() if (memory := ref()) is not None]


def was_freed(address: int) -> bool:
    """Whether an address lies in memory that was freed not long ago."""
    return any(0 <= address - raw.ctypes.data < raw.nbytes for raw in list(_freed))


def forget(args: Sequence[object]) -> None:
    """After an unchecked launch, take all memory that the kernel could write as written.

    Its stores are not recorded. It could write its arguments, and any memory at all if an argument
    may contain addresses.
    """
    for argument in args:
        if isinstance(argument, tuple | list):
            forget(argument)  # the members of a structure
        if isinstance(argument, Array):
            argument.base.shadow = None
        if isinstance(argument, bytes) or getattr(argument, "dtype", None) in _ADDRESSES:
            for memory in live():
                memory.shadow = None


class Array:
    """An array of the simulated device: a shape, a dtype and strides, but no arithmetic.

    base: what arrays that share memory have in common. ptr: the address of the first element, as
    kernels see it. contiguous: whether the elements lie in C order, in which kernels read them.
    """

    __array_priority__ = 100.0
    __hash__ = object.__hash__

    def __init__(self, memory: _Memory, host: np.ndarray) -> None:
        """host: a view of `memory.bytes`."""
        self.base, self._host = memory, host
        self.shape, self.dtype, self.strides = host.shape, host.dtype, host.strides
        self.ndim, self.size, self.nbytes = host.ndim, host.size, host.nbytes
        self.itemsize, self.contiguous = host.itemsize, host.flags.c_contiguous
        self.ptr: int = host.ctypes.data

    def transpose(self, *axes: int) -> Array:
        """A view with the axes in another order; `axes` names all of them."""
        if sorted(axes) != list(range(self.ndim)):
            raise ValueError(f"transpose: {axes} is not a permutation of {self.ndim} axes")
        return Array(self.base, self._host.transpose(axes))

    def reshape(self, *shape: int | tuple[int, ...]) -> Array:
        """A view with another shape; one length may be -1. Raises as NumPy does."""
        self._require_contiguous("reshape")
        return Array(self.base, self._host.reshape(*shape))  # type: ignore[arg-type]

    def view(self, dtype: npt.DTypeLike) -> Array:
        """A view of the same bytes as another dtype of the same width."""
        other = np.dtype(dtype)
        if other.itemsize != self.itemsize:
            raise ValueError(
                f"view: {self.dtype} has {self.itemsize} bytes, {other} has {other.itemsize}"
            )
        return Array(self.base, self._host.view(other))

    def copy(self) -> Array:
        """A new array with the same contents."""
        return asarray(asnumpy(self))

    def fill(self, value: float) -> None:
        """Set every element."""
        self._require_contiguous("fill")
        self._host[...] = value
        self._written()

    def _written(self) -> None:
        if self.base.shadow is not None:
            begin = self.ptr - self.base.begin
            self.base.shadow[begin : begin + self.nbytes] = 1

    def set(self, host: np.ndarray) -> None:
        """Copy a NumPy array of this shape and dtype into it."""
        self._require_contiguous("set")
        if (host.shape, host.dtype) != (self.shape, self.dtype):
            raise ValueError(
                f"set: this array is {self.dtype} {self.shape}, got {host.dtype} {host.shape}"
            )
        self._host[...] = host
        self._written()

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a sim array without dimensions")
        return self.shape[0]

    def span(self) -> Array:
        """A flat view of all memory from the first element to the last.

        For a slice of another array it includes the elements between those of the slice.
        """
        begin, end = self.ptr - self.base.begin, 0
        if self.size:
            pairs = zip(self.shape, self.strides, strict=True)
            end = begin + self.itemsize + sum((length - 1) * stride for length, stride in pairs)
        return Array(self.base, self.base.bytes[begin:end].view(self.dtype))

    def __getitem__(self, index: int | slice | tuple[int | slice, ...]) -> Array:
        """A view: integers and slices along the first axes, as in a[i], a[i:j] and a[:, i:j]."""
        for part in index if isinstance(index, tuple) else (index,):
            if isinstance(part, bool) or not isinstance(part, int | np.integer | slice):
                raise TypeError(
                    f"a sim array takes integers and slices in a[i, j:k], got {index!r}: "
                    f"use asnumpy first"
                )
            if isinstance(part, slice) and part.step not in (None, 1):
                raise ValueError(f"slices of a sim array take step 1, got {part.step}")
        return Array(self.base, self._host[index if isinstance(index, tuple) else (index, ...)])

    def __repr__(self) -> str:
        return f"sim.Array(shape={self.shape}, dtype={self.dtype})"

    def _require_contiguous(self, what: str) -> None:
        if not self.contiguous:
            raise ValueError(
                f"{what} needs a sim array in C order, this one of shape {self.shape} is a "
                f"transposed or sliced view: use .copy()"
            )

    # ---- implicit conversions to NumPy are refused, as CuPy refuses them ----

    def _refuse(self, what: str) -> NoReturn:
        raise TypeError(
            f"{what} of a sim array is not implicit: write gpuconv.sim.asnumpy(x) to copy it to "
            f"NumPy, or gpuconv.sim.asarray(x) to copy a NumPy array to the device"
        )

    def __array_ufunc__(self, ufunc: Any, *_: Any, **__: Any) -> NoReturn:
        self._refuse(f"numpy.{getattr(ufunc, '__name__', 'ufunc')}")

    __array_function__ = __array_ufunc__


def _refusing(what: str) -> Any:
    return lambda self, *_, **__: self._refuse(what)


_CONVERSIONS = "array iter bool float int index complex"
_OPERATORS = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift"
_UNARY_AND_COMPARISONS = "neg pos abs invert lt le gt ge eq ne setitem"
for _name in _CONVERSIONS.split():
    setattr(Array, f"__{_name}__", _refusing(f"the conversion __{_name}__"))
for _name in _UNARY_AND_COMPARISONS.split():
    setattr(Array, f"__{_name}__", _refusing(f"the operator __{_name}__"))
for _name in _OPERATORS.split():
    for _form in (f"__{_name}__", f"__r{_name}__", f"__i{_name}__"):
        setattr(Array, _form, _refusing(f"the operator {_form}"))


def _shape(shape: int | tuple[int, ...]) -> tuple[int, ...]:
    lengths = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    if not all(isinstance(n, int | np.integer) and n >= 0 for n in lengths):
        raise ValueError(f"a shape holds lengths >= 0, got {shape!r}")
    return tuple(int(n) for n in lengths)


def empty(shape: int | tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> Array:
    """A new array with undefined contents (0xFF bytes); checked mode reports if they are read."""
    kind = np.dtype(dtype)
    if kind.hasobject:
        raise TypeError(f"a sim array holds numbers, got dtype {kind}")
    lengths = _shape(shape)
    memory = _Memory(math.prod(lengths) * kind.itemsize)
    memory.shadow = np.zeros(memory.nbytes, np.uint8)
    return Array(memory, memory.bytes.view(kind).reshape(lengths))


def zeros(shape: int | tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> Array:
    """A new array of zeros."""
    array = empty(shape, dtype)
    array.base.bytes[:] = 0
    array.base.shadow = None
    return array


def asarray(x: Any, dtype: npt.DTypeLike | None = None) -> Array:
    """`x` (anything that NumPy reads) copied to the device, in C order.

    A sim array of this dtype is returned as it is.
    """
    if isinstance(x, Array):
        if dtype is None or np.dtype(dtype) == x.dtype:
            return x
        return asarray(asnumpy(x), dtype)
    host = np.asarray(x, dtype=dtype)
    array = empty(host.shape, host.dtype)
    array._host[...] = host
    array.base.shadow = None
    return array


def asnumpy(array: Array) -> np.ndarray:
    """A NumPy copy. Raises TypeError for anything but a sim array."""
    if not isinstance(array, Array):
        raise TypeError(f"asnumpy takes a sim array, got {type(array).__name__}")
    return np.array(array._host, order="C")
