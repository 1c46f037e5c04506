"""The GPU: kernels compiled and launched by CuPy. The only module that imports it.

Arrays are CuPy's own, from its memory pool; kernels run on the current stream, inside the device of
their arrays; compiled code is kept in CuPy's cache (CUPY_CACHE_DIR), which need not see headers:
the source that it is given has them inlined.
"""

from __future__ import annotations

import importlib
import os
from contextlib import nullcontext
from typing import Any

import numpy as np

from gpuconv.cuda import source
from gpuconv.cuda.binding import signature_of
from gpuconv.cuda.launch_config import LIMITS, Launch, Limits
from gpuconv.cuda.runtime import MAX_BOUND, Runtime
from gpuconv.errors import DeviceError

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
        self.limits = self._limits()
        self.debug = os.environ.get(SYNCHRONIZE, "") not in ("", "0")
        self._functions: dict[tuple[int, int], tuple[Launch, Any]] = {}

    def empty(self, shape: Any, dtype: Any = np.float32) -> Any:
        try:
            return self.cupy.empty(shape, dtype)
        except Exception as error:
            self._explain(error, f"an array of shape {shape}")
            raise

    def asarray(self, host: np.ndarray) -> Any:
        try:
            return self.cupy.asarray(np.ascontiguousarray(host))
        except Exception as error:
            self._explain(error, f"an array of shape {host.shape}")
            raise

    def asnumpy(self, array: Any) -> np.ndarray:
        try:
            with self.inside(array):
                return self.cupy.asnumpy(array, order="C")
        except Exception as error:
            self._explain(error, "a copy to the host")
            raise

    def copy(self, array: Any) -> Any:
        try:
            with self.inside(array):
                return array.copy(order="C")
        except Exception as error:
            self._explain(error, f"a copy of shape {array.shape}")
            raise

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
        try:
            function = self._function(launch)
            block = (launch.block, 1, 1)
            function(launch.grid, block, tuple(arguments), shared_mem=launch.shared)
            if self.debug:
                self.cupy.cuda.get_current_stream().synchronize()
        except Exception as error:
            self._explain(error, f"kernel {launch.kernel} ({launch.file})")
            raise

    def synchronize(self) -> None:
        try:
            self.cupy.cuda.get_current_stream().synchronize()
        except Exception as error:
            self._explain(error, "a kernel started earlier")
            raise

    def compile(self, launch: Launch) -> None:
        """Compile and load a kernel without starting it, as `gpuconv warmup` does."""
        signature_of(launch)
        try:
            self.module(launch).get_function(launch.kernel)
        except Exception as error:
            self._explain(error, f"kernel {launch.kernel} ({launch.file})")
            raise

    def _function(self, launch: Launch) -> Any:
        """The compiled kernel of the current card, found once: looking it up costs as much as the
        launch itself.
        """
        key = self.cupy.cuda.Device().id, id(launch)
        if (known := self._functions.get(key)) is None:
            function = self.module(launch).get_function(launch.kernel)
            if launch.shared > OPT_IN:
                function.max_dynamic_shared_size_bytes = launch.shared
            if len(self._functions) >= MAX_BOUND:
                self._functions.clear()
            known = self._functions[key] = launch, function  # which keeps the id its own
        return known[1]

    def build(self, text: str, launch: Launch) -> Any:
        options = (*OPTIONS, *launch.options)
        return self.cupy.RawModule(code=text, options=options, backend="nvrtc")

    def _limits(self) -> Limits:
        """Of the current card."""
        runtime = self.cupy.cuda.runtime
        properties = runtime.getDeviceProperties(self.cupy.cuda.Device().id)
        return Limits(
            int(properties.get("sharedMemPerBlockOptin", LIMITS["sm_75"].shared)),
            int(properties["maxThreadsPerBlock"]),
        )

    def _explain(self, error: Exception, what: str) -> None:
        """Raise CuPy's errors as one line that says what was being done and the way out."""
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


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
