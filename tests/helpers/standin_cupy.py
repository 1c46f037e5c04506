"""A stand-in for the part of CuPy that gpuconv/cuda/cupy.py uses; kernels run in the simulator.

It lets that module's own lines run where there is no GPU, and fail on demand. It is no GPU, and no
test that uses it says anything about one. `install` puts it where `import cupy` finds it;
tests/cuda/test_runtime_cupy.py compares its names and signatures with CuPy's.
"""

import contextlib
import ctypes
import functools
import importlib.util
import sys
import time
import types

import numpy as np
import pytest

sim = pytest.importorskip("gpuconv.sim", reason="the simulator's packages are not installed")

__version__ = "stand-in"
OPT_IN = 48 << 10
failing: set[str] = (
    set()
)  # of "driver", "devices", "memory", "compile", "launch", "synchronize", "capture"
launched: list[str] = []


class CUDARuntimeError(RuntimeError):
    pass


class CUDADriverError(RuntimeError):
    pass


class OutOfMemoryError(MemoryError):
    pass


class CompileException(Exception):
    pass


class Device:
    def __init__(self, device=None):
        self.id = 0 if device is None else int(device)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class MemoryPool:
    """What one that is no default gave away stays, as a pool's memory does."""

    def malloc(self, size):
        raise NotImplementedError("arrays are made by the simulator")

    def free_all_blocks(self, stream=None):
        pass

    def free_bytes(self):
        return 0

    def used_bytes(self):
        return 12345


@contextlib.contextmanager
def using_allocator(allocator=None):
    global _pool
    before, _pool = _pool, allocator.__self__
    try:
        yield
    finally:
        _pool = before


_default_pool = _pool = MemoryPool()
_pooled: list = []


class MemoryPointer:
    def __init__(self, mem, offset=0):
        self.mem, self.ptr = mem, mem.ptr + offset

    def memset_async(self, value, size, stream=None):
        ctypes.memset(self.ptr, value, size)

    def copy_from_device_async(self, src, size, stream=None):
        ctypes.memmove(self.ptr, src.ptr, size)


class Graph:
    def __init__(self, launches):
        self._launches = launches

    def launch(self, stream=None):
        for launch in self._launches:
            launch()


_captured: list | None = None


class Stream:
    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        self.ptr = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def begin_capture(self, mode=None):
        global _captured
        if "capture" in failing:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported: operation not permitted")
        _captured = []

    def end_capture(self):
        global _captured
        launches, _captured = _captured, None
        return Graph(launches)

    def synchronize(self):
        if "synchronize" in failing:
            raise CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access")

    def wait_event(self, event):
        event.synchronize()


class ExternalStream(Stream):
    def __init__(self, ptr, device_id=-1):
        self.ptr, self.device_id = ptr, device_id


class Event:
    """When the host came by, which says nothing about any card."""

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self._at = None

    def record(self, stream=None):
        self._at = time.perf_counter()

    def synchronize(self):
        Stream().synchronize()


def get_elapsed_time(start_event, end_event):
    return 1e3 * (end_event._at - start_event._at)


class ndarray:
    """Refuses to mix with NumPy's arrays; everything else is the simulator's."""

    def __init__(self, array):
        self._array = array
        self.device = Device()

    shape = property(lambda self: self._array.shape)
    strides = property(lambda self: self._array.strides)
    dtype = property(lambda self: self._array.dtype)
    size = property(lambda self: self._array.size)
    ndim = property(lambda self: self._array.ndim)
    nbytes = property(lambda self: self._array.nbytes)
    data = property(lambda self: _pointer(self._array))
    base = property(lambda self: self._array.base)

    def __len__(self):
        return len(self._array)

    def __getitem__(self, index):
        return ndarray(self._array[index])

    def copy(self, order="C"):
        _allocate()
        return ndarray(self._array.copy())

    def fill(self, value):
        self._array.fill(value)

    def set(self, arr, stream=None):
        self._array.set(arr)

    def transpose(self, *axes):
        return ndarray(self._array.transpose(*axes))

    def reshape(self, *shape, order="C"):
        return ndarray(self._array.reshape(*shape))

    def view(self, dtype=None):
        return ndarray(self._array.view(dtype))

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_ufunc__(self, *_, **__):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")


def _pointer(array):
    memory = types.SimpleNamespace(ptr=array.base.begin)
    return MemoryPointer(memory, array.ptr - array.base.begin)


def _allocate():
    if "memory" in failing:
        raise OutOfMemoryError("Out of memory allocating 4,096 bytes (allocated so far: 0 bytes).")


def empty(shape, dtype=float, order="C"):
    _allocate()
    array = sim.empty(shape, dtype)
    if _pool is not _default_pool:
        _pooled.append(array)
    return ndarray(array)


