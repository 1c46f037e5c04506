"""Measured peak FLOP/s and bandwidth of a device (its roofline)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpuconv.bench import cpu_ceiling
from gpuconv.bench.clock import cpu_times
from gpuconv.threads import parallel, shards, thread_count

COPIED = 128 << 20  # bytes


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
        parallel(lambda i, j: np.copyto(b[i:j], a[i:j]), shards(copied, 1 << 20), blas=False)

    took = cpu_times([copy], seconds)
    added = cpu_times([cpu_ceiling.on_all_threads], seconds)
    threads = f"{thread_count()} thread{'s' if thread_count() > 1 else ''}"
    return Ceilings(
        cpu_ceiling.on_all_threads() / added.low,
        2 * copied / took.low,
        f"FP32 multiply-adds, {threads}",
        f"copy of {copied >> 20} MiB, {threads}",
    )
