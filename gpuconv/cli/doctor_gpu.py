"""What the doctor says about the GPU: its driver, and CuPy."""

from __future__ import annotations

import ctypes

INSTALL = 'pip install "gpuconv[cuda12]", or "gpuconv[cuda13]" for a driver of CUDA 13'


def driver() -> str:
    """The NVIDIA driver, in words: its CUDA version, or why there is none."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"none: {_line(error)}; a GPU needs NVIDIA's driver, the CPU path does not"
    number = ctypes.c_int()
    code = cuda.cuInit(0)
    if code:
        return (
            f"there, but cuInit says error {code}; no usable GPU, or none given to this container"
        )
    cuda.cuDriverGetVersion(ctypes.byref(number))
    return f"supports CUDA {number.value // 1000}.{number.value % 1000 // 10}"


def cupy() -> tuple[bool, str]:
    """Whether CuPy finds a GPU, and what it found or why not and how to mend it."""
    try:
        import cupy as cp
    except ModuleNotFoundError as error:
        if error.name == "cupy":
            return False, f"not installed; with an NVIDIA GPU: {INSTALL}"
        return False, f"there, but its import fails: {_line(error)}; reinstall: {INSTALL}"
    except Exception as error:  # CuPy's import can fail in many ways: what it said is the clue
        return False, f"there, but its import fails: {_line(error)}; reinstall: {INSTALL}"
    try:
        count = cp.cuda.runtime.getDeviceCount()
        names = [
            cp.cuda.runtime.getDeviceProperties(number)["name"].decode() for number in range(count)
        ]
    except Exception as error:  # CUDARuntimeError and others, by CuPy's version
        return False, f"{cp.__version__}, but no GPU: {_line(error)}"
    return bool(names), f"{cp.__version__}, {', '.join(names) or 'no GPU'}"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
