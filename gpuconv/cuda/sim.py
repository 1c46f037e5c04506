"""The simulated device: the kernels' own PTX, executed on the CPU (gpuconv/sim)."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from gpuconv import sim
from gpuconv.cuda import recording
from gpuconv.cuda.launch_config import LIMITS, Launch
from gpuconv.cuda.runtime import Runtime
from gpuconv.errors import DeviceError
from gpuconv.threads import thread_count

UNKNOWN_MEMORY = 4 << 30  # bytes, where the system does not say how many are free


class SimRuntime(Runtime):
    """Arrays are `gpuconv.sim.Array`; a launch returns when the kernel is done.

    check: verify every memory access, slower. order, seed: of blocks and threads, as
    `gpuconv.sim.Function.launch` takes them. ran: kernels, and how often each was launched.
    """

    name = "sim"
    limits = LIMITS["sm_86"]  # the least of cards with the tensor cores that are simulated

    def __init__(self, check: bool = False, order: str = "forward", seed: int = 0) -> None:
        if problem := sim.available():
            raise DeviceError(f"device sim: {problem}")
        super().__init__()
        self.check, self.order, self.seed = check, order, seed
        self.ran: dict[str, int] = {}

    empty = staticmethod(sim.empty)

    def asnumpy(self, array: sim.Array) -> np.ndarray:
        recording.refuse("an array is copied to the host")
        return sim.asnumpy(array)

    def asarray(self, host: Any) -> sim.Array:
        recording.refuse("an array is copied from the host")
        return sim.asarray(host)

    def copy(self, array: sim.Array) -> sim.Array:
        recording.refuse("an array is copied without a kernel")
        return array.copy()

    def assign(self, to: sim.Array, array: sim.Array) -> None:
        to.set(sim.asnumpy(array))

    def span(self, array: sim.Array) -> sim.Array:
        return array.span()

    def address(self, array: sim.Array) -> int:
        return array.ptr

    def start(self, launch: Launch, arguments: list[Any]) -> None:
        args = launch.kernel, launch.grid, launch.block, arguments, launch.shared
        # tickets tell which block is the last, not in which order it adds what all have left
        tickets = "tickets" in launch.sizes
        try:
            self.module(launch).launch(*args, self.order, self.seed, thread_count(), tickets)
        except BaseException:
            self._tickets.clear()  # some may have been drawn
            raise
        self.ran[launch.kernel] = self.ran.get(launch.kernel, 0) + 1

    def free_memory(self) -> int:
        if "SC_AVPHYS_PAGES" not in getattr(os, "sysconf_names", ()):
            return UNKNOWN_MEMORY
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def synchronize(self) -> None:
        """Nothing is ever left running."""

    def build(self, text: str, launch: Launch) -> sim.Module:
        return sim.Module(text, launch.options, name=launch.file, check=self.check)
