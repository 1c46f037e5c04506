"""A report's description of the machine: card, driver, versions, clocks, commit."""

from __future__ import annotations

import ctypes
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

CARD = (
    "name", "driver_version", "memory.total", "power.limit", "temperature.gpu", "clocks.sm",
    "clocks.mem", "clocks.max.sm", "clocks.max.mem", "pstate",
)  # fmt: skip
PACKAGES = ("numpy", "numba", "cupy-cuda12x", "cupy-cuda13x", "torch", "nvidia-cuda-nvrtc")


def driver_cards() -> list[str]:
    """The names of the cards that NVIDIA's driver itself lists, without CuPy; empty without one."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return []
    names = []
    for number in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        if not cuda.cuDeviceGet(ctypes.byref(device), number):
            cuda.cuDeviceGetName(name, len(name), device)
            names.append(name.value.decode(errors="replace"))
    return names


def card_state() -> dict[str, str]:
    """Clocks, power and temperature, as nvidia-smi tells them now; empty without its answer."""
    fields = f"--query-gpu={','.join(CARD)}"
    values = _output("nvidia-smi", fields, "--format=csv,noheader", "--id=0").split(", ")
    return dict(zip(CARD, values, strict=True)) if len(values) == len(CARD) else {}


def versions() -> dict[str, str]:
    """Of Python, gpuconv and the packages that matter to a measurement, where installed."""
    from gpuconv import __version__

    found = {"python": platform.python_version(), "gpuconv": __version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit(folder: Path) -> str:
    """The commit of a checkout, "-dirty" behind it where files differ; "unknown" without git."""
    name = _output("git", "-C", str(folder), "rev-parse", "--short=12", "HEAD")
    if not name:
        return "unknown"
    changed = _output("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    return f"{name}-dirty" if changed else name


def cuda_versions(cupy: Any) -> dict[str, Any]:
    """CUDA's versions as CuPy sees them, 13000 for 13.0; what does not answer says why."""
    runtime = cupy.cuda.runtime
    found: dict[str, Any] = {"cupy": cupy.__version__}
    for name, call in (("driver", "driverGetVersion"), ("runtime", "runtimeGetVersion")):
        try:
            found[f"cuda {name}"] = getattr(runtime, call)()
        except Exception as error:  # a missing library says so in its own way
            found[f"cuda {name}"] = " ".join(str(error).split())
    return found


def _output(*command: str) -> str:
    """A command's output; empty where it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
