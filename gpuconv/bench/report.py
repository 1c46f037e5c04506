"""Which device is measured, and rows as text, for a terminal or as Markdown, and as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gpuconv
from gpuconv.bench import ceilings
from gpuconv.bench.ceilings import Ceilings
from gpuconv.bench.measure import Row
from gpuconv.devices import processor
from gpuconv.files import write_atomically
from gpuconv.ops.cost import Cost
from gpuconv.threads import thread_count

HEADER = ("operation", "pass", "device", "time", "spread", "TFLOP/s", "GB/s", "ceiling", "bound")
COUNTED = ("operation", "pass", "counted GFLOP", "counted least MB", "flops a byte")
TEXT_COLUMNS = ("operation", "pass", "device", "bound")
WIDTHS = {"pass": 15, "device": 6, "time": 11, "spread": 6, "GB/s": 7, "ceiling": 7, "bound": 10}


def measured_device(device: str) -> tuple[str, Any, Ceilings]:
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
    path: str | os.PathLike[str], machine: str, measured: Ceilings, rows: Sequence[Row]
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


def cells(row: Row, ceilings: Ceilings | None) -> tuple[str, ...]:
    """What HEADER names; a row that was not timed says why in place of its figures.

    ceilings None: they are not known.
    """
    name = title(row.case, row.label)
    if row.times is None:
        return name, row.direction, row.device, "-", "-", "-", "-", "-", row.status
    flops, share = row.flops, row.share(ceilings) if ceilings else None
    late = " late" if row.times.late else ""
    return (
        name,
        row.direction,
        row.device,
        f"{duration(row.times.median)}{late}",
        f"{100 * row.times.spread:.0f}%",
        "-" if flops is None else f"{flops / 1e12:.3f}",
        f"{(row.bytes or 0) / 1e9:.1f}",
        "-" if share is None else f"{100 * share:.0f}%",
        row.cost.bound(ceilings.flops, ceilings.bytes) if ceilings and row.under_ceiling else "-",
    )


def title(case: str, label: str) -> str:
    """A case as the first column has it."""
    return f"{case}  ({label})" if label else case


def counted_cells(name: str, direction: str, cost: Cost) -> tuple[str, ...]:
    """What COUNTED names."""
    return (
        name,
        direction,
        f"{cost.flops / 1e9:.4f}",
        f"{cost.bytes / 1e6:.4f}",
        f"{cost.flops / max(cost.bytes, 1):.2f}",
    )


class Lines:
    """Rows as aligned lines, one at a time, numbers to the right.

    names: all that the first column will hold, so that its width is known from the start.
    """

    def __init__(self, header: Sequence[str], names: Sequence[str]) -> None:
        self.header = header
        widest = max(map(len, [header[0], *names]))
        self.widths = [widest, *(max(len(name), WIDTHS.get(name, 9)) for name in header[1:])]

    def head(self) -> str:
        """The header and a rule under it."""
        return f"{self.line(self.header)}\n{self.line(['-' * width for width in self.widths])}"

    def line(self, row: Sequence[str]) -> str:
        """One row."""
        pieces = zip(row, self.widths, self.header, strict=True)
        return "  ".join(
            cell.ljust(width) if name in TEXT_COLUMNS else cell.rjust(width)
            for cell, width, name in pieces
        ).rstrip()


def duration(seconds: float) -> str:
    """In the unit that gives one to four digits before the point."""
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= unit:
            return f"{seconds / unit:.3f} {name}"
    return f"{seconds / 1e-6:.2f} us"
