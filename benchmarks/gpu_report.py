"""The GPU check's report: JSON with everything, Markdown with what a reader wants to know.

A report goes to benchmarks/results only if NVIDIA's driver itself, asked without CuPy, lists the
card that it is about: what a stand-in for CuPy produced cannot get there.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from gpu_machine import driver_cards

from gpuconv.bench.ceilings import Ceilings
from gpuconv.bench.clock import Times
from gpuconv.bench.measure import Row
from gpuconv.bench.report import HEADER, TEXT_COLUMNS, cells, duration
from gpuconv.files import write_atomically
from gpuconv.ops.cost import Cost

RESULTS = Path(__file__).resolve().parent / "results"
STAGES = ("card", "tests", "steps", "lenet", "times", "torch", "tools")  # by what they are worth
Record = dict[str, Any]


def write(report: Record, folder: Path) -> tuple[Path, Path]:
    """The report as (JSON, Markdown) files named by date and card, in `folder`.

    Raises RuntimeError, and writes nothing, where `folder` is within benchmarks/results and the
    driver does not list the report's card.
    """
    inside = folder.resolve().is_relative_to(RESULTS)
    if inside and not is_card(report["card"], driver_cards()):
        raise RuntimeError(
            f"NVIDIA's driver lists no card {report['card']!r}, so nothing here was measured on one"
        )
    folder.mkdir(parents=True, exist_ok=True)
    card = re.sub("[^a-z0-9]+", "-", report["card"].lower()).strip("-")
    stem = f"{report['date'][:16].replace('T', '-').replace(':', '')}-{card}"
    paths = folder / f"{stem}.json", folder / f"{stem}.md"
    write_atomically(paths[0], (json.dumps(report, indent=1) + "\n").encode())
    write_atomically(paths[1], text(report).encode())
    return paths


def is_card(name: str, cards: list[str]) -> bool:
    """Whether the driver lists it; the tests' stand-ins say by their names what they are."""
    return name in cards and not name.lower().startswith("stand-in")


def passed(report: Record) -> bool:
    """Whether every stage ran to its end and nothing in it failed."""
    return all(stage["finished"] and all(r["ok"] for r in stage["records"])
               for stage in report["stages"].values())  # fmt: skip


def text(report: Record) -> str:
    """The Markdown of a report."""
    parts = [_title(report), _summary(report)]
    for name, section in (("card", _card), ("tests", _tests), ("steps", _steps), ("lenet", _plain),
                          ("times", _times), ("torch", _torch), ("tools", _plain)):  # fmt: skip
        stage = report["stages"].get(name)
        if stage is not None:
            body = section([r for r in stage["records"] if r["ok"] or name == "times"], report)
            parts += [f"## {TITLES[name]}", body, _failures(stage)]
    return "\n\n".join(part for part in parts if part) + "\n"


TITLES = {
    "card": "The card and its ceilings",
    "tests": "Kernels against the reference",
    "steps": "Training steps and epochs",
    "lenet": "LeNet",
    "times": "Times",
    "torch": "Beside PyTorch",
    "tools": "One step under NVIDIA's tools",
}


def _title(report: Record) -> str:
    lines = [f"# GPU check: {report['card']}, {report['date'][:10]}"]
    if not is_card(report["card"], report["driver_cards"]):
        note = "Made by a stand-in, without a GPU: no figure here is a measurement."
        lines.append(f"**{note}**")
    return "\n\n".join(lines)


def _summary(report: Record) -> str:
    outcome = "Everything passed" if passed(report) else "**Not everything passed**"
    known = ", ".join(f"{name} {value}" for name, value in report["versions"].items())
    lines = [
        f"{outcome}. Commit {report['commit']}; {report['date']}; "
        f"{report['seconds']:.0f} s{', --quick' if report['quick'] else ''}; {known}.",
        "| stage | passed | failed | seconds | |", "|---|---:|---:|---:|---|",
    ]  # fmt: skip
    for name, stage in report["stages"].items():
        good = sum(r.get("passed", 1) for r in stage["records"] if r["ok"])
        good += sum(r.get("passed", 0) for r in stage["records"] if not r["ok"])
        bad = sum(r.get("failed", 1) for r in stage["records"] if not r["ok"])
        note = "" if stage["finished"] else stage.get("why", "not finished")
        lines.append(f"| {name} | {good} | {bad} | {stage['seconds']:.0f} | {note} |")
    return "\n".join([lines[0], "", *lines[1:]])


def _card(records: list[Record], report: Record) -> str:
    rows = []
    for record in records:
        for name, value in record.get("values", {}).items():
            rows.append(f"| {name} | {value} |")
    return "\n".join(["| | |", "|---|---|", *rows])


