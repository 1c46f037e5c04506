"""The names of the devices a model runs on, and of the processor."""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path

from gpuconv.errors import require_known

DEVICES = ("cpu", "reference", "cuda", "sim")


def resolve(device: str) -> str:
    """A device's name, "auto" resolved to the fastest there is. ValueError for an unknown one."""
    if device == "auto":
        return choose()[0]
    return require_known("device", device, [*DEVICES, "auto"])


def choose() -> tuple[str, str]:
    """What "auto" is here, and why: ("cuda", "a GPU works") or ("cpu", what there is not)."""
    if importlib.util.find_spec("cupy") is None:
        return "cpu", "CuPy is not installed"
    from gpuconv.cuda.cupy import problem

    found = problem()
    return ("cpu", found.split(";")[0]) if found else ("cuda", "a GPU works")


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration, IndexError):
        return platform.processor() or platform.machine() or "unknown processor"