def zeros(shape, dtype=float, order="C"):
    _allocate()
    return ndarray(sim.zeros(shape, dtype))


def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    _allocate()
    if hasattr(a, "__cuda_array_interface__"):
        return ndarray(a.__cuda_array_interface__["data"])
    return ndarray(sim.asarray(a, dtype))


def from_dlpack(array, *, device=None, copy=None):
    """The simulator's array, which has no capsule."""
    return ndarray(array.__dlpack__())


def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
    Stream().synchronize()
    return sim.asnumpy(a._array)


def alloc_pinned_memory(size):
    _allocate()
    return bytearray(size)


def get_current_stream(device_id=-1):
    return Stream()


def get_default_memory_pool():
    return _default_pool


def as_strided(x, shape=None, strides=None):
    """Of what gpuconv asks alone: a part's whole memory as one row."""
    row = x._array.span()
    assert (shape, strides) == (row.shape, row.strides)
    return ndarray(row)


class RawKernel:
    def __init__(self, module, name):
        self._module, self.name = module, name
        self.max_dynamic_shared_size_bytes = OPT_IN

    def __call__(self, grid, block, args, **kwargs):
        shared = kwargs.pop("shared_mem", 0)
        assert not kwargs, kwargs
        if "launch" in failing:
            raise CUDADriverError("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES: too many resources")
        if shared > self.max_dynamic_shared_size_bytes:
            raise CUDADriverError("CUDA_ERROR_INVALID_VALUE: invalid argument")
        for value in args:  # what the real one would take for another number, or another layout
            assert isinstance(value, ndarray | np.generic), type(value)
        plain = [a._array if isinstance(a, ndarray) else _at(a) for a in args]
        launch = functools.partial(self._module.launch, self.name, grid, block, plain, shared)
        if _captured is not None:
            _captured.append(launch)
            return
        launch()
        launched.append(self.name)


def _at(value):
    """The memory at an address, if this is one of a pool's."""
    if isinstance(value, np.uint64):
        for memory in (array.base for array in _pooled):
            offset = int(value) - memory.begin
            if 0 <= offset < memory.nbytes:
                return sim.Array(memory, memory.bytes[offset:])
    return value


class RawModule:
    def __init__(self, code=None, *, options=(), backend="nvrtc"):
        assert isinstance(options, tuple), "CuPy takes a tuple of options"
        assert all(isinstance(option, str) for option in options)
        self.code, self.options, self.backend = code, options, backend

    def get_function(self, name):
        if "compile" in failing:
            raise CompileException("kernel.cu(3): error: identifier undefined")
        own = tuple(option for option in self.options if not option.startswith("-std="))
        return RawKernel(sim.Module(self.code, own), name)


def _device_count():
    if "driver" in failing:
        raise CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")
    return 0 if "devices" in failing else 1


def _properties(device):
    return {
        "name": b"stand-in",
        "sharedMemPerBlockOptin": 64 << 10,
        "regsPerBlock": 65536,
        "maxThreadsPerBlock": 1024,
        "l2CacheSize": 4096,
        "multiProcessorCount": 1,
    }


lib = types.SimpleNamespace(stride_tricks=types.SimpleNamespace(as_strided=as_strided))


def _memory():
    return 1 << 16, 1 << 16


def _version():
    return 0


cuda = types.SimpleNamespace(
    Device=Device,
    Stream=Stream,
    ExternalStream=ExternalStream,
    Event=Event,
    Graph=Graph,
    MemoryPool=MemoryPool,
    using_allocator=using_allocator,
    MemoryPointer=MemoryPointer,
    alloc_pinned_memory=alloc_pinned_memory,
    get_elapsed_time=get_elapsed_time,
    get_current_stream=get_current_stream,
    runtime=types.SimpleNamespace(
        getDeviceCount=_device_count,
        getDeviceProperties=_properties,
        memGetInfo=_memory,
        driverGetVersion=_version,
        runtimeGetVersion=_version,
        streamCaptureModeThreadLocal=1,
        CUDARuntimeError=CUDARuntimeError,
    ),
    driver=types.SimpleNamespace(CUDADriverError=CUDADriverError),
    memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError, MemoryPool=MemoryPool),
    compiler=types.SimpleNamespace(CompileException=CompileException),
)


def install(monkeypatch):
    """Make this module what `import cupy` finds, and the cuda runtime new, for one test."""
    from gpuconv.cuda.runtime import runtime

    failing.clear()
    launched.clear()
    _pooled.clear()
    monkeypatch.setitem(sys.modules, "cupy", sys.modules[__name__])
    runtime.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", _find_spec)


_real_find_spec = importlib.util.find_spec


def _find_spec(name, package=None):
    found = types.SimpleNamespace(name=name)
    return found if name == "cupy" else _real_find_spec(name, package)
