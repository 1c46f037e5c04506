"""Real CuPy over a stand-in for NVIDIA's driver: what `driver.c` shows it, the simulator executes.

    environment = driver.environment(folder)  # builds libcuda.so.1 there, or raises Unavailable
    subprocess.run([python, script], env=environment)

and in that process, before CuPy is imported:

    import driver
    driver.install()  # or install(execute=False): launches are counted, not run

CuPy links the CUDA runtime statically. So the functions whose names begin with cuda are replaced at
run time in the memory of its module: each begins with a jump to driver.c's function of that name,
or to one that fails and says which call is not modelled. That is tied to CuPy's build: CUPY is the
version that this was written for. x86-64 Linux only.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import traceback
from functools import partial
from pathlib import Path

CUPY = "14.2.0"
HERE = Path(__file__).resolve().parent
LIBRARY = "libcuda.so.1"
FOLDER = "GPUCONV_STANDIN_DRIVER"
NOT_SUPPORTED = 801

failures: list[str] = []  # of launches, and calls that are not modelled


class Unavailable(Exception):
    """The stand-in cannot be used here."""


def environment(folder: Path) -> dict[str, str]:
    """The environment of a process that uses the driver, which is built in `folder`."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise Unavailable("the stand-in driver is for x86-64 Linux")
    for tool in ("cc", "readelf"):
        if not shutil.which(tool):
            raise Unavailable(f"the stand-in driver needs {tool}")
    found = [d for d in importlib.metadata.distributions() if d.name.startswith("cupy-cuda")]
    if not found or found[0].version != CUPY:
        raise Unavailable(f"the stand-in driver needs cupy-cuda13x {CUPY}")
    library = folder / LIBRARY
    command = ["cc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    command += [str(HERE / "driver.c"), str(HERE / "approximate.c"), "-o", str(library)]
    command += [f"-Wl,-soname,{LIBRARY}", "-lpthread", "-ldl", "-lm"]
    subprocess.run(command, check=True)
    paths = [str(HERE), str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        FOLDER: str(folder),
        "LD_LIBRARY_PATH": str(folder),
        "CUPY_CACHE_DIR": str(folder / "kernels"),
        "CUPY_ACCELERATORS": "",  # CUB's module has a copy of the runtime of its own
        "PYTHONPATH": os.pathsep.join(paths),
    }


def install(
    execute: bool = True, defer: bool = True, seed: int = 0, approximate: int = 0
) -> ctypes.CDLL:
    """Make CuPy use the driver; returns the library, for its standin_ functions.

    defer: work runs as late as it may, else at once. seed: other legal orders of several streams,
    and of a graph's branches. approximate: a seed of errors, as large as the PTX ISA permits, of
    its approximate instructions; 0: the simulator's own results.
    """
    library = ctypes.CDLL(str(Path(os.environ[FOLDER]) / LIBRARY))
    library.standin_calls.restype = library.standin_copied.restype = ctypes.c_longlong
    library.standin_counted.restype = library.standin_name.restype = ctypes.c_char_p
    library.standin_module.restype = library.standin_last_module.restype = ctypes.c_void_p
    library.standin_extent.restype = ctypes.c_size_t
    library.standin_configure.argtypes = [ctypes.c_int, ctypes.c_uint64]
    library.standin_configure(defer, seed)
    _replace_runtime(library)
    if execute:
        _execute_with_simulator(library)
    if approximate:
        _approximate(library, approximate)
    return library


def calls(library: ctypes.CDLL) -> dict[str, int]:
    """How often each function was called, since `library.standin_forget_counts()`."""
    found, number = {}, 0
    while name := library.standin_counted(number):
        number += 1
        if count := library.standin_calls(name):
            found[name.decode()] = count
    return found


# ---- CuPy's own copy of the CUDA runtime ---------------------------------------------------------


def _replace_runtime(library: ctypes.CDLL) -> None:
    package = importlib.util.find_spec("cupy_backends")
    assert package is not None
    assert package.origin is not None
    (module,) = (Path(package.origin).parent / "cuda" / "api").glob("runtime.*.so")
    ctypes.CDLL(str(module))
    listed = subprocess.run(
        ["readelf", "--symbols", "--wide", str(module)], capture_output=True, text=True, check=True
    )
    rows = (line.split() for line in listed.stdout.splitlines())
    addresses = {row[7]: int(row[1], 16) for row in rows
                 if len(row) > 7 and row[3] == "FUNC" and row[7].startswith("cuda")}  # fmt: skip
    with open("/proc/self/maps", encoding="ascii") as maps:
        base = min(int(line.split("-")[0], 16) for line in maps if module.name in line)
    for name, address in addresses.items():
        plain = name.removesuffix("_ptsz").removesuffix("_ptds")
        target = getattr(library, plain, None)
        pointer = ctypes.cast(target or _unmodelled(plain), ctypes.c_void_p).value
        assert pointer is not None
        _jump(base + address, pointer)


def _jump(begin: int, target: int) -> None:
    """Overwrite the first bytes of a function: mov rax, target; jmp rax."""
    page, size = begin & ~4095, 8192
    system = ctypes.CDLL(None, use_errno=True)
    if system.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(size), 7):
        raise OSError(ctypes.get_errno(), "mprotect")
    code = b"\x48\xb8" + target.to_bytes(8, "little") + b"\xff\xe0"
    ctypes.memmove(begin, code, len(code))


