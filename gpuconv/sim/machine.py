"""Modules: from source or PTX to kernels that can be launched in this process."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuconv.sim import cache as disk
from gpuconv.sim import compile as nvrtc
from gpuconv.sim import jit, layout, memory, printing, ptx
from gpuconv.sim.counters import Counters
from gpuconv.sim.findings import Finding
from gpuconv.sim.info import Info
from gpuconv.sim.launch import Function
from gpuconv.sim.lower import lower

_CALLED = """
sim_read_shared sim_read_global sim_write_shared sim_write_global sim_access sim_swapped sim_fence
sim_report sim_used sim_stopped sim_fail sim_log sim_copy sim_commit sim_wait
"""  # by kernels
_PARTS = ("clocks.cu", "races.cu", "runtime.cu", "checks.cu", "counters.cu", "copies.cu",
          "matrices.cu")  # fmt: skip


def _from_source(
    source: str,
    options: Sequence[str],
    arch: str,
    name: str,
    check: bool = False,
    count: bool = False,
    host: bool = False,
) -> tuple[Info, bytes]:
    """The compiled module, from the cache if it is there.

    Where it cannot be told which header files of the user's a source reads, it goes through NVRTC
    every time, and its PTX is looked up.
    """
    headers = nvrtc.own_headers(source, options, name)
    if headers is None:
        return _from_ptx(nvrtc.to_ptx(source, options, arch, name), check, count)
    compiler = repr((*nvrtc.OPTIONS, *options)), arch, nvrtc.compiler_version(), jit.identity()
    entry = disk.key("source", source, name, *compiler, f"{check} {count} {host}", *headers)
    return _cached(entry, lambda: nvrtc.to_ptx(source, options, arch, name), check, count, host)


def _from_ptx(text: str, check: bool, count: bool) -> tuple[Info, bytes]:
    entry = disk.key("ptx", text, jit.identity(), f"{check} {count}")
    return _cached(entry, lambda: text, check, count)


def _cached(
    entry: str, text: Callable[[], str], check: bool, count: bool, host: bool = False
) -> tuple[Info, bytes]:
    found = disk.load(entry)
    if found is None:
        ir, info = lower(ptx.parse(text()), check, host, count)
        found = info, jit.build(ir)
        disk.store(entry, found)
    return found


@cache
def _runtime() -> jit.Code:
    """The scheduler: runtime.cu and what belongs to it."""
    here = Path(__file__)
    source = layout.c_header() + "".join(here.with_name(name).read_text() for name in _PARTS)
    compiled = _from_source(source, ("-rdc=true",), nvrtc.DEFAULT_ARCH, "runtime.cu", host=True)
    loaded = jit.Code(compiled[1])
    for name in _CALLED.split():
        jit.add_symbol(name, loaded.address(name))
    jit.add_symbol("sim_print", printing.ADDRESS)
    return loaded


@cache
def _entry(name: str, arguments: int) -> Callable[..., None]:
    """A function of the scheduler that takes so many addresses and numbers."""
    return ctypes.CFUNCTYPE(None, *[ctypes.c_uint64] * arguments)(_runtime().address(name))


class Module:
    """CUDA C++ compiled for the simulator.

    source: CUDA C++ with `extern "C" __global__` kernels. options: further NVRTC options (-D...,
    -I...). arch: the virtual architecture. name: what messages call the file. check: verify every
    memory access (bounds, alignment, initialised, races); slower. count: count what each launch
    does (`counters`), instead of checking it; slower too. Raises CompileError where NVRTC refuses
    the source, UnsupportedError where its PTX uses a feature that is not modelled.

    >>> module = Module('extern "C" __global__ void f(float* y, float a) { y[threadIdx.x] = a; }')
    >>> y = gpuconv.sim.empty(4)
    >>> module.launch("f", 1, 4, (y, 2.0))
    """

    def __init__(
        self,
        source: str,
        options: Sequence[str] = (),
        *,
        arch: str = nvrtc.DEFAULT_ARCH,
        name: str = "kernel.cu",
        check: bool = False,
        count: bool = False,
    ) -> None:
        if check and count:
            raise ValueError("a module counts or checks: make one module with each")
        self._load(*_from_source(source, options, arch, name, check, count), check, count)

    @classmethod
    def from_ptx(cls, text: str, *, check: bool = False, count: bool = False) -> Module:
        """A module from PTX text."""
        module = cls.__new__(cls)
        module._load(*_from_ptx(text, check, count), check, count)
        return module

    def _load(self, info: Info, code: bytes, check: bool, count: bool) -> None:
        self._run, self._merge = _entry("sim_run", 1), _entry("sim_merge", 2)
        self._release = _entry("sim_release", 1)
        self._info = info
        memory.quarantine |= check
        self._code = jit.Code(code)
        self.check, self.count = check, count
        self._functions: dict[str, Function] = {}
        self._traces: dict[str, memory.Traces] = {}

    @property
    def kernels(self) -> tuple[str, ...]:
        """Names of the kernels in this module."""
        return tuple(self._info.kernels)

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the __device__ and __constant__ variables that a kernel uses."""
        return tuple(self._info.variables)

    def places(self) -> list[tuple[str, int, int]]:
        """Name, address and size of each of these variables."""
        sizes = self._info.variables.items()
        return [(name, self._code.address(f"v.{name}"), size) for name, size in sizes]

    def function(self, name: str) -> Function:
        """The kernel `name`. Raises ValueError, naming the module's kernels, if there is none."""
        if name not in self._functions:
            if name not in self._info.kernels:
                there = ", ".join(self._info.kernels) or "none"
                raise ValueError(
                    f'no kernel {name!r} in this module, which has: {there} (is it extern "C"?)'
                )
            self._functions[name] = Function(self, self._info.kernels[name])
        return self._functions[name]

    def variable(self, name: str, dtype: npt.DTypeLike = np.float32) -> memory.Array:
        """The module's __device__ or __constant__ variable `name`, as a flat array of dtype.

        Only variables that a kernel uses exist. Raises ValueError, naming those, for any other.
        """
        if name not in self._info.variables:
            there = ", ".join(self._info.variables) or "none"
            raise ValueError(f"no variable {name!r} in this module, which uses: {there}")
        begin, size = self._code.address(f"v.{name}"), self._info.variables[name]
        return memory.borrow(begin, size, dtype, self._code)

    def counters(self, name: str) -> Counters:
        """What the launches of kernel `name` did, of a module with count=True."""
        if not self.count:
            raise ValueError("only a module with count=True counts")
        return self.function(name).counters

    def launch(self, name: str, *args: Any, **options: Any) -> list[Finding]:
        """Run kernel `name` and wait: (name, grid, block, args, ...), as Function.launch says."""
        return self.function(name).launch(*args, **options)
