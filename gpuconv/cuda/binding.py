"""The typed launcher: nothing reaches a kernel that its signature in the .cu file does not allow.

A raw kernel converts nothing: a Python float given for a `float` is read as garbage, an array of
another dtype or layout as other numbers. So `bind` checks one launch against the layouts of its
arrays (dtype, size, contiguity, device) and casts its numbers to exactly their declared types. That
depends on shapes alone, so `Runtime.run` does it once for each configuration and set of layouts.
`Binding.arguments` then puts in what differs from call to call: addresses, whose alignment and
distance it checks every time, and the numbers that no shape decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuconv.cuda import source
from gpuconv.cuda.launch_config import Launch, Limits, Scalar, require_fits
from gpuconv.cuda.source import KernelParameter, Signature

MAX_VECTOR = 16  # bytes that a thread moves at once
NO_NUMBERS: Mapping[str, Scalar] = {}


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
        begin = max(self.address, other.address)
        return begin < min(self.address + self.nbytes, other.address + other.nbytes)


@dataclass(frozen=True)
class Pointer:
    """A parameter that takes an array: its place among the arguments, and the array's key."""

    place: int
    key: str
    name: str
    nbytes: int
    alignment: int  # bytes that its address must be a multiple of


@dataclass(frozen=True)
class Binding:
    """One launch whose arguments fit but for the addresses and the numbers given at each call.

    template: the arguments in the kernel's order, None where a call puts one in.
    apart: pairs of pointers of which one is written; True where both may be the very same array.
    given: (place, name, dtype) of the numbers that a call gives.
    """

    launch: Launch
    template: Sequence[Any]
    pointers: tuple[Pointer, ...]
    apart: tuple[tuple[Pointer, Pointer, bool], ...]
    given: tuple[tuple[int, str, np.dtype], ...]

    def arguments(
        self,
        arrays: Mapping[str, Any],
        addresses: Mapping[str, int],
        numbers: Mapping[str, Scalar] = NO_NUMBERS,
    ) -> list[Any]:
        """The kernel's arguments: NumPy scalars and the arrays.

        Raises ValueError for an address off its alignment, for an array that is written and shares
        memory with another (unless both are one and the same and neither parameter is declared
        __restrict__), and for a number that does not fit its type.
        """
        arguments = list(self.template)
        for p in self.pointers:
            if addresses[p.key] % p.alignment:
                raise ValueError(
                    f"{self.launch.kernel}: {p.name} starts at an address that is not a multiple "
                    f"of {p.alignment} bytes: copy it"
                )
            arguments[p.place] = arrays[p.key]
        for p, q, may_be_same in self.apart:
            a, b = addresses[p.key], addresses[q.key]
            if a < b + q.nbytes and b < a + p.nbytes:
                if may_be_same and a == b and p.nbytes == q.nbytes:
                    continue
                raise ValueError(
                    f"{self.launch.kernel}: {p.name} and {q.name} overlap in memory: "
                    f"copy one of them"
                )
        for place, name, dtype in self.given:
            arguments[place] = cast(f"{self.launch.kernel}: {name}", dtype, numbers[name])
        return arguments


def bind(
    launch: Launch,
    views: Mapping[str, View],
    device: str,
    limits: Limits,
    numbers: Mapping[str, Scalar] = NO_NUMBERS,
) -> Binding:
    """The launch bound to arrays of these layouts; their addresses are not looked at.

    views: the operation's arrays by name. device: where they must be. numbers: those of the call,
    of which this launch takes what its kernel declares.
    Raises TypeError or ValueError, one line that names the kernel and the argument.
    """
    require_fits(launch, limits)
    signature = signature_of(launch)
    _require_numbers(launch, signature, numbers)
    template: list[Any] = []
    pointers: list[tuple[KernelParameter, Pointer]] = []
    followed: list[tuple[KernelParameter, Pointer]] = []  # the others are never read nor written
    given = []
    for place, p in enumerate(signature.parameters):
        if p.pointer:
            key = launch.arrays.get(p.name, p.name)
            if key not in views:
                raise TypeError(f"{launch.kernel}: {p.name} missing: no array {key!r} was given")
            _require_array(launch, p, views[key], device)
            pointer = Pointer(place, key, p.name, views[key].nbytes, alignment(launch, p))
            pointers.append((p, pointer))
            if launch.sizes[p.name] is not None:
                followed.append((p, pointer))
            template.append(None)
        elif p.name in launch.scalars:
            template.append(cast(f"{launch.kernel}: {p.name}", p.dtype, launch.scalars[p.name]))
        else:
            given.append((place, p.name, p.dtype))
            template.append(None)
    apart = tuple(
        (a, b, not (p.restrict or q.restrict))
        for i, (p, a) in enumerate(followed)
        for q, b in followed[i + 1 :]
        if p.written or q.written
    )
    return Binding(launch, template, tuple(a for _, a in pointers), apart, tuple(given))


def signature_of(launch: Launch) -> Signature:
    """The kernel's parameters as its .cu file declares them. ValueError if it is not there."""
    declared = source.kernels(launch.file, launch.defines)
    if launch.kernel not in declared:
        there = ", ".join(declared)
        raise ValueError(f"no kernel {launch.kernel!r} in {launch.file}, which has: {there}")
    return declared[launch.kernel]


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


def alignment(launch: Launch, parameter: KernelParameter) -> int:
    """Bytes that the pointer's address must be a multiple of, as this specialisation moves it."""
    widths = [int(value) for key, value in launch.defines if key.startswith("VEC")]
    return min(parameter.dtype.itemsize * max(widths, default=1), MAX_VECTOR)


def _require_numbers(launch: Launch, signature: Signature, numbers: Mapping[str, Scalar]) -> None:
    """TypeError unless every number has one value and the launch has none that is not declared."""
    declared = {p.name for p in signature.parameters if not p.pointer}
    own = set(launch.scalars)
    for kind, names in (
        ("missing", declared - own - set(numbers)),
        ("not its parameter", own - declared),
        ("given twice", own & set(numbers)),
    ):
        if names:
            raise TypeError(f"{launch.kernel}: {', '.join(sorted(names))} {kind}")


def _require_array(launch: Launch, p: KernelParameter, view: View, device: str) -> None:
    where = f"{launch.kernel}: {p.name}"
    if view.device != device:
        raise ValueError(f"{where} is on {view.device}, the kernel runs on {device}: move it")
    if view.dtype != p.dtype:
        raise TypeError(f"{where} must be {p.dtype}, got {view.dtype}")
    if not view.contiguous:
        raise ValueError(f"{where} is not contiguous in memory, and kernels ignore strides")
    if p.name not in launch.sizes:
        raise TypeError(f"{where}: its launch configuration does not say how many elements it has")
    size = launch.sizes[p.name]
    if size is not None and view.size != size:
        raise ValueError(f"{where} must have {size} elements, got {view.size}")
