"""Which device is measured, and all figures of a run as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gpuconv
from gpuconv.bench import ceilings
from gpuconv.bench.measure import Row
from gpuconv.files import write_atomically
from gpuconv.threads import thread_count


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration, IndexError):
        return platform.processor() or platform.machine() or "unknown processor"


def measured_device(device: str) -> tuple[str, Any, ceilings.Ceilings]:
    """A description of device "cpu" or "cuda", its clock (None for the CPU), and its ceilings.

    The ceilings are measured, which takes about a second.
    """
    if device == "cpu":
        description = f"cpu: {processor()}, {thread_count()} threads"
        return description, None, ceilings.cpu_ceilings()
    from gpuconv.bench.cuda import Clock
    from gpuconv.cuda.runtime import runtime

    clock = Clock(runtime(device))
    return f"cuda: {clock.card}", clock, clock.ceilings()


def write_json(
    path: str | os.PathLike[str],
    machine: str,
    measured: ceilings.Ceilings,
    rows: Sequence[Row],
) -> None:
    """Write the rows, the machine's description and its ceilings. Raises OSError on failure."""
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "gpuconv": gpuconv.__version__,
        "machine": machine,
        "ceilings": asdict(measured),
        "rows": [row.record(measured) for row in rows],
    }
    write_atomically(Path(path), (json.dumps(report, indent=1) + "\n").encode())
