"""Say what this machine offers gpuconv, what is missing, and how to mend it.

Always exits with 0; the last line is the verdict.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from pathlib import Path

HELP = "say what this machine offers: NumPy, BLAS, Numba, GPU, data; and how to mend it"
EXAMPLES = """\
  gpuconv doctor
"""
MEND = "pip install --force-reinstall gpuconv"
FEATURES = ("sse4.2", "avx", "fma", "avx2", "avx512f", "avx512bw", "neon", "sve")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(args: argparse.Namespace) -> int:
    from importlib.metadata import version

    from gpuconv.cli.doctor_gpu import cupy, driver

    _say("gpuconv", version("gpuconv"))
    _say("Python", f"{platform.python_version()} ({sys.executable})")
    _say("system", f"{platform.system()} {platform.machine()}")
    problems = []
    for name, check in (
        ("NumPy", _numpy), ("BLAS", _blas), ("Numba", _numba), ("CPU", _cpu),
        ("memory", _memory), ("threads", _threads), ("self-check", _self_check),
    ):  # fmt: skip
        try:
            _say(name, check())
        except Exception as error:  # the doctor reports what is broken, whatever it is
            _say(name, f"FAILS: {type(error).__name__}: {_line(error)}")
            problems.append(name)
    _say("NVIDIA driver", driver())
    found, text = cupy()
    _say("CuPy", text)
    works, text = _simulator()
    _say("simulator", text)
    _say("matplotlib", _matplotlib())
    _data_sets()
    if problems:
        print(f"\nnot ready: {', '.join(problems)}; mend: {MEND}")
    else:
        print("\nready: cpu" + (", sim" * works + ", cuda" * found))
    return 0


def _say(name, text):
    print(f"{name:<15}{text}")


def _line(error):
    return " ".join(str(error).split())


def _numpy():
    import numpy as np

    return np.__version__


def _simulator():
    try:
        from gpuconv import sim
    except ImportError as error:
        return False, f"not installed: {_line(error)}; mend: pip install 'gpuconv[sim]'"
    missing = sim.available()
    return not missing, missing or "works: device sim runs the CUDA kernels on the CPU"


def _blas():
    import numpy as np  # loads the library that threadpoolctl looks for
    import threadpoolctl

    del np
    found = [
        f"{one['internal_api']} {one.get('version') or ''} ({one.get('architecture', '')}, "
        f"{one['num_threads']} threads)"
        for one in threadpoolctl.threadpool_info()
        if one["user_api"] == "blas"
    ]
    return "; ".join(found) or "not recognised: matrix products may be slow"


def _numba():
    import llvmlite.binding as llvm
    import numba

    compiled = numba.njit(lambda a: a + 1)
    if compiled(1) != 2:
        raise RuntimeError("a compiled function gave a wrong result")
    return f"{numba.__version__}, LLVM {'.'.join(map(str, llvm.llvm_version_info))}, compiles"


def _cpu():
    import llvmlite.binding as llvm

    present = llvm.get_host_cpu_features()
    features = " ".join(name for name in FEATURES if present.get(name))
    return f"{_cpu_name() or llvm.get_host_cpu_name()}: {features or 'no vector features known'}"


def _cpu_name():
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else ""


def _memory():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = f"{total / 2**30:.1f} GiB"
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return text
    free = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return text + (f", {free[0] / 2**20:.1f} GiB available" if free else "")


def _threads():
    from gpuconv.threads import thread_count

    return f"{thread_count()} of {os.cpu_count()} logical cores (GPUCONV_THREADS or --threads)"


def _self_check():
    import numpy as np

    from gpuconv.ops import conv2d

    rng = np.random.default_rng(0)
    x, w = rng.random((2, 3, 9, 8), np.float32), rng.random((4, 3, 3, 3), np.float32)
    difference = float(np.abs(conv2d(x, w) - conv2d.reference(x, w)).max())
    if not difference <= 1e-4:
        raise RuntimeError(f"conv2d on cpu is off its definition by {difference:.3g}")
    return f"conv2d on cpu equals its definition (largest difference {difference:.1e})"


def _matplotlib():
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        if error.name == "matplotlib":
            return 'not installed; for curves and confusion matrices: pip install "gpuconv[viz]"'
        return f"there, but does not work: {_line(error)}"
    except ImportError as error:
        return f"there, but does not work: {_line(error)}"
    return matplotlib.__version__


def _data_sets():
    from gpuconv.data.named import EMBEDDED, SHA256, SYSTEM, cache_folder

    asked = os.environ.get("GPUCONV_DATA")
    folders = [Path(asked)] if asked else []
    for name in SHA256:
        for folder in (*folders, cache_folder(), SYSTEM, EMBEDDED):
            if any((folder / name).glob("train-images*")):
                _say(name, folder / name)
                break
        else:
            _say(name, "not here; downloaded to the cache when first used")
