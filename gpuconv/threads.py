"""Worker threads for every operation of the CPU path: fixed shards, so results repeat bit for bit.

Work is cut into shards; each shard runs code that lets go of the interpreter lock (BLAS, `nogil`
Numba).
Inside a shard BLAS runs on one thread: two pools that fight for the same cores lose to either
alone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from itertools import pairwise

import threadpoolctl

Shard = Callable[[int, int], object]

_count = 0
_lock = threading.Lock()
_inside = threading.local()


def thread_count() -> int:
    """How many threads an operation uses: `set_thread_count`, else GPUCONV_THREADS, else all
    allowed cores.
    """
    global _count
    if not _count:
        asked = os.environ.get("GPUCONV_THREADS", "")
        _count = int(asked) if asked.isdigit() and int(asked) > 0 else _cores()
    return _count


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_thread_count(count: int) -> None:
    """Use `count` threads from now on. Results of a sum over shards can differ in the last bit with
    the count.
    """
    global _count
    if count < 1:
        raise ValueError(f"the number of threads must be at least 1, got {count}")
    _count = count


def shards(items: int, grain: int = 1) -> list[tuple[int, int]]:
    """[0, items) cut into at most one [begin, end) a thread, none smaller than `grain`, as even as
    can be.
    """
    parts = max(1, min(thread_count(), items // max(grain, 1)))
    edges = [items * part // parts for part in range(parts + 1)]
    return list(pairwise(edges))


def parallel(function: Shard, pieces: list[tuple[int, int]], blas: bool = True) -> list[object]:
    """`function(begin, end)` for every piece, side by side; the results in the order of the pieces.

    The first piece runs on the calling thread. A call from inside a shard runs its pieces one after
    another.
    blas: whether `function` calls BLAS, which is then held to one thread.
    """
    if len(pieces) == 1 or getattr(_inside, "shard", False):
        return [function(begin, end) for begin, end in pieces]
    if blas:
        with single_threaded_blas():
            return _side_by_side(function, pieces)
    return _side_by_side(function, pieces)


def _side_by_side(function: Shard, pieces: list[tuple[int, int]]) -> list[object]:
    workers = [_hire() for _ in pieces[1:]]
    for worker, piece in zip(workers, pieces[1:], strict=True):
        worker.begin(function, piece)
    _inside.shard = True
    try:
        first = function(*pieces[0])
    finally:
        _inside.shard = False
        outcomes = [worker.finish() for worker in workers]
    for _, error in outcomes:
        if error is not None:
            raise error
    return [first, *(result for result, _ in outcomes)]


class _Worker(threading.Thread):
    """A thread that waits for one shard at a time; two locks pass it back and forth.

    A lock costs a third less than a Future of concurrent.futures, and a training step makes
    hundreds.
    """

    def __init__(self) -> None:
        super().__init__(name="gpuconv", daemon=True)
        self._start_signal, self._end_signal = threading.Lock(), threading.Lock()
        self._start_signal.acquire()
        self._end_signal.acquire()
        self._abandoned = False
        self._result: object = None
        self._error: BaseException | None = None
        self.start()

    def begin(self, function: Shard, piece: tuple[int, int]) -> None:
        self._function, self._piece = function, piece
        self._start_signal.release()

    def finish(self) -> tuple[object, BaseException | None]:
        """The shard's result, or what it raised. Interrupted here, the worker ends alone with its
        shard.
        """
        try:
            self._end_signal.acquire()
        except BaseException:
            self._abandoned = True
            raise
        outcome = self._result, self._error
        self._result = self._error = None
        _idle.append(self)
        return outcome

    def run(self) -> None:
        _inside.shard = True
        while not self._abandoned:
            self._start_signal.acquire()
            try:
                self._result = self._function(*self._piece)
            except BaseException as error:
                self._error = error
            del self._function  # it holds the arrays
            self._end_signal.release()


_idle: list[_Worker] = []  # append and pop are atomic: several callers may hire at once


def _hire() -> _Worker:
    try:
        return _idle.pop()
    except IndexError:
        return _Worker()


def _forget_after_fork() -> None:
    """A forked child has none of its parent's threads, and its locks as they happened to be."""
    global _lock
    _idle.clear()
    _lock = threading.Lock()
    _inside.shard = False
    single_threaded_blas.users = 0


class single_threaded_blas:
    """NumPy's BLAS on one thread while shards run; nested and concurrent uses share one setting."""

    libraries: list[threadpoolctl.LibController] | None = None
    users = 0
    before: list[int]

    def __enter__(self) -> None:
        cls = single_threaded_blas
        with _lock:
            if cls.libraries is None:
                found = threadpoolctl.ThreadpoolController().select(user_api="blas")
                cls.libraries = found.lib_controllers
            if cls.users == 0:
                cls.before = [library.get_num_threads() for library in cls.libraries]
                for library in cls.libraries:
                    library.set_num_threads(1)
            cls.users += 1

    def __exit__(self, *_: object) -> None:
        cls = single_threaded_blas
        with _lock:
            cls.users -= 1
            if cls.users == 0:
                for library, threads in zip(cls.libraries or [], cls.before, strict=True):
                    library.set_num_threads(threads)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
