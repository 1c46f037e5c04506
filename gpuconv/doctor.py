"""What this machine offers gpuconv, what is missing, and how to mend it.

from gpuconv import doctor
report = doctor.examine()
print(report.devices, report.problems)
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from gpuconv.errors import one_line

INSTALL_CUPY = 'pip install "gpuconv[cuda12]", or "gpuconv[cuda13]" for a driver of CUDA 13'
INSTALL_SIM = "pip install 'gpuconv[sim]'"
INSTALL_VIZ = 'pip install "gpuconv[viz]"'
CPU_FEATURES = ("sse4.2", "avx", "fma", "avx2", "avx512f", "avx512bw", "neon", "sve")


@dataclass
class Report:
    """The findings as (name, text) in order, and what follows from them.

    problems: the required parts that do not work, each with the package to install again. devices:
    those that work here.
    """

    findings: list[tuple[str, str]] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    devices: list[str] = field(default_factory=list)


def examine(on_finding: Callable[[str, str], None] | None = None) -> Report:
    """Examine this machine. Never raises: what is broken is a finding.

    on_finding: called with each finding's name and text as it is made, for the examination takes
    some seconds.
    """
    import gpuconv

    report = Report()

    def add(name: str, text: str) -> None:
        report.findings.append((name, text))
        if on_finding is not None:
            on_finding(name, text)

    add("gpuconv", f"{gpuconv.__version__} ({Path(gpuconv.__file__).parent})")
    add("Python", f"{platform.python_version()} ({sys.executable})")
    add("system", f"{platform.system()} {platform.machine()}")
    for name, (check, package) in REQUIRED.items():
        try:
            add(name, check())
        except Exception as error:  # whatever is broken is reported
            add(name, f"FAILS: {type(error).__name__}: {one_line(error)}")
            report.problems[name] = package
    report.devices = [] if report.problems else ["cpu"]
    add("NVIDIA driver", driver())
    has_gpu, cupy_text = cupy()
    add("CuPy", cupy_text)
    simulates, sim_text = simulator()
    add("simulator", sim_text)
    module, text = _optional("matplotlib", f"for curves and confusion matrices: {INSTALL_VIZ}")
    add("matplotlib", text or module.__version__)
    for name, text in data_sets().items():
        add(name, text)
    if not report.problems:
        report.devices += ["sim"] * simulates + ["cuda"] * has_gpu
    return report


def driver() -> str:
    """The CUDA version of the NVIDIA driver in words, or why there is none."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"none: {one_line(error)}; a GPU needs NVIDIA's driver, the CPU path does not"
    number = ctypes.c_int()
    code = cuda.cuInit(0)
    if code:
        return (
            f"there, but cuInit says error {code}; no usable GPU, or none given to this container"
        )
    cuda.cuDriverGetVersion(ctypes.byref(number))
    return f"supports CUDA {number.value // 1000}.{number.value % 1000 // 10}"


def cupy() -> tuple[bool, str]:
    """Whether CuPy finds a GPU; its version and the GPUs' names, or what is wrong."""
    cp, text = _optional("cupy", f"with an NVIDIA GPU: {INSTALL_CUPY}")
    if text:
        return False, text
    try:
        runtime = cp.cuda.runtime
        count = runtime.getDeviceCount()
        names = [runtime.getDeviceProperties(number)["name"].decode() for number in range(count)]
    except Exception as error:  # CUDARuntimeError and others, by CuPy's version
        return False, f"{cp.__version__}, but no GPU: {one_line(error)}"
    return bool(names), f"{cp.__version__}, {', '.join(names) or 'no GPU'}"


def simulator() -> tuple[bool, str]:
    """Whether device sim works, and in words."""
    sim, text = _optional("gpuconv.sim", f"mend: {INSTALL_SIM}")
    problem = text or sim.available()
    return not problem, problem or "works: device sim runs the CUDA kernels on the CPU"


def data_sets() -> dict[str, str]:
    """The folder of each data set that is known by name, or that it is not here."""
    data, text = _optional("gpuconv.data", "see above")
    if text:
        return {"data sets": text}
    return {
        name: str(folder) if folder else "not here; downloaded to the cache when first used"
        for name, folder in data.installed().items()
    }


def _optional(name: str, install: str) -> tuple[Any, str]:
    """A module and "", or None and why it cannot be imported."""
    try:
        return importlib.import_module(name), ""
    except Exception as error:  # an import fails in many ways; its message is the clue
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            return None, f"not installed; {install}"
        return None, f"there, but its import fails: {one_line(error)}; {install}"


def _version(module: str, package: str) -> str:
    importlib.import_module(module)
    return importlib.metadata.version(package)


def _blas() -> str:
    import numpy as np  # loads the library that threadpoolctl looks for
    import threadpoolctl

    del np
    libraries = [
        f"{one['internal_api']} {one.get('version') or ''} ({one.get('architecture', '')}, "
        f"{one['num_threads']} threads)"
        for one in threadpoolctl.threadpool_info()
        if one["user_api"] == "blas"
    ]
    return "; ".join(libraries) or "not recognised: matrix products may be slow"


def _numba() -> str:
    import llvmlite.binding as llvm
    import numba

    compiled = numba.njit(lambda a: a + 1)
    if compiled(1) != 2:
        raise RuntimeError("a compiled function gave a wrong result")
    return f"{numba.__version__}, LLVM {'.'.join(map(str, llvm.llvm_version_info))}, compiles"


def _cpu() -> str:
    import llvmlite.binding as llvm

    from gpuconv.cpu.simd import INSTRUCTION_SET, LANES
    from gpuconv.devices import processor

    present = llvm.get_host_cpu_features()
    features = " ".join(name for name in CPU_FEATURES if present.get(name))
    name = f"{processor()} ({llvm.get_host_cpu_name()})"
    used = f"loops use {INSTRUCTION_SET}, {LANES} floats a vector"
    return f"{name}: {features or 'no vector features known'}; {used}"


def _memory() -> str:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = f"{total / 2**30:.1f} GiB"
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return text
    free = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return text + (f", {free[0] / 2**20:.1f} GiB available" if free else "")


def _threads() -> str:
    from gpuconv.threads import thread_count

    return f"{thread_count()} of {os.cpu_count()} logical cores (GPUCONV_THREADS or --threads)"


def _self_check() -> str:
    import numpy as np

    from gpuconv import ops

    rng = np.random.default_rng(0)
    x, w = rng.random((2, 3, 9, 8), np.float32), rng.random((4, 3, 3, 3), np.float32)
    difference = float(np.abs(ops.conv2d(x, w) - ops.conv2d.reference(x, w)).max())
    if not difference <= 1e-4:
        raise RuntimeError(f"conv2d on cpu differs from its reference by {difference:.3g}")
    return f"conv2d on cpu equals its reference (largest difference {difference:.1e})"


REQUIRED: dict[str, tuple[Callable[[], str], str]] = {
    "NumPy": (partial(_version, "numpy", "numpy"), "numpy"),
    "BLAS": (_blas, "threadpoolctl"),
    "Numba": (_numba, "numba"),
    "CPU": (_cpu, "llvmlite"),
    "Pillow": (partial(_version, "PIL", "pillow"), "pillow"),
    "safetensors": (partial(_version, "safetensors", "safetensors"), "safetensors"),
    "rich": (partial(_version, "rich.progress", "rich"), "rich"),
    "memory": (_memory, "gpuconv"),
    "threads": (_threads, "gpuconv"),
    "self-check": (_self_check, "gpuconv"),
}
