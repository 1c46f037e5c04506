"""`gpuconv bench --kernel`: counts on sim; times over the stand-in for CuPy, which mean nothing."""

from __future__ import annotations

import pytest
import simulated  # noqa: F401  (skips where there is no simulator)
import standin_cupy

from gpuconv.bench import cuda, own_kernel
from gpuconv.bench.ceilings import Ceilings
from gpuconv.cli.main import main
from gpuconv.cuda.runtime import runtime

AXPY = """__global__ void axpy(float* y, const float* x, float a, int n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = FACTOR * a * x[i];
}
"""
LAUNCH = """import numpy as np

FLOP = 2 * 1000

def launch(run):
    x = np.arange(1000, dtype=np.float32)
    y = run.empty(1000)
    run("axpy", 4, 256, [y, x, 3, 1000])
    assert (y == 3 * x).all(), "not 3 x"
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "axpy.cu").write_text(AXPY.replace("FACTOR", "1.0f"))
    (tmp_path / "wrong.cu").write_text(AXPY.replace("FACTOR", "2.0f"))
    (tmp_path / "l.py").write_text(LAUNCH)
    return tmp_path


@pytest.fixture
def clock(monkeypatch):
    standin_cupy.install(monkeypatch)
    yield cuda.Clock(runtime("cuda"), flushed=4096)
    runtime.cache_clear()


def bench(capsys, *words):
    code = main(["bench", *words])
    return code, *capsys.readouterr()


def test_counts_on_sim(here, capsys):
    words = "--kernel", "axpy.cu:axpy", "--launch", "l.py", "--device", "sim"
    code, out, err = bench(capsys, *words)
    assert (code, err) == (0, "")
    assert out.startswith("device sim has no times\n")
    assert "global loads: 32 requests, 3.91 sectors each, 4,000 bytes asked for" in out


def test_times_rates_and_share(here, clock):
    kernel = own_kernel.OwnKernel.read("axpy.cu:axpy", "l.py")
    found = own_kernel.timed(kernel, clock, 0.001)
    assert found.times.count >= 7
    assert (found.flop, found.bytes) == (2000, 8000)
    # a machine that needs exactly the time taken for the arrays, and less for the arithmetic
    even = Ceilings(1e15, 8000 / found.times.median, "", "")
    assert found.share(even) == pytest.approx(1)


def test_a_wrong_kernel_gets_no_time(here, clock, monkeypatch):
    kernel = own_kernel.OwnKernel.read("wrong.cu:axpy", "l.py")
    monkeypatch.setattr(clock, "calls", lambda *_: pytest.fail("timed"))
    with pytest.raises(ValueError, match=r"l\.py:9: AssertionError: not 3 x"):
        own_kernel.timed(kernel, clock, 0.001)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--kernel", "axpy.cu:axpy"), "go together"),
        (("--kernel", "axpy.cu", "--launch", "l.py"), "takes FILE.cu:NAME, got 'axpy.cu'"),
        (("--kernel", "axpy.cu:b", "--launch", "l.py"), "no kernel 'b' in axpy.cu, it has: axpy"),
        (("relu", "--kernel", "axpy.cu:axpy", "--launch", "l.py"), "takes the place"),
        ((), "give an operation, a model, all, or --kernel"),
    ],
)
def test_wrong_words_get_one_line(here, capsys, words, expected):
    code, out, err = bench(capsys, *words, "--device", "sim")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert expected in err
