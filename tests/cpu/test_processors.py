"""The loops as compiled for a processor with AVX2 alone, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import llvmlite.binding
import pytest

HASWELL = "+sse4.2,+avx,+avx2,+fma,+bmi,+bmi2,+f16c,+popcnt,+lzcnt,+movbe"


@pytest.mark.slow
@pytest.mark.skipif(
    not llvmlite.binding.get_host_cpu_features().get("avx2"), reason="the processor lacks AVX2"
)
def test_avx2(tmp_path):
    here = Path(__file__).parent
    environment = os.environ | {
        "NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": HASWELL,
        "NUMBA_CACHE_DIR": str(tmp_path),
    }  # fmt: skip
    code = "from gpuconv.cpu.simd import LANES; assert LANES == 8, LANES"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    files = ["test_channels_last.py", "test_cpu_conv.py", "test_cpu_pool.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, *(str(here / file) for file in files)],
        env=environment, cwd=here.parents[1], capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-2000:]
