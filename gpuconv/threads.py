"""Worker threads for every operation of the CPU path: fixed shards, so results repeat bit for bit.

Work is cut into shards; each shard runs code that releases the interpreter lock (BLAS, compiled
functions). Inside a shard BLAS runs on one thread: two pools that compete for the same cores are
slower than either alone. This module imports nothing else of gpuconv.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from itertools import pairwise, product
from operator import call, itemgetter
from typing import Any, ClassVar

import threadpoolctl

Shard = Callable[..., object]
Pieces = Sequence[tuple[int, int]]
BlasSetting = tuple[Callable[[], int], Callable[[int], object]]  # get, set

_count = 0
_sharing = 1  # processes that have the same cores
_lock = threading.Lock()
_inside = threading.local()


def thread_count() -> int:
    """The number of threads that an operation uses.

    It is the one given to `set_thread_count`, else GPUCONV_THREADS, else all cores that this
    process may use, or its part of them, see `share_cores`.
    """
    return _count or _default_count()


@cache
def _default_count() -> int:
    setting = os.environ.get("GPUCONV_THREADS", "")
    return int(setting) if setting.isdigit() and int(setting) > 0 else max(1, _cores() // _sharing)


def _cores() -> int:
    return len(_usable()) or os.cpu_count() or 1


def _usable() -> set[int]:
    """The cores that the main thread may use; empty where the system does not tell."""
    return os.sched_getaffinity(os.getpid()) if hasattr(os, "sched_getaffinity") else set()


def _core_reader() -> Callable[[], int]:
    """A function that tells on which core its caller runs; a constant where that is unknown."""
    try:
        return ctypes.PyDLL(None).sched_getcpu if hasattr(os, "sched_setaffinity") else int
    except (AttributeError, OSError):
        return int


_core = _core_reader()


def set_thread_count(count: int) -> None:
    """Use `count` threads from now on, at least 1 (else ValueError), for BLAS's products too.

    The result of a sum over shards can differ in the last bit with the count.
    """
    global _count
    if count < 1:
        raise ValueError(f"the number of threads must be at least 1, got {count}")
    _count = count


def share_cores(processes: int) -> None:
    """Say how many processes have the same cores, this one among them: each uses its part, unless
    it was told a number of threads.
    """
    global _sharing
    _sharing = processes
    _default_count.cache_clear()


def shards(items: int, grain: float = 1) -> Pieces:
    """[0, items) cut into pieces [begin, end), at most one for each thread.

    grain: so many items take as long as handing a piece to another thread and hearing of its end.
    With fewer than two grains there is one piece. The first piece, the calling thread's, is a grain
    longer than the others: its work begins first, and if it ends last the caller need not be woken.
    """
    return _shards(items, grain, _count or thread_count())


@lru_cache(maxsize=4096)
def _shards(items: int, grain: float, threads: int) -> Pieces:
    parts = max(1, min(threads, items, int(items / grain) if grain else items))
    lead = int(grain) if parts > 1 else 0
    edges = [lead + (items - lead) * part // parts for part in range(1, parts + 1)]
    return tuple(pairwise([0, *edges]))


def parallel(function: Shard, pieces: Sequence[tuple[Any, ...]]) -> list[object]:
    """`function(*piece)` for every piece, side by side; the results in the order of the pieces.

    A piece is (begin, end), or more, such as the array that it alone writes. The first piece runs
    on the calling thread. A call from inside a shard runs its pieces one after another. What a
    piece raises is raised here, after all pieces have ended. Whoever calls BLAS in a piece holds it
    to one thread, `with blas_threads(1)` around the call of `parallel`.
    """
    if len(pieces) == 1:
        return [function(*pieces[0])]
    if getattr(_inside, "shard", False):
        return [function(*piece) for piece in pieces]
    workers = [_hire() for _ in pieces[1:]]
    for worker, piece in zip(workers, pieces[1:], strict=True):
        worker.begin(function, piece)
    _inside.shard = True
    try:
        results = [function(*pieces[0])]
    finally:
        _inside.shard = False
        outcomes = list(map(_Worker.finish, workers))
    for result, error in outcomes:
        if error is not None:
            raise error
        results.append(result)
    return results


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within it the calling thread runs all pieces itself: waking another takes up to 50 us."""
    before = getattr(_inside, "shard", False)
    _inside.shard = True
    try:
        yield
    finally:
        _inside.shard = before


