"""The GPU: kernels compiled and launched by CuPy. The only module that imports it.

Arrays are CuPy's own, from its memory pool; kernels run on the current stream, inside the device of
their arrays; compiled code is kept in CuPy's cache (CUPY_CACHE_DIR), which need not see headers:
the source that it is given has them inlined.
"""

from __future__ import annotations

import gc
import importlib
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.cuda import recording, source
from gpuconv.cuda.binding import signature_of
from gpuconv.cuda.launch_config import LIMITS, Launch, Limits
from gpuconv.cuda.runtime import Queue, Runtime
from gpuconv.errors import DeviceError

if TYPE_CHECKING:
    from gpuconv.cuda.recording import Recorder

INSTALL = "pip install 'gpuconv[cuda12]', or 'gpuconv[cuda13]' for a driver of CUDA 13"
ELSEWHERE = "without a GPU use device cpu, or sim to run the kernels themselves"
# CuPy appends -ftz=true by itself; given twice, some releases of NVRTC refuse it.
OPTIONS = tuple(option for option in source.OPTIONS if option != "-ftz=true")
OPT_IN = 48 << 10  # bytes of dynamic shared memory above which a kernel must ask for them
HERE = nullcontext()  # the current device is the array's
SYNCHRONIZE = "GPUCONV_SYNCHRONIZE"  # set to 1: wait after each launch, so errors name their kernel


def problem() -> str:
    """Empty where CuPy and a GPU work, else one line that says what is missing and the way out."""
    try:
        cupy = importlib.import_module("cupy")
    except ModuleNotFoundError as error:
        if error.name == "cupy":
            return f"CuPy is not installed: {INSTALL}; {ELSEWHERE}"
        return f"CuPy's import fails: {_line(error)}; reinstall it: {INSTALL}"
    except Exception as error:  # its import fails in many ways; what it said is the clue
        return f"CuPy's import fails: {_line(error)}; reinstall it: {INSTALL}"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # CUDARuntimeError; which class depends on what is missing
        return f"no GPU answers: {_line(error)}; {ELSEWHERE}"
    return "" if count else f"no GPU is visible (CUDA_VISIBLE_DEVICES?); {ELSEWHERE}"


