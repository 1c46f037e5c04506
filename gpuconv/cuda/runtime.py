"""`Runtime`: what operations ask of a device, and `runtime(device)`, which finds it.

Images are (N, C, H, W) to users and (N, H, W, C) in memory: an array's strides say which, as in
PyTorch's channels_last, so no wrapper is needed and a result goes to the next operation uncopied.
`channels_last` and `contiguous` give the plain memory that kernels read, through kernels/layout.cu
where it must be rearranged; `first_view` shows channels-last memory as (N, C, H, W).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from gpuconv.arrays import channels_last, in_c_order, pitch_of
from gpuconv.cuda import plan_channels, plan_dense
from gpuconv.cuda.kernel import View, bind
from gpuconv.cuda.plan import LIMITS, Launch, Plan, Scalar, vector

ALIGN = 16  # bytes: what vector loads want of every array


class Rows(NamedTuple):
    """The pixels of an image, `pitch` elements from each to the next, in one row of memory.

    vector: 4 where each can be moved by 16 bytes at a time, else 1.
    """

    memory: Any
    pitch: int
    vector: int


class Runtime:
    """A device's arrays and kernels. A subclass allocates, copies, compiles and starts."""

    name: str
    limits = LIMITS["sm_75"]  # the smallest: what fits it fits every card
    recorded: list[tuple[Launch, list[Any]]] | None = None  # set to []: what `run` starts, kept

    # ---- what a device defines -----------------------------------------------------------------

    def empty(self, shape: Any, dtype: Any = np.float32) -> Any:
        """A new array, its contents undefined. MemoryError where there is no room."""
        raise NotImplementedError

    def zeros(self, shape: Any, dtype: Any = np.float32) -> Any:
        """A new array of zeros."""
        raise NotImplementedError

    def asarray(self, host: np.ndarray) -> Any:
        """A NumPy array copied here, in C order."""
        raise NotImplementedError

    def asnumpy(self, array: Any) -> np.ndarray:
        """A NumPy copy, in C order, after all kernels that came before."""
        raise NotImplementedError

    def copy(self, array: Any) -> Any:
        """A copy in C order by the array library itself: for layouts no kernel converts."""
        raise NotImplementedError

    def span(self, array: Any) -> Any:
        """All memory from the array's first element to its last, as one row."""
        raise NotImplementedError

    def address(self, array: Any) -> int:
        """Of the first element."""
        raise NotImplementedError

    def place(self, array: Any) -> str:
        """The device it is on, one card told from another."""
        return self.name

    def here(self) -> str:
        """The device kernels would run on now."""
        return self.name

    def inside(self, array: Any) -> AbstractContextManager[Any]:
        """Meanwhile this array's card is the one that allocates and runs."""
        return nullcontext()

    def start(self, launch: Launch, arguments: list[Any]) -> None:
        """Compile the kernel, if it is not yet, and start it; arguments fit its signature."""
        raise NotImplementedError

    def synchronize(self) -> None:
        """Wait for all that was started."""
        raise NotImplementedError

    # ---- what all share ------------------------------------------------------------------------

    def run(self, plan: Plan, **arrays: Any) -> None:
        """A plan's launches in order, over arrays by name; its workspace is made here."""
        if plan.workspace:
            arrays["workspace"] = self.empty(plan.workspace)
        views = {name: self.view(array) for name, array in arrays.items()}
        for launch in plan.launches:
            bound = bind(launch, views, self.here(), self.limits)
            given = [arrays[a] if isinstance(a, str) else a for a in bound]
            self.start(launch, given)
            if self.recorded is not None:
                self.recorded.append((launch, given))

    def view(self, array: Any) -> View:
        """What the launcher checks of an array."""
        if not hasattr(array, "strides") or isinstance(array, np.ndarray):
            kind = type(array).__name__
            return View(0, 0, 0, np.dtype(np.uint8), True, f"the host ({kind})")
        plain = in_c_order(array.shape, array.strides, array.dtype.itemsize)
        size = int(array.size)
        nbytes = size * array.dtype.itemsize
        return View(self.address(array), nbytes, size, array.dtype, plain, self.place(array))

    def contiguous(self, array: Any) -> Any:
        """The elements in C order and aligned; the array itself where they are."""
        if in_c_order(array.shape, array.strides, array.dtype.itemsize):
            return self._aligned(array)
        if pitch_of(array) is not None and array.dtype == np.float32:
            plan = plan_dense.to_channels_first(*array.shape)
            return self._rearranged(plan, self.channels_last(array), array.shape)
        return self.copy(array)

    def channels_last(self, array: Any) -> Any:
        """(N, C, H, W) as contiguous (N, H, W, C); without a copy where it lies so in memory."""
        view = array.transpose(0, 2, 3, 1)
        if channels_last(array):
            return self._aligned(view)
        if array.dtype != np.float32:
            return self.copy(view)
        if pitch_of(array) is not None:
            y = self.empty(view.shape)
            self.channels("copy_channels", self.first_view(y), array)
            return y
        plan = plan_dense.to_channels_last(*array.shape)
        return self._rearranged(plan, self.contiguous(array), view.shape)

    def _rearranged(self, plan: Plan, x: Any, shape: tuple[int, ...]) -> Any:
        """y from x by a plan of layout.cu; where it has no launch, the same memory is both."""
        if not plan.launches:
            return x.reshape(shape)
        y = self.empty(shape)
        self.run(plan, y=y, x=x)
        return y

    def rows(self, array: Any) -> Rows:
        """The pixels of (N, C, H, W) float32; without a copy where they are channels of a
        channels-last image, so that a dense block's layers read what is before them in place.
        """
        pitch = pitch_of(array)
        if pitch is None:
            array = self.first_view(self.channels_last(array))
            pitch = array.shape[1]
        aligned = self.address(array) % ALIGN == 0
        return Rows(self.span(array), pitch, vector(array.shape[1], pitch) if aligned else 1)

    def channels(self, kernel: str, to: Any, source: Any) -> None:
        """copy_channels or add_channels: `to`, in place, from `source`, both (N, C, H, W).

        ValueError where `to` is neither channels-last nor channels of such an image.
        """
        if pitch_of(to) is None:
            raise ValueError(f"{kernel}: what is written must be channels of a channels-last image")
        a, b = self.rows(to), self.rows(source)
        vec = min(a.vector, b.vector)
        plan = plan_channels.channels(kernel, to.shape, a.pitch, b.pitch, vec)
        self.run(plan, **{"to": a.memory, "from": b.memory})

    def first_view(self, array: Any) -> Any:
        """(N, H, W, C) memory as (N, C, H, W), as users see it."""
        return array.transpose(0, 3, 1, 2)

    def each(
        self,
        file: str,
        kernel: str,
        out: str,
        numbers: Mapping[str, Scalar] | None = None,
        **inputs: Any,
    ) -> Any:
        """An element-by-element kernel over inputs of one shape; the result is laid out in memory
        as the first of them. numbers: the kernel's, besides the count.
        """
        first = next(iter(inputs.values()))
        last = pitch_of(first) is not None
        bring = self.channels_last if last else self.contiguous
        given = {name: bring(array) for name, array in inputs.items()}
        y = self.empty(_last_shape(first.shape) if last else first.shape)
        plan = plan_dense.elementwise(file, kernel, first.size, True, **(numbers or {}))
        self.run(plan, **{out: y}, **given)
        return self.first_view(y) if last else y

    def _aligned(self, array: Any) -> Any:
        return self.copy(array) if self.address(array) % ALIGN else array


def _last_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(N, C, H, W) as (N, H, W, C)."""
    N, C, H, W = shape
    return N, H, W, C


@lru_cache(maxsize=4)
def runtime(device: str) -> Runtime:
    """The runtime of "sim" or "cuda", made when first asked for.

    Raises DeviceError, one line with the way out, where the device cannot work here.
    """
    if device == "sim":
        from gpuconv.cuda.sim import SimRuntime

        return SimRuntime()
    if device == "cuda":
        from gpuconv.cuda.cupy import CupyRuntime

        return CupyRuntime()
    raise ValueError(f"kernels run on 'sim' and 'cuda', not on {device!r}")
