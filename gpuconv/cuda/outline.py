"""`Outline`: an array's shape and its place in memory, without the memory.

A network's own code runs on outlines as on NumPy's arrays: layers keep them, cut them, join them
and let them go, and a `Meter` sees what would be in use. No value is ever computed. What an
operation would take says its `@op.memory`, where it is not one array like the first argument.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from gpuconv.cpu.workspace import KEPT_FLOATS

Shape = tuple[int, ...]


class Meter:
    """Bytes of the outlines in use, their peak, and the workspaces that the cpu path keeps."""

    def __init__(self) -> None:
        self.used = self.peak = 0
        self._kept: dict[tuple[str, np.dtype, int], int] = {}

    @property
    def kept(self) -> int:
        """Bytes of workspace that stay in use from one step to the next."""
        return sum(self._kept.values())

    def take(self, count: int) -> None:
        self.used += count
        self.peak = max(self.peak, self.used)

    def give(self, count: int) -> None:
        self.used -= count

    def keep(self, name: str, count: int, dtype: np.dtype, threads: int) -> None:
        """As `scratch(name, count, dtype)` on so many threads."""
        for thread in range(threads):
            key = name, dtype, thread
            self._kept[key] = max(self._kept.get(key, 0), count * dtype.itemsize)


class _Memory:
    """What outlines of one array share; in use until the last of them is gone."""

    __slots__ = ("count", "meter")

    def __init__(self, meter: Meter, count: int) -> None:
        self.meter, self.count = meter, count
        meter.take(count)

    def __del__(self) -> None:
        self.meter.give(self.count)


class Outline(np.lib.mixins.NDArrayOperatorsMixin):
    """Stands for a NumPy array: shape, dtype, layout, slices and views of it, but no values."""

    def __init__(self, meter: Meter, shape: Iterable[int], dtype: Any = np.float32) -> None:
        shape, dtype = tuple(map(int, shape)), np.dtype(dtype)
        self._memory = _Memory(meter, math.prod(shape) * dtype.itemsize)
        # NumPy keeps the book of shapes and strides, on an array whose elements nobody may touch.
        strides = [math.prod(shape[axis + 1 :]) * dtype.itemsize for axis in range(len(shape))]
        self._layout = np.lib.stride_tricks.as_strided(np.empty(1, dtype), shape, strides)

    def _seen_as(self, layout: np.ndarray) -> Outline:
        view = object.__new__(Outline)
        view._memory, view._layout = self._memory, layout
        return view

    @property
    def meter(self) -> Meter:
        return self._memory.meter

    @property
    def shape(self) -> Shape:
        return self._layout.shape

    @property
    def strides(self) -> Shape:
        return self._layout.strides

    @property
    def dtype(self) -> np.dtype:
        return self._layout.dtype

    @property
    def ndim(self) -> int:
        return self._layout.ndim

    @property
    def size(self) -> int:
        return self._layout.size

    @property
    def flags(self) -> Any:
        return self._layout.flags

    def __len__(self) -> int:
        return len(self._layout)

    def __repr__(self) -> str:
        return f"Outline(shape={self.shape}, dtype={self.dtype})"

    def __getitem__(self, key: Any) -> Outline:
        return self._seen_as(self._layout[key])

    def reshape(self, *shape: Any) -> Outline:
        """A view where the elements lie in C order, or each image's do; else of a copy."""
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
        layout = self._layout
        if not layout.flags.c_contiguous:
            if not layout[0].flags.c_contiguous or wanted[0] != len(self):
                return self.plain().reshape(wanted)
            image = layout[0].reshape(wanted[1:])
            layout, wanted = layout[:, ...], (len(self), *image.shape)
            strides = layout.strides[0], *image.strides
            return self._seen_as(np.lib.stride_tricks.as_strided(layout, wanted, strides))
        return self._seen_as(layout.reshape(wanted))

    def empty(self, shape: Iterable[int], dtype: Any = None) -> Outline:
        """A new array, of this one's dtype unless another is given."""
        return Outline(self.meter, shape, self.dtype if dtype is None else dtype)

    def plain(self) -> Outline:
        """In C order: itself, or a copy."""
        return self if self.flags.c_contiguous else self.empty(self.shape)

    def workspace(
        self, name: str, count: int, threads: int = 1, dtype: Any = np.float32
    ) -> list[Outline]:
        """As `scratch(name, count, dtype)` on so many threads; hold on to what it returns."""
        if count > KEPT_FLOATS:
            return [self.empty((count,), dtype) for _ in range(threads)]
        self.meter.keep(name, count, np.dtype(dtype), threads)
        return []

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise _no_values("a NumPy array of it")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """Element by element: into `out`, or a new array of the broadcast shape."""
        if method != "__call__":
            raise _no_values(f"np.{ufunc.__name__}.{method}")
        if "out" in options:
            return options["out"][0]
        given = [a for a in inputs if isinstance(a, Outline | np.ndarray)]
        shape = np.broadcast_shapes(*(a.shape for a in given))
        return self.empty(shape, np.result_type(*(a.dtype for a in given)))

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        """The NumPy functions that layers and containers call."""
        if function is np.empty:  # like=self
            return self.empty(*args, **options)
        if function is np.may_share_memory:
            one, other = (getattr(a, "_memory", None) for a in args)
            return one is other
        if function is np.concatenate:
            arrays, axis = args[0], options.get("axis", 0)
            length = sum(a.shape[axis] for a in arrays)
            shape = list(arrays[0].shape)
            shape[axis] = length
            return self.empty(shape)
        raise _no_values(f"np.{function.__name__}")


def _no_values(what: str) -> NotImplementedError:
    return NotImplementedError(f"{what} needs values, and an outline of an array has none")
