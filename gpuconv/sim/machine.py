"""Modules and launches: source to kernels in this process, arguments to bytes, blocks to cores."""

from __future__ import annotations

import ctypes
import platform
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gpuconv.cpu.threads import thread_count
from gpuconv.sim import cache as disk
from gpuconv.sim import compile as nvrtc
from gpuconv.sim import jit, layout, memory, ptx, report
from gpuconv.sim.arguments import pack
from gpuconv.sim.errors import LaunchError
from gpuconv.sim.info import Info, Kernel
from gpuconv.sim.lower import lower

MAX_THREADS = 1024
MAX_BLOCK = (1024, 1024, 64)
MAX_GRID = (2**31 - 1, 65535, 65535)
STATIC_SHARED = 48 * 1024
MAX_SHARED = 227 * 1024  # the most any architecture offers with opt-in
_WORTHWHILE = 3e-4  # seconds of work below which a second core does not pay
_FIRST_GUESS = 1e-7  # seconds a CUDA thread takes, before a launch has been timed
_KEPT = 8  # shapes of block whose memory a kernel keeps for the next launch
_RUN = ctypes.CFUNCTYPE(None, ctypes.c_uint64, ctypes.c_uint64)
_PROBE = ctypes.CFUNCTYPE(None, *[ctypes.c_uint64] * 4)


def _x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def _from_source(
    source: str, options: Sequence[str], arch: str, name: str, check: bool
) -> tuple[Info, bytes]:
    """Compile, or find compiled. Headers of the user's are outside the key, so with them NVRTC always runs."""
    private = any(re.match(r"-I|--include-path|--pre-include|-include", o) for o in options)
    private |= bool(re.search(r'^\s*#\s*include\s*"', source, re.M))
    if private:
        return _from_ptx(nvrtc.to_ptx(source, options, arch, name), check)
    entry = disk.key(
        "source",
        source,
        repr(tuple(options)),
        repr(nvrtc.OPTIONS),
        arch,
        name,
        nvrtc.compiler_version(),
        jit.identity(),
        str(check),
    )
    return _cached(entry, lambda: nvrtc.to_ptx(source, options, arch, name), check)


def _from_ptx(text: str, check: bool, host: bool = False) -> tuple[Info, bytes]:
    return _cached(
        disk.key("ptx", text, jit.identity(), str(check), str(host)), lambda: text, check, host
    )


def _cached(entry: str, text: Any, check: bool, host: bool = False) -> tuple[Info, bytes]:
    found = disk.load(entry)
    if found is not None:
        return Info.from_json(found[0]), found[1]
    ir, info = lower(ptx.parse(text()), check=check, host=host, flush=_x86())
    code = jit.build(ir)
    disk.store(entry, info.to_json(), code)
    return info, code


@cache
def _runtime() -> tuple[Any, Any, jit.Code]:
    """The scheduler: sim_run and sim_probe."""
    source = layout.c_header() + Path(__file__).with_name("runtime.cu").read_text()
    entry = disk.key("runtime", source, nvrtc.compiler_version(), jit.identity())
    options = ("-rdc=true",)
    _, code = _cached(
        entry, lambda: nvrtc.to_ptx(source, options, name="runtime.cu"), False, host=True
    )
    loaded = jit.Code(code)
    jit.add_symbol("sim_check", loaded.address("sim_check"))
    return _RUN(loaded.address("sim_run")), _PROBE(loaded.address("sim_probe")), loaded


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="gpuconv-sim")


class Module:
    """CUDA C++ compiled for the simulator.

    source: CUDA C++ with `extern "C" __global__` kernels. options: further NVRTC options (-D..., -I...).
    arch: the virtual architecture. name: what messages call the file. check: verify every memory access
    (bounds, alignment, initialised) and more; slower.
    Raises CompileError where NVRTC refuses the source, UnsupportedError where its PTX uses what is not modelled.

    >>> module = Module('extern "C" __global__ void f(float* y, float a) { y[threadIdx.x] = a; }')
    >>> y = gpuconv.sim.empty(4)
    >>> module.launch("f", 1, 4, (y, 2.0))
    """

    def __init__(
        self,
        source: str,
        options: Sequence[str] = (),
        *,
        arch: str = nvrtc.DEFAULT_ARCH,
        name: str = "kernel.cu",
        check: bool = False,
    ) -> None:
        self._load(*_from_source(source, options, arch, name, check), check)

    @classmethod
    def from_ptx(cls, text: str, *, check: bool = False) -> Module:
        """A module from PTX text."""
        module = cls.__new__(cls)
        module._load(*_from_ptx(text, check), check)
        return module

    def _load(self, info: Info, code: bytes, check: bool) -> None:
        self._run, self._probe, self._scheduler = _runtime()
        self._info = info
        memory.quarantine |= check
        self._code = jit.Code(code)
        self.check = check
        self._functions: dict[str, Function] = {}

    @property
    def kernels(self) -> tuple[str, ...]:
        """Names of the kernels in this module."""
        return tuple(self._info.kernels)

    def function(self, name: str) -> Function:
        """The kernel `name`. Raises ValueError, naming those there are."""
        if name not in self._functions:
            if name not in self._info.kernels:
                there = ", ".join(self._info.kernels) or "none"
                raise ValueError(
                    f'no kernel {name!r} in this module, which has: {there} (is it extern "C"?)'
                )
            self._functions[name] = Function(self, self._info.kernels[name])
        return self._functions[name]

    def launch(
        self,
        name: str,
        grid: int | tuple[int, ...],
        block: int | tuple[int, ...],
        args: Sequence[Any],
        shared: int = 0,
        order: str = "forward",
        seed: int = 0,
    ) -> None:
        """Run kernel `name` and wait; see Function.launch."""
        self.function(name).launch(grid, block, args, shared, order, seed)


