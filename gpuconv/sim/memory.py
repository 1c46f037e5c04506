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

GUARD = 512  # guard bytes before and after an allocation
ALIGN = 256  # the alignment of cudaMalloc
POISON = 0xFF  # fills new memory: NaN as a float, -1 as an integer

_ADDRESSES = (np.dtype(np.uint64), np.dtype(np.int64))
quarantine = False  # set by checked mode: freed memory is not reused at once
_MAX_QUARANTINE = 64 << 20  # bytes
_freed: deque[np.ndarray] = deque()
_live: weakref.WeakValueDictionary[int, _Memory] = weakref.WeakValueDictionary()


class _Memory:
    """One allocation; views share it."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._raw = np.full(nbytes + 2 * GUARD + ALIGN, POISON, np.uint8)
        start = self._raw.ctypes.data + GUARD
        self.begin = -(-start // ALIGN) * ALIGN
        offset = self.begin - self._raw.ctypes.data
        self.bytes = self._raw[offset : offset + nbytes]
        # one byte for each byte, 1 once written; None where all counts as written
        self.shadow: np.ndarray | None = None
        self.trace: np.ndarray | None = None  # the last accesses of checked launches
        self.granule = 8  # bytes for which one record of `trace` stands
        _live[self.begin] = self

    def __del__(self) -> None:
        if quarantine and self._raw.nbytes <= _MAX_QUARANTINE:
            _freed.append(self._raw)
            while sum(raw.nbytes for raw in _freed) > _MAX_QUARANTINE or len(_freed) > 256:
                _freed.popleft()


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
    kind = np.dtype(dtype)
    return Array(_Borrowed(begin, nbytes, owner), 0, (nbytes // kind.itemsize,), kind)


def live() -> list[_Memory]:
    """All live allocations, sorted by address."""
    return sorted(_all(), key=lambda memory: memory.begin)


def _all() -> list[_Memory]:
    """All live allocations.

    The list of references is a copy, because another Python thread may allocate meanwhile.
    """
    return [memory for ref in _live.valuerefs() if (memory := ref()) is not None]


def forget(args: Sequence[object]) -> None:
    """After an unchecked launch, take all memory that the kernel could write as written.

    Its stores are not recorded. It could write its arguments, and any memory at all if an argument
    may contain addresses.
    """
    for argument in args:
        if isinstance(argument, Array):
            argument._memory.shadow = None
        if isinstance(argument, bytes) or getattr(argument, "dtype", None) in _ADDRESSES:
            for memory in _all():
                memory.shadow = None


class Array:
    """An array of the simulated device: a shape, a dtype and strides, but no arithmetic."""

    __array_priority__ = 100.0
    __hash__ = object.__hash__

    def __init__(
        self,
        memory: _Memory,
        offset: int,
        shape: tuple[int, ...],
        dtype: np.dtype,
        strides: tuple[int, ...] | None = None,
    ) -> None:
        self._memory = memory
        self._offset = offset
        self.shape = shape
        self.dtype = dtype
        self.strides = _c_strides(shape, dtype) if strides is None else strides

    @property
    def base(self) -> object:
        """What arrays that share memory have in common."""
        return self._memory

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie in C order, in which kernels read them."""
        return all(
            length == 1 or own == plain
            for length, own, plain in zip(
                self.shape, self.strides, _c_strides(self.shape, self.dtype), strict=True
            )
        )

    def transpose(self, *axes: int) -> Array:
        """A view with the axes in another order; `axes` names all of them."""
        if sorted(axes) != list(range(self.ndim)):
            raise ValueError(f"transpose: {axes} is not a permutation of {self.ndim} axes")
        shape = tuple(self.shape[axis] for axis in axes)
        strides = tuple(self.strides[axis] for axis in axes)
        return Array(self._memory, self._offset, shape, self.dtype, strides)

    @property
    def ptr(self) -> int:
        """Address of the first element, as kernels see it."""
        return self._memory.begin + self._offset

    def reshape(self, *shape: int | tuple[int, ...]) -> Array:
        """A view with another shape; one length may be -1.

        Raises ValueError where the sizes differ.
        """
        self._require_contiguous("reshape")
        lengths: list[Any] = list(
            shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        )
        if lengths.count(-1) == 1:
            known = math.prod(n for n in lengths if n != -1)
            lengths[lengths.index(-1)] = self.size // known if known else 0
        if math.prod(lengths) != self.size or any(n < 0 for n in lengths):
            raise ValueError(
                f"reshape: {self.size} elements of shape {self.shape} do not fill {tuple(lengths)}"
            )
        return Array(self._memory, self._offset, tuple(int(n) for n in lengths), self.dtype)

    def view(self, dtype: npt.DTypeLike) -> Array:
        """A view of the same bytes as another dtype of the same width."""
        other = np.dtype(dtype)
        if other.itemsize != self.itemsize:
            raise ValueError(
                f"view: {self.dtype} has {self.itemsize} bytes, {other} has {other.itemsize}"
            )
        return Array(self._memory, self._offset, self.shape, other, self.strides)

    def copy(self) -> Array:
        """A new array with the same contents."""
        return asarray(asnumpy(self))

    def fill(self, value: float) -> None:
        """Set every element."""
        self._require_contiguous("fill")
        _bytes(self).view(self.dtype)[...] = value
        _written(self)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a sim array without dimensions")
        return self.shape[0]

    def span(self) -> Array:
        """A flat view of all memory from the first element to the last.

        For a slice of another array it includes the elements between those of the slice.
        """
        return Array(self._memory, self._offset, (_span(self),), self.dtype)

    def __getitem__(self, index: int | slice | tuple[slice, ...]) -> Array:
        """Views: a[i] and a[i:j] along the first axis, and slices of several axes, a[:, i:j]."""
        if isinstance(index, tuple):
            return self._slice(index)
        if not self.shape or not isinstance(index, int | np.integer | slice):
            raise TypeError(f"a sim array takes a[i] or a[i:j], got {index!r}: use asnumpy first")
        self._require_contiguous("an index")
        row = self.nbytes // self.shape[0] if self.shape[0] else 0
        if isinstance(index, slice):
            start, stop, step = index.indices(self.shape[0])
            if step != 1:
                raise ValueError(f"a sim array is contiguous: slices take step 1, got {step}")
            return Array(
                self._memory,
                self._offset + start * row,
                (max(stop - start, 0), *self.shape[1:]),
                self.dtype,
            )
        if not -self.shape[0] <= index < self.shape[0]:
            raise IndexError(f"index {index} is out of bounds for axis 0 with size {self.shape[0]}")
        return Array(
            self._memory, self._offset + index % self.shape[0] * row, self.shape[1:], self.dtype
        )

    def _slice(self, index: tuple[slice, ...]) -> Array:
        if len(index) > self.ndim or not all(isinstance(part, slice) for part in index):
            raise TypeError(
                f"a sim array of shape {self.shape} takes slices in a[i:j, ...], got {index!r}"
            )
        shape, offset = list(self.shape), self._offset
        for axis, part in enumerate(index):
            start, stop, step = part.indices(shape[axis])
            if step != 1:
                raise ValueError(f"slices of a sim array take step 1, got {step}")
            shape[axis] = max(stop - start, 0)
            offset += start * self.strides[axis] if shape[axis] else 0
        return Array(self._memory, offset, tuple(shape), self.dtype, self.strides)

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

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        self._refuse("conversion to a NumPy array")

    def __array_ufunc__(self, ufunc: Any, *_: Any, **__: Any) -> NoReturn:
        self._refuse(f"numpy.{getattr(ufunc, '__name__', 'ufunc')}")

    def __array_function__(self, function: Any, *_: Any, **__: Any) -> NoReturn:
        self._refuse(f"numpy.{getattr(function, '__name__', 'function')}")

    def __iter__(self) -> NoReturn:
        self._refuse("iteration")

    def __bool__(self) -> NoReturn:
        self._refuse("the truth value")

    def __float__(self) -> NoReturn:
        self._refuse("conversion to float")

    def __int__(self) -> NoReturn:
        self._refuse("conversion to int")

    __index__ = __complex__ = __int__


