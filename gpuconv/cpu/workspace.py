"""Scratch memory that is kept: touching a fresh page costs more than the work done in it."""

from __future__ import annotations

import threading

import numpy as np

KEPT_FLOATS = 16 * 1024 * 1024  # 64 MB; what is larger is not kept, or memory would never be freed

_kept = threading.local()


def keep_freed_memory() -> None:
    """Let the C library keep freed memory of up to 64 MB instead of giving it back at once.

    glibc learns how much to keep from the largest array that was freed so far (mallopt(3),
    M_MMAP_THRESHOLD). Before it has seen a large one, it gives the arrays of a small network back
    after every step, and the next step pays for each page anew: a quarter of LeNet's time at batch
    128. One array of the largest size that counts, which is never touched, teaches it. Where
    somebody has set these limits, or with another C library, this does nothing.
    """
    np.empty((32 << 20) - (1 << 16), np.uint8)


keep_freed_memory()


def scratch(name: str, count: int, dtype: type = np.float32) -> np.ndarray:
    """`count` uninitialised elements, this thread's own until it asks for `name` again."""
    arrays = _kept.__dict__.setdefault("arrays", {})
    kept = arrays.get((name, dtype))
    if kept is None or len(kept) < count:
        kept = np.empty(count, dtype)
        if count <= KEPT_FLOATS:
            arrays[name, dtype] = kept
    return kept[:count]
