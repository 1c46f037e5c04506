"""What the bounds-checked mode adds to a kernel's code: one call before every access (runtime.cu: sim_check)."""

from __future__ import annotations


def text() -> str:
    return "declare i32 @sim_check(ptr, i64, i32, i32)"
