"""CUDA C++ to PTX or cubin, through NVRTC: no GPU, no driver, no C++ compiler needed.

One OPTIONS tuple serves the simulator and the cubins. It contains -ftz=true, which CuPy adds to
every build, so that subnormals are treated alike wherever a kernel runs, and -fmad=false, so that
ptxas may fuse no multiplication with an addition that the PTX keeps apart.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Sequence
from functools import cache

from gpuconv.sim.errors import CompileError, UnsupportedError
from gpuconv.sim.host_headers import HOST_HEADERS

OPTIONS = ("--std=c++17", "-ftz=true", "-fmad=false", "-lineinfo")
DEFAULT_ARCH = "compute_80"
_RELEASE = ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu13", "nvidia-cuda-nvrtc-cu12")


def available() -> str:
    """Empty where NVRTC can be called, else one line that says what is missing."""
    try:
        _nvrtc().nvrtcVersion()
    except ImportError as error:
        return f"the simulator needs NVRTC: pip install 'gpuconv[sim]' ({error})"
    except Exception as error:  # the binding has its own types for a missing or too old library
        return f"NVRTC is installed but does not answer: {' '.join(str(error).split())}"
    return ""


def to_ptx(
    source: str, options: Sequence[str] = (), arch: str = DEFAULT_ARCH, name: str = "kernel.cu"
) -> str:
    """The PTX of CUDA C++ `source`. Raises CompileError with NVRTC's log."""
    text = _build(source, options, arch, name, "PTX").decode().rstrip("\0 \n") + "\n"
    # -lineinfo writes the working directory, which is no part of the program
    here = os.path.join(os.getcwd(), "")
    return re.sub(r'^(\s*\.file\s+\d+\s+")' + re.escape(here), r"\1", text, flags=re.M)


def to_cubin(
    source: str, options: Sequence[str] = (), arch: str = "sm_80", name: str = "kernel.cu"
) -> bytes:
    """Machine code of `source` for one architecture (sm_80, sm_90a, ...).

    Raises CompileError with NVRTC's log.
    """
    if not re.fullmatch(r"sm_\d+[af]?", arch):
        raise ValueError(f"to_cubin: arch must look like 'sm_80', got {arch!r}")
    return _build(source, options, arch, name, "CUBIN")


def compiler_version() -> str:
    """NVRTC's release, without loading the library where its wheel is installed."""
    for package in _RELEASE:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if missing := available():
        raise CompileError(missing)
    return ".".join(str(part) for part in _nvrtc().nvrtcVersion()[1:])


@cache
def include_paths() -> tuple[str, ...]:
    """The folders of CUDA's headers that are installed.

    Those of the wheels nvidia-cuda-runtime (cuda_fp16.h, cooperative_groups.h) and
    nvidia-cuda-cccl (nv/target, which the latter needs; cuda/std, cub).
    """
    spec = importlib.util.find_spec("nvidia")
    roots = spec.submodule_search_locations or () if spec else ()
    places = (
        os.path.join(root, folder, "include", *inner)
        for root in roots
        for folder in ("cu13", "cuda_runtime", "cuda_cccl")
        for inner in ((), ("cccl",))
    )
    return tuple(path for path in places if os.path.isdir(path))


_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.S)
_INCLUDE = re.compile(r'^\s*(?:#|%:|\?\?=)\s*(include\w*)\s*(?:"([^"\n]*)"|<([^>\n]*)>)?', re.M)


def own_headers(source: str, options: Sequence[str], name: str) -> list[str] | None:
    """Paths and texts of the user's header files that compiling `source` may read, in turn.

    None where that cannot be told. A file that is not there counts too, with no text: it may come.
    """
    folders: list[str] = []
    for option in options:
        if named := re.fullmatch(r"(?:-I|--include-path=)(.+)", option):
            folders.append(named[1])
        elif re.match(r"-I|--include-path|--pre-include|-include", option):
            return None
    found: dict[str, str] = {}
    todo = [(name, source)]
    while todo:
        path, text = todo.pop()
        if "__has_include" in text or "include_next" in text:
            return None
        text = text.replace("\\\n", "")
        included = _INCLUDE.findall(text) + _INCLUDE.findall(_COMMENT.sub(" ", text))
        for _, quoted, bracketed in included:
            if not (quoted or bracketed):
                return None  # a macro says which
            beside = [os.path.dirname(path), ""] if quoted else []
            for folder in (*beside, *folders):
                place = os.path.abspath(os.path.join(folder, quoted or bracketed))
                if place not in found:
                    found[place] = _text_of(place)
                    todo.append((place, found[place]))
    return [part for pair in found.items() for part in pair]


def _text_of(path: str) -> str:
    try:
        with open(
            path, encoding="latin-1", newline=""
        ) as file:  # which has a character for any byte
            return file.read()
    except OSError:
        return ""


@cache
def _nvrtc():
    from cuda.bindings import nvrtc

    return nvrtc


def _build(source: str, options: Sequence[str], arch: str, name: str, what: str) -> bytes:
    if isinstance(options, str):
        raise TypeError(
            f"options must be a sequence of strings, got {options!r}: write ({options!r},)"
        )
    try:
        nvrtc = _nvrtc()
    except ImportError as error:
        raise CompileError(f"cannot compile {name}: {available()}") from error
    flags = [*OPTIONS, *options]
    if not any(flag.startswith(("-arch", "--gpu-architecture")) for flag in options):
        flags.append(f"-arch={arch}")
    flags += [f"-I{path}" for path in include_paths()]
    names = [header.encode() for header in HOST_HEADERS]
    texts = [text.encode() for text in HOST_HEADERS.values()]
    program = _call(
        nvrtc, "nvrtcCreateProgram", source.encode(), name.encode(), len(names), texts, names
    )
    try:
        (status,) = nvrtc.nvrtcCompileProgram(
            program, len(flags), [flag.encode() for flag in flags]
        )
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = _fetch(nvrtc, "ProgramLog", program).decode(errors="replace").rstrip("\0 \n")
            if "crt/mma.h" in log:
                raise UnsupportedError(_without_wmma(source, name))
            raise CompileError(_first_error(name, log, str(status)), log)
        return _fetch(nvrtc, what, program)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _first_error(name: str, log: str, status: str) -> str:
    for line in log.splitlines():
        if "error" in line.lower():
            if "host function" in line:
                line += "; put host code between #ifndef __CUDACC_RTC__ and #endif"
            return f"NVRTC refused {name}: {' '.join(line.split())}"
    return f"NVRTC refused {name}: {' '.join(log.split())[:300] or status}"


def _without_wmma(source: str, name: str) -> str:
    include = re.search(r"^\s*#\s*include\s*<mma\.h>", source, re.M)
    line = source.count("\n", 0, include.end()) + 1 if include else 0
    where = f"{name}:{line}" if line else name
    return f"{where}: mma.h (nvcuda::wmma) is not modelled by the simulator, mma.sync in PTX is"


def _call(nvrtc, function: str, *arguments):
    status, *values = getattr(nvrtc, function)(*arguments)
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CompileError(f"{function} failed: {status}")
    return values[0] if len(values) == 1 else values


def _fetch(nvrtc, what: str, program) -> bytes:
    buffer = b"\0" * _call(nvrtc, f"nvrtcGet{what}Size", program)
    _call(nvrtc, f"nvrtcGet{what}", program, buffer)
    return buffer
