"""Ranks that are killed, stopped or interrupted, and a full disk: one line, and nothing is lost but
the steps since the last checkpoint.
"""

import json
import os
import random
import re
import signal
import sys
import time
import urllib.request

import numpy as np
import pytest
import ranks
from faulty import OPTIONS, Job

from gpuconv import checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")


def weights(folder):
    """The arrays of a run's last checkpoint, whose checksum is right."""
    found = checkpoint.read(folder / "last.safetensors")
    return {**found.weights, **{f"optimizer/{k}": v for k, v in found.optimizer.items()}}


def require_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def test_a_killed_rank_ends_the_job_with_one_line_that_names_it(tmp_path):
    job = Job(2, *OPTIONS, "--epochs", "1000", "--out", tmp_path)
    job.wait_for("epoch 2/")
    os.kill(job.ranks()[1], signal.SIGKILL)
    assert job.end(10) == 2
    (line,) = job.errors
    assert line.startswith("gpuconv: rank 1 (process ")
    assert "; the job has ended; to go on: gpuconv train --resume " in line
    assert weights(tmp_path)


@pytest.mark.slow
def test_killed_at_ten_instants_a_run_ends_as_an_uninterrupted_one(tmp_path):
    rng, epochs = random.Random(3), 32
    assert Job(4, *OPTIONS, "--epochs", epochs, "--out", tmp_path / "whole").end(600) == 0
    job = Job(4, *OPTIONS, "--epochs", epochs, "--out", tmp_path / "killed")
    job.wait_for(f"epoch 1/{epochs}")
    epoch = 1
    for _ in range(10):
        job.wait_for(f"epoch {epoch + rng.randrange(3)}/{epochs}")
        time.sleep(rng.uniform(0, 0.3))
        running = job.ranks()
        assert len(running) == 4, job.lines[-1]
        victim = rng.randrange(4)
        os.kill(running[victim], signal.SIGKILL)
        assert job.end() == 2
        (line,) = job.errors
        assert f"rank {victim} " in line
        saved = checkpoint.read(tmp_path / "killed" / "last.safetensors")
        epoch = saved.metadata["position"]["epoch"] + 1
        job = Job(4, "--resume", tmp_path / "killed")
    assert job.end(600) == 0
    require_equal(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


@pytest.mark.slow
def test_a_rank_killed_before_the_ranks_know_each_other(tmp_path):
    job = Job(2, *OPTIONS, "--out", tmp_path / "run")
    while len(job.ranks()) < 2:
        time.sleep(0.01)
    os.kill(job.ranks()[1], signal.SIGKILL)
    assert job.end() == 2
    assert len(job.errors) == 1


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_rank_ends_the_job_within_a_minute(tmp_path, victim):
    job = Job(2, *OPTIONS, "--epochs", "1000", "--out", tmp_path)
    job.wait_for("epoch 2/")
    os.kill(job.ranks()[victim], signal.SIGSTOP)
    assert job.end(60) == 2
    (line,) = job.errors
    assert line.startswith(f"gpuconv: rank {victim} ")
    assert "does not answer" in line
    assert weights(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_job_is_saved_and_goes_on(tmp_path, number, code):
    epochs = 30
    assert Job(2, *OPTIONS, "--epochs", epochs, "--out", tmp_path / "whole").end() == 0
    job = Job(2, *OPTIONS, "--epochs", epochs, "--out", tmp_path / "stopped")
    job.wait_for("epoch 2/")
    job.process.send_signal(number)
    assert job.end() == code
    (line,) = job.errors
    assert line.startswith("gpuconv: interrupted in epoch ")
    assert line.endswith(f"to go on: gpuconv train --resume {tmp_path / 'stopped'}")
    assert Job(2, "--resume", tmp_path / "stopped").end() == 0
    require_equal(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_job_that_starts_can_be_interrupted(tmp_path, number, code, fraction):
    began = time.monotonic()
    first = Job(4, *OPTIONS, "--epochs", "1", "--out", tmp_path / "first")
    first.wait_for("epoch 1/")
    start = time.monotonic() - began  # until training begins
    assert first.end() == 0
    job = Job(4, *OPTIONS, "--epochs", "1000", "--out", tmp_path / "second")
    time.sleep(fraction * start)
    job.process.send_signal(number)
    assert job.end(30) in (code, -number)  # the latter before the command line is there
    assert all(line.startswith(("gpuconv: ", "Keyboard")) for line in job.errors[-1:])


@pytest.mark.slow
def test_a_job_is_suspended_and_goes_on(tmp_path):
    job = Job(2, *OPTIONS, "--epochs", "20", "--out", tmp_path)
    job.wait_for("epoch 2/")
    job.process.send_signal(signal.SIGTSTP)
    time.sleep(1)
    for process in [job.process.pid, *job.ranks().values()]:
        with open(f"/proc/{process}/stat") as file:
            assert file.read().rpartition(") ")[2][0] == "T"
    job.process.send_signal(signal.SIGCONT)
    assert job.end() == 0
    assert job.errors == []


@pytest.mark.slow
def test_without_its_launcher_a_job_ends_and_is_saved(tmp_path):
    job = Job(2, *OPTIONS, "--epochs", "1000", "--out", tmp_path)
    job.wait_for("epoch 2/")
    processes = job.ranks().values()
    job.process.kill()
    until = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{process}") for process in processes):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert weights(tmp_path)


FULL = """
import resource, signal, sys
from gpuconv import distributed
from gpuconv.cli import main
ranks = distributed.init()
if ranks.rank == 0:  # the first checkpoint, without momentum, still fits
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, -1))
from gpuconv.__main__ import _end
_end(main(["train", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_a_full_disk_ends_the_job_with_one_line(tmp_path):
    options = (*OPTIONS, "--epochs", "3", "--out", tmp_path)
    lines = ranks.run_ranks(2, "-c", FULL, *options, expected=2).splitlines()
    said = [line for line in lines if line.startswith("gpuconv: ")]
    assert said == [f"gpuconv: {tmp_path / 'last.safetensors'}: cannot write: File too large"]
    assert not [line for line in lines if "Traceback" in line or "BAD TERMINATION" in line]
    assert checkpoint.read(tmp_path / "last.safetensors").metadata["position"]["step"] == 0
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] == ".") == []


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_ranks(tmp_path):
    """4 -> 2 -> 1, each interrupted: as one process alone, but for rounding."""
    options = (*OPTIONS, "--epochs", "6", "--seed", "4")
    for count in (4, 2):
        given = (
            (*options, "--out", tmp_path / "run") if count == 4 else ("--resume", tmp_path / "run")
        )
        job = Job(count, *given)
        job.wait_for(f"epoch {2 if count == 4 else 4}/6")
        job.process.send_signal(signal.SIGINT)
        assert job.end() == 130
    job = Job(1, "--resume", tmp_path / "run")
    assert job.end() == 0
    assert any("the run had 2 ranks, now there are 1" in line for line in job.lines)
    assert Job(1, *options, "--out", tmp_path / "alone").end() == 0
    ours, theirs = weights(tmp_path / "run"), weights(tmp_path / "alone")
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        error = np.abs(array - theirs[name]).max()
        assert error <= 1e-3 * np.abs(theirs[name]).max(), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("gpuconv.__version__ = '0.1.9'", "gpuconv is 0.1.9, not 0.2.0"),
        ("platform.python_version = lambda: '3.9.1'", "Python is 3.9.1, not 3."),
        ("agreement.code = lambda: '0' * 12", "gpuconv's code is 000000000000, not "),
        ("sys.argv += ['--lr', '0.01']", "optimizer.lr is 0.01, not "),
        ("sys.argv += ['--seed', '9']", "seed is 9, not 0"),
        ("sys.argv += ['--data', 'DATA']", "data.labels' checksum is "),
    ],
)
def test_a_rank_with_other_code_data_or_settings_is_refused(tmp_path, change, text):
    program = f"""
import os, platform, sys
import gpuconv
from gpuconv.distributed import agreement
if os.environ["PMI_RANK"] == "1":
    {change.replace("DATA", str(tmp_path / "data.npz"))}
from gpuconv.cli import main
from gpuconv.__main__ import _end
_end(main(["train", *sys.argv[1:]]))
"""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (700, 28, 28), np.uint8), np.arange(700) % 10
    np.savez(tmp_path / "data.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    out = tmp_path / "run"
    said = ranks.run_ranks(2, "-c", program, *OPTIONS, "--out", out, expected=2).splitlines()
    (line,) = [line for line in said if line.startswith("gpuconv: ")]
    assert line.startswith("gpuconv: rank 1 on ")
    assert text in line
    assert not (out / "last.safetensors").exists()


EVALUATING = """
import os, signal, sys, time
import numpy as np
from gpuconv import checkpoint, data, distributed, nn, optim, train

ranks = distributed.init()
seen = []

class Held:
    "Fifty batches, in the third of which each rank is interrupted."
    def __len__(self):
        return 50
    def __iter__(self):
        for i in range(50):
            if i == 4 and sys.argv[2] == "interrupted":
                os.kill(os.getpid(), signal.SIGINT)
            seen.append(i)
            yield np.ones((2, 1, 4, 4), np.float32) * i, np.array([0, 1])

def trainer():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, rng=0))
    return train.Trainer(
        model, "cross_entropy", optim.SGD(model.parameters(), 0.1, 0.9), out=sys.argv[1],
        average=optim.EMA(model, 0.5), progress=False,
    )

batches = [(np.full((4, 1, 4, 4), i, np.float32), np.arange(4) % 2) for i in range(3)]
try:
    trainer().fit(batches, Held(), epochs=2, resume="auto")
except train.Interrupted as stop:
    assert "in epoch 1 after 3 of 3 batches; saved in" in str(stop), stop
    assert len(seen) < 10, seen
    sys.exit(stop.exit_code)
"""


@pytest.mark.slow
def test_an_evaluation_is_interrupted_within_a_batch(tmp_path):
    def run(folder, how, expected):
        ranks.run_ranks(2, "-c", EVALUATING, tmp_path / folder, how, expected=expected)

    run("run", "interrupted", 130)
    run("run", "", 0)
    run("whole", "", 0)
    require_equal(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def shown(folder, epochs):
    """A job with a page, and the page's address."""
    job = Job(2, *OPTIONS, "--epochs", epochs, "--out", folder, "--show", "--port", "0")
    job.wait_for("press Start there", 120)
    line = next(line for line in job.lines if "press Start" in line)
    return job, re.search(r"http://[^/]*", line)[0]


def post(url, action):
    body = json.dumps({"action": action}).encode()
    request = urllib.request.Request(
        f"{url}/api/training", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["state"]


def state_of(url, wanted, seconds=120):
    """Return once the page's run is in this state, and has made steps."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with urllib.request.urlopen(f"{url}/api/training", timeout=30) as answer:
            found = json.load(answer)
        if found["state"] == wanted and found["progress"]:
            return
        time.sleep(0.1)
    raise AssertionError(found)


@pytest.mark.slow
def test_the_page_steers_all_ranks(tmp_path):
    job, url = shown(tmp_path, 1000)
    for action, state in (("start", "running"), ("pause", "paused"), ("resume", "running")):
        post(url, action)
        state_of(url, state)
    for _ in range(2):
        post(url, "stop")
        state_of(url, "stopped")
        post(url, "start")
        state_of(url, "running")
    post(url, "stop")
    state_of(url, "stopped")
    job.process.send_signal(signal.SIGINT)
    assert job.end() == 130
    (line,) = job.errors
    assert line.startswith("gpuconv: interrupted in epoch ")
    assert weights(tmp_path)


@pytest.mark.slow
def test_a_page_whose_run_is_done_ends_well(tmp_path):
    job, url = shown(tmp_path, 1)
    post(url, "start")
    state_of(url, "done")
    job.process.send_signal(signal.SIGINT)
    assert job.end() == 0
    assert job.errors == []
