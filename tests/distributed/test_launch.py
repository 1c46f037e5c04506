"""`gpuconv train --ranks`: what is passed on, and what is said where MPI is missing."""

import importlib.util
import io
import os
import subprocess
import sys

import pytest

from gpuconv.cli import main
from gpuconv.distributed import launch
from gpuconv.errors import DeviceError

KILLED = """\
epoch 1

===================================================================================
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   PID 8162 RUNNING AT vm
=   EXIT CODE: 9
=   CLEANING UP REMAINING PROCESSES
=   YOU CAN IGNORE THE BELOW CLEANUP MESSAGES
===================================================================================
YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)
This typically refers to a problem with your application.
Please see the FAQ page for debugging suggestions
"""
INTERRUPTED = """\
[mpiexec@vm] Sending Ctrl-C to processes as requested
[mpiexec@vm] Press Ctrl-C again to force abort
"""
OWN = "\n====\ntest accuracy  99%\n\nThis typically refers\n=   a table\n[proxy]\n\n"


@pytest.mark.parametrize(
    ("printed", "passed"),
    [(KILLED, "epoch 1\n"), (INTERRUPTED, ""), (OWN, OWN), (OWN + KILLED, OWN + "epoch 1\n")],
)
def test_what_mpiexec_says_itself_is_left_out(printed, passed):
    assert "".join(launch.of_ranks(io.StringIO(printed))) == passed


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="Linux tells in which order they end")
@pytest.mark.parametrize("order", [[2, 0, 3, 1], [3, 2, 1, 0]])
def test_the_first_process_to_end_is_known_however_late_one_asks(order):
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    processes = [subprocess.Popen(command) for _ in order]
    with launch._Ends() as ends:
        for process in processes:
            ends.watch(process.pid)
        for number in order:
            processes[number].kill()
            processes[number].wait()
        ends.watch(processes[0].pid)  # of none that is there
        assert ends.first() == processes[order[0]].pid


def test_one_line_says_what_is_missing_and_how_to_get_it(monkeypatch):
    monkeypatch.setattr(launch, "mpiexec", lambda: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DeviceError) as raised:
        launch.run(2, ["train"])
    expected = "2 ranks need mpi4py and MPICH's mpiexec: pip install 'gpuconv[mpi]'"
    assert str(raised.value) == expected


@pytest.mark.parametrize(
    ("machines", "threads"),
    [
        ([("a", {0, 1, 2, 3})] * 4, 1),  # four ranks that may use all cores of one machine
        ([("a", {0, 1, 2, 3})] * 2 + [("b", {0, 1, 2, 3})] * 2, 2),
        ([("a", {0, 1, 2, 3}), ("a", {4, 5, 6, 7})], 4),  # bound to cores of their own
        ([("a", {0, 1, 2, 3})] * 3, 1),
        ([("a", {0, 1, 2, 3})] * 8, 1),  # more ranks than cores
    ],
)
def test_ranks_share_their_cores(monkeypatch, machines, threads):
    from gpuconv import threads as module

    class Gathered:
        def all_gather(self, own):
            return [(host, frozenset(cores)) for host, cores in machines]

    monkeypatch.delenv("GPUCONV_THREADS", raising=False)
    monkeypatch.setattr(module, "_count", 0)
    monkeypatch.setattr(module, "_cores", lambda: len(machines[0][1]))
    monkeypatch.setattr(launch, "_machine", lambda: (machines[0][0], frozenset(machines[0][1])))
    try:
        launch.split_cores(Gathered())
        assert module.thread_count() == threads
        module.set_thread_count(3)
        assert module.thread_count() == 3
    finally:
        module.share_cores(1)


@pytest.mark.parametrize("command", ["predict", "evaluate", "doctor"])
def test_a_command_that_runs_alone_refuses_ranks(monkeypatch, capsys, command):
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "4")
    given = [command] if command == "doctor" else [command, "x.safetensors"]
    assert main([*given, *["p.png"] * (command == "predict")]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"gpuconv: {command}: runs as one process, and 4 ranks were started; leave the launcher "
        "out (gpuconv train runs on several)"
    ]
