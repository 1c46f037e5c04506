"""Measured peak FLOP/s and bandwidth of a device (its roofline)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

from gpuconv.bench.clock import cpu_times
from gpuconv.cpu.compiled import compiled
from gpuconv.cpu.simd import FLOAT, LANES, intrinsic, ir, loop, splat
from gpuconv.threads import over_shards, parallel, thread_count

COPIED = 128 << 20  # bytes
CHAINS = 10  # of vectors: enough to hide the latency of two FMA units, fewer than 16 registers
FLOPS_PER_ROUND = 2 * CHAINS * LANES  # of a thread
ROUNDS = 1 << 20  # some milliseconds; every number stays below 2**24, so that the sum is exact


@dataclass(frozen=True)
class Ceilings:
    """Measured FLOP/s and bytes per second (read plus written), and how each was measured."""

    flops: float
    bytes: float
    arithmetic: str
    memory: str

    def __str__(self) -> str:
        return (
            f"ceilings: {self.bytes / 1e9:.1f} GB/s ({self.memory}), "
            f"{self.flops / 1e12:.3f} TFLOP/s ({self.arithmetic})"
        )


def cpu_ceilings(seconds: float = 0.5, copied: int = COPIED) -> Ceilings:
    """The ceilings of this machine's CPU, with gpuconv's own number of threads."""
    a = np.random.default_rng(0).integers(0, 255, copied, np.uint8)
    b = np.empty_like(a)

    def copy() -> None:
        over_shards(np.copyto, (b, a), grain=1 << 20)

    took = cpu_times([copy], seconds)
    added = cpu_times([on_all_threads], seconds)
    threads = f"{thread_count()} thread{'s' if thread_count() > 1 else ''}"
    return Ceilings(
        on_all_threads() / added.low,
        2 * copied / took.low,
        f"FP32 multiply-adds, {threads}",
        f"copy of {copied >> 20} MiB, {threads}",
    )


# ---- independent multiply-adds, as ceiling.cu has them for a GPU ---------------------------------


@intrinsic
def _chains(typing: Any, rounds: Any, a: Any, b: Any) -> Any:
    """v = v * a + b in CHAINS vectors that start at 0, 1, ...; the sum of their first elements."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        count, scale, offset = arguments
        scale, offset = splat(builder, scale), splat(builder, offset)
        start = [splat(builder, FLOAT(float(i))) for i in range(CHAINS)]
        fuse = ("contract",)  # a multiply and an add in one, where the processor can

        def step(_: Any, v: list[Any]) -> list[Any]:
            products = [builder.fmul(one, scale, flags=fuse) for one in v]
            return [builder.fadd(product, offset, flags=fuse) for product in products]

        state = loop(builder, count, start, step)
        total = state[0]
        for one in state[1:]:
            total = builder.fadd(total, one)
        return builder.extract_element(total, ir.IntType(32)(0))

    return numba.float32(numba.int64, numba.float32, numba.float32), build


@compiled
def chains(rounds: int, a: float, b: float) -> float:
    """`_chains` on one thread, without the interpreter's lock."""
    return _chains(rounds, np.float32(a), np.float32(b))


def on_all_threads(rounds: int = ROUNDS) -> int:
    """Run the chains on every thread of gpuconv's; returns the number of FLOPs.

    Raises ArithmeticError where the sum is not what it must be.
    """
    pieces = [(number, number + 1) for number in range(thread_count())]
    found = parallel(lambda *_: chains(rounds, 1.0, 1.0), pieces)
    exact = CHAINS * (CHAINS - 1) // 2 + CHAINS * rounds
    if any(one != exact for one in found):
        raise ArithmeticError(f"the multiply-adds gave {found}, not {exact}: no ceiling")
    return len(pieces) * rounds * FLOPS_PER_ROUND