def _refusing(name: str) -> Any:
    def method(self: Array, *_: Any) -> NoReturn:
        self._refuse(f"the operator {name}")

    return method


for _name in (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
):
    for _form in (f"__{_name}__", f"__r{_name}__", f"__i{_name}__"):
        setattr(Array, _form, _refusing(_form))
for _name in ("neg", "pos", "abs", "invert", "lt", "le", "gt", "ge", "eq", "ne", "setitem"):
    setattr(Array, f"__{_name}__", _refusing(f"__{_name}__"))


def _c_strides(shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, ...]:
    strides, step = [], dtype.itemsize
    for length in reversed(shape):
        strides.append(step)
        step *= length
    return tuple(reversed(strides))


def _span(array: Array) -> int:
    """Number of elements in memory from the first to the last."""
    if not array.size:
        return 0
    pairs = zip(array.shape, array.strides, strict=True)
    return 1 + sum((length - 1) * stride // array.itemsize for length, stride in pairs)


def _bytes(array: Array) -> np.ndarray:
    end = array._offset + _span(array) * array.itemsize
    return array._memory.bytes[array._offset : end]


def _written(array: Array) -> None:
    if array._memory.shadow is not None:
        array._memory.shadow[array._offset : array._offset + array.nbytes] = 1


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
    return Array(memory, 0, lengths, kind)


def zeros(shape: int | tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> Array:
    """A new array of zeros."""
    array = empty(shape, dtype)
    array._memory.bytes[:] = 0
    array._memory.shadow = None
    return array


def asarray(x: Any, dtype: npt.DTypeLike | None = None) -> Array:
    """`x` (anything that NumPy reads) copied to the device, in C order.

    A sim array of this dtype is returned as it is.
    """
    if isinstance(x, Array):
        if dtype is None or np.dtype(dtype) == x.dtype:
            return x
        return asarray(asnumpy(x), dtype)
    host = np.ascontiguousarray(x, dtype=dtype)
    if host.dtype.hasobject:
        raise TypeError(f"a sim array holds numbers, got dtype {host.dtype}")
    array = zeros(np.shape(x), host.dtype)
    array._memory.bytes[:] = host.reshape(-1).view(np.uint8)
    return array


def asnumpy(array: Array) -> np.ndarray:
    """A NumPy copy. Raises TypeError for anything but a sim array."""
    if not isinstance(array, Array):
        raise TypeError(f"asnumpy takes a sim array, got {type(array).__name__}")
    view = np.ndarray(array.shape, array.dtype, _bytes(array), 0, array.strides)
    return np.array(view, order="C")
