"""The worker threads: order, errors, nesting, several callers, forks, BLAS, the process's end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import threadpoolctl

from gpuconv.autograd import Tensor, operators
from gpuconv.cpu import conv, matmul
from gpuconv.cpu.workspace import KEPT_FLOATS, scratch
from gpuconv.shapes import Window
from gpuconv.threads import (
    alone,
    blas_threads,
    parallel,
    set_thread_count,
    shards,
    thread_count,
)

PIECES = [(0, 1), (1, 3), (3, 7)]


def test_results_come_in_the_order_of_the_pieces():
    assert parallel(lambda begin, end: (begin, end), PIECES) == PIECES


def test_an_error_reaches_the_caller_and_the_pool_goes_on():
    def fail(begin, end):
        if begin == 3:
            raise ZeroDivisionError(f"{begin} to {end}")

    for _ in range(3):
        with pytest.raises(ZeroDivisionError, match="3 to 7"):
            parallel(fail, PIECES)
    assert parallel(lambda begin, end: end, PIECES) == [1, 3, 7]


def test_nested_calls_run_one_after_another():
    def outer(begin, end):
        me = threading.get_ident()
        return all(t == me for t in parallel(lambda b, e: threading.get_ident(), PIECES))

    assert parallel(outer, PIECES) == [True] * 3


def test_a_thread_works_alone_where_it_is_told_to():
    def threads():
        return set(parallel(lambda begin, end: threading.get_ident(), PIECES))

    with alone(), alone():
        assert threads() == {threading.get_ident()}
    assert len(threads()) == 3


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs Linux and two cores",
)
def test_a_worker_keeps_off_its_callers_core():
    usable = os.sched_getaffinity(0)

    def cores_of_worker(begin, end):
        return os.sched_getaffinity(0)

    def call():
        for core in usable:
            os.sched_setaffinity(0, {core})  # of this thread alone
            mine, others = parallel(cores_of_worker, PIECES[:2])
            found.append((mine, others) == ({core}, usable - {core}))

    found = []
    caller = threading.Thread(target=call)
    caller.start()
    caller.join()
    assert found == [True] * len(usable)


def test_several_callers_at_once():
    wrong = []

    def call():
        for _ in range(200):
            if parallel(lambda begin, end: begin * 100 + end, PIECES) != [1, 103, 307]:
                wrong.append(1)

    callers = [threading.Thread(target=call) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_gets_workers_of_its_own():
    parallel(lambda begin, end: None, PIECES)
    child = os.fork()
    if child == 0:
        os._exit(0 if parallel(lambda begin, end: end, PIECES) == [1, 3, 7] else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_shards_cover_everything_once():
    before = thread_count()
    try:
        for count in (1, 2, 3, 8):
            set_thread_count(count)
            for items in (1, 2, 7, 100):
                pieces = shards(items, 3)
                assert [i for begin, end in pieces for i in range(begin, end)] == list(range(items))
                assert len(pieces) == max(1, min(count, items // 3))
                first, *others = [end - begin for begin, end in pieces]
                assert all(first - other in (2, 3) for other in others)  # a grain longer
        set_thread_count(2)
        assert shards(8, 1.1) == ((0, 4), (4, 8))  # whole items, though a grain is not
        assert shards(2, 1.1) == ((0, 2),)
        assert shards(3, 1e-9) == ((0, 1), (1, 3))
        with pytest.raises(ValueError, match="at least 1"):
            set_thread_count(0)
    finally:
        set_thread_count(before)


def test_scratch_is_kept_for_each_thread_and_bounded():
    first = scratch("test", 100)
    assert np.shares_memory(first, scratch("test", 50))
    others = []
    thread = threading.Thread(target=lambda: others.append(scratch("test", 100)))
    thread.start()
    thread.join()
    assert not np.shares_memory(first, others[0])
    large = scratch("test", KEPT_FLOATS + 1)
    assert not np.shares_memory(large, scratch("test", 10))


def blas_count() -> int:
    """The threads that NumPy's BLAS would use for a product now."""
    with blas_threads(99):  # finds the library, where nothing has used it yet
        return max(get() for get in blas_threads.getters)


@pytest.fixture
def threads():
    """BLAS set to 3 threads, whatever the machine has; returns `set_thread_count`."""
    before = thread_count()
    with threadpoolctl.threadpool_limits(3, "blas"):
        yield set_thread_count
        assert blas_count() == 3
    set_thread_count(before)


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (2, 2), (8, 3)])
def test_blas_is_held_to_a_number_of_threads_in_every_shard(threads, count, expected):
    with blas_threads(count):
        assert parallel(lambda begin, end: blas_count(), PIECES) == [expected] * 3


def test_the_smallest_of_several_uses_holds_until_it_ends(threads):
    with blas_threads(2):
        with blas_threads(1), blas_threads(2):
            assert blas_count() == 1
        assert blas_count() == 2
        with blas_threads(9):
            assert blas_count() == 2


def test_convolutions_by_blas_keep_to_one_thread(threads, monkeypatch):
    threads(1)
    seen = []

    def watched(function):
        def call(*arguments, **options):
            seen.append(blas_count())
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(matmul.np, "matmul", watched(np.matmul))
    monkeypatch.setattr(Window, "taps", watched(Window.taps))
    for dtype in (np.float32, np.float64):
        x, w = np.ones((2, 16, 3, 3), dtype), np.ones((16, 16, 3, 3), dtype)
        y = conv.forward(x, w, None, Window(3), 1)
        conv.backward(y, x, w, Window(3), 1)
    assert seen == [1] * 6  # y, dw and dx, in float32 and in float64


def test_a_matrix_product_of_tensors_keeps_to_one_thread(threads, monkeypatch):
    threads(1)
    held = []

    def recording(count):
        held.append(count)
        return blas_threads(count)

    monkeypatch.setattr(operators, "blas_threads", recording)
    a, b = (Tensor(np.ones((2, 2)), requires_grad=True) for _ in range(2))
    (a @ b).sum().backward()
    assert held == [1, 1]  # forward and backward


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="this system does not tell a child's time")
def test_the_interpreter_ends_at_once_after_work_on_several_threads():
    """At most 0.3 s of processor time, which a busy machine does not change, and no wait."""
    program = (
        "import threading, time, numpy as np; from gpuconv import ops, set_thread_count;"
        "set_thread_count(4); x = np.ones((8, 3, 32, 32), np.float32); w = x[:, :, :3, :3];"
        "ops.conv2d_backward(ops.conv2d(x, w), x, w); others = threading.enumerate()[1:];"
        "assert others and all(thread.daemon for thread in others);"
        "print(time.process_time(), flush=True)"
    )
    ends = []
    for _ in range(2):  # the first may compile, and then has more to release
        child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        worked = float(child.stdout.read())
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = status
        assert status == 0
        ends.append(usage.ru_utime + usage.ru_stime - worked)
    assert min(ends) < 0.3