def over_shards(
    function: Callable[..., object], arrays: Sequence[Any], *rest: Any, grain: float = 1
) -> None:
    """function(*parts of the arrays, *rest) side by side, for parts of their first axis."""
    pieces = shards(len(arrays[0]), grain)
    if len(pieces) == 1:
        function(*arrays, *rest)
        return

    def run(begin: int, end: int) -> None:
        part = itemgetter(slice(begin, end))
        function(*map(part, arrays), *rest)

    parallel(run, pieces)


class _Worker(threading.Thread):
    """A thread that waits for one shard at a time; two locks pass it back and forth.

    A lock costs a third less than a Future of concurrent.futures, and a training step makes
    hundreds. The threads are daemons: the interpreter ends without waiting for them.

    A thread keeps off the core of the caller it works for. Linux often wakes it there, where both
    take turns until the kernel balances its load: LeNet's step at batch 64 took 2.6 ms in place of
    1.8 for 20 steps and more after each pause.
    """

    def __init__(self) -> None:
        super().__init__(name="gpuconv", daemon=True)
        self._start_signal, self._end_signal = threading.Lock(), threading.Lock()
        self._start_signal.acquire()
        self._end_signal.acquire()
        self._abandoned = False
        self._result: object = None
        self._error: BaseException | None = None
        self._avoided = -1
        self.start()

    def begin(self, function: Shard, piece: tuple[Any, ...]) -> None:
        core = _core()
        if core != self._avoided:
            self._avoid(core)
        self._function, self._piece = function, piece
        self._start_signal.release()

    def _avoid(self, core: int) -> None:
        self._avoided = core
        others = _usable() - {core}
        if others and self.native_id is not None:
            with contextlib.suppress(OSError):  # it may be forbidden
                os.sched_setaffinity(self.native_id, others)

    def finish(self) -> tuple[object, BaseException | None]:
        """The shard's result and what it raised.

        If this wait is interrupted, the worker finishes its shard alone and then ends.
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
            del self._function, self._piece  # they hold the arrays
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
    blas_threads.counts = []


class blas_threads:
    """Within it NumPy's BLAS uses at most `count` threads, or fewer where it was set to fewer.

    BLAS has one setting for the whole process. Nested and concurrent uses share it: the smallest
    count holds, and the setting from before the first comes back after the last.
    """

    getters: ClassVar[list[Callable[[], int]] | None] = None  # each library's, found at first use
    setters: ClassVar[list[Callable[[int], object]]] = []
    before: ClassVar[list[int]] = []  # each library's setting, before the first use
    counts: ClassVar[list[int]] = []  # of all uses at this moment

    def __init__(self, count: int) -> None:
        self._count = count

    def __enter__(self) -> None:
        cls = blas_threads
        with _lock:
            if cls.getters is None:
                found = threadpoolctl.ThreadpoolController().select(user_api="blas")
                settings = [_setting_of(library) for library in found.lib_controllers]
                cls.getters, cls.setters = [get for get, _ in settings], [do for _, do in settings]
            if not cls.counts:
                cls.before = list(map(call, cls.getters))
            cls._change(cls.counts, [*cls.counts, self._count])

    def __exit__(self, *_: object) -> None:
        cls = blas_threads
        with _lock:
            if self._count in cls.counts:  # not in a child that was forked within
                rest = cls.counts.copy()
                rest.remove(self._count)
                cls._change(cls.counts, rest)

    @classmethod
    def _change(cls, old: list[int], new: list[int]) -> None:
        """Set each library for `new`, where that differs from what `old` demanded: a call costs."""
        cls.counts = new
        for set_threads, before in zip(cls.setters, cls.before, strict=True):
            threads = min([before, *new])
            if threads != min([before, *old]):
                set_threads(threads)


def _setting_of(library: threadpoolctl.LibController) -> BlasSetting:
    """Functions that get and set the number of threads of one loaded BLAS.

    They are OpenBLAS's own where it has its own threads: a network's step changes the setting a
    dozen times. Others are asked by way of threadpoolctl, which since 3.8 silently ignores all
    threads but the first that set OpenBLAS.
    """
    if getattr(library, "threading_layer", None) == "pthreads":
        for prefix, suffix in product(("", "scipy_"), ("", "64_", "_64")):  # as it was built
            name = f"{prefix}openblas_{{}}_num_threads{suffix}"
            if hasattr(library.dynlib, name.format("set")):
                return tuple(getattr(library.dynlib, name.format(do)) for do in ("get", "set"))
    release = getattr(library, "clear_controlling_thread", lambda force: None)

    def set_threads(threads: int) -> None:
        release(force=True)
        library.set_num_threads(threads)
        release(force=True)

    return library.get_num_threads, set_threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
