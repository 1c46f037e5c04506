"""The typed launcher: nothing reaches a kernel that its signature in the .cu file does not allow.

A raw kernel converts nothing: a Python float given for a `float` is read as garbage, an array of
another dtype or layout as other numbers. So `bind` makes of a plan's launch the arguments in the
kernel's order, each scalar cast to exactly its declared type, each array checked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from gpuconv.cuda import source
from gpuconv.cuda.extents import expected
from gpuconv.cuda.plan import Launch, Limits, require_fits
from gpuconv.cuda.source import Parameter, Signature

VECTOR = 4  # elements that a vectorised kernel moves at once


@dataclass(frozen=True)
class View:
    """What the launcher asks of an array, whatever its library: where it is and what it holds."""

    address: int
    nbytes: int
    size: int
    dtype: np.dtype
    contiguous: bool
    device: str

    def overlaps(self, other: View) -> bool:
        begins, ends = max(self.address, other.address), min(self._end, other._end)
        return begins < ends

    def same_place(self, other: View) -> bool:
        return (self.address, self.nbytes) == (other.address, other.nbytes)

    @property
    def _end(self) -> int:
        return self.address + self.nbytes


def bind(launch: Launch, views: Mapping[str, View], device: str, limits: Limits) -> list[Any]:
    """The launch's arguments in the kernel's order: NumPy scalars, and names of arrays as str.

    views: the operation's arrays by name. device: where they must be.
    Raises TypeError or ValueError, one line that names the kernel and the argument.
    """
    require_fits(launch, limits)
    signature = signature_of(launch)
    name = launch.kernel
    numbers = {p.name for p in signature.parameters if not p.pointer}
    for kind, given in (("missing", numbers - set(launch.scalars)),
                        ("not its parameter", set(launch.scalars) - numbers)):  # fmt: skip
        if given:
            raise TypeError(f"{name}: {', '.join(sorted(given))} {kind}")
    arguments: list[Any] = []
    pointers: list[tuple[Parameter, View]] = []
    for p in signature.parameters:
        if not p.pointer:
            arguments.append(cast(f"{name}: {p.name}", p.dtype, launch.scalars[p.name]))
            continue
        key = launch.arrays.get(p.name, p.name)
        if key not in views:
            raise TypeError(f"{name}: {p.name} missing: no array {key!r} was given")
        _require_array(launch, p, views[key], device)
        pointers.append((p, views[key]))
        arguments.append(key)
    _require_apart(name, pointers)
    return arguments


@lru_cache(maxsize=1024)
def _signature(file: str, defines: tuple[tuple[str, str], ...], kernel: str) -> Signature:
    found = source.kernels(file, defines)
    if kernel not in found:
        raise ValueError(f"no kernel {kernel!r} in {file}, which has: {', '.join(found)}")
    return found[kernel]


def signature_of(launch: Launch) -> Signature:
    """The kernel's parameters as its .cu file declares them. ValueError if it is not there."""
    return _signature(launch.file, launch.defines, launch.kernel)


def cast(where: str, dtype: np.dtype, value: Any) -> np.generic:
    """The number as exactly this type. TypeError for what is no number (or a fraction for an
    integer), ValueError for what does not fit or is not finite.
    """
    whole = isinstance(value, int | np.integer)
    if isinstance(value, bool | np.bool_) or not (
        whole or (dtype.kind == "f" and isinstance(value, float | np.floating))
    ):
        kind = "a number" if dtype.kind == "f" else "an integer"
        raise TypeError(f"{where} is {dtype}: give {kind}, got {value!r}")
    if dtype.kind == "f":
        if not math.isfinite(value):
            raise ValueError(f"{where} must be finite, got {value!r}")
        if abs(value) > float(np.finfo(dtype).max):
            raise ValueError(f"{where} is {dtype}: {value!r} does not fit")
        return dtype.type(value)
    limits = np.iinfo(dtype)
    if not limits.min <= value <= limits.max:
        raise ValueError(f"{where} is {dtype}: {value} does not fit")
    return dtype.type(value)


def alignment(launch: Launch, parameter: Parameter) -> int:
    """Bytes that the pointer's address must be a multiple of, as this specialisation moves it."""
    vectors = any(key.startswith("VEC") and value == str(VECTOR) for key, value in launch.defines)
    return parameter.dtype.itemsize * (VECTOR if vectors else 1)


def _require_array(launch: Launch, p: Parameter, view: View, device: str) -> None:
    where = f"{launch.kernel}: {p.name}"
    if view.device != device:
        raise ValueError(f"{where} is on {view.device}, the kernel runs on {device}: move it")
    if view.dtype != p.dtype:
        raise TypeError(f"{where} must be {p.dtype}, got {view.dtype}")
    if not view.contiguous:
        raise ValueError(f"{where} is not contiguous in memory, and kernels ignore strides")
    compiled_in = {name: int(value) for name, value in launch.defines if value.isdecimal()}
    count = expected(launch.kernel, p.name, {**compiled_in, **launch.scalars}, launch.grid)
    if count is not None and view.size != count:
        raise ValueError(f"{where} must have {count} elements, got {view.size}")
    needed = alignment(launch, p)
    if view.address % needed:
        raise ValueError(
            f"{where} starts at an address that is not a multiple of {needed} bytes: copy it"
        )


def _require_apart(name: str, pointers: list[tuple[Parameter, View]]) -> None:
    """ValueError where an array that is written shares memory with another, except that two may be
    one and the same where neither is declared __restrict__.
    """
    for i, (p, a) in enumerate(pointers):
        for q, b in pointers[i + 1 :]:
            if not (p.written or q.written) or not a.overlaps(b):
                continue
            if a.same_place(b) and not (p.alone or q.alone):
                continue
            raise ValueError(f"{name}: {p.name} and {q.name} overlap in memory: copy one of them")
