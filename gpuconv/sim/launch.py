"""Launches: checks the limits, gives each worker its memory and shares the blocks among cores."""

from __future__ import annotations

import ctypes
import math
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.sim import layout, memory, report
from gpuconv.sim.arguments import pack
from gpuconv.sim.counters import Counters, counted
from gpuconv.sim.errors import KernelError, LaunchError
from gpuconv.sim.findings import Finding
from gpuconv.sim.info import Kernel
from gpuconv.sim.prelude import symbol
from gpuconv.sim.worker import Worker

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
_chunk = 1  # the next chunk of logical time of all checked launches (clocks.cu)
_generation = 0  # increased when the times begin anew
_MAX_CHUNKS = 1 << 29  # half of those for which a mark has room
_MAX_PARTS = 2  # in which the blocks of a checked launch run, each on one core
_MIN_PART_THREADS = 2048  # of a launch that is worth them
_WATCH_SECONDS = 0.2  # between looks at the time
_CREATE = ctypes.CFUNCTYPE(None, *[ctypes.c_uint64] * 3)  # of a coroutine
_KEPT = 8  # block shapes whose memory a kernel keeps for the next launch


@cache
def _all_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="gpuconv-sim")


class Function:
    """One kernel of a module."""

    def __init__(self, module: Module, kernel: Kernel) -> None:
        self.module = module
        self.kernel = kernel
        self.name = kernel.name
        self.counters = Counters(kernel.name, module._info)
        self.address = module._code.address(symbol(kernel.name))
        self._free: dict[tuple[int, int, int], list[Worker]] = {}
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
        timeout: float = 60.0,
    ) -> list[Finding]:
        """Run the kernel over a grid of blocks of threads and wait until it is done.

        args: one per parameter; a pointer takes a sim array, a number is cast to exactly the
        declared type. shared: bytes of dynamic shared memory. order: "forward", "reverse" or
        "shuffled" (by `seed`), of blocks and of the threads between two barriers. cores: the most
        to share the blocks among, by default all that this process may use. concurrent: share them
        although the kernel has an atomic by which their order could matter. timeout: seconds of
        processor time on each core after which a checked launch is stopped. Returns what a checked
        launch has to warn of. Raises TypeError or ValueError for a wrong argument, LaunchError for
        a launch past the limits, KernelError, with all findings, for errors in the running kernel.
        """
        if cores is not None and cores < 1:
            raise ValueError(f"{self.name}: cores must be at least 1, got {cores}")
        dims, threads = _dimensions("grid", grid, MAX_GRID), _dimensions("block", block, MAX_BLOCK)
        self._check_limits(threads, shared)
        parameters = pack(self.kernel, args)
        count, blocks = math.prod(threads), math.prod(dims)
        total = self.kernel.placed_shared + shared
        launch, _held, reverse = self._launch_record(count, blocks, order, seed)
        workspace = memory.zeros(2, np.uint32) if self.kernel.workspace else None
        check, counts = self.module.check, self.module.count
        with _checked if check or counts else nullcontext():
            if check:
                teams, most = self._parts(blocks, count), cores or _all_cores()
            else:
                serial = counts or (self.kernel.serial and not concurrent)
                most = 1 if serial else cores or _all_cores()
                teams = most = min(self._team(blocks * count, most), blocks)
            workers = [self._worker(count, total, blocks) for _ in range(teams)]
            queues = _queues(blocks, teams if check else 1)
            for number, worker in enumerate(workers):
                self._prepare(worker, launch, parameters, number, args)
                worker.record["queue"] = queues[number % len(queues) :].ctypes.data
                records = worker.blocks
                records["params"], records["launch"] = parameters.ctypes.data, launch.ctypes.data
                records["ntid"], records["nctaid"] = threads, dims
                records["workspace"] = workspace.ptr if workspace is not None else 0
                records["dynamic_bytes"], records["reverse"] = shared, reverse
                records["error"] = records["phase"] = 0
            with counted(self.counters, workers[0].blocks) if counts else nullcontext():
                found = self._finish(launch, workers, blocks * count, most, timeout, args)
        if len(self._free) > _KEPT:
            self._free.clear()
        self._free.setdefault(self._shape(count, total, blocks), []).extend(workers)
        if not check:
            memory.forget(args)
        errors = [one for one in found if one.severity == "error"]
        if errors:
            place = f"{errors[0].file}:{errors[0].line}"
            raise KernelError(errors[0].message, errors[0].kind, place, found)
        return found

    def _parts(self, blocks: int, threads: int) -> int:
        """In how many parts the blocks of a checked launch run; findings depend on it.

        Blocks that may learn what others have done run in one.
        """
        small = blocks * threads < _MIN_PART_THREADS
        return 1 if small or self.kernel.talks else min(_MAX_PARTS, blocks)

    def _prepare(
        self, worker: Worker, launch: np.ndarray, parameters: np.ndarray, number: int,
        args: Sequence[Any],
    ) -> None:  # fmt: skip
        """Point a worker to what a launch is about."""
        record = worker.record[0]
        record["launch"], record["nfound"], record["reported"] = launch.ctypes.data, 0, 0
        if self.module.check:
            table, touched = self._allocations(parameters, number, args)
            targets = self._targets(args, table)
            reported = np.zeros(len(self.module._info.sites) + 1, np.uint32)
            worker.held = [table, touched, targets, reported]
            record["table"], record["table_length"] = table.ctypes.data, len(table)
            record["arguments"], record["reported"] = targets.ctypes.data, reported.ctypes.data

    def _finish(
        self, launch: np.ndarray, workers: list[Worker], threads: int, cores: int, timeout: float,
        args: Sequence[Any],
    ) -> list[Finding]:  # fmt: skip
        """Run a prepared launch and return what it has found."""
        global _chunk, _generation
        started = time.perf_counter()
        launch["began"] = _chunk * layout.CHUNK - 1
        for worker in workers:
            worker.record["chunk"] = worker.record["first"] = _chunk
        try:
            self._execute(launch, workers, cores, timeout)
            if self.module.check:
                for number, worker in enumerate(workers):
                    for other in workers[:number]:
                        ours, theirs = worker.record.ctypes.data, other.record.ctypes.data
                        self.module._merge(ours, theirs)
            info, variables = self.module._info, self.module.places()
            return report.findings(info, self.kernel, workers, args, variables, timeout)
        finally:
            if self.module.check:
                _chunk = max(int(worker.record["chunk"][0]) for worker in workers)
                for worker in workers:
                    self.module._release(worker.record.ctypes.data)
                if _chunk > _MAX_CHUNKS:
                    _chunk, _generation = 1, _generation + 1
                    self._free.clear()
            self._pace = (time.perf_counter() - started) * min(len(workers), cores) / threads

    def _team(self, threads: int, cores: int) -> int:
        """How many cores to use: one where the work is too little to pay for starting a second."""
        return 1 if threads * self._pace < _MIN_SECONDS else cores

    def _execute(
        self, launch: np.ndarray, workers: list[Worker], cores: int, timeout: float
    ) -> None:
        if len(workers) == 1 and not self.module.check:
            self._run_workers(workers)
            return
        cores = min(cores, len(workers))
        pool = _pool(max(_all_cores(), cores))  # this thread only waits: Ctrl-C reaches it
        futures: list[Future[None]] = []
        end = time.process_time() + timeout * cores
        try:
            for number in range(cores):
                futures.append(pool.submit(self._run_workers, workers[number::cores]))
            while wait(futures, timeout=_WATCH_SECONDS if self.module.check else None).not_done:
                if time.process_time() > end:
                    launch["stop"] = 2
            for future in futures:
                future.result()
        except BaseException:
            launch["stop"] = 1
            for future in futures:
                future.exception()
            raise

    def _run_workers(self, workers: list[Worker]) -> None:
        """Run blocks until none is left. The workers keep alive what their records point to."""
        for worker in workers:
            self.module._run(worker.record.ctypes.data)

    def _shape(self, threads: int, shared: int, blocks: int) -> tuple[int, int, int]:
        """What launches must have in common to use the same workers."""
        return threads, shared, min(blocks, self.kernel.together)

    def _worker(self, threads: int, shared: int, blocks: int) -> Worker:
        try:
            return self._free[self._shape(threads, shared, blocks)].pop()
        except (KeyError, IndexError):  # there is none, or another Python thread took it
            return Worker(self, threads, shared, blocks)

    def _launch_record(
        self, threads: int, blocks: int, order: str, seed: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray], int]:
        """The Launch record, the arrays that it points to, and whether threads run backwards."""
        record = np.zeros(1, layout.DTYPES["Launch"])
        record["entry"] = self.address
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

    def _allocations(
        self, parameters: np.ndarray, worker: int, args: Sequence[Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The memory that a kernel may access, and which of it a worker has touched.

        That is every live allocation, the module's variables and the kernel's parameters.
        """
        rows = [(parameters.ctypes.data, self.kernel.parameter_bytes or 1, 0, 0, 1, 4)]
        other = self.kernel.granules[-1]
        finest = {id(m): other for m in memory.live()}
        for number, value in enumerate(args):
            if isinstance(value, memory.Array):
                own = self.kernel.granules.get(number, 4)
                finest[id(value.base)] = min(own, finest.get(id(value.base), other))
        for m in memory.live():
            granule = finest.get(id(m), other)
            trace = m.traces.address(worker, granule, _generation)
            shadow = m.shadow.ctypes.data if m.shadow is not None else 0
            rows.append((m.begin, m.nbytes, shadow, trace, 0, granule))
        for name, begin, size in self.module.places():
            traces = self.module._traces.setdefault(name, memory.Traces(size))
            trace, constant = traces.address(worker, 1, _generation), self.module._info.constants
            rows.append((begin, size, 0, trace, name in constant, 1))
        return _table(rows)

    def _targets(self, args: Sequence[Any], table: np.ndarray) -> np.ndarray:
        """For each parameter the array that it points to, so that its bounds can be checked."""
        targets = np.zeros(len(args) + 1, layout.DTYPES["Argument"])
        for target, value in zip(targets[1:], args, strict=True):
            if not isinstance(value, memory.Array) or not value.nbytes:
                continue
            row = int(np.searchsorted(table["begin"], value.base.begin))
            if row == len(table) or table["begin"][row] != value.base.begin:
                continue
            offset = value.ptr - value.base.begin
            target["begin"], target["size"], target["row"] = value.ptr, value.nbytes, row
            target["offset"], target["touched"] = offset, table["touched"][row]
            shift = target["shift"] = int(table["shift"][row])
            if not (
                table["shadow"][row] or self.kernel.together > 1 or offset & ((1 << shift) - 1)
            ):
                records = (offset >> shift) * layout.DTYPES["Trace"].itemsize
                target["trace"] = int(table["trace"][row]) + records
        return targets

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


def _table(rows: Sequence[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """Allocation records, and the bytes `touched` of all, which follow each other.

    rows: (begin, bytes, shadow, trace, constant, granule)
    """
    begins, sizes, shadows, traces, constants, granules = np.array(sorted(rows), np.uint64).T
    table = np.zeros(len(rows), layout.DTYPES["Allocation"])
    table["begin"], table["end"] = begins, begins + sizes
    table["shadow"], table["trace"], table["constant"] = shadows, traces, constants
    table["shift"] = granules >> np.uint64(1)  # of 1, 2, 4: 0, 1, 2
    pages = sizes // (granules * np.uint64(layout.PAGE)) + np.uint64(1)
    ends = np.cumsum(pages)
    touched = np.zeros(int(ends[-1]), np.uint8)
    table["touched"] = touched.ctypes.data + ends - pages
    return table, touched


def _queues(blocks: int, parts: int) -> np.ndarray:
    """Queue records that share the blocks out."""
    bounds = np.arange(parts + 1) * blocks // parts
    queues = np.zeros(parts, layout.DTYPES["Queue"])
    queues["next"], queues["end"] = bounds[:-1], bounds[1:]
    return queues


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
