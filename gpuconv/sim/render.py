"""Reports of `check_file` as text, JSON and SARIF 2.1.0; counters as tables and listings."""

from __future__ import annotations

import html
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gpuconv.sim.checking import MENDS, Report, Reported
from gpuconv.sim.counters import NAMES, Counters
from gpuconv.sim.facts import Facts, Occupancy, roofline
from gpuconv.sim.signature import plain_name
from gpuconv.sim.spec import Launched

COUNTED = "exact counts of the PTX program in the simulator, no times"
_LEVELS = {"error": "error", "warning": "warning"}


def as_text(report: Report, card: str = "") -> str:
    """For a terminal: each finding with its source line, then what was run.

    card: one of facts.CARDS, for which to estimate the counted work.
    """
    lines = [line for one in report.found for line in (*_lines(one), "")]
    for words in report.words:
        lines.append(f"no --launch, so this was run, which may not be what is meant: {words}")
    errors, warnings = report.errors, len(report.found) - report.errors
    kernels = sorted({plain_name(one.kernel) for one in report.launches})
    lines.append(
        f"{report.source.path}: {_many(errors, 'error')}, {_many(warnings, 'warning')}; "
        f"{_many(len(report.launches), 'launch')} of {', '.join(kernels)}, "
        f"each in the orders {', '.join(report.orders)}"
    )
    for kernel, counters in report.counters.items():
        lines += ["", f"{plain_name(kernel)}: {COUNTED}", table(counters)]
        lines += [estimate(counters, card)] if card else []
    for facts, held, one in report.facts:
        lines += ["", *_facts(facts, held, one)]
    return "\n".join(lines) + "\n"


def _facts(facts: Facts, held: Occupancy, one: Launched) -> list[str]:
    threads = math.prod(one.block) if isinstance(one.block, tuple) else one.block
    spills = f"{_many(facts.spills, 'spill instruction')}" if facts.spills else "no spills"
    loop = ", ".join(f"{name} {count}" for name, count in list(facts.loop.items())[:8])
    return [
        f"{plain_name(facts.kernel)} on {facts.arch}, from the compiler: {facts.registers} "
        f"registers, {facts.shared + one.shared} bytes of shared memory, {spills}, "
        f"{facts.instructions} instructions",
        f"  a multiprocessor holds {_many(held.blocks, 'block')} of {threads} threads, "
        f"{held.warps} of {held.most} warps; the limit is {held.limiter}",
        f"  main loop: {loop}" if loop else "  no loop",
    ]


def estimate(counters: Counters, card: str) -> str:
    """What a card needs at least for the counted work, by its data sheet."""
    total = counters.total()
    moved = 32 * sum(total[f"{what}_sectors"] for what in ("load", "store", "atomic"))
    seconds, binds = roofline(card, total["flop"], moved)
    return (
        f"  estimate: {card}, by its data sheet, needs at least {1e6 * seconds:.3g} us for this "
        f"({binds}), if no byte comes from a cache"
    )


def _lines(one: Reported) -> list[str]:
    f = one.finding
    kind = f.kind.replace("_", " ")
    lines = [f"{f.severity}: {kind}: {f.file}:{f.line}: {f.kernel}: {one.where}".rstrip(": ")]
    if one.source:
        lines.append(f"  {f.line:5} | {one.source}")
    lines.append(f"  {f.message}")
    if f.other is not None:
        line = f.other.line.rpartition(":")[2]
        lines.append(
            f"  the other party: thread {f.other.thread} of block {f.other.block} at {f.other.line}"
        )
        if one.other_source:
            lines.append(f"  {line:>5} | {one.other_source}")
    if one.mend:
        lines.append(f"  mend: {one.mend}")
    return lines


