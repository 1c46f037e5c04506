"""One pool of threads, used by every operation of the CPU path: fixed shards, so results repeat bit for bit.

Work is cut into shards; each shard runs code that lets go of the interpreter lock (BLAS, `nogil` Numba).
Inside a shard BLAS runs on one thread: two pools that fight for the same cores lose to either alone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import threadpoolctl

_pool: ThreadPoolExecutor | None = None
_count = 0
_lock = threading.Lock()
_inside = threading.local()


def thread_count() -> int:
    """How many threads an operation uses: `set_thread_count`, else GPUCONV_THREADS, else all allowed cores."""
    global _count
    if not _count:
        asked = os.environ.get("GPUCONV_THREADS", "")
        _count = int(asked) if asked.isdigit() and int(asked) > 0 else len(os.sched_getaffinity(0))
    return _count


def set_thread_count(count: int) -> None:
    """Use `count` threads from now on. Results of a sum over shards can differ in the last bit with the count."""
    global _count, _pool
    if count < 1:
        raise ValueError(f"the number of threads must be at least 1, got {count}")
    with _lock:
        _count = count
        if _pool is not None:
            _pool.shutdown(wait=False)
            _pool = None


def shards(items: int, grain: int = 1) -> list[tuple[int, int]]:
    """[0, items) cut into at most one [begin, end) a thread, none smaller than `grain`, as even as can be."""
    parts = max(1, min(thread_count(), items // max(grain, 1)))
    edges = [items * part // parts for part in range(parts + 1)]
    return list(zip(edges[:-1], edges[1:], strict=True))


def parallel(function: Callable[[int, int], object], pieces: list[tuple[int, int]]) -> list[object]:
    """`function(begin, end)` for every piece, side by side; the results in the order of the pieces.

    The first piece runs on the calling thread. A call from inside a shard runs its pieces one after another.
    """
    if len(pieces) == 1 or getattr(_inside, "shard", False):
        return [function(begin, end) for begin, end in pieces]
    with _SingleThreadedBlas():
        futures: list[Future[object]] = [_workers().submit(_shard, function, *piece) for piece in pieces[1:]]
        try:
            first = _shard(function, *pieces[0])
        finally:
            rest = [future.result() for future in futures]
    return [first, *rest]


def _shard(function: Callable[[int, int], object], begin: int, end: int) -> object:
    _inside.shard = True
    try:
        return function(begin, end)
    finally:
        _inside.shard = False


def _workers() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max_workers=max(thread_count() - 1, 1), thread_name_prefix="gpuconv")
        return _pool


class _SingleThreadedBlas:
    """NumPy's BLAS on one thread while shards run; nested and concurrent uses share one setting."""

    _libraries: list[threadpoolctl.LibController] | None = None
    _users = 0
    _before: list[int]

    def __enter__(self) -> None:
        cls = _SingleThreadedBlas
        with _lock:
            if cls._libraries is None:
                found = threadpoolctl.ThreadpoolController().select(user_api="blas")
                cls._libraries = found.lib_controllers
            if cls._users == 0:
                cls._before = [library.get_num_threads() for library in cls._libraries]
                for library in cls._libraries:
                    library.set_num_threads(1)
            cls._users += 1

    def __exit__(self, *_: object) -> None:
        cls = _SingleThreadedBlas
        with _lock:
            cls._users -= 1
            if cls._users == 0:
                for library, threads in zip(cls._libraries or [], cls._before, strict=True):
                    library.set_num_threads(threads)
