"""The memory of a worker: its record, and the blocks that it runs with their threads' frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gpuconv.sim import layout, memory
from gpuconv.sim.analysis import SHARED
from gpuconv.sim.info import Kernel

if TYPE_CHECKING:
    from gpuconv.sim.launch import Function

_MAX_BYTES = 512 << 20  # of memory for blocks that are under way at once
_SYNC_BYTES, _LANES_BYTES, _ARRIVALS_BYTES = 9 * 8, 32 * 8, 16 * 16  # records of clocks.cu
_GAP = 2**64 - 1  # mark of a granule between shared variables


class Worker:
    """A worker's record, and those of the blocks that it runs, with their memory.

    shared: bytes of shared memory of a block. blocks: how many the launch has.
    """

    def __init__(self, function: Function, threads: int, shared: int, blocks: int) -> None:
        kernel, check = function.kernel, function.module.check
        self.shared = shared
        coroutines = threads if kernel.coroutine else 0
        sizes = {
            "shared": shared + 1024,
            "threads": max(coroutines, 1) * layout.DTYPES["Thread"].itemsize,
            "frames": coroutines * function.frame_bytes + 16,
        }
        if kernel.copies:
            sizes["copies"] = threads * layout.COPIES * layout.DTYPES["Copy"].itemsize
        if check:
            sizes |= {"sync": threads * _SYNC_BYTES, "lanes": threads * _LANES_BYTES}
            sizes |= {"arrivals": _ARRIVALS_BYTES, "shared_trace": _trace_bytes(kernel, shared)}
        sizes = {name: -(-size // 1024) * 1024 for name, size in sizes.items()}
        each = sum(sizes.values())
        slots = min(blocks, kernel.together, max(_MAX_BYTES // each, 1))
        self.record = np.zeros(1, layout.DTYPES["Worker"])
        self.blocks = np.zeros(slots, layout.DTYPES["Block"])
        raw = np.zeros(slots * each + 1024, np.uint8)
        start = -raw.ctypes.data % 1024
        self._memory = raw[start : start + slots * each].reshape(slots, each)
        self._lay_out(sizes, kernel, check)
        self.blocks["shift"] = kernel.granules[SHARED].bit_length() - 1
        self.blocks["frame_stride"] = function.frame_bytes
        self.blocks["nthreads"], self.blocks["shared_bytes"] = threads, shared
        self.blocks["worker"] = self.record.ctypes.data
        self.record["slots"], self.record["nslots"] = self.blocks.ctypes.data, slots
        if check:
            self._blank = _shared_template(kernel, shared)
            self.record["blank"] = self._blank.ctypes.data
            self.record["blank_words"] = len(self._blank) // 8
        self.found = np.zeros(layout.MAX_FOUND, layout.DTYPES["Found"])
        self.record["found"] = self.found.ctypes.data
        self.held: list[np.ndarray] = []  # what the record points to during a launch

    def _lay_out(self, sizes: dict[str, int], kernel: Kernel, check: bool) -> None:
        """Give each slot its pieces of memory."""
        at, (slots, each) = 0, self._memory.shape
        begins = self._memory.ctypes.data + np.arange(slots, dtype=np.uint64) * np.uint64(each)
        for name, size in sizes.items():
            self.blocks[name] = begins + np.uint64(at)
            piece = self._memory[:, at : at + size]
            if name == "frames" and slots == 1:
                piece[:] = memory.POISON
            if name == "threads":
                self.threads = piece
            at += size

    def thread_records(self, slot: int) -> np.ndarray:
        """The Thread records of a slot's block."""
        return (
            self.threads[slot].view(np.uint8)[: self._thread_bytes()].view(layout.DTYPES["Thread"])
        )

    def _thread_bytes(self) -> int:
        size = layout.DTYPES["Thread"].itemsize
        return self.threads.shape[1] // size * size

    def findings(self) -> np.ndarray:
        """The Found records of the last launch."""
        return self.found[: int(self.record["nfound"][0])]


def _trace_bytes(kernel: Kernel, shared: int) -> int:
    return (shared // kernel.granules[SHARED] + 2) * layout.DTYPES["Trace"].itemsize


def _shared_template(kernel: Kernel, shared: int) -> np.ndarray:
    """Trace records of shared memory that nobody has accessed; the gaps are marked."""
    granule = kernel.granules[SHARED]
    records = np.zeros(_trace_bytes(kernel, shared) // layout.DTYPES["Trace"].itemsize,
                       layout.DTYPES["Trace"])  # fmt: skip
    records["write"] = _GAP
    for begin, size in kernel.shared_places(shared):
        records["write"][-(-begin // granule) : (begin + size) // granule] = 0
    return records.view(np.uint8)
