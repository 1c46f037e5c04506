"""The first layers of a network, which fit its images' size."""

from __future__ import annotations

from gpuconv.errors import unknown

STEMS = ("imagenet", "small")


def require_stem(stem: str) -> None:
    """ValueError unless it is the name of one."""
    if stem not in STEMS:
        raise unknown("stem", stem, STEMS)