class _Worker:
    """Memory for one block at a time."""

    def __init__(self, function: Function, threads: int, shared: int) -> None:
        kernel = function.kernel
        self.block = np.zeros(1, layout.dtype("Block"))
        self.threads = np.zeros(threads if kernel.coroutine else 1, layout.dtype("Thread"))
        self.shared = _aligned(shared + 1024)
        self.shadow = np.zeros(shared + 16 if function.module.check else 0, np.uint8)
        self.frames = _aligned(threads * function.frame_bytes if kernel.coroutine else 16)
        record = self.block[0]
        record["threads"] = self.threads.ctypes.data
        record["shared"] = self.shared.ctypes.data
        record["shared_shadow"] = self.shadow.ctypes.data
        record["frames"] = self.frames.ctypes.data
        record["frame_stride"] = function.frame_bytes
        record["nthreads"] = threads
        record["shared_bytes"] = shared


def _aligned(nbytes: int) -> np.ndarray:
    """Poisoned bytes on a 1024-byte boundary."""
    raw = np.full(nbytes + 1024, memory.POISON, np.uint8)
    start = -raw.ctypes.data % 1024
    return raw[start : start + nbytes]


class Function:
    """One kernel of a module."""

    def __init__(self, module: Module, kernel: Kernel) -> None:
        self.module = module
        self.kernel = kernel
        self.name = kernel.name
        self.address = module._code.address(kernel.name)
        self._free: dict[tuple[int, int], list[_Worker]] = {}
        self._pace = _FIRST_GUESS
        self.frame_bytes = self._frame_bytes() if kernel.coroutine else 0

    def _frame_bytes(self) -> int:
        """Size of a thread's frame: create one thread in ample memory and read what it says."""
        ample = _aligned(self.kernel.local_bytes * 2 + (1 << 20))
        block, thread = np.zeros(1, layout.dtype("Block")), np.zeros(1, layout.dtype("Thread"))
        self.module._probe(self.address, block.ctypes.data, thread.ctypes.data, ample.ctypes.data)
        return (
            -(-int(thread["frame_size"][0]) // 64) * 64 + 64
        )  # one cache line apart from a power of two

    def launch(
        self,
        grid: int | tuple[int, ...],
        block: int | tuple[int, ...],
        args: Sequence[Any],
        shared: int = 0,
        order: str = "forward",
        seed: int = 0,
    ) -> None:
        """Run the kernel over a grid of blocks of threads and wait until it is done.

        args: one per parameter; a pointer takes a sim array, a number is cast to exactly the declared type.
        shared: bytes of dynamic shared memory. order: "forward", "reverse" or "shuffled" (by `seed`), of blocks and
        of the threads between two barriers.
        Raises TypeError or ValueError for a wrong argument, LaunchError for a launch past the limits, KernelError for
        what goes wrong inside.
        """
        dims, threads = _dimensions("grid", grid, MAX_GRID), _dimensions("block", block, MAX_BLOCK)
        self._check_limits(threads, shared)
        parameters = pack(self.kernel, args)
        count = threads[0] * threads[1] * threads[2]
        blocks = dims[0] * dims[1] * dims[2]
        launch, keep = self._launch_record(blocks, count, order, seed)
        team = min(self._team(blocks * count), blocks)
        total = self.kernel.static_shared + shared
        workers = [self._worker(count, total) for _ in range(team)]
        table = self._allocations()
        for worker in workers:
            record = worker.block[0]
            record["params"], record["launch"] = parameters.ctypes.data, launch.ctypes.data
            record["ntid"], record["nctaid"], record["dynamic_bytes"] = threads, dims, shared
            record["reverse"], record["error"] = keep[2], 0
            record["table"], record["table_length"] = table.ctypes.data, len(table)
        started = time.perf_counter()
        self._execute(launch, workers)
        self._pace = (time.perf_counter() - started) * team / (blocks * count)
        failed = [worker for worker in workers if worker.block["error"][0]]
        if failed:
            raise report.kernel_error(self.module._info, self.kernel, failed[0])
        if len(self._free) > _KEPT:
            self._free.clear()
        for worker in workers:
            self._free.setdefault((count, total), []).append(worker)
        if not self.module.check:
            for (
                argument
            ) in args:  # unchecked stores leave no trace: take what they were given as written
                if isinstance(argument, memory.Array):
                    argument._memory.shadow = None

    def _team(self, threads: int) -> int:
        """How many cores: one where the order of blocks counts, or where the work is less than starting a second."""
        if self.kernel.serial or threads * self._pace < _WORTHWHILE:
            return 1
        return thread_count()

    def _execute(self, launch: np.ndarray, workers: list[_Worker]) -> None:
        run, record = self.module._run, launch.ctypes.data
        if len(workers) == 1 and not self.module.check:
            run(record, workers[0].block.ctypes.data)
            return
        pool = _pool(max(thread_count(), len(workers)))  # this thread only waits: Ctrl-C reaches it
        futures = [pool.submit(run, record, worker.block.ctypes.data) for worker in workers]
        try:
            for future in futures:
                future.result()
        except BaseException:
            launch["stop"] = 1
            for future in futures:
                future.exception()
            raise

    def _worker(self, threads: int, shared: int) -> _Worker:
        free = self._free.get((threads, shared))
        return free.pop() if free else _Worker(self, threads, shared)

    def _launch_record(
        self, blocks: int, threads: int, order: str, seed: int
    ) -> tuple[np.ndarray, tuple]:
        """The launch's record, and what it points to."""
        record = np.zeros(1, layout.dtype("Launch"))
        record["blocks"], record["entry"] = blocks, self.address
        record["coroutine"], record["check"] = self.kernel.coroutine, self.module.check
        record["flush"] = self.kernel.flush
        sequence = inner = None
        reverse = 0
        if order == "reverse":
            sequence, reverse = np.arange(blocks, dtype=np.uint32)[::-1].copy(), 1
        elif order == "shuffled":
            chosen = np.random.default_rng(seed)
            sequence = chosen.permutation(blocks).astype(np.uint32)
            lanes, warps = chosen.permutation(32), chosen.permutation(-(-threads // 32))
            inner = np.concatenate([lanes, warps]).astype(np.uint32)
            reverse = int(chosen.integers(2))
        elif order != "forward":
            raise ValueError(f"order must be 'forward', 'reverse' or 'shuffled', got {order!r}")
        record["order"] = sequence.ctypes.data if sequence is not None else 0
        record["thread_order"] = inner.ctypes.data if inner is not None else 0
        return record, (sequence, inner, reverse)

    def _allocations(self) -> np.ndarray:
        """Every live allocation and variable of the module, for the checked mode."""
        if not self.module.check:
            return np.zeros(0, layout.dtype("Allocation"))
        rows = [
            (m.begin, m.begin + m.nbytes, m.shadow.ctypes.data if m.shadow is not None else 0)
            for m in memory.live()
        ]
        for name, size in self.module._info.variables.items():
            begin = self.module._code.address(f"v.{name}")
            rows.append((begin, begin + size, 0))
        return np.array(sorted(rows), layout.dtype("Allocation"))

    def _check_limits(self, threads: tuple[int, ...], shared: int) -> None:
        count = threads[0] * threads[1] * threads[2]
        if count > MAX_THREADS:
            raise LaunchError(
                f"{self.name}: a block has at most {MAX_THREADS} threads, got {threads} = {count}"
            )
        if count > self.kernel.max_threads:
            raise LaunchError(
                f"{self.name}: its __launch_bounds__ allow {self.kernel.max_threads} threads a block, "
                f"got {threads} = {count}"
            )
        if isinstance(shared, bool) or not isinstance(shared, int | np.integer) or shared < 0:
            raise ValueError(f"{self.name}: shared must be a number of bytes >= 0, got {shared!r}")
        if self.kernel.static_shared > STATIC_SHARED:
            raise LaunchError(
                f"{self.name}: {self.kernel.static_shared} bytes of static shared memory, at most "
                f"{STATIC_SHARED} are allowed: use dynamic shared memory"
            )
        if self.kernel.static_shared + shared > MAX_SHARED:
            raise LaunchError(
                f"{self.name}: {self.kernel.static_shared} static + {shared} dynamic bytes of shared "
                f"memory, no architecture has more than {MAX_SHARED}"
            )


def _dimensions(
    what: str, value: int | tuple[int, ...], limits: tuple[int, ...]
) -> tuple[int, ...]:
    """Three lengths, each at least 1 and within its limit."""
    lengths = tuple(value) if isinstance(value, tuple | list) else (value,)
    if not 1 <= len(lengths) <= 3 or not all(isinstance(n, int | np.integer) for n in lengths):
        raise ValueError(f"{what} takes one to three integers, got {value!r}")
    full = tuple(int(n) for n in lengths) + (1,) * (3 - len(lengths))
    for axis, length, limit in zip("xyz", full, limits, strict=True):
        if length < 1:
            raise LaunchError(f"{what}.{axis} must be at least 1, got {length}")
        if length > limit:
            raise LaunchError(f"{what}.{axis} must be at most {limit}, got {length}")
    return full
