"""The command line: `gpuconv train`, `evaluate`, `predict` and so on, one module for each command.

A command's module is cheap to import; what is heavy is imported when the command runs, so that
`gpuconv --help` answers at once.
"""

from __future__ import annotations

from gpuconv.cli.main import main

__all__ = ["main"]
