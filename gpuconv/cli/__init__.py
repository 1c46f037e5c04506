"""The command line: `gpuconv train`, `evaluate`, `predict` and so on, a module for each command."""

from __future__ import annotations

from gpuconv.cli.main import main

__all__ = ["main"]
