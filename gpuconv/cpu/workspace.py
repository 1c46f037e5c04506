"""Scratch memory that is kept: touching a fresh page costs more than the work done in it."""

from __future__ import annotations

import threading

import numpy as np

KEPT_FLOATS = 16 * 1024 * 1024  # 64 MB; what is larger is not kept, or memory would never be freed

_kept = threading.local()


def scratch(name: str, count: int, dtype: type = np.float32) -> np.ndarray:
    """`count` uninitialised elements, this thread's own until it asks for `name` again."""
    arrays = _kept.__dict__.setdefault("arrays", {})
    kept = arrays.get((name, dtype))
    if kept is None or len(kept) < count:
        kept = np.empty(count, dtype)
        if count <= KEPT_FLOATS:
            arrays[name, dtype] = kept
    return kept[:count]
