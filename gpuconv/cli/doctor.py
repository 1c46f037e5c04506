"""Say what this machine offers gpuconv, what is missing, and how to mend it.

With --mpi: what training on several ranks needs. Always exits with 0; the last line is the verdict.
"""

from __future__ import annotations

import argparse

from gpuconv.cli.options import add_options

EXAMPLES = """\
  gpuconv doctor
  gpuconv doctor --mpi
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, ("--mpi", None, bool, "what several ranks need, and whether two start"))


def run(args: argparse.Namespace) -> int:
    if args.mpi:
        return _run_mpi()
    from gpuconv import doctor

    report = doctor.examine(_show)
    if report.problems:
        # A broken package breaks gpuconv's own parts too.
        packages = set(report.problems.values()) - {"gpuconv"} or {"gpuconv"}
        mend = f"pip install --force-reinstall {' '.join(sorted(packages))}"
        print(f"\nnot ready: {', '.join(report.problems)}; mend: {mend}")
    else:
        print(f"\nready: {', '.join(report.devices)}")
    return 0


def _run_mpi() -> int:
    from gpuconv.distributed.examine import examine
    from gpuconv.distributed.launch import INSTALL

    missing = []
    for name, text, lacks in examine():
        _show(name, text)
        missing += [name] if lacks else []
    if missing:
        print(f"\nnot ready: {', '.join(missing)}; mend: {INSTALL}")
    else:
        print("\nready: gpuconv train --ranks 2")
    return 0


def _show(name: str, text: str) -> None:
    print(f"{name:<15}{text}", flush=True)
