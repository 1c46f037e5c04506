"""`gpuconv show`: which network, where, and what it says when that cannot be."""

import base64
import ctypes
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

import gpuconv
from gpuconv.cli import show
from gpuconv.cli.main import main
from gpuconv.models import lenet
from gpuconv.page.opening import open_session


def said(capsys):
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_without_a_trained_network_it_says_how_to_make_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["show"]) == 2
    line = said(capsys)
    assert "gpuconv train" in line
    assert "gpuconv show lenet" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing.safetensors"], "nothing.safetensors"),
        (["lenet", "--device", "cuda"], "unknown device 'cuda'"),
        (["lenet", "--port", "x"], "whole number"),
        (["lenet", "--port", "70000"], "port"),
        (["lenet", "--data", "nowhere"], "nowhere"),
        (["lenet", "--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
        (["lenet", "--port", "-1"], "whole number"),
        (["lenet", "--export", "no/such/page.html"], "no folder"),
    ],
)
def test_what_cannot_be_shown(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert main(["show", *arguments]) == 2
    assert words in said(capsys)
    assert list(tmp_path.iterdir()) == []


def test_an_untrained_network_by_name():
    session = open_session("lenet", None, "cpu")
    described = session.describe()
    assert described["title"] == "lenet, untrained"
    assert described["test"] == 10_000
    assert described["input"]["image"] == [1, 28, 28]


def test_a_checkpoint_knows_its_weights_before_training(tmp_path):
    trained, first = lenet(seed=7), lenet(seed=7).state_dict()
    for parameter in trained.parameters():
        parameter.data += 1
    gpuconv.save(trained, tmp_path / "x.safetensors", settings={"data": "gone", "seed": 7})
    session = open_session(str(tmp_path / "x.safetensors"), None, "cpu")
    described = session.describe()
    assert described["start"]
    assert described["test"] == 0  # the run's pictures are no longer there
    for when, weights in (("start", first), ("now", trained.state_dict())):
        found = session.filters(1, when)
        assert base64.b64decode(found["values"]["f4"]) == weights["conv1.weight"].tobytes()


def test_a_busy_port_is_told_and_ctrl_c_ends_well():
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        command = [sys.executable, "-m", "gpuconv", "show", "lenet", "--port", str(port)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "bufsize": 0}
        with subprocess.Popen(command, **pipes) as run:
            try:
                told = f"port {port} is busy; taking the next free one\n"
                assert run.stdout.readline() == told.encode()
                assert run.stdout.read(1) == b"l"  # as soon as anything of the address can be read
                run.send_signal(signal.SIGINT)
                line, errors = run.communicate(timeout=60)
            finally:
                run.kill()
    assert re.match(rb"enet, untrained: http://127\.0\.0\.1:\d+/ \(Ctrl-C ends\)\n$", line)
    assert f":{port}/".encode() not in line
    assert (run.returncode, errors) == (0, b"")


@pytest.mark.parametrize("delay", [0, 0.03, 0.1, 0.25, 0.6])
def test_ctrl_c_at_any_time_ends_without_a_traceback(delay):
    """Some moments after the start."""
    command = [sys.executable, "-c", STARTED, "show", "lenet", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        try:
            assert run.stdout.read(1) == b"!"
            time.sleep(delay)
            run.send_signal(signal.SIGINT)
            _, errors = run.communicate(timeout=60)
        finally:
            run.kill()
    assert run.returncode in (0, 130)
    assert errors in (b"", b"gpuconv: interrupted\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_a_callback_from_c_is_not_lost(monkeypatch, capfd, number, code):
    """As LLVM calls back while a network's functions are compiled: nothing can be raised there."""

    def run(args):
        ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal(number))()
        time.sleep(30)

    monkeypatch.setattr(show, "run", run)
    began = time.monotonic()
    assert main(["show"]) == code
    assert time.monotonic() - began < 20
    assert len(capfd.readouterr().err.splitlines()) == 1


# As `python -m gpuconv`, which says when it has begun to listen to Ctrl-C.
STARTED = """
import sys, _signal
from gpuconv.__main__ import main
listen = _signal.signal
def said(*given):
    listen(*given)
    _signal.signal = listen
    sys.stdout.write("!")
    sys.stdout.flush()
_signal.signal = said
sys.exit(main())
"""
