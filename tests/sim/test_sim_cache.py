"""Compiled kernels on disk: found by a second process, rebuilt when damaged, harmless where they
cannot be kept.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import pytest

sim = pytest.importorskip("gpuconv.sim", reason="the simulator's dependencies are not installed")
if sim.available():
    pytest.skip(sim.available(), allow_module_level=True)

SCRIPT = """
import sys
import gpuconv.sim as sim
from gpuconv.sim import jit, compile as nvrtc
builds = []
real = jit.build
jit.build = lambda *a, **k: builds.append(1) or real(*a, **k)
source = 'extern "C" __global__ void k(float* y, float a) { y[threadIdx.x] = a * VALUE; }'
module = sim.Module(source, ["-DVALUE=" + sys.argv[1]])
y = sim.zeros(4)
module.launch("k", 1, 4, (y, 2.0))
print(len(builds), nvrtc._nvrtc.cache_info().misses, sim.asnumpy(y)[3])
"""


def run(folder, value="3", **environment) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, value],
        capture_output=True,
        text=True,
        check=True,
        cwd=os.path.dirname(os.path.dirname(os.path.abspath(sim.__path__[0]))),
        env={**os.environ, "GPUCONV_CACHE_DIR": str(folder), **environment},
    )
    return done.stdout.split()


def test_a_second_process_compiles_nothing(tmp_path):
    assert run(tmp_path) == ["2", "1", "6.0"]  # the kernel and the scheduler
    assert run(tmp_path) == ["0", "0", "6.0"]
    assert run(tmp_path, "5") == ["1", "1", "10.0"]  # another -D is another kernel
    for file in (tmp_path / "sim").iterdir():  # a torn write is noticed and rebuilt
        file.write_bytes(file.read_bytes()[:-7])
    assert run(tmp_path) == ["2", "1", "6.0"]
    assert run(tmp_path) == ["0", "0", "6.0"]
    assert not [f for f in (tmp_path / "sim").iterdir() if f.name.startswith(".new")]


def start(folder):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "3"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=os.path.dirname(os.path.dirname(os.path.abspath(sim.__path__[0]))),
        env={**os.environ, "GPUCONV_CACHE_DIR": str(folder)},
    )


def test_two_processes_at_once_on_a_cold_folder(tmp_path):
    started = [start(tmp_path) for _ in range(2)]
    for process in started:
        assert process.communicate(timeout=300)[0].split()[2] == "6.0"
    assert run(tmp_path) == ["0", "0", "6.0"]


@pytest.mark.skipif(os.name == "nt", reason="sends signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_build_that_is_cut_short_leaves_a_usable_folder(tmp_path, number):
    process = start(tmp_path)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.7)
    process.send_signal(number)
    process.communicate(timeout=300)  # it ends
    assert run(tmp_path)[2] == "6.0"
    assert run(tmp_path) == ["0", "0", "6.0"]


def test_an_unwritable_folder_is_no_error(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert run(blocked) == ["2", "1", "6.0"]


def test_private_headers_are_seen(tmp_path, monkeypatch):
    import numpy as np

    monkeypatch.setenv("GPUCONV_CACHE_DIR", str(tmp_path / "cache"))
    source = '#include "value.cuh"\nextern "C" __global__ void k(float* y) { y[0] = VALUE; }'
    for value in (1, 2):
        (tmp_path / "value.cuh").write_text(f"#define VALUE {value}\n")
        y = sim.zeros(1)
        sim.Module(source, [f"-I{tmp_path}"]).launch("k", 1, 1, (y,))
        assert sim.asnumpy(y) == np.float32(value)
