"""Say what this machine offers gpuconv, what is missing, and how to mend it.

Always exits with 0; the last line is the verdict.
"""

from __future__ import annotations

import argparse

EXAMPLES = """\
  gpuconv doctor
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(args: argparse.Namespace) -> int:
    from gpuconv import doctor

    report = doctor.examine(lambda name, text: print(f"{name:<15}{text}", flush=True))
    if report.problems:
        # A broken package breaks gpuconv's own parts too.
        packages = set(report.problems.values()) - {"gpuconv"} or {"gpuconv"}
        mend = f"pip install --force-reinstall {' '.join(sorted(packages))}"
        print(f"\nnot ready: {', '.join(report.problems)}; mend: {mend}")
    else:
        print(f"\nready: {', '.join(report.devices)}")
    return 0
