"""The clock of a GPU: recorded launches between CUDA events; the ceilings of a card.

What an operation launches is recorded once (`record`) and then started again and again, so that no
Python but the launch itself stands between the events. Before each run the L2 cache is flushed by
writing a buffer larger than it, which also keeps the card busy while the host enqueues the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gpuconv.bench.ceilings import Ceilings
from gpuconv.bench.clock import Times, repetitions
from gpuconv.cuda import cupy as cupy_runtime
from gpuconv.cuda.launch_config import Launch

Started = tuple[Launch, list[Any]]
CEILING = Path(__file__).with_name("ceiling.cu")
FLOPS_PER_ROUND = 2 * 8 * 16  # of a thread: CHAINS and UNROLL of ceiling.cu
FLUSHED = 256 << 20  # bytes written before each run at least
AT_ONCE = 200  # runs enqueued before the host waits
MAX_WRITES = 16  # of the flushed bytes before a run


class Clock:
    """Times launches on the current card of a `CupyRuntime`; flushed: bytes, None for enough."""

    def __init__(self, on: Any, flushed: int | None = None) -> None:
        self.on, self.cuda = on, on.cupy.cuda
        device = self.cuda.Device().id
        self.properties: dict[str, Any] = self.cuda.runtime.getDeviceProperties(device)
        self.cache, self._writes = int(self.properties["l2CacheSize"]), 1
        self._buffer = on.empty(max(FLUSHED, 4 * self.cache) if flushed is None else flushed, "u1")

    @property
    def card(self) -> str:
        return bytes(self.properties["name"]).decode()

    def times(self, sets: Sequence[Sequence[Started]], seconds: float) -> Times:
        """Runs of the sets in turn for about `seconds` of the card's time."""

        def start(one: Sequence[Started]) -> None:
            for launch, arguments in one:
                self.on.start(launch, arguments)

        return self.calls([partial(start, one) for one in sets], seconds)

    def calls(self, calls: Sequence[Callable[[], Any]], seconds: float) -> Times:
        """As `times`, of whatever enqueues work on the current stream."""
        self._timed(calls, 2 * len(calls))  # warm up
        self._writes = 1
        first, late = self._timed(calls, len(calls) + 2)
        while late and self._writes < MAX_WRITES:  # longer writes give the host more time
            self._writes *= 2
            first, late = self._timed(calls, len(calls) + 2)
        count = repetitions(float(np.median(first)), seconds)
        found: list[float] = []
        while len(found) < count:
            some, slow = self._timed(calls, min(AT_ONCE, count - len(found)))
            found += some
            late = slow
        return Times.of(found, late)

    def poison(self, array: Any) -> None:
        """Fill a dense array with bytes of 0xFF, NaN as floats: what is not written again shows."""
        array.data.memset_async(0xFF, int(array.size) * array.dtype.itemsize)

    def _timed(self, calls: Sequence[Callable[[], Any]], count: int) -> tuple[list[float], bool]:
        """Seconds of `count` runs, and whether the host took longer than the card."""
        pairs = []
        began = time.perf_counter()
        for number in range(count):
            start, end = self.cuda.Event(), self.cuda.Event()
            for _ in range(self._writes):
                self._buffer.data.memset_async(0, int(self._buffer.size))
            start.record()
            calls[number % len(calls)]()
            end.record()
            pairs.append((start, end))
        enqueued = time.perf_counter() - began
        self.on.synchronize()
        elapsed = self.cuda.get_elapsed_time
        whole = elapsed(pairs[0][0], pairs[-1][1]) / 1e3
        return [elapsed(*pair) / 1e3 for pair in pairs], enqueued > whole

    # ---- ceilings --------------------------------------------------------------------------------

    def ceilings(self, seconds: float = 0.5, rounds: int = 1024) -> Ceilings:
        """Of the card; rounds: of the multiply-add kernel, some milliseconds."""
        moved, memory = self._copy_rate(seconds)
        return Ceilings(self._flops(seconds, rounds), moved, "FP32 multiply-adds", memory)

    def _copy_rate(self, seconds: float, most: int = 1 << 30) -> tuple[float, str]:
        """Bytes read and written a second by copies from device memory to device memory."""
        free, _ = self.cuda.runtime.memGetInfo()
        size = max(min(most, free // 8), 1 << 12) & ~255
        a, b = self.on.empty(size, "u1"), self.on.empty(size, "u1")
        self.poison(a)
        took = self.calls([lambda: b.data.copy_from_device_async(a.data, size)], seconds)
        return 2 * size / took.low, f"device-to-device copy of {size >> 20} MiB"

    def _flops(self, seconds: float, rounds: int) -> float:
        """FP32 flops a second of ceiling.cu, which does nothing else; its result is checked."""
        module = self.on.cupy.RawModule(
            code=CEILING.read_text(), options=cupy_runtime.OPTIONS, backend="nvrtc"
        )
        function = module.get_function("fma_ceiling")
        blocks = 32 * int(self.properties["multiProcessorCount"])
        out = self.on.empty(256 * blocks)
        given = (out, np.float32(1), np.float32(2), np.int32(rounds))
        took = self.calls([lambda: function((blocks, 1, 1), (256, 1, 1), given)], seconds)
        steps = rounds * FLOPS_PER_ROUND // 16  # each adds 2, in all the chains
        exact = np.arange(256) * 8 + 28 + 2 * 8 * steps
        if not (self.on.asnumpy(out).reshape(blocks, 256) == exact).all():
            raise ArithmeticError("ceiling.cu computed a wrong result; its rate means nothing")
        return 256 * blocks * rounds * FLOPS_PER_ROUND / took.low
