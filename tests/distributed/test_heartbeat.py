"""A rank that dies, hangs, fails or leaves ends the job with one line; a slow one does not."""

import signal
import time

import pytest
from file_ranks import finish, start

SCRIPT = """
import os, signal, sys, time
from gpuconv.distributed.heartbeat import Heartbeat
from file_ranks import FileCommunicator

rank, size, folder, what = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
ranks = FileCommunicator(rank, size, folder)
heartbeat = Heartbeat(ranks, beat=0.1, missed=10, idle=15, busy=60)
sys.excepthook = heartbeat.report
heartbeat.hint = "; go on"
ranks.all_gather(None)
print("ready", flush=True)
"""
WORK = """
def work(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(1000))
"""


def run(tmp_path, body, size=3, seconds=30):
    return finish(start(SCRIPT + WORK + body, size, tmp_path, ""), seconds)


def lines(errors):
    return "".join(errors).splitlines()


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_rank_that_is_killed_is_named(tmp_path, victim):
    body = f"if rank == {victim}: os.kill(os.getpid(), signal.SIGKILL)\nranks.all_gather(1)"
    codes, errors = run(tmp_path, body)
    assert codes in ([-9, 2, -9], [2, -9, -9])  # one rank aborts the others
    (line,) = lines(errors)
    assert line.startswith(f"gpuconv: rank {victim} ")
    assert "ended unexpectedly" in line
    assert line.endswith("; the job has ended; go on")


def stopped(tmp_path, victims, seconds=0.0):
    """Stop some of three ranks that work, and let them go on after so long, if that is not 0."""
    body = "work(4); heartbeat.close(); time.sleep(0.5)"
    processes = start(SCRIPT + WORK + body, 3, tmp_path, "")
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    for victim in victims:
        processes[victim].send_signal(signal.SIGSTOP)
    if seconds:
        time.sleep(seconds)
        for victim in victims:
            processes[victim].send_signal(signal.SIGCONT)
    else:  # until the others have ended
        for rank in {0, 1, 2}.difference(victims):
            processes[rank].wait(20)
        for victim in victims:
            processes[victim].kill()
    return finish(processes)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_stopped_is_named(tmp_path, victim):
    codes, errors = stopped(tmp_path, [victim])
    assert codes == ([-9, 2, -9] if victim == 0 else [2, -9, -9])
    (line,) = lines(errors)
    assert line.startswith(f"gpuconv: rank {victim} ")
    assert "does not answer" in line


@pytest.mark.slow
def test_a_job_that_is_stopped_as_a_whole_goes_on(tmp_path):
    assert stopped(tmp_path, [0, 1, 2], 3.0) == ([0, 0, 0], ["", "", ""])


@pytest.mark.slow
def test_a_rank_that_computes_for_long_is_no_hang(tmp_path):
    body = "if rank == 1: work(3.5)\nranks.all_gather(1); heartbeat.close(); time.sleep(0.5)"
    assert run(tmp_path, body) == ([0, 0, 0], ["", "", ""])


@pytest.mark.slow
def test_a_rank_that_does_nothing_while_others_wait_hangs(tmp_path):
    codes, errors = run(tmp_path, "if rank == 1: time.sleep(60)\nranks.all_gather(1)")
    assert codes == [2, -9, -9]
    (line,) = lines(errors)
    assert line.startswith("gpuconv: rank 1 ")
    assert "hangs" in line


@pytest.mark.slow
def test_a_rank_that_is_busy_for_too_long_is_named(tmp_path):
    codes, errors = run(tmp_path, "if rank == 1: work(30)\nranks.all_gather(1)")
    assert codes == [2, -9, -9]
    (line,) = lines(errors)
    assert line.startswith("gpuconv: rank 1 ")
    assert "busy by itself" in line


@pytest.mark.slow
@pytest.mark.parametrize("how", ["in turn", "patient"])
def test_a_rank_may_be_busy_for_long(tmp_path, how):
    """Where others wait for it again and again, or it says so."""
    turns = "for _ in range(20):\n    if rank == 1: work(0.4)\n    ranks.all_gather(1)\n"
    once = "with heartbeat.patient():\n    if rank == 1: work(8)\nranks.all_gather(1)\n"
    body = turns if how == "in turn" else once
    assert run(tmp_path, body + "heartbeat.close(); time.sleep(0.5)") == ([0, 0, 0], ["", "", ""])


@pytest.mark.slow
def test_a_rank_may_wait_for_its_user(tmp_path):
    body = "with heartbeat.patient():\n    time.sleep(3.5 * (rank == 1))\n"
    body += "ranks.all_gather(1); heartbeat.close(); time.sleep(0.5)"
    assert run(tmp_path, body) == ([0, 0, 0], ["", "", ""])


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_leaves_is_named(tmp_path, victim):
    body = f"if rank == {victim}: heartbeat.close(); time.sleep(0.3); os._exit(0)\n"
    codes, errors = run(tmp_path, body + "ranks.all_gather(1)")
    assert codes == ([0, 2, -9] if victim == 0 else [2, 0, -9])
    (line,) = lines(errors)
    assert line.startswith(f"gpuconv: rank {victim} ")
    assert "has left" in line


def test_ranks_that_fail_together_say_it_once(tmp_path):
    codes, errors = run(tmp_path, "heartbeat.fail('no images here', 7)")
    assert codes == [7, -9, -9]
    assert lines(errors) == ["gpuconv: no images here"]


@pytest.mark.slow
def test_one_rank_fails_for_all(tmp_path):
    body = "if rank == 2: heartbeat.fail('no images here', 7)\nranks.all_gather(1)"
    codes, errors = run(tmp_path, body)
    assert codes == [7, -9, -9]
    assert lines(errors) == ["gpuconv: rank 2: no images here"]


@pytest.mark.slow
def test_an_exception_ends_the_job_with_one_traceback(tmp_path):
    body = "if rank: raise RuntimeError(f'broken in {rank}')\nranks.all_gather(1)"
    codes, errors = run(tmp_path, body)
    assert codes == [1, -9, -9]
    text = "".join(errors)
    assert text.count("Traceback") == 1
    assert text.endswith("RuntimeError: broken in 1\n")


@pytest.mark.slow
def test_strangers_are_turned_away(tmp_path):
    script = SCRIPT.replace(
        "heartbeat = ",
        """
import gpuconv.distributed.heartbeat as module
usual = module.connect
def connect(hosts, port):
    usual(hosts, port).send(rank=2, token="guess", process=1, host="x")
    return usual(hosts, port)
module.connect = connect
heartbeat = """,
    )
    processes = start(script + "heartbeat.close(); time.sleep(0.5)", 3, tmp_path, "")
    assert finish(processes) == ([0, 0, 0], ["", "", ""])
