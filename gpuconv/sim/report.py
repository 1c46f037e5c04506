"""Turns the record of a failed block into an error message: what happened, to whom and where."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from gpuconv.sim import layout
from gpuconv.sim.errors import KernelError
from gpuconv.sim.findings import Finding, Party
from gpuconv.sim.info import Info, Kernel
from gpuconv.sim.memory import live

if TYPE_CHECKING:
    from gpuconv.sim.launch import Worker


def kernel_error(info: Info, kernel: Kernel, worker: Worker) -> KernelError:
    """The error that is recorded in a worker's block."""
    record = worker.block[0]
    kind = layout.ERRORS[int(record["error"])]
    block = _coordinates(int(record["error_block"]), record["nctaid"])
    thread = tuple(int(n) for n in record["error_tid"])
    file, line, text = info.sites[int(record["error_site"])] if info.sites else ("", 0, "")
    place = f"{file}:{line}"
    what = _TEXT[kind](record, info, kernel, worker)
    where = "" if kind == "DEADLOCK" else f"thread {thread} of "
    at = "" if kind == "DEADLOCK" else f" at {place} ({text})"
    message = f"{kernel.name}: {what}, {where}block {block}{at}"
    other = _other(record, info, worker) if kind.startswith("RACE") else None
    severity, unknown = "error", None
    found = Finding(kind.lower(), severity, kernel.name, file, line, block, thread, unknown,
                    unknown, other, message)  # fmt: skip
    return KernelError(message, found.kind, place, [found])


def _other(record, info: Info, worker: Worker) -> Party:
    """The other access of a race."""
    file, line, _ = info.sites[int(record["other_site"])]
    thread = _coordinates(int(record["other_tid"]), worker.block["ntid"][0])
    return Party(
        _coordinates(int(record["other_block"]), record["nctaid"]), thread, f"{file}:{line}"
    )


def _coordinates(linear: int, extent: object) -> tuple[int, int, int]:
    x, y = int(extent[0]), int(extent[1])  # type: ignore[index]
    return linear % x, linear // x % y, linear // (x * y)


def _bounds(record, info: Info, kernel: Kernel, worker: Worker) -> str:
    at, size = int(record["error_address"]), int(record["error_value"])
    space = _space(record)
    if space == "shared":
        return _near_shared(at, size, kernel, int(record["dynamic_bytes"]))
    return f"{size} bytes at {space} address {at:#x}, outside every live allocation{_near(at)}"


def _space(record) -> str:
    """The memory that an error is about: the last word of its kind."""
    return layout.ERRORS[int(record["error"])].rpartition("_")[2].lower()


def _near_shared(at: int, size: int, kernel: Kernel, dynamic: int) -> str:
    """Describe a shared access outside every variable, relative to the closest variable."""
    places = [*kernel.shared_names, ("dynamic shared memory", kernel.placed_shared, dynamic)]
    if not kernel.dynamic_shared:
        places.pop()
    name, begin, length = min(places, key=lambda p: min(abs(at - p[1]), abs(at - p[1] - p[2])))
    where = f"{begin - at} before" if at < begin else f"{at - begin} into"
    return f"{size} bytes at {where} the {length} bytes of {name}"


def _near(address: int) -> str:
    """Describe where an address lies relative to the closest allocation."""
    best = min(
        live(),
        key=lambda m: min(abs(address - m.begin), abs(address - m.begin - m.nbytes)),
        default=None,
    )
    if best is None:
        return ""
    past = address - best.begin - best.nbytes
    before = best.begin - address
    where = f"{before} before" if before > 0 else f"{past} past the end of"
    return f" ({where} one of {best.nbytes} bytes)"


def _assertion(record, info: Info, kernel: Kernel, worker: Worker) -> str:
    text = ctypes.string_at(int(record["error_address"]))
    return f"assertion failed: {text.decode(errors='replace')}"


def _deadlock(record, info: Info, kernel: Kernel, worker: Worker) -> str:
    """Which threads wait at which instruction."""
    places: dict[str, list[int]] = {}
    for number, thread in enumerate(worker.threads[: int(record["nthreads"])]):
        state = layout.STATES[int(thread["state"])]
        file, line, text = info.sites[int(thread["site"])]
        where = "are done" if state == "DONE" else f"wait at {file}:{line} ({text})"
        if state not in ("DONE", "BARRIER", "COUNTED", "YIELD"):
            where += f" with mask {int(thread['mask']):#010x}"
        places.setdefault(where, []).append(number)
    return "deadlock: " + "; ".join(
        f"threads {_ranges(ns)} {where}" for where, ns in places.items()
    )


def _ranges(numbers: list[int]) -> str:
    parts, start = [], numbers[0]
    for before, after in zip(numbers, [*numbers[1:], -1], strict=True):
        if after != before + 1:
            parts.append(str(start) if start == before else f"{start}-{before}")
            start = after
    return ",".join(parts[:8]) + (",..." if len(parts) > 8 else "")


def _race(record, info: Info, kernel: Kernel, worker: Worker) -> str:
    """The other access to the same bytes: which thread, where, and whether it wrote."""
    size, at = int(record["error_value"]), int(record["error_address"])
    wrote, writes = int(record["other_wrote"]) & 1, int(record["other_wrote"]) & 2
    other, text = _other(record, info, worker), info.sites[int(record["other_site"])][2]
    return (
        f"race on {size} bytes at {_space(record)} address {at:#x}: thread {other.thread} of "
        f"block {other.block} {'wrote' if wrote else 'read'} them at {other.line} ({text}), and no "
        f"barrier or atomic orders that before this {'write' if writes else 'read'}"
    )


def _plain(text: str):
    return lambda record, info, kernel, worker: text.format(
        a=int(record["error_address"]), v=int(record["error_value"])
    )


_TEXT = {
    "TRAP": _plain("the kernel executed a trap"),
    "ASSERT": _assertion,
    "DEADLOCK": _deadlock,
    "DIVERGENT": _plain("lanes of one warp wait at different instructions for barrier {a}"),
    "EARLY_EXIT": _plain(
        "a barrier of all threads completed without {v} threads that had already exited"
    ),
    "MASK": _plain("lane {v} called a warp collective with mask {a:#010x}, which does not name it"),
    "BARRIER_COUNT": _plain(
        "barrier {a} with count {v}: a barrier is 0 to 15, a count a multiple of 32"
    ),
    "DISAGREE": _plain("threads pass different counts to barrier {a}, here {v}"),
    **dict.fromkeys(("BOUNDS_GLOBAL", "BOUNDS_SHARED", "BOUNDS_LOCAL"), _bounds),
    "MISALIGNED": _plain("access of {v} bytes at address {a:#x}, which is not a multiple of {v}"),
    "UNINITIALISED": _plain("read of {v} bytes at address {a:#x} that were never written"),
    "IN_FLIGHT": _plain(
        "access of {v} bytes at shared address {a:#x}, to which a copy is on its way (cp.async): "
        "wait for its group first, then at a barrier for other threads' copies"
    ),
    "MATRIX": _plain(
        "a matrix instruction by the lanes {a:#010x}: all 32 of a warp must come to it together"
    ),
    "RACE_SHARED": _race,
    "RACE_GLOBAL": _race,
    "DIVISION": _plain("integer division by zero"),
}
