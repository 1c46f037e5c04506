"""Launch configurations: grid, block, specialisation and numbers of a kernel, from shapes alone.

Every `config_*` function here and in gpuconv/ops is pure: nothing touches a device, so each figure
is tested without one, at sizes no test could allocate. No configuration depends on the card, so the
order of every sum, and with it every bit of a result, is the same on all of them; a card's limits
are only checked against (`require_fits`). They are cached: the same shapes give the same object,
for which `Runtime.run` need not check its arguments' layouts again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType

THREADS = 256
INT_MAX = 2**31 - 1
MAX_GRID_YZ = 65535
MAX_SHARED = 48 << 10  # bytes a block that every architecture grants without asking
# Blocks of a grid-stride loop: enough to fill the largest cards, few enough to start at once.
LOOP_BLOCKS = 4096
CACHED = 1024  # configurations that each `config_*` function remembers

Scalar = int | float
Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Launch:
    """One kernel launch: what to compile, how many blocks, which numbers.

    defines: the specialisation, -D name=value. scalars: the kernel's numbers by parameter name,
    without those that are no function of shapes (eps, a seed), which `Runtime.run` is given.
    sizes: how many elements the kernel reaches through each pointer, by parameter name; None for
    a pointer that this launch does not follow, so that any array can stand in for it.
    arrays: the kernel's pointers by parameter name, where the operation calls the array otherwise.
    shared: bytes of dynamic shared memory. multiply_adds: those that the result needs.
    """

    file: str
    kernel: str
    grid: Grid
    block: int
    defines: tuple[tuple[str, str], ...]
    scalars: Mapping[str, int]
    sizes: Mapping[str, int | None]
    arrays: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    shared: int = 0
    multiply_adds: int = 0

    @property
    def options(self) -> tuple[str, ...]:
        """The specialisation as compiler options."""
        return tuple(f"-D{name}={value}" for name, value in self.defines)


@dataclass(frozen=True)
class LaunchConfig:
    """Launches in order, and what they share: the floats of the array called "workspace", and the
    counters of "tickets", which are 0 before and after.
    """

    launches: tuple[Launch, ...]
    workspace: int = 0
    tickets: int = 0


@dataclass(frozen=True)
class Limits:
    """What an architecture allows a block: bytes of shared memory, threads."""

    shared: int
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
    if not (1 <= x <= INT_MAX and 1 <= y <= MAX_GRID_YZ and 1 <= z <= MAX_GRID_YZ):
        raise ValueError(
            f"{name}: a grid of {x} x {y} x {z} blocks; at most "
            f"{INT_MAX} x {MAX_GRID_YZ} x {MAX_GRID_YZ} are allowed: use a smaller batch"
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


def fast_division(d: int) -> tuple[int, int]:
    """(mul, shift) with n // d == n * mul >> shift for every 0 <= n < 2**31.

    For 1 <= d < 2**31. Source: Granlund and Montgomery 1994; kernels/common.cuh has the proof.
    """
    if not 1 <= d <= INT_MAX:
        raise ValueError(f"fast_division: the divisor must be in [1, 2**31), got {d}")
    shift = 31 + (d - 1).bit_length()
    return ceil_div(1 << shift, d), shift


def fast_divisions(**divisors: int) -> dict[str, int]:
    """`fast_division` of each as the kernels take it: name_mul and name_shift."""
    constants = {}
    for name, d in divisors.items():
        constants[f"{name}_mul"], constants[f"{name}_shift"] = fast_division(d)
    return constants


def require_int32(name: str, **sizes: int) -> None:
    """ValueError unless every size fits the kernels' 32-bit counters."""
    for what, size in sizes.items():
        if size > INT_MAX:
            raise ValueError(
                f"{name}: {what.replace('_', ' ')} are {size}; the kernels count to 2**31 - 1: "
                f"use a smaller batch or image"
            )


def vector_width(*lengths: int) -> int:
    """4 where every contiguous axis is whole 16-byte vectors of floats, else 1."""
    return 4 if all(length % 4 == 0 for length in lengths) else 1


def defines(**macros: int | str | bool) -> tuple[tuple[str, str], ...]:
    """A specialisation, in one order: equal ones compile once."""
    return tuple(
        (name, str(int(value) if isinstance(value, bool) else value))
        for name, value in sorted(macros.items())
    )


def loop_grid(threads: int, block: int = THREADS) -> Grid:
    """The grid of a grid-stride loop over this many threads' work."""
    return min(ceil_div(max(threads, 1), block), LOOP_BLOCKS), 1, 1


def pixel_loop(pixels: int, channels: int, vec: int) -> tuple[Grid, int]:
    """(grid, lanes) of a grid-stride loop over pixels: `PixelLoop` of kernels/pool.cuh.

    lanes: a block's threads along the channels, each with `vec` of them at a time.
    """
    lanes = min(ceil_div(channels, vec), THREADS)
    return loop_grid(pixels, THREADS // lanes), lanes


@lru_cache(maxsize=CACHED)
def config_elementwise(file: str, kernel: str, count: int, aligned: bool = True) -> LaunchConfig:
    """A kernel of relu.cu, activations.cu, elementwise.cu or cast.cu over `count` elements.

    aligned: whether every array starts at a multiple of 16 bytes.
    """
    vec, flight = 4 if aligned else 1, 4  # flight: vectors a thread loads at once
    grid = loop_grid(ceil_div(count, vec * flight))
    sizes = {**dict.fromkeys(("x", "y", "dx", "dy", "to", "a", "b"), count), "step": 1, "factor": 1}
    return LaunchConfig(
        (Launch(file, kernel, grid, THREADS, defines(VEC=vec), {"count": count}, sizes),)
    )
