"""Kernel sources: where they are, their text with includes inlined, the signatures they declare.

A .cu file's `extern "C" __global__` signatures are the only declaration of its kernels; what is
read here is compared with the compiler's PTX by a test.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

# Every compiler of a kernel uses these and no others. CuPy appends -ftz=true by itself, so the
# simulator and the cubins have it too, or subnormal numbers would differ between them. With
# -fmad=false a product and a sum are fused where the source says fmaf, nowhere else: ptxas, which
# makes a card's code of PTX, would otherwise fuse some that the simulator keeps apart.
OPTIONS = ("-std=c++17", "-ftz=true", "-fmad=false")

_SCALARS = {
    "float": np.float32,
    "double": np.float64,
    "int": np.int32,
    "unsigned": np.uint32,
    "unsigned int": np.uint32,
    "long long": np.int64,
    "unsigned long long": np.uint64,
    "unsigned char": np.uint8,
    "signed char": np.int8,
    "unsigned short": np.uint16,
    "short": np.int16,
    "half16": np.float16,
    "brain16": np.uint16,
}
STORE = "STORE"  # the macro that stands for the type of arrays of 16 bits or of float (common.cuh)
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.MULTILINE)
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_KERNEL = re.compile(
    r'extern\s*"C"\s*__global__\s+void\s+(?:__launch_bounds__\s*\((?:[^()]|\([^()]*\))*\)\s*)?'
    r"(\w+)\s*\(([^)]*)\)"
)


@dataclass(frozen=True)
class KernelParameter:
    """One parameter of a kernel: an array in device memory, or a number."""

    name: str
    dtype: np.dtype
    pointer: bool
    written: bool  # a pointer that is not const
    restrict: bool = False  # __restrict__: no other argument may share its memory if one is written
    stored: bool = False  # a pointer to STORE


@dataclass(frozen=True)
class Signature:
    """A kernel's name and its parameters in order."""

    name: str
    parameters: tuple[KernelParameter, ...]


def folder() -> Path:
    """Where the kernels are: in the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for place in (package / "kernels", package.parent / "kernels"):
        if (place / "common.cuh").is_file():
            return place
    raise FileNotFoundError(
        f"the CUDA kernels are neither in {package / 'kernels'} nor in "
        f"{package.parent / 'kernels'}: install gpuconv again"
    )


def files() -> tuple[str, ...]:
    """The names of all kernel files, sorted."""
    return tuple(sorted(path.name for path in folder().glob("*.cu")))


def text(name: str, place: Path | None = None) -> str:
    """The source of kernel file `name` with its local includes inlined, each once.

    place: its folder, where that is not `folder()`.
    #line directives keep file names and line numbers right in the compiler's messages. What is
    compiled is thereby all in one string, so a cache keyed by it sees an edited header.
    Raises ValueError for a name that is not a kernel file, or an include that is missing.
    """
    place = place or folder()
    if Path(name).name != name or not (place / name).is_file():
        there = ", ".join(sorted(path.name for path in place.glob("*.cu")))
        raise ValueError(f"no kernel file {name!r} in {place}, which has: {there}")
    return _inlined(name, place, set())


def _inlined(name: str, place: Path, done: set[str]) -> str:
    done.add(name)
    lines = [f'#line 1 "{name}"']
    for number, line in enumerate((place / name).read_text("utf-8").splitlines(), 1):
        include = _INCLUDE.match(line)
        if include:
            header = include[1]
            if not (place / header).is_file():
                raise ValueError(f'{name}:{number}: includes "{header}", which is not in {place}')
            if header not in done:
                lines.append(_inlined(header, place, done))
            lines.append(f'#line {number + 1} "{name}"')
        else:
            lines.append("" if line.strip() == "#pragma once" else line)
    return "\n".join(lines) + "\n"


def signatures(source: str, defines: Mapping[str, str] | None = None) -> dict[str, Signature]:
    """The kernels that `source` declares, by name.

    defines: what -D gives to names used as types.
    Raises ValueError naming the kernel where a parameter's type is not one that a launch can pass.
    """
    plain = _COMMENT.sub(" ", source)
    return {
        name: Signature(
            name,
            tuple(_parameter(name, p, defines or {}) for p in declared.split(",") if p.strip()),
        )
        for name, declared in _KERNEL.findall(plain)
    }


def names(name: str) -> list[str]:
    """The kernels of the package's file `name`, whatever types its specialisations have."""
    return [kernel for kernel, _ in _KERNEL.findall(_COMMENT.sub(" ", text(name)))]


def c_type(dtype: np.dtype) -> str:
    """The type of a kernel's parameter that takes numbers of this dtype."""
    return next(name for name, kind in _SCALARS.items() if np.dtype(kind) == dtype)


@lru_cache(maxsize=256)
def kernels(name: str, defines: tuple[tuple[str, str], ...] = ()) -> dict[str, Signature]:
    """The kernels of the package's file `name`, by name."""
    return signatures(text(name), dict(defines))


def _parameter(kernel: str, declared: str, defines: Mapping[str, str]) -> KernelParameter:
    words = declared.replace("*", " * ").replace("__restrict__", " ").split()
    defines, stored = {STORE: "float", **defines}, STORE in words
    words = [piece for word in words for piece in defines.get(word, word).split()]
    name, pointer, const = words[-1], "*" in words, "const" in words
    kind = " ".join(word for word in words[:-1] if word not in ("const", "*"))
    if kind not in _SCALARS or words.count("*") > 1:
        known = ", ".join(sorted(_SCALARS))
        raise ValueError(
            f"{kernel}: parameter {declared.strip()!r} has a type that launches do not know "
            f"(known: {known}, and pointers to them)"
        )
    restrict = "__restrict__" in declared
    dtype, written = np.dtype(_SCALARS[kind]), pointer and not const
    return KernelParameter(name, dtype, pointer, written, restrict, stored)
