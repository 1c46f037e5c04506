"""What the simulator raises: one line each, what came, what was expected, the way out."""

from __future__ import annotations


class SimError(RuntimeError):
    """Base of every error of the simulator that is no plain TypeError or ValueError."""


class CompileError(SimError):
    """NVRTC refused the source. `log` holds its full text; the message quotes the first error."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


class UnsupportedError(SimError):
    """The PTX holds an instruction or feature that the simulator does not model."""


class LaunchError(SimError):
    """A launch that no device of the chosen limits would accept."""


class KernelError(SimError):
    """A running kernel did something wrong; the message names the kernel, block, thread and line.

    `kind` is a short word ("bounds", "trap", "deadlock", ...), `line` is "file:line" or "".
    """

    def __init__(self, message: str, kind: str = "", line: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.line = line
