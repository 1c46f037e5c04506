"""`Runtime`: what operations ask of a device, and `runtime(device)`, which finds it.

Images are (N, C, H, W) to users and (N, H, W, C) in memory: an array's strides say which, as in
PyTorch's channels_last, so no wrapper is needed and a result goes to the next operation uncopied.
`as_nhwc` and `contiguous` give the dense memory that kernels read, through kernels/layout.cu where
it must be rearranged; `as_nchw` shows channels-last memory as (N, C, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpuconv.cuda import recording, source
from gpuconv.cuda.binding import NO_NUMBERS, Binding, View, bind, stored
from gpuconv.cuda.launch_config import (
    LIMITS,
    Launch,
    LaunchConfig,
    Scalar,
    config_elementwise,
    vector_width,
)
from gpuconv.cuda.layout import config_channels, config_transpose
from gpuconv.precision import C_TYPES
from gpuconv.strides import channels_last, in_c_order, pixel_stride

ALIGN = 16  # bytes: what vector loads want of every array
MAX_BOUND = 4096  # bindings that a runtime remembers
MIN_TICKETS = 4096  # counters that are made at once
MOVED = {np.dtype(np.float32), *C_TYPES}  # what kernels bring into another layout


if TYPE_CHECKING:
    from gpuconv.cuda.recording import Recorder


class PixelView(NamedTuple):
    """The pixels of an image, `stride` elements from each to the next, in one row of memory.

    vector: 4 where each can be moved by 16 bytes at a time, else 1.
    """

    memory: Any
    stride: int
    vector: int


class Queue:
    """What is done in order: a stream. Here, where nothing is ever left running, all is done."""

    def copy(self, to: Any, host: np.ndarray) -> None:
        """Start to copy an array of pinned memory to one of the device, of equal shape and type."""
        to.set(host)

    def record(self) -> Any:
        """An event: its `synchronize` waits for all that was put into the queue until now."""
        return self

    def wait(self, event: Any) -> None:
        """What is put into the queue from now on waits for an event of another."""

    def synchronize(self) -> None:
        """Wait for all that was put into the queue."""


class Runtime:
    """A device's arrays and kernels. A subclass allocates, copies, compiles and starts."""

    name: str
    limits = LIMITS["sm_75"]  # the smallest: what fits it fits every card
    tensor_cores = True  # whether they take TF32, bfloat16 and float16
    recorded: list[tuple[Launch, list[Any]]] | None = None  # set to []: what `run` starts, kept

    def __init__(self) -> None:
        # By a configuration's id, which stands for it as long as its binding holds it.
        self._bound: dict[tuple[Any, ...], tuple[LaunchConfig, list[Binding]]] = {}
        self._modules: dict[tuple[str, tuple[tuple[str, str], ...]], Any] = {}
        self._tickets: dict[tuple[str, int], list[Any]] = {}  # by card and stream
        self.tables: dict[Any, dict[str, Any]] = {}  # of optimisers, see gpuconv/optim/device.py
        self._noughts: dict[tuple[str, str, int], Any] = {}

    # ---- what a device defines -----------------------------------------------------------------

    def empty(self, shape: Any, dtype: Any = np.float32) -> Any:
        """A new array, its contents undefined. MemoryError where there is no room."""
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

    def free_memory(self) -> int:
        """Bytes that are free on the device."""
        raise NotImplementedError

    def pinned(self, shape: Any, dtype: Any) -> np.ndarray:
        """A NumPy array from which a device copies by itself, its contents undefined."""
        return np.empty(shape, dtype)

    def queue(self, private: bool = False) -> Queue:
        """The queue that launches are put into; private: a new one that nothing else waits for."""
        return Queue()

    def build(self, text: str, launch: Launch) -> Any:
        """The module of a kernel file's text, specialised as the launch says."""
        raise NotImplementedError

    def start(self, launch: Launch, arguments: list[Any]) -> None:
        """Compile the kernel, if it is not yet, and start it; arguments fit its signature."""
        raise NotImplementedError

    def synchronize(self) -> None:
        """Wait for all that was started."""
        raise NotImplementedError

    def stream(self) -> int:
        """What orders the kernels that are started now: those of one stream run in turn."""
        return 0

    def shared_memory(self) -> AbstractContextManager[Any]:
        """Meanwhile arrays get memory as outside of `own_memory`."""
        return nullcontext()

    def own_memory(self, recorder: Recorder) -> AbstractContextManager[Any]:
        """Meanwhile arrays get memory that nobody else gets while the recorder lives."""
        return nullcontext()

    def assign(self, to: Any, array: Any) -> None:
        """Copy an array of the device to another, in C order, of its shape and type."""
        raise NotImplementedError

    def held(self, own: set[int], arguments: list[Any]) -> list[Any]:
        """A launch's arguments as a recorder keeps them; here arrays keep their memory."""
        return arguments

    def replay_of(self, recorder: Recorder) -> tuple[Callable[[], None], str]:
        """(what starts a recorder's launches again, why it does so one by one or "")."""
        launches = [(one, given) for one, given in recorder.launches if isinstance(one, Launch)]

        def replay() -> None:
            for launch, arguments in launches:
                self.start(launch, arguments)

        return replay, ""

    # ---- what all share ------------------------------------------------------------------------

    def zeros(self, shape: Any, dtype: Any = np.float32) -> Any:
        """A new array of zeros."""
        recording.refuse("an array of zeros is made within it")
        array = self.empty(shape, dtype)
        array.fill(0)
        return array

    def nought(self, dtype: Any, count: int = 1) -> Any:
        """`count` zeros that nobody writes: what kernels read where a recorded step has numbers."""
        key = self.here(), np.dtype(dtype).str, count
        if key not in self._noughts:
            self._noughts[key] = self.constant(np.zeros(count, dtype))
        return self._noughts[key]

    def constant(self, host: np.ndarray) -> Any:
        """`asarray` of what stays the same: a recorded step may make it, and keeps it."""
        recorder = recording.state.recorder
        if recorder is None:
            return self.asarray(host)
        with recording.paused(), self.shared_memory():
            return recorder.keep(self.asarray(host))

    def scalar(self, array: Any) -> Any:
        """The value of an array of one element, a loss; a recorded step notes it at each replay. A
        float, but while a step is recorded an array of NumPy's.
        """
        recorder = recording.state.recorder
        with recording.paused():
            value = float(self.asnumpy(array)[0])
        if recorder is None:
            return value
        recorder.scalars.append(array)
        return recorder.host_numbers.read(value)

    def read(self, array: Any) -> np.ndarray:
        """A NumPy copy, after all that was started, also while a step is recorded."""
        with recording.paused():
            return self.asnumpy(array)

    def module(self, launch: Launch) -> Any:
        """The compiled file of a launch's kernel, made when first asked for."""
        key = launch.file, launch.defines  # as they are: no two specialisations are equal
        if key not in self._modules:
            self._modules[key] = self.build(source.text(launch.file), launch)
        return self._modules[key]

    def run(
        self, config: LaunchConfig, numbers: Mapping[str, Scalar] = NO_NUMBERS, /, **arrays: Any
    ) -> None:
        """A configuration's launches in order, over arrays by name; its workspace is made here.

        numbers: the kernels' numbers that no shape decides, by parameter name.
        Raises TypeError or ValueError, one line, for what a kernel's signature does not allow. All
        that depends on layouts alone is checked once for each configuration and set of layouts.
        """
        if config.workspace:
            arrays["workspace"] = self.empty(config.workspace)
        if config.tickets:
            arrays["tickets"] = self.tickets(config.tickets)
        addresses: dict[str, int] = {}
        layouts: list[Any] = [id(config), self.here(), *numbers]
        for name, array in arrays.items():
            addresses[name], layout = self._located(array)
            layouts += name, layout
        key = tuple(layouts)
        _, bindings = self._bound.get(key) or self._bind(key, config, numbers, arrays)
        checked = [(b.launch, b.arguments(arrays, addresses, numbers)) for b in bindings]
        for launch, arguments in checked:
            self.start(launch, arguments)
        if self.recorded is not None:
            self.recorded += checked
        if recording.state.recorder is not None:
            recording.state.recorder.add(bindings, checked, numbers)

    def tickets(self, count: int) -> Any:
        """Zeros, in which a kernel counts its finished blocks and which it leaves as zeros.

        They are kept for each stream, whose kernels follow one another, and are never freed: a
        launch may be started again by its addresses.
        """
        held = self._tickets.setdefault((self.here(), self.stream()), [])
        if not held or held[-1].size < count:
            with recording.paused(), self.shared_memory():
                held.append(self.zeros(max(count, MIN_TICKETS), np.uint32))
        return held[-1][:count]

    def _bind(
        self,
        key: tuple[Any, ...],
        config: LaunchConfig,
        numbers: Mapping[str, Scalar],
        arrays: Mapping[str, Any],
    ) -> tuple[LaunchConfig, list[Binding]]:
        """Check all that depends on layouts and remember it under `key`."""
        views, here = {name: self.view(array) for name, array in arrays.items()}, self.here()
        launches = [stored(launch, views) for launch in config.launches]
        bound = [bind(launch, views, here, self.limits, numbers) for launch in launches]
        taken = {name for binding in bound for _, name, _ in binding.given}
        if unknown := sorted(set(numbers) - taken):
            names = ", ".join(launch.kernel for launch in config.launches)
            raise TypeError(f"{names}: {', '.join(unknown)} not its parameter")
        while len(self._bound) >= MAX_BOUND:
            self._bound.pop(next(iter(self._bound)))  # the oldest
        self._bound[key] = config, bound
        return self._bound[key]

    def _located(self, array: Any) -> tuple[int, Any]:
        """(address, layout); equal layouts are equal in all that `bind` checks."""
        if isinstance(array, np.ndarray) or not hasattr(array, "strides"):
            return 0, type(array)  # no array of a device: `bind` refuses it
        layout = type(array), array.shape, array.strides, array.dtype, self.place(array)
        return self.address(array), layout

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
        if pixel_stride(array) is not None and array.dtype in MOVED:
            N, C, H, W = array.shape
            config = config_transpose(N, H * W, C)
            return self._rearranged(config, self.as_nhwc(array), array.shape)
        return self.copy(array)

    def as_nhwc(self, array: Any) -> Any:
        """(N, C, H, W) as contiguous (N, H, W, C); without a copy where it lies so in memory."""
        view = array.transpose(0, 2, 3, 1)
        if channels_last(array):
            return self._aligned(view)
        if array.dtype not in MOVED:
            return self.copy(view)
        if pixel_stride(array) is not None:
            y = self.empty(view.shape, array.dtype)
            self.channels("copy_channels", self.as_nchw(y), array)
            return y
        N, C, H, W = array.shape
        config = config_transpose(N, C, H * W)
        return self._rearranged(config, self.contiguous(array), view.shape)

    def _rearranged(self, config: LaunchConfig, x: Any, shape: tuple[int, ...]) -> Any:
        """y from x by layout.cu; where nothing is to be launched, the same memory is both."""
        if not config.launches:
            return x.reshape(shape)
        y = self.empty(shape, x.dtype)
        self.run(config, y=y, x=x)
        return y

    def dense(self, array: Any) -> tuple[Any, bool]:
        """(N, C, H, W) as contiguous memory, and whether that is (N, H, W, C): for kernels that
        read either. Without a copy where it lies so.
        """
        if in_c_order(array.shape, array.strides, array.dtype.itemsize):
            return array, False
        return self.as_nhwc(array), True

    def pixels(self, array: Any) -> PixelView:
        """The pixels of (N, C, H, W); without a copy where they are channels of a
        channels-last image, so that a dense block's layers read what is before them in place.
        """
        stride = pixel_stride(array)
        if stride is None:
            array = self.as_nchw(self.as_nhwc(array))
            stride = array.shape[1]
        aligned = self.address(array) % ALIGN == 0
        width = vector_width(array.shape[1], stride) if aligned else 1
        return PixelView(self.span(array), stride, width)

    def channels(self, kernel: str, to: Any, source: Any) -> None:
        """copy_channels or add_channels: `to`, in place, from `source`, both (N, C, H, W).

        ValueError where `to` is neither channels-last nor channels of such an image.
        """
        if pixel_stride(to) is None:
            raise ValueError(f"{kernel}: what is written must be channels of a channels-last image")
        a, b = self.pixels(to), self.pixels(source)
        vec = min(a.vector, b.vector)
        config = config_channels(kernel, to.shape, a.stride, b.stride, vec)
        self.run(config, **{"to": a.memory, "from": b.memory})

    def as_nchw(self, array: Any) -> Any:
        """(N, H, W, C) memory as (N, C, H, W), as users see it."""
        return array.transpose(0, 3, 1, 2)

    def each(
        self,
        file: str,
        kernel: str,
        out: str,
        numbers: Mapping[str, Scalar] = NO_NUMBERS,
        dtype: Any = None,
        more: Mapping[str, Any] = NO_NUMBERS,
        **inputs: Any,
    ) -> Any:
        """An element-by-element kernel over inputs of one shape; the result is laid out in memory
        as the first of them and has its dtype, or another. numbers: the kernel's, besides the
        count. more: arrays of other shapes that it takes.
        """
        first = next(iter(inputs.values()))
        images = pixel_stride(first) is not None
        dense = self.as_nhwc if images else self.contiguous
        read = {name: dense(array) for name, array in inputs.items()}
        y = self.empty(next(iter(read.values())).shape, dtype or first.dtype)
        self.run(
            config_elementwise(file, kernel, int(first.size)), numbers, **{out: y}, **read, **more
        )
        return self.as_nchw(y) if images else y

    def image(
        self,
        config: LaunchConfig,
        out: str,
        shape: tuple[int, ...],
        numbers: Mapping[str, Scalar] = NO_NUMBERS,
        **images: Any,
    ) -> Any:
        """What a configuration writes to the array `out`, of shape (N, C, H, W), from images, of
        the first one's dtype.
        """
        N, C, H, W = shape
        y = self.empty((N, H, W, C), next(iter(images.values())).dtype)
        read = {name: self.as_nhwc(array) for name, array in images.items()}
        self.run(config, numbers, **{out: y}, **read)
        return self.as_nchw(y)

    def _aligned(self, array: Any) -> Any:
        return self.copy(array) if self.address(array) % ALIGN else array


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
