"""The worker threads: order, errors, nesting, several callers, forks."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from gpuconv.cpu.workspace import KEPT_FLOATS, scratch
from gpuconv.threads import parallel, set_thread_count, shards, thread_count

PIECES = [(0, 1), (1, 3), (3, 7)]


def test_results_come_in_the_order_of_the_pieces():
    for blas in (True, False):
        assert parallel(lambda begin, end: (begin, end), PIECES, blas) == PIECES


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
