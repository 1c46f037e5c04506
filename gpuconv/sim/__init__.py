"""A simulator that runs CUDA kernels on the CPU: `Module(source).launch(name, grid, block, args)`.

README.md in this folder says how it works and what it checks. It needs nothing else of gpuconv.
"""

from gpuconv.sim.compile import OPTIONS, available, to_cubin, to_ptx
from gpuconv.sim.counters import Counters
from gpuconv.sim.errors import CompileError, KernelError, LaunchError, SimError, UnsupportedError
from gpuconv.sim.findings import Finding, Party
from gpuconv.sim.launch import Function
from gpuconv.sim.machine import Module
from gpuconv.sim.memory import Array, asarray, asnumpy, empty, zeros

__all__ = [
    "OPTIONS",
    "Array",
    "CompileError",
    "Counters",
    "Finding",
    "Function",
    "KernelError",
    "LaunchError",
    "Module",
    "Party",
    "SimError",
    "UnsupportedError",
    "asarray",
    "asnumpy",
    "available",
    "empty",
    "to_cubin",
    "to_ptx",
    "zeros",
]