class CupyRuntime(Runtime):
    """Arrays are `cupy.ndarray`; a launch returns at once."""

    name = "cuda"

    def __init__(self) -> None:
        if message := problem():
            raise DeviceError(f"device cuda: {message}")
        super().__init__()
        self.cupy: Any = importlib.import_module("cupy")
        device = self.cupy.cuda.Device().id
        properties = self.cupy.cuda.runtime.getDeviceProperties(device)
        shared = properties.get("sharedMemPerBlockOptin", LIMITS["sm_75"].shared)
        self.limits = Limits(int(shared), int(properties["maxThreadsPerBlock"]))
        self.tensor_cores = int(properties.get("major", 0)) >= 8
        self.debug = os.environ.get(SYNCHRONIZE, "") not in ("", "0")
        self._functions: dict[tuple[Any, ...], Any] = {}

    def empty(self, shape: Any, dtype: Any = np.float32) -> Any:
        array = self._tried(shape, self.cupy.empty, shape, dtype)
        if recording.state.recorder is not None:
            recording.state.recorder.own.add(array.data.mem.ptr)
        return array

    def asarray(self, host: np.ndarray) -> Any:
        recording.refuse("an array is copied from the host")
        return self._tried(host.shape, self.cupy.asarray, np.ascontiguousarray(host))

    def borrowed(self, array: Any) -> Any:
        """Another library's array on the GPU, by DLPack or its CUDA array interface: no copy."""
        take = self.cupy.from_dlpack if hasattr(array, "__dlpack__") else self.cupy.asarray
        return self._tried("an array of another library", take, array)

    def on_stream(self, pointer: int, device: int) -> Any:
        """A context in which another library's stream is the current one."""
        return self.cupy.cuda.ExternalStream(pointer, device)

    def asnumpy(self, array: Any) -> np.ndarray:
        recording.refuse("an array is copied to the host")
        with self.inside(array):
            host: np.ndarray = self._tried(
                "a copy to the host", self.cupy.asnumpy, array, None, "C"
            )
        return host

    def copy(self, array: Any) -> Any:
        recording.refuse("an array is copied without a kernel")
        with self.inside(array):
            return self._tried(array.shape, array.copy, "C")

    def assign(self, to: Any, array: Any) -> None:
        array = self.contiguous(array)
        with self.inside(array):
            to.data.copy_from_device_async(array.data, array.nbytes)

    def span(self, array: Any) -> Any:
        step = array.dtype.itemsize
        pairs = zip(array.shape, array.strides, strict=True)
        count = 1 + sum((length - 1) * stride // step for length, stride in pairs)
        return self.cupy.lib.stride_tricks.as_strided(array, (count,), (step,))

    def address(self, array: Any) -> int:
        return int(array.data.ptr)

    def place(self, array: Any) -> str:
        return f"cuda:{array.device.id}"

    def here(self) -> str:
        return f"cuda:{self.cupy.cuda.Device().id}"

    def inside(self, array: Any) -> Any:
        device = array.device
        return HERE if device == self.cupy.cuda.Device() else device

    def start(self, launch: Launch, arguments: list[Any]) -> None:
        self._tried(launch, self._start, launch, arguments)

    def _start(self, launch: Launch, arguments: list[Any]) -> None:
        function = self._function(launch)
        self._call(function, launch.grid, (launch.block, 1, 1), tuple(arguments), launch.shared)

    def _call(self, function: Any, grid: Any, block: Any, arguments: Any, shared: int) -> None:
        function(grid, block, arguments, shared_mem=shared)
        if self.debug:
            self.cupy.cuda.get_current_stream().synchronize()

    def stream(self) -> int:
        return int(self.cupy.cuda.get_current_stream().ptr)

    def synchronize(self) -> None:
        self._tried("a kernel started earlier", self.cupy.cuda.get_current_stream().synchronize)

    def free_memory(self) -> int:
        pooled = self.cupy.get_default_memory_pool().free_bytes()  # kept for the next array
        return int(self.cupy.cuda.runtime.memGetInfo()[0]) + int(pooled)

    def pinned(self, shape: Any, dtype: Any) -> np.ndarray:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        memory = self._tried("pinned memory", self.cupy.cuda.alloc_pinned_memory, size)
        return np.ndarray(shape, dtype, buffer=memory)

    def queue(self, private: bool = False) -> Queue:
        cuda = self.cupy.cuda
        return StreamQueue(
            cuda, cuda.Stream(non_blocking=True) if private else cuda.get_current_stream()
        )

    # ---- a step that is recorded ---------------------------------------------------------------

    @contextmanager
    def own_memory(self, recorder: Recorder) -> Iterator[None]:
        """From a pool of the record's own, which is never trimmed. The common pool first gives back
        what the ordinary steps before had used, or both would be held.
        """
        cuda = self.cupy.cuda
        self.synchronize()
        self.cupy.get_default_memory_pool().free_all_blocks()
        pool = recorder.keep(cuda.MemoryPool())
        with cuda.using_allocator(pool.malloc):
            yield

    def shared_memory(self) -> Any:
        return self.cupy.cuda.using_allocator(self.cupy.get_default_memory_pool().malloc)

    def replay_of(self, recorder: Recorder) -> tuple[Callable[[], None], str]:
        """A graph of the launches, or where the driver makes none, they themselves."""
        items = [self._item(*each) for each in recorder.launches]
        recorder.keep(items)
        if not self.debug:
            try:
                return self._captured(items).launch, ""
            except Exception as error:
                note = _line(error)
        else:
            note = f"{SYNCHRONIZE} is set"

        def replay() -> None:
            for launch, function, grid, block, arguments, shared in items:
                self._tried(launch, self._call, function, grid, block, arguments, shared)

        return replay, note

    def held(self, own: set[int], arguments: list[Any]) -> list[Any]:
        """Arrays of the step's own as addresses, so that it uses their memory again as it did the
        first time; all others are kept.
        """
        return [np.uint64(a.data.ptr) if _owner(a) in own else a for a in arguments]

    def _item(self, launch: Launch | recording.Call, arguments: list[Any]) -> tuple[Any, ...]:
        if isinstance(launch, recording.Call):
            return launch, launch, (), (), (), 0
        block = (launch.block, 1, 1)
        return launch, self._function(launch), launch.grid, block, tuple(arguments), launch.shared

    def _captured(self, items: list[tuple[Any, ...]]) -> Any:
        """The launches as a graph. Nothing but launches may happen meanwhile: no allocation, no
        compilation, and no destructor that the garbage collector calls.
        """
        stream = self.cupy.cuda.Stream(non_blocking=True)
        collecting = gc.isenabled()
        gc.disable()
        try:
            with stream:
                stream.begin_capture(self.cupy.cuda.runtime.streamCaptureModeThreadLocal)
                try:
                    for _, function, grid, block, arguments, shared in items:
                        function(grid, block, arguments, shared_mem=shared)
                finally:
                    graph = stream.end_capture()
        finally:
            if collecting:
                gc.enable()
        return graph

    def compile(self, launch: Launch) -> None:
        """Compile and load a kernel without starting it, as `gpuconv warmup` does."""
        signature_of(launch)
        self._tried(launch, lambda: self.module(launch).get_function(launch.kernel))

    def _function(self, launch: Launch) -> Any:
        """The compiled kernel of the current card, found once: looking it up costs as much as the
        launch itself.
        """
        device = self.cupy.cuda.Device().id
        key = device, launch.file, launch.defines, launch.kernel, launch.shared
        if key not in self._functions:
            function = self.module(launch).get_function(launch.kernel)
            if launch.shared > OPT_IN:
                function.max_dynamic_shared_size_bytes = launch.shared
            self._functions[key] = function
        return self._functions[key]

    def build(self, text: str, launch: Launch) -> Any:
        options = (*OPTIONS, *launch.options)
        return self.cupy.RawModule(code=text, options=options, backend="nvrtc")

    def _tried(self, what: Any, act: Callable[..., Any], *given: Any) -> Any:
        """`act(*given)`; CuPy's errors become one line that says what was being done and the way
        out. what: a text, a launch, or the shape of a new array.
        """
        try:
            return act(*given)
        except Exception as error:
            if isinstance(what, Launch):
                what = f"kernel {what.kernel} ({what.file})"
            elif not isinstance(what, str):
                what = f"an array of shape {what}"
            self._explain(error, what)
            raise

    def _explain(self, error: Exception, what: str) -> None:
        cuda = self.cupy.cuda
        if isinstance(error, cuda.memory.OutOfMemoryError):
            pool = self.cupy.get_default_memory_pool()
            raise MemoryError(
                f"the GPU has no memory left for {what}: {_line(error)} "
                f"({pool.used_bytes()} bytes are in use here): use a smaller batch"
            ) from error
        if isinstance(error, cuda.compiler.CompileException):
            raise DeviceError(f"{what} does not compile: {_line(error)}") from error
        if isinstance(error, cuda.driver.CUDADriverError | cuda.runtime.CUDARuntimeError):
            hint = "" if self.debug else f"; {SYNCHRONIZE}=1 tells which launch failed"
            raise DeviceError(f"the GPU failed at {what}: {_line(error)}{hint}") from error


def _owner(array: Any) -> int | None:
    """The address of the memory that an array lies in; None for a number."""
    return getattr(getattr(array.data, "mem", None), "ptr", None)


class StreamQueue(Queue):
    """A CUDA stream."""

    def __init__(self, cuda: Any, stream: Any) -> None:
        self._cuda, self._stream = cuda, stream

    def copy(self, to: Any, host: np.ndarray) -> None:
        to.set(host, self._stream)

    def record(self) -> Any:
        event = self._cuda.Event(disable_timing=True)
        event.record(self._stream)
        return event

    def wait(self, event: Any) -> None:
        self._stream.wait_event(event)

    def synchronize(self) -> None:
        self._stream.synchronize()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
