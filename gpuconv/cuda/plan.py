"""Launch plans: grid, block, specialisation and scalars of a kernel, as pure functions of shapes.

Nothing here touches a device, so every figure is tested without one, at sizes no test could
allocate. Plans depend on shapes alone, never on the card: the order of every sum, and so every bit
of a result, is the same on all of them. A card's limits are only checked against (`require_fits`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

THREADS = 256
INT_MAX = 2**31 - 1
GRID_YZ = 65535
# Blocks of a grid-stride loop: enough to fill the largest cards, few enough to start at once.
STRIDE_BLOCKS = 4096

Scalar = int | float


@dataclass(frozen=True)
class Launch:
    """One kernel launch: what to compile, how many blocks, which numbers.

    defines: the specialisation, -D name=value. scalars: the kernel's numbers by parameter name.
    arrays: the kernel's pointers by parameter name, where the operation calls the array otherwise.
    shared: bytes of dynamic shared memory.
    """

    file: str
    kernel: str
    grid: tuple[int, int, int]
    block: int
    defines: tuple[tuple[str, str], ...]
    scalars: Mapping[str, Scalar]
    arrays: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    shared: int = 0

    @property
    def options(self) -> tuple[str, ...]:
        """The specialisation as compiler options."""
        return tuple(f"-D{name}={value}" for name, value in self.defines)


@dataclass(frozen=True)
class Plan:
    """Launches in order, and the floats of the array called "workspace" that they share."""

    launches: tuple[Launch, ...]
    workspace: int = 0


@dataclass(frozen=True)
class Limits:
    """What an architecture allows a block: bytes of shared memory, registers in all, threads."""

    shared: int
    registers: int = 65536
    threads: int = 1024


LIMITS = {
    "sm_75": Limits(64 << 10),
    "sm_80": Limits(163 << 10),
    "sm_86": Limits(99 << 10),
    "sm_89": Limits(99 << 10),
    "sm_90a": Limits(227 << 10),
    "sm_100": Limits(227 << 10),
    "sm_120": Limits(99 << 10),
}


def require_fits(launch: Launch, limits: Limits) -> None:
    """ValueError naming the kernel where the card cannot run the launch."""
    x, y, z = launch.grid
    name = launch.kernel
    if not (1 <= x <= INT_MAX and 1 <= y <= GRID_YZ and 1 <= z <= GRID_YZ):
        raise ValueError(
            f"{name}: a grid of {x} x {y} x {z} blocks; at most {INT_MAX} x {GRID_YZ} x {GRID_YZ} "
            f"are allowed: use a smaller batch"
        )
    if not 1 <= launch.block <= limits.threads:
        raise ValueError(
            f"{name}: {launch.block} threads a block, 1 to {limits.threads} are allowed"
        )
    if launch.shared > limits.shared:
        raise ValueError(
            f"{name}: {launch.shared} bytes of shared memory a block, this card has {limits.shared}"
        )


def ceil_div(n: int, d: int) -> int:
    """The smallest integer that is at least n / d."""
    return -(-n // d)


def magic(d: int) -> tuple[int, int]:
    """(mul, shift) with n // d == n * mul >> shift for every 0 <= n < 2**31.

    For 1 <= d < 2**31. Source: Granlund and Montgomery 1994; kernels/common.cuh has the proof.
    """
    if not 1 <= d <= INT_MAX:
        raise ValueError(f"magic: the divisor must be in [1, 2**31), got {d}")
    shift = 31 + (d - 1).bit_length()
    return ceil_div(1 << shift, d), shift


def magics(**divisors: int) -> dict[str, int]:
    """`magic` of each as the kernels take it: name_mul and name_shift."""
    found = {}
    for name, d in divisors.items():
        found[f"{name}_mul"], found[f"{name}_shift"] = magic(d)
    return found


def require_int(name: str, **sizes: int) -> None:
    """ValueError unless every size fits the kernels' 32-bit counters."""
    for what, size in sizes.items():
        if size > INT_MAX:
            raise ValueError(
                f"{name}: {what.replace('_', ' ')} are {size}; the kernels count to 2**31 - 1: "
                f"use a smaller batch or image"
            )


def vector(*lengths: int) -> int:
    """4 where every contiguous axis is whole 16-byte vectors of floats, else 1."""
    return 4 if all(length % 4 == 0 for length in lengths) else 1


def defines(**macros: int | str | bool) -> tuple[tuple[str, str], ...]:
    """A specialisation, in one order: equal ones compile once."""
    return tuple(
        (name, str(int(value) if isinstance(value, bool) else value))
        for name, value in sorted(macros.items())
    )


def stride_loop(threads: int, block: int = THREADS) -> tuple[int, int, int]:
    """The grid of a grid-stride loop over this many threads' work."""
    return min(ceil_div(max(threads, 1), block), STRIDE_BLOCKS), 1, 1
