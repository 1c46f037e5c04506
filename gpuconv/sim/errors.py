"""Exceptions of the simulator. A message is one line: what came, what was expected, what to do."""

from __future__ import annotations

from collections.abc import Sequence

from gpuconv.sim.findings import Finding


class SimError(RuntimeError):
    """Base of all errors of the simulator except TypeError and ValueError for wrong arguments."""


class CompileError(SimError):
    """NVRTC refused the source. `log` holds its full text; the message quotes the first error."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


class UnsupportedError(SimError):
    """The PTX holds an instruction or feature that the simulator does not model."""


class LaunchError(SimError):
    """A launch beyond CUDA's limits (block size, grid size, shared memory)."""


class KernelError(SimError):
    """A running kernel did something wrong; the message names the kernel, block, thread and line.

    `kind` is a short word ("bounds_global", "trap", "deadlock", ...), `line` is "file:line" or "".
    `findings` are all that the launch found, in order of severity; the message is the first one's.
    """

    def __init__(
        self, message: str, kind: str = "", line: str = "", findings: Sequence[Finding] = ()
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.line = line
        self.findings = tuple(findings)