def _many(count: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("ch") else f"{noun}s"
    return f"{count} {noun if count == 1 else plural}"


def as_json(report: Report) -> str:
    """All findings and counts, for programs."""
    found = [
        asdict(one.finding)
        | {
            "other": one.finding.other._asdict() if one.finding.other else None,
            "argument": one.argument or None,
            "length": one.length or None,
            "where": one.where or None,
            "source": one.source,
            "other_source": one.other_source or None,
            "mend": one.mend,
        }
        for one in report.found
    ]
    launches = [
        {"kernel": plain_name(one.kernel), "grid": one.grid, "block": one.block,
         "shared": one.shared}
        for one in report.launches
    ]  # fmt: skip
    counters = {plain_name(name): _counts(c) for name, c in report.counters.items()}
    return _json(
        {"file": report.source.path, "launches": launches, "orders": list(report.orders),
         "findings": found, "counters": counters,
         "facts": [asdict(f) | asdict(held) for f, held, _ in report.facts]}
    )  # fmt: skip


def _counts(counters: Counters) -> dict[str, Any]:
    lines = [
        {"file": file, "line": line} | counts for (file, line), counts in counters.by_line().items()
    ]
    return {
        "launches": counters.launches,
        "total": counters.total(),
        "classes": counters.classes(),
        "lines": lines,
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, default=list) + "\n"


def as_sarif(report: Report) -> str:
    """SARIF 2.1.0, which code hosts and editors show beside the source."""
    kinds = sorted({one.finding.kind for one in report.found})
    rules = [
        {"id": kind, "shortDescription": {"text": kind.replace("_", " ")},
         "help": {"text": MENDS.get(kind, kind)}}
        for kind in kinds
    ]  # fmt: skip
    driver = {"name": "gpuconv check-kernels", "rules": rules}
    results = [_result(one, kinds) for one in report.found]
    return _json(
        {
            "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
            "version": "2.1.0",
            "runs": [{"tool": {"driver": driver}, "results": results}],
        }
    )


def _result(one: Reported, kinds: list[str]) -> dict[str, Any]:
    f = one.finding
    text = ": ".join(part for part in (f.kernel, one.where, f.message) if part)
    result = {
        "ruleId": f.kind,
        "ruleIndex": kinds.index(f.kind),
        "level": _LEVELS.get(f.severity, "note"),
        "message": {"text": f"{text}. {one.mend}".rstrip(". ")},
        "locations": [_location(f.file, f.line)],
    }
    if f.other is not None:
        file, _, line = f.other.line.rpartition(":")
        related = _location(file, int(line))
        related["message"] = {"text": f"thread {f.other.thread} of block {f.other.block}"}
        result["relatedLocations"] = [related]
    return result


def _location(file: str, line: int) -> dict[str, Any]:
    place = {"uri": Path(file).as_uri() if os.path.isabs(file) else quote(Path(file).as_posix())}
    region = {"startLine": max(line, 1)}
    return {"physicalLocation": {"artifactLocation": place, "region": region}}


# ---- counters ------------------------------------------------------------------------------------


def table(counters: Counters) -> str:
    """The totals of a kernel, its instructions by class, and the lines that access memory."""
    total = counters.total()
    warps = max(total["instructions"], 1)
    lines = [f"  {_many(counters.launches, 'launch')}, {total['instructions']:,} warp instructions"]
    classes = counters.classes().items()
    lines.append("  " + ", ".join(f"{kind} {100 * n / warps:.0f}%" for kind, n in classes))
    for what in ("load", "store", "atomic"):
        if requests := total[f"{what}_requests"]:
            sectors, asked = total[f"{what}_sectors"], total[f"{what}_bytes"]
            lines.append(
                f"  global {what}s: {requests:,} requests, {sectors / requests:.2f} sectors each, "
                f"{asked:,} bytes asked for, {32 * sectors:,} moved"
            )
    if requests := total["shared_requests"]:
        lines.append(
            f"  shared memory: {requests:,} requests, {total['shared_wavefronts']:,} wavefronts, "
            f"{total['shared_conflicts']:,} of them bank conflicts"
        )
    moved = 32 * sum(total[f"{what}_sectors"] for what in ("load", "store", "atomic"))
    intensity = f", {total['flop'] / moved:.2f} for each byte moved" if moved else ""
    lines.append(
        f"  {total['flop']:,} flop ({total['fma']:,} FMA, {total['mma']:,} MMA){intensity}; "
        f"{total['barriers']:,} barriers"
    )
    return "\n".join([*lines, *_rows(counters.by_line())])


_COLUMNS = (
    *("instructions", "load_requests", "load_sectors", "store_requests", "store_sectors"),
    *("shared_wavefronts", "shared_conflicts", "flop"),
)
_HEADS = ("warp instr.", "loads", "sectors", "stores", "sectors", "shared wf.", "conflicts", "flop")


def _rows(lines: dict[tuple[str, int], dict[str, int]]) -> list[str]:
    names = [f"{file}:{line}" for file, line in lines]
    width = max(map(len, names), default=0)
    cells = [[f"{counts[c]:,}" if counts[c] else "" for c in _COLUMNS] for counts in lines.values()]
    widths = [max(len(head), *(len(row[n]) for row in cells), 0) for n, head in enumerate(_HEADS)]
    found = []
    for name, row in zip(["line", *names], [list(_HEADS), *cells], strict=True):
        padded = "  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True))
        found.append(f"  {name:{width}}  {padded}".rstrip())
    return found


def listing(counters: Counters, file: str, source: Sequence[str]) -> str:
    """The source with each line's counts before it, as text."""
    lines = {line: counts for (f, line), counts in counters.by_line().items() if f == file}
    rows = [_listed(lines.get(n)) for n in range(1, len(source) + 1)]
    head = ["warp instr.", "sectors", "wavefronts", "flop"]
    widths = [max(len(row[n]) for row in (head, *rows)) for n in range(len(head))]
    text = [f"{plain_name(counters.kernel)}: {COUNTED}"]
    for row, line in zip((head, *rows), (file, *source), strict=True):
        text.append(" ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) + f" | {line}")
    return "\n".join(text) + "\n"


def _listed(counts: dict[str, int] | None) -> list[str]:
    if counts is None:
        return [""] * 4
    sectors = sum(counts[f"{what}_sectors"] for what in ("load", "store", "atomic"))
    figures = counts["instructions"], sectors, counts["shared_wavefronts"], counts["flop"]
    return [f"{n:,}" if n else "" for n in figures]


def page(report: Report) -> str:
    """The annotated source of every counted kernel, as one HTML page without outside files."""
    parts = []
    for name, counters in report.counters.items():
        lines = {n: c for (f, n), c in counters.by_line().items() if f == report.source.path}
        most = max((c["instructions"] for c in lines.values()), default=1)
        rows = []
        for number, text in enumerate(report.source.lines, 1):
            counts = lines.get(number, dict.fromkeys(NAMES, 0))
            cells = "".join(f"<td>{cell}</td>" for cell in _listed(counts))
            share = 100 * counts["instructions"] // max(most, 1)
            rows.append(
                f'<tr><td style="background:linear-gradient(90deg,#f5b04155 {share}%,#0000 0)">'
                f"{number}</td>{cells}<td><code>{html.escape(text)}</code></td></tr>"
            )
        head = "".join(
            f"<th>{head}</th>"
            for head in ("line", "warp instr.", "sectors", "wavefronts", "flop", "source")
        )
        title = f"<h2>{html.escape(plain_name(name))}</h2><p>{COUNTED}</p>"
        parts.append(f"{title}<table><tr>{head}</tr>{''.join(rows)}</table>")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{html.escape(report.source.path)}</title><style>{_STYLE}</style>"
        f"<h1>{html.escape(report.source.path)}</h1>{''.join(parts)}</html>\n"
    )


_STYLE = (
    "body{font:15px/1.4 system-ui,sans-serif;margin:2em;color-scheme:light dark}"
    "table{border-collapse:collapse}td,th{padding:0 .7em;text-align:right;white-space:pre}"
    "td:last-child,th:last-child{text-align:left}"
)