def _tests(records: list[Record], report: Record) -> str:
    lines = [
        f"| {r['name']} | {r['passed']} | {r['skipped']} | {r['seconds']:.1f} |" for r in records
    ]
    head = ["| file | passed | skipped | seconds |", "|---|---:|---:|---:|"]
    return "\n".join([*head, *lines]) if lines else ""


def _plain(records: list[Record], report: Record) -> str:
    lines = []
    for record in records:
        lines.append(f"- {record['name']}: {record['said']}")
        lines += [f"  - {line}" for line in record.get("lines", [])]
    return "\n".join(lines)


def _steps(records: list[Record], report: Record) -> str:
    """Whole steps: a line for gpuconv alone in each precision, and one for each of PyTorch's modes
    beside it.
    """
    lines, notes = [], [f"{r['name']}: {r['said']}" for r in records if "said" in r]
    for record in records:
        for side in record.get("sides", []):
            library = side.get("library", "PyTorch")
            mode = f"{library}, {side['mode']}" if "mode" in side else "alone"
            name = f"{record['name']}, {side['precision']}"
            if "error" in side:
                lines.append(f"| {name} | {mode} | | | {side['error']} | |")
                continue
            theirs = duration(side["theirs"]) if "theirs" in side else ""
            ratio = f"{side['ratio']:.2f}x" if "ratio" in side else ""
            low, high = side.get("spread", (None, None))
            spread = "" if low is None else f"{low:.2f} to {high:.2f}"
            cells = name, mode, duration(side["ours"]), theirs, ratio, spread
            lines.append("| " + " | ".join(cells) + " |")
    head = ["| | beside | gpuconv | the other | ratio | smallest to largest |",
            "|---|---|---:|---:|---:|---:|"]  # fmt: skip
    return "\n".join([*notes, "", *head, *lines])


def _times(records: list[Record], report: Record) -> str:
    ceilings = ceilings_of(report)
    rows = [cells(_row(record["row"]), ceilings) for record in records if "row" in record]
    seen = [kernel["name"] for r in records if "row" in r for kernel in r["row"]["kernels"]]
    missing = sorted(set(report["kernels"]) - set(seen))
    note = f"{len(set(seen))} of {len(report['kernels'])} kernels were launched and timed."
    if missing:
        note += f" Not among these: {', '.join(missing)}."
    if ceilings is None:
        note += " The ceilings were not measured, so there are no shares of them."
    rule = ["---" if name in TEXT_COLUMNS else "---:" for name in HEADER]
    table = "\n".join(f"| {' | '.join(line)} |" for line in (HEADER, rule, *rows))
    return f"{table}\n\n{note}\n\n{_slowest(records)}".rstrip()


def _slowest(records: list[Record]) -> str:
    """Passes of several kernels, by kernel."""
    lines = []
    for record in records:
        kernels = record.get("row", {}).get("kernels", [])
        if len(kernels) > 1 and all(kernel["times"] for kernel in kernels):
            parts = [f"{k['name']} {duration(k['times']['median'])}" for k in kernels]
            lines.append(f"- {record['name']}: {', '.join(parts)}")
    return "\n".join(["By kernel:", "", *lines]) if lines else ""


def _torch(records: list[Record], report: Record) -> str:
    lines = []
    for r in records:
        if "ratio" in r:
            low, high = r["spread"]
            lines.append(
                f"| {r['name']} | {duration(r['ours'])} | {duration(r['theirs'])} | "
                f"{r['ratio']:.2f}x | {low:.2f} to {high:.2f} |"
            )
    notes = [r["said"] for r in records if "said" in r]
    head = [
        "| pass | gpuconv | PyTorch | ratio | smallest to largest |",
        "|---|---:|---:|---:|---:|",
    ]
    return "\n".join([*notes, "", *head, *lines] if lines else notes)


def _failures(stage: Record) -> str:
    lines = []
    for record in stage["records"]:
        if not record["ok"]:
            lines.append(f"- {record['name']}: {record['error']}")
            lines += [f"  - {line}" for line in record.get("failures", [])]
    return "\n".join(["Failed:", "", *lines]) if lines else ""


def ceilings_of(report: Record) -> Ceilings | None:
    """What the card stage measured; None where it did not come so far."""
    for record in report["stages"].get("card", {}).get("records", []):
        if record["ok"] and "ceilings" in record:
            return Ceilings(**record["ceilings"])
    return None


def _row(found: Record) -> Row:
    times = found["times"]
    return Row(
        found["case"], found["label"], found["direction"], found["device"], Cost(**found["cost"]),
        found["status"], None if times is None else Times(**times),
    )  # fmt: skip
