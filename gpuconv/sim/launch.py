"""Launches: checks the limits, gives each worker its memory and shares the blocks among cores."""

from __future__ import annotations

import ctypes
import math
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.sim import layout, memory, report
from gpuconv.sim.arguments import pack
from gpuconv.sim.counters import Counters, counted
from gpuconv.sim.errors import LaunchError
from gpuconv.sim.info import Kernel
from gpuconv.sim.prelude import symbol

if TYPE_CHECKING:
    from gpuconv.sim.machine import Module

MAX_THREADS = 1024
MAX_BLOCK = (1024, 1024, 64)
MAX_GRID = (2**31 - 1, 65535, 65535)
STATIC_SHARED = 48 * 1024
MAX_SHARED = 227 * 1024  # the most any architecture offers with opt-in
_MIN_SECONDS = 3e-4  # of work for which a second core pays
_FIRST_GUESS = 1e-7  # seconds that a CUDA thread takes, before a launch has been timed
_checked = threading.Lock()  # checked launches share one clock, so they run one by one
_clock = 0  # logical time of all checked launches (races.cu)
_CREATE = ctypes.CFUNCTYPE(None, *[ctypes.c_uint64] * 3)  # of a coroutine
_KEPT = 8  # block shapes whose memory a kernel keeps for the next launch


@cache
def _all_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="gpuconv-sim")


class Worker:
    """The memory of one block at a time: its records, shared memory and the threads' frames."""

    def __init__(self, function: Function, threads: int, shared: int) -> None:
        kernel = function.kernel
        self.block = np.zeros(1, layout.DTYPES["Block"])
        self.threads = np.zeros(threads if kernel.coroutine else 1, layout.DTYPES["Thread"])
        self._held = {
            "threads": self.threads,
            "shared": memory.aligned(shared + 1024),
            "frames": memory.aligned(threads * function.frame_bytes if kernel.coroutine else 16),
        }
        if kernel.copies:
            count = threads * layout.COPIES
            self._held["copies"] = np.zeros(count, layout.DTYPES["Copy"])
        if function.module.check:
            template = _template(kernel, shared)
            self._held |= {"shared_template": template, "shared_shadow": template.copy()}
            clocks = {"times": threads, "seen": threads**2}
            clocks["sync_clocks"] = layout.SYNC_CLOCKS * threads
            self._held |= {name: np.zeros(size, np.uint64) for name, size in clocks.items()}
            self._held["shared_trace"] = _trace(shared, kernel.granule)
        record = self.block[0]
        for name, array in self._held.items():
            record[name] = array.ctypes.data
        record["granule"], record["frame_stride"] = kernel.granule, function.frame_bytes
        record["nthreads"], record["shared_bytes"] = threads, shared


def _template(kernel: Kernel, shared: int) -> np.ndarray:
    """Shadow of shared memory when a block begins: 0 for unwritten bytes, 0x80 in the gaps."""
    template = np.full(shared + 32, 0x80, np.uint8)
    for _, begin, size in kernel.shared_names:
        template[begin : begin + size] = 0
    if kernel.dynamic_shared:
        template[kernel.placed_shared : shared] = 0
    return template


