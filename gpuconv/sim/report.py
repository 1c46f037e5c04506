"""Turns the records of a launch's findings into Findings: of which kind, where, and how severe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpuconv.sim.findings import Finding
from gpuconv.sim.info import Info, Kernel
from gpuconv.sim.messages import RACES, WAITING, Case, message
from gpuconv.sim.worker import Worker

_WARNINGS = ("same_value",)
_FOLLOWS_RACE = ("same_value", "uninitialised")  # in a line that races they say nothing new
# the most severe first; a kind that is not listed comes after those
_ORDER = """
trap assert deadlock timeout division bounds_global bounds_shared bounds_local null freed constant
misaligned divergent early_exit mask barrier_count disagree shuffle matrix in_flight race_shared
race_global uninitialised
"""
_SEVERITY = _ORDER.split()


def findings(
    info: Info,
    kernel: Kernel,
    workers: list[Worker],
    args: Sequence[Any],
    variables: Sequence[tuple[str, int, int]],
    timeout: float,
) -> list[Finding]:
    """What the workers of a launch have found, once for each line, in order of severity.

    args: those of the launch. variables: name, address and size of each of the module's. timeout:
    the seconds after which it would have been stopped.
    """
    found: dict[tuple[str, str, int], Finding] = {}
    for worker in workers:
        for record in worker.findings():
            one = _finding(Case(record, info, kernel, worker, args, variables, timeout))
            found.setdefault((one.kind, one.file, one.line), one)
    races = [one for one in found.values() if one.kind.startswith("race")]
    racing = {f"{one.file}:{one.line}" for one in races}
    racing |= {one.other.line for one in races if one.other}
    kept = [
        one
        for one in found.values()
        if one.kind not in _FOLLOWS_RACE or f"{one.file}:{one.line}" not in racing
    ]
    return sorted(kept, key=_rank)


def _rank(finding: Finding) -> tuple[bool, int, str, int]:
    kinds = [*_SEVERITY, finding.kind]
    warning = finding.severity == "warning"
    return warning, kinds.index(finding.kind), finding.file, finding.line


def _finding(case: Case) -> Finding:
    file, line, _ = case.place()
    argument, index = (None, None) if case.kind in WAITING else case.argument()
    name = case.name()
    severity = "warning" if name in _WARNINGS else "error"
    other = case.other() if case.kind in RACES else None
    return Finding(
        name, severity, case.kernel.name, file, line, case.block(), case.thread(), argument, index,
        other, message(case),
    )  # fmt: skip
