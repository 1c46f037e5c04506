"""Run the CUDA kernels of a file in the simulator, with every check, and say what is wrong.

No GPU is needed. Each launch runs in several orders of its blocks and threads. A launch file is
Python: its function launch(run) calls run("kernel", grid, block, args) with NumPy arrays and
numbers. Without one, kernels of arrays, floats and one integer (the number of elements) are
launched on 997 elements.

Findings go to standard output, the most severe first. The exit code is 1 if there is an error
among them, 0 if there is none, 2 for files and launches that are wrong.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gpuconv.cli.options import add_options, number, one_of, path
from gpuconv.files import write_atomically
from gpuconv.sim.facts import CARDS, PROCESSORS

EXAMPLES = """\
  gpuconv check-kernels axpy.cu
  gpuconv check-kernels softmax.cu --launch launch_softmax.py
  gpuconv check-kernels softmax.cu --launch launch_softmax.py --count --listing softmax.html
  gpuconv check-kernels softmax.cu --launch launch_softmax.py --arch sm_80,sm_90a --card h100
  gpuconv check-kernels softmax.cu --format sarif -o softmax.sarif
"""
FORMATS = ("text", "json", "sarif")
FOUND = 1  # exit code


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE.cu", help="CUDA C++ with __global__ functions")
    parser.add_argument("--count", action="store_true", help="count what the launches do as well")
    parser.add_argument(
        "-D", dest="define", action="append", default=[], metavar="NAME=VALUE", help="a macro"
    )
    parser.add_argument(
        "-I", dest="include", action="append", default=[], metavar="DIR", help="for #include"
    )
    add_options(
        parser,
        ("--launch", "FILE.py", path, "how to launch the kernels"),
        ("--format", "NAME", one_of("format", FORMATS), "text, json or sarif", "text"),
        ("--arch", "NAMES", architectures, "facts from the compiler for sm_80, sm_90a, ...", ()),
        ("--card", "NAME", one_of("card", CARDS), "least time for the counted work, estimated"),
        ("--timeout", "S", number(0.01, 1e6), "processor seconds of a launch at most", 60.0),
        ("--listing", "FILE", path, "the source with its counts; HTML for a name with .html"),
        ("--output", "FILE", path, "write the findings there"),
    )


def architectures(text: str) -> tuple[str, ...]:
    """Names of architectures, parted by commas."""
    return tuple(one_of("architecture", PROCESSORS)(name) for name in text.split(","))


def run(args: argparse.Namespace) -> int:
    from gpuconv.sim import checking, compile, render
    from gpuconv.sim.errors import SimError

    if missing := compile.available():
        raise ValueError(missing)
    options = [f"-D{macro}" for macro in args.define] + [f"-I{folder}" for folder in args.include]
    count = args.count or bool(args.listing or args.card)
    try:
        report = checking.check_file(
            args.file,
            args.launch,
            options=options,
            count=count,
            architectures=args.arch,
            timeout=args.timeout,
        )
    except SimError as error:
        raise ValueError(str(error)) from error
    if args.format == "text":
        text = render.as_text(report, args.card or "")
    else:
        text = render.as_json(report) if args.format == "json" else render.as_sarif(report)
    if args.output:
        write_atomically(Path(args.output), text.encode())
    else:
        print(text, end="")
    if args.listing:
        write_atomically(Path(args.listing), _listing(report, args.listing).encode())
    return FOUND if report.errors else 0


def _listing(report: Any, name: str) -> str:
    from gpuconv.sim import render

    if name.endswith((".html", ".htm")):
        return render.page(report)
    source = report.source
    counters = report.counters.values()
    return "\n".join(render.listing(one, source.path, source.lines) for one in counters)
