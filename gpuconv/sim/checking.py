"""`check_file`: run a file's kernels with every check, in several orders; collect what is wrong.

`require_clean` is the same for tests: it raises AssertionError with the report.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gpuconv.sim import compile, facts, spec
from gpuconv.sim.counters import Counters
from gpuconv.sim.errors import KernelError
from gpuconv.sim.facts import Facts, Occupancy
from gpuconv.sim.findings import Finding
from gpuconv.sim.memory import Array, asnumpy
from gpuconv.sim.signature import plain_name
from gpuconv.sim.spec import Launched, Runner, Source, SpecError

ORDERS = ("forward", "reverse", "shuffled")
# The usual mend of each kind of finding.
MENDS = {
    "bounds_global": "guard the access with the array's length: if (i < n)",
    "bounds_shared": "make the shared array as long as its largest index, or guard the access",
    "bounds_local": "make the local array as long as its largest index, or guard the access",
    "null": "pass the array that the kernel expects, or test the pointer before its use",
    "freed": "keep the array alive until the kernel that uses it has ended",
    "constant": "write to a __device__ variable: __constant__ memory is for reading",
    "read_only": "read with a plain load what the same kernel writes, not with __ldg",
    "misaligned": "align the address to the width of the access, or read element by element",
    "uninitialised": "write the memory before it is read: start every element, by every thread",
    "race_shared": "put __syncthreads() between the accesses, or __syncwarp() within one warp",
    "race_global": "use atomics, or two launches: nothing else orders the blocks of a grid",
    "race_in_block": "put __syncthreads() between the accesses, or use atomics",
    "same_value": "let one thread write what all threads agree on",
    "early_exit": "let all threads come to the barrier: guard the work, do not return before it",
    "divergent": "move the barrier out of the branch, so that all threads come to the same one",
    "mask": "name exactly the lanes that take part: __activemask() or a ballot before the branch",
    "shuffle": "read from a lane that takes part, or use the value only where the lane exists",
    "barrier_count": "give the barrier a number from 0 to 15 and a multiple of 32 threads",
    "disagree": "let all threads pass the same count to the barrier",
    "deadlock": "let every thread that is waited for come to the same barrier or set the flag",
    "timeout": "make the loop end: what it waits for does not happen, or its step is 0",
    "division": "test the divisor",
    "trap": "find out why the kernel gave up: it executed a trap",
    "assert": "the kernel's own assertion failed: see its condition",
}


@dataclass(frozen=True)
class Reported:
    """A finding and what the source and the launch say of it.

    argument: its parameter's name, "" where it concerns none. length: elements of that array.
    """

    finding: Finding
    argument: str
    length: int
    source: str
    other_source: str

    @property
    def mend(self) -> str:
        """One sentence on the usual mend, "" for a kind that has none."""
        other, kind = self.finding.other, self.finding.kind
        if kind == "race_global" and other is not None and other.block == self.finding.block:
            kind = "race_in_block"
        return MENDS.get(kind, "")

    @property
    def where(self) -> str:
        """The array element: "y[1000], 3 past the end of its 997 elements", or ""."""
        index = self.finding.index
        if not self.argument or index is None or self.length < 0:
            return self.argument
        what = f"{self.argument}[{index}]"
        elements = f"{self.length} element{'s' * (self.length != 1)}"
        if index < 0:
            return f"{what}, {-index} before the first of its {elements}"
        if index > self.length:
            return f"{what}, {index - self.length} past the end of its {elements}"
        return f"{what}, just past its {elements}" if index == self.length else what


@dataclass
class Report:
    """What `check_file` found, the most severe first, and the launches it was found in.

    counters: by kernel, where counting was asked for. facts: of each kernel on each architecture.
    """

    source: Source
    launches: list[Launched]
    words: list[str]  # what was launched, where nobody said
    orders: Sequence[str]
    found: list[Reported] = field(default_factory=list)
    counters: dict[str, Counters] = field(default_factory=dict)
    facts: list[tuple[Facts, Occupancy, Launched]] = field(default_factory=list)

    @property
    def errors(self) -> int:
        return sum(one.finding.severity == "error" for one in self.found)


def check_file(
    path: str,
    launch: str | spec.Launches | None = None,
    *,
    options: Sequence[str] = (),
    orders: Sequence[str] = ORDERS,
    count: bool = False,
    architectures: Sequence[str] = (),
    timeout: float = 60.0,
) -> Report:
    """Run the kernels of a .cu file with every check, once in each order of blocks and threads.

    launch: a launch file, or a function as one has it (spec.py); None makes a launch up from each
    kernel's signature. options: for NVRTC. count: count what the launches do as well, if no
    error is found. architectures: "sm_80", ..., for which to build and inspect the file.
    timeout: seconds of processor time after which a launch is stopped, and the rest not run. Raises
    ValueError, OSError and SimError, in one line, for files and launches that are wrong.
    """
    source = Source.read(path)
    module = source.module(options, check=True)
    words: list[str] = []
    if launch is None:
        launches, words = spec.default_launches(source, module)
    else:
        launches = spec.load(launch) if isinstance(launch, str) else launch
    found: dict[tuple[Any, ...], Reported] = {}
    report = Report(source, [], words, orders)
    variables = [module.variable(name, np.uint8) for name in module.variables]
    initial = [asnumpy(variable) for variable in variables]
    for order in orders:
        for variable, value in zip(variables, initial, strict=True):
            variable.set(value)  # each order begins as the program does
        run = _Checked(source, module, order, found, timeout)
        try:
            launches(run)
        except Exception:
            if not run.failed:  # what a wrong kernel wrote may well fail the launch's own test
                raise
        report.launches = run.launches
        if any(one.finding.kind == "timeout" for one in found.values()):
            break  # in another order it would take as long
    if not report.launches:
        raise SpecError(f"{launch}: launch(run) launches nothing")
    report.found = sorted(found.values(), key=lambda one: one.finding.severity != "error")
    if count and not report.errors:  # without checks a wrong access would damage this process
        counting = source.module(options, count=True)
        counted = Runner(source, counting.kernels, lambda one: _start(counting, one))
        launches(counted)
        report.counters = {one.kernel: counting.counters(one.kernel) for one in counted.launches}
    for arch in architectures:
        report.facts += _facts(report, options, arch)
    return report


def _facts(
    report: Report, options: Sequence[str], arch: str
) -> list[tuple[Facts, Occupancy, Launched]]:
    """What the compiler says of each launched kernel, for the block of its first launch."""
    source = report.source
    cubin = compile.to_cubin(source.text, source.options(options), arch, source.path)
    found = facts.facts(cubin, arch)
    first = {one.kernel: one for one in reversed(report.launches)}
    rows = []
    for kernel, one in first.items():
        threads = math.prod(one.block) if isinstance(one.block, tuple) else one.block
        taken = found[kernel].shared + one.shared
        held = facts.occupancy(arch, found[kernel].registers, taken, threads)
        rows.append((found[kernel], held, one))
    return rows


def require_clean(path: str, launch: str | spec.Launches | None = None, **words: Any) -> Report:
    """`check_file` for tests: raises AssertionError, with the report as text, for any error."""
    from gpuconv.sim.render import as_text

    report = check_file(path, launch, **words)
    if report.errors:
        raise AssertionError("\n" + as_text(report))
    return report


def _start(module: Any, one: Launched, **words: Any) -> Sequence[Finding]:
    return module.launch(one.kernel, one.grid, one.block, one.args, one.shared, **words) or ()


class _Checked(Runner):
    """Launches with checks, and keeps the findings."""

    def __init__(
        self,
        source: Source,
        module: Any,
        order: str,
        found: dict[tuple[Any, ...], Reported],
        timeout: float,
    ) -> None:
        super().__init__(source, module.kernels, self._check)
        self.module = module
        self.words = {"order": order, "seed": 1, "timeout": timeout}
        self.found, self.failed = found, False

    def _check(self, one: Launched) -> None:
        try:
            findings = _start(self.module, one, **self.words)
        except KernelError as error:
            findings, self.failed = error.findings, True
        for finding in findings:
            key = finding.kind, finding.file, finding.line, finding.argument
            self.found.setdefault(key, self._explained(finding, one))

    def _explained(self, finding: Finding, one: Launched) -> Reported:
        name, length = "", 0
        kernel = plain_name(finding.kernel)
        message = finding.message.removeprefix(f"{kernel}: ")
        if finding.argument is not None:
            array = one.args[finding.argument]
            length = array.size if isinstance(array, Array) else -1  # a structure
            number = f"argument {finding.argument}"
            name = one.signature.parameters[finding.argument].name if one.signature else number
            message = re.sub(rf"\b{number}\b", name, message)
        other = finding.other.line if finding.other else ""
        file, _, line = other.rpartition(":")
        return Reported(
            replace(finding, kernel=kernel, message=message),
            name,
            length,
            self._line(finding.file, finding.line),
            self._line(file, int(line)) if line.isdigit() else "",
        )

    def _line(self, file: str, line: int) -> str:
        """A line of the source, "" for one of another file that cannot be read."""
        lines = self.source.lines
        if file != self.source.path:
            try:
                lines = Source.read(file).lines
            except (OSError, ValueError):
                return ""
        return lines[line - 1].strip() if 0 < line <= len(lines) else ""