def _trace(nbytes: int, granule: int) -> np.ndarray:
    """Access records, one for each granule of `nbytes` bytes of memory."""
    return np.zeros((nbytes // granule + 2) * layout.DTYPES["Trace"].itemsize // 8, np.uint64)


class Function:
    """One kernel of a module."""

    def __init__(self, module: Module, kernel: Kernel) -> None:
        self.module = module
        self.kernel = kernel
        self.name = kernel.name
        self.counters = Counters(kernel.name, module._info)
        self.address = module._code.address(symbol(kernel.name))
        self._free: dict[tuple[int, int], list[Worker]] = {}
        self._pace = _FIRST_GUESS
        self.frame_bytes = self._frame_bytes() if kernel.coroutine else 0

    def _frame_bytes(self) -> int:
        """Size of a thread's coroutine frame: create one in ample memory and read it there."""
        ample = memory.aligned(self.kernel.local_bytes * 2 + (1 << 20))
        block, thread = np.zeros(1, layout.DTYPES["Block"]), np.zeros(1, layout.DTYPES["Thread"])
        _CREATE(self.address)(block.ctypes.data, thread.ctypes.data, ample.ctypes.data)
        lines = -(-int(thread["frame_size"][0]) // 64)
        return (lines | 1) * 64  # an odd number of cache lines: frames spread over the cache's sets

    def launch(
        self,
        grid: int | tuple[int, ...],
        block: int | tuple[int, ...],
        args: Sequence[Any],
        shared: int = 0,
        order: str = "forward",
        seed: int = 0,
        cores: int | None = None,
        concurrent: bool = False,
    ) -> None:
        """Run the kernel over a grid of blocks of threads and wait until it is done.

        args: one per parameter; a pointer takes a sim array, a number is cast to exactly the
        declared type. shared: bytes of dynamic shared memory. order: "forward", "reverse" or
        "shuffled" (by `seed`), of blocks and of the threads between two barriers. cores: the most
        to share the blocks among, by default all that this process may use. concurrent: share them
        although the kernel has an atomic by which their order could matter. Raises TypeError or
        ValueError for a wrong argument, LaunchError for a launch past the limits, KernelError for
        an error in the running kernel.
        """
        if cores is not None and cores < 1:
            raise ValueError(f"{self.name}: cores must be at least 1, got {cores}")
        dims, threads = _dimensions("grid", grid, MAX_GRID), _dimensions("block", block, MAX_BLOCK)
        self._check_limits(threads, shared)
        parameters = pack(self.kernel, args)
        count, blocks = math.prod(threads), math.prod(dims)
        total = self.kernel.placed_shared + shared
        launch, _held, reverse = self._launch_record(blocks, count, order, seed)
        alone = self.module.check or self.module.count
        with _checked if alone else nullcontext():
            serial = alone or (self.kernel.serial and not concurrent)
            most = 1 if serial else cores or _all_cores()
            team = min(self._team(blocks * count, most), blocks)
            workers = [self._worker(count, total) for _ in range(team)]
            table = self._allocations(parameters)
            for worker in workers:
                record = worker.block[0]
                record["params"], record["launch"] = parameters.ctypes.data, launch.ctypes.data
                record["ntid"], record["nctaid"], record["dynamic_bytes"] = threads, dims, shared
                record["reverse"], record["error"] = reverse, 0
                record["table"], record["table_length"] = table.ctypes.data, len(table)
            with counted(self.counters, workers[0].block) if self.module.count else nullcontext():
                self._finish(launch, workers, blocks * count)
        if len(self._free) > _KEPT:
            self._free.clear()
        self._free.setdefault((count, total), []).extend(workers)
        if not self.module.check:
            memory.forget(args)

    def _finish(self, launch: np.ndarray, workers: list[Worker], threads: int) -> None:
        """Run a prepared launch and raise the error of the failed block with the lowest index."""
        global _clock
        started = time.perf_counter()
        launch["began"] = workers[0].block["clock"] = _clock
        try:
            self._execute(launch, workers)
        finally:
            _clock = max(_clock, int(workers[0].block["clock"][0]))
        self._pace = (time.perf_counter() - started) * len(workers) / threads
        failed = [worker for worker in workers if worker.block["error"][0]]
        if failed:
            first = min(failed, key=lambda worker: int(worker.block["error_block"][0]))
            raise report.kernel_error(self.module._info, self.kernel, first)

    def _team(self, threads: int, cores: int) -> int:
        """How many cores to use: one where the work is too little to pay for starting a second."""
        return 1 if threads * self._pace < _MIN_SECONDS else cores

    def _execute(self, launch: np.ndarray, workers: list[Worker]) -> None:
        if len(workers) == 1 and not self.module.check:
            self._run_worker(launch, workers[0])
            return
        pool = _pool(max(_all_cores(), len(workers)))  # this thread only waits: Ctrl-C reaches it
        futures: list[Future[None]] = []
        try:
            for worker in workers:
                futures.append(pool.submit(self._run_worker, launch, worker))
            for future in futures:
                future.result()
        except BaseException:
            launch["stop"] = 1
            for future in futures:
                future.exception()
            raise

    def _run_worker(self, launch: np.ndarray, worker: Worker) -> None:
        """Run blocks until none is left. The arguments keep alive what the records point to."""
        self.module._run(launch.ctypes.data, worker.block.ctypes.data)

    def _worker(self, threads: int, shared: int) -> Worker:
        try:
            return self._free[threads, shared].pop()
        except (KeyError, IndexError):  # there is none, or another Python thread took it
            return Worker(self, threads, shared)

    def _launch_record(
        self, blocks: int, threads: int, order: str, seed: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray], int]:
        """The Launch record, the arrays that it points to, and whether threads run backwards."""
        record = np.zeros(1, layout.DTYPES["Launch"])
        record["blocks"], record["entry"] = blocks, self.address
        record["coroutine"], record["check"] = self.kernel.coroutine, self.module.check
        record["flush"] = self.kernel.flush
        held = {}
        reverse = int(order == "reverse")
        if order == "reverse":
            held["order"] = np.arange(blocks, dtype=np.uint32)[::-1].copy()
        elif order == "shuffled":
            chosen = np.random.default_rng(seed)
            held["order"] = chosen.permutation(blocks).astype(np.uint32)
            lanes, warps = chosen.permutation(32), chosen.permutation(-(-threads // 32))
            held["thread_order"] = np.concatenate([lanes, warps]).astype(np.uint32)
            reverse = int(chosen.integers(2))
        elif order != "forward":
            raise ValueError(f"order must be 'forward', 'reverse' or 'shuffled', got {order!r}")
        for name, array in held.items():
            record[name] = array.ctypes.data
        return record, held, reverse

    def _allocations(self, parameters: np.ndarray) -> np.ndarray:
        """The memory that a kernel may access, for checked mode.

        That is every live allocation, the module's variables and the kernel's parameters.
        """
        if not self.module.check:
            return np.zeros(0, layout.DTYPES["Allocation"])
        first, granule = parameters.ctypes.data, self.kernel.granule
        rows = [(first, first + max(self.kernel.parameter_bytes, 1), 0, 0)]
        for m in memory.live():
            if m.trace is None or m.granule > granule:
                m.trace, m.granule = _trace(m.nbytes, granule), granule
            shadow = m.shadow.ctypes.data if m.shadow is not None else 0
            rows.append((m.begin, m.begin + m.nbytes, shadow, m.trace.ctypes.data))
        for name, size in self.module._info.variables.items():
            begin = self.module._code.address(f"v.{name}")
            trace = self.module._traces.setdefault(name, _trace(size, 1))
            rows.append((begin, begin + size, 0, trace.ctypes.data))
        return np.array(sorted(rows), layout.DTYPES["Allocation"])

    def _check_limits(self, threads: tuple[int, ...], shared: int) -> None:
        count = math.prod(threads)
        if count > MAX_THREADS:
            raise LaunchError(
                f"{self.name}: a block has at most {MAX_THREADS} threads, got {threads} = {count}"
            )
        if count > self.kernel.max_threads:
            raise LaunchError(
                f"{self.name}: its __launch_bounds__ allow {self.kernel.max_threads} threads, "
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
                f"{self.name}: {self.kernel.static_shared} static + {shared} dynamic bytes shared "
                f"memory, no architecture has more than {MAX_SHARED}"
            )


def _dimensions(
    what: str, value: int | tuple[int, ...], limits: tuple[int, ...]
) -> tuple[int, ...]:
    """Three extents, each at least 1 and within its limit."""
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