_kept: list[object] = []  # what C holds the addresses of


def _unmodelled(name: str) -> object:
    def refuse() -> int:
        failures.append(f"{name} is not modelled")
        print(f"stand-in driver: {failures[-1]}", file=sys.stderr, flush=True)
        return NOT_SUPPORTED

    _kept.append(ctypes.CFUNCTYPE(ctypes.c_int)(refuse))
    return _kept[-1]


# ---- launches ------------------------------------------------------------------------------------


def _execute_with_simulator(library: ctypes.CDLL) -> None:
    """Each kernel's source as CuPy compiled it, compiled again for the simulator and run there."""
    from cupy.cuda import compiler

    import gpuconv.sim.launch
    from gpuconv import sim

    sources: dict[int, tuple[str, tuple[str, ...]]] = {}
    modules: dict[tuple[str, tuple[str, ...]], sim.Module] = {}
    compile_for_card = compiler._compile_with_cache_cuda

    def compiled(source, options, *rest, **more):
        made = compile_for_card(source, options, *rest, **more)
        sources[library.standin_last_module()] = source, tuple(options)
        return made

    compiler._compile_with_cache_cuda = compiled
    pack = gpuconv.sim.launch.pack
    gpuconv.sim.launch.pack = lambda kernel, arguments: (
        arguments if isinstance(arguments, np.ndarray) else pack(kernel, arguments)
    )

    def function_of(handle):
        name = library.standin_name(ctypes.c_void_p(handle)).decode()
        key = sources[library.standin_module(ctypes.c_void_p(handle))]
        if key not in modules:
            source, options = key
            modules[key] = sim.Module(source, _for_the_simulator(options), name=f"{name}.cu")
        return modules[key].function(name)

    def guarded(act):
        def run(*arguments):
            try:
                act(*arguments)
                return 0
            except BaseException as error:
                failures.append(f"{type(error).__name__}: {error}")
                traceback.print_exc()
                return 1

        return run

    def describe(handle):
        for parameter in function_of(handle).kernel.parameters:
            library.standin_parameter(
                ctypes.c_void_p(handle), ctypes.c_size_t(parameter.offset),
                ctypes.c_size_t(parameter.size),
            )  # fmt: skip

    def launch(handle, gx, gy, gz, bx, by, bz, shared, parameters):
        function = function_of(handle)
        size = max(function.kernel.parameter_bytes, 1) + 16
        packed = np.frombuffer(ctypes.string_at(parameters, size), np.uint8).copy()
        function.launch((gx, gy, gz), (bx, by, bz), packed, shared)

    import numpy as np

    pointer, number = ctypes.c_void_p, ctypes.c_uint
    _kept.append(ctypes.CFUNCTYPE(ctypes.c_int, pointer)(guarded(describe)))
    _kept.append(ctypes.CFUNCTYPE(ctypes.c_int, pointer, *[number] * 7, pointer)(guarded(launch)))
    library.standin_set_launcher(_kept[-1], _kept[-2])


def _for_the_simulator(options: tuple[str, ...]) -> tuple[str, ...]:
    """What both compilers need. The simulator chooses the architecture and the rest."""
    return tuple(o for o in options if o.startswith(("-D", "-I", "-std", "--std")))


def _approximate(library: ctypes.CDLL, seed: int) -> None:
    """approximate.c in the place of the simulator's approximate instructions of float32."""
    from gpuconv.sim import jit
    from gpuconv.sim.emit import FLOAT_TABLE

    library.standin_approximate(ctypes.c_uint64(seed))
    for op in ("ex2", "lg2", "rcp", "rsqrt", "sqrt", "sin", "cos", "tanh", "div"):
        function = getattr(library, f"standin_{op}")
        jit.add_symbol(f"standin_{op}", ctypes.cast(function, ctypes.c_void_p).value)
        FLOAT_TABLE[op] = partial(_approximated, FLOAT_TABLE[op])
    identity = jit.identity
    jit.identity = lambda: f"{identity()}|approximate"  # compiled code is cached under this


def _approximated(exactly, b, i, llvm, values):
    if i.mods[-1] != "f32" or not {"approx", "full"} & set(i.mods):
        return exactly(b, i, llvm, values)
    return b.call("float", f"standin_{i.op}", *(f"float {value}" for value in values))
