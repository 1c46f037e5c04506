"""Memory of the loops. Scratch memory is kept: a fresh page costs more than the work done in it."""

from __future__ import annotations

import ctypes
import os
import sys
import threading

import numpy as np

# Else a vector of 64 bytes lies in two cache lines: with scratch memory, packed weights and buffers
# at their start, a compiled ResNet-50 takes 0.92 of the time on one image (Intel Xeon).
LINE_BYTES = 64
KEPT_FLOATS = 16 * 1024 * 1024  # 64 MB; what is larger is not kept, or memory would never be freed
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # names of mallopt(3)

_kept = threading.local()


def keep_freed_memory() -> None:
    """Let the C library keep up to 2 GB of freed memory, or an eighth of the machine's, for the
    arrays to come, instead of giving it back at once.

    By itself glibc gives back what lies free at the end of the heap once it is 64 MB, and the next
    step pays for each page anew: the kernel clears it. That was a quarter of LeNet's time at batch
    128, and 6% of the processors' time in a ResNet-50 step. Arrays above 32 MB always go back.
    Where somebody has set these limits, or with another C library, this does nothing.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    if chosen or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        mallopt(TRIM_THRESHOLD, min(2**31 - 1, memory // 8))
        mallopt(MMAP_THRESHOLD, 32 << 20)


keep_freed_memory()


def aligned(count: int, dtype: type = np.float32) -> np.ndarray:
    """`count` uninitialised elements from the start of a cache line on."""
    size = count * np.dtype(dtype).itemsize
    memory = np.empty(size + LINE_BYTES, np.uint8)
    return memory[-memory.ctypes.data % LINE_BYTES :][:size].view(dtype)


def scratch(name: str, count: int, dtype: type = np.float32) -> np.ndarray:
    """As `aligned`, the calling thread's own until it asks for `name` again."""
    arrays = _kept.__dict__.setdefault("arrays", {})
    kept = arrays.get((name, dtype))
    if kept is None or len(kept) < count:
        kept = aligned(count, dtype)
        if count <= KEPT_FLOATS:
            arrays[name, dtype] = kept
    return kept[:count]
