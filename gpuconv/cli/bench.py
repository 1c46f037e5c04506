"""Time operations: shapes in, a table of times, TFLOP/s, GB/s and shares of the ceiling out.

OP is an operation, followed by the shape of its input and what else it takes; a model's name,
or mynet.py:build, stands for all its layers at --batch, and "all" for a set that has every
operation.

Each pass is compared with its reference in float64 before it is timed, and its bytes are compared
after; a wrong result gets no time and the exit code 1. Times are medians; the spread is from the
10th to the 90th percentile. TFLOP/s counts 2 for each multiply-add whose tap is inside the image,
GB/s counts every array once. The ceiling is the roofline: the least time that the measured rates of
a copy and of multiply-adds in registers allow, as a share of the time taken. Winograd convolutions
on the CPU need fewer multiply-adds and can pass 100%; the precisions of tensor cores have no
ceiling here. Device sim has no times: it prints the counted work.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpuconv.arrays import require
from gpuconv.bench import report
from gpuconv.bench.cases import (
    OPTIONS,
    Case,
    in_precisions,
    network,
    option,
    parse,
    precisions,
    standard,
)
from gpuconv.bench.measure import Row, measure
from gpuconv.bench.workloads import counted, of_case
from gpuconv.cli.options import (
    DEVICE,
    THREADS,
    add_options,
    image_shape,
    number,
    one_of,
    path,
    whole,
)
from gpuconv.devices import resolve
from gpuconv.models import MODELS, is_file
from gpuconv.precision import require_precision

EXAMPLES = """\
  gpuconv bench conv 16x64x56x56 64 3x3 --padding 1
  gpuconv bench conv 8x3x224x224 96 11x11 --stride 4 --pass backward-weight
  gpuconv bench max_pool 16x64x112x112 3x3 --stride 2 --padding 1 --device cuda
  gpuconv bench linear 128x1024 1000 --json linear.json
  gpuconv bench lenet --batch 64
  gpuconv bench resnet50 --only conv --device cuda --each
  gpuconv bench resnet50 --precision bf16 --device cuda
  gpuconv bench all --device sim           (counted work, no times)
  gpuconv bench --kernel mine.cu:axpy --launch launch_axpy.py --device cuda
"""
BENCHED = ("ieee", "tf32", "bf16", "fp16")
DIRECTIONS = ("forward", "backward", "backward-data", "backward-weight")
WRONG = 1  # exit code


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    ops = "conv, max_pool, linear, relu, ...; or lenet, resnet50"
    add("op", metavar="OP|MODEL|all", nargs="?", help=ops)
    add("words", nargs="*", metavar="SHAPE", help="input shape, then FILTERS and KERNEL as needed")
    add("--each", action="store_true", help="also time every kernel of a pass by itself (cuda)")
    passes = f"{', '.join(DIRECTIONS)}; backward of a convolution is both halves"
    layouts = "of images in a GPU's memory; nchw times their conversion too"
    add_options(
        parser,
        *((f"--{name}", "N", str, "a number, or two as 1x2") for name in OPTIONS[:-2]),
        ("--activation", "NAME", one_of("activation", ["relu"]), "relu"),
        ("--precision", "NAME", one_of("precision", BENCHED), f"{', '.join(BENCHED)} (cuda, sim)"),
        ("--pass", "NAME", one_of("pass", [*DIRECTIONS, "all"]), passes, "all"),
        ("--batch", "N", whole(1), "of a model", 16),
        ("--input", "C,H,W", image_shape, "of a model (default: its own)"),
        ("--only", "TEXT", str, "of a model or all: operations with this text"),
        DEVICE,
        THREADS,
        ("--layout", "NAME", one_of("layout", ["nhwc", "nchw"]), layouts, "nhwc"),
        ("--seconds", "S", number(0.001, 3600), "of timing for each pass", 0.5),
        ("--kernel", "FILE.cu:NAME", str, "a CUDA kernel of your own, instead of OP"),
        ("--launch", "FILE.py", path, "how to launch it: see gpuconv check-kernels"),
        ("--json", "FILE", path, "write all figures there too"),
    )


def run(args: argparse.Namespace) -> int:
    device = resolve(args.device)
    if args.kernel or args.launch:
        return _own_kernel(args, device)
    if args.op is None:
        raise ValueError("bench: give an operation, a model, all, or --kernel FILE.cu:NAME")
    require_precision("bench: --precision", args.precision or "ieee", device)
    cases = _cases(args, device)
    direction = getattr(args, "pass")
    passes = () if direction == "all" else (direction,)
    # What does not fit is said before anything is timed.
    work = [(case, *one) for case in cases for one in counted(case, passes)]
    if not work:
        raise ValueError(f"bench: {args.op} has no pass {direction!r}")
    if device == "sim":
        return _count(args, work)
    if device == "reference":
        raise ValueError("bench: device reference is not made to be fast; use cpu")
    require(device)
    return _time(args, device, cases, passes)


def _cases(args: argparse.Namespace, device: str) -> list[Case]:
    options = {name: getattr(args, name) for name in OPTIONS}
    precision = options["precision"]
    if args.op in MODELS or args.op == "all" or is_file(args.op):
        if args.words or any(options[name] is not None for name in OPTIONS[:-1]):
            raise ValueError(f"bench: {args.op} has shapes of its own: give --batch and --only")
        if args.op == "all":
            cases = standard(args.batch) + ([] if device == "cpu" else in_precisions(args.batch))
            cases = [case for case in cases if precision in (None, case.precision)]
        else:  # what has no such precision computes in float32
            cases = [
                replace(case, precision=precision) if precision in precisions(case.op) else case
                for case in network(args.op, args.batch, args.input)
            ]
        only = args.only or ""
        chosen = [case for case in cases if only in str(case) or only == case.label]
        if not chosen:
            raise ValueError(f"bench: {args.op} has no operation with {only!r} in it")
        return chosen
    settings = {name: option(name, text) for name, text in options.items() if text is not None}
    return [parse([args.op, *args.words], **settings)]


def _own_kernel(args: argparse.Namespace, device: str) -> int:
    if args.op is not None or args.json:
        raise ValueError("bench: --kernel takes the place of an operation, and has no --json")
    if not (args.kernel and args.launch):
        raise ValueError("bench: --kernel FILE.cu:NAME and --launch FILE.py go together")
    from gpuconv.bench import own_kernel

    if device not in ("sim", "cuda"):
        raise ValueError(f"bench: --kernel runs on device cuda or sim, not on {device}")
    require(device)
    kernel = own_kernel.OwnKernel.read(args.kernel, args.launch)
    if device == "sim":
        print(f"device sim has no times\n{own_kernel.counts(kernel)}")
        return 0
    machine, clock, ceilings = report.measured_device(device)
    found = own_kernel.timed(kernel, clock, args.seconds)
    times = found.times
    rate = "no FLOP in the launch file"
    if found.flop is not None:
        rate = f"{found.flop / times.median / 1e12:.3f} TFLOP/s"
    print(
        f"{machine}\n{ceilings}\n\n{args.kernel}: {report.duration(times.median)}, "
        f"spread {100 * times.spread:.0f}%, {rate}, {found.bytes / times.median / 1e9:.1f} GB/s, "
        f"{100 * found.share(ceilings):.0f}% of the ceiling{', late' if times.late else ''}"
    )
    return 0


def _count(args: argparse.Namespace, work: list[Any]) -> int:
    if args.json:
        raise ValueError("bench: device sim has no times, so there is nothing for --json")
    lines = report.Lines(report.COUNTED, [str(case) for case, *_ in work])
    print("device sim has no times: this is counted work, and nothing was run\n")
    print(lines.head())
    for case, direction, cost in work:
        print(lines.line(report.counted_cells(str(case), direction, cost)))
    return 0


def _time(args: argparse.Namespace, device: str, cases: list[Case], passes: tuple[str, ...]) -> int:
    if args.json and not (folder := Path(args.json).absolute().parent).is_dir():
        raise FileNotFoundError(f"bench: --json {args.json}: there is no folder {folder}")
    machine, clock, ceilings = report.measured_device(device)
    lines = report.Lines(report.HEADER, [report.title(str(case), case.label) for case in cases])
    print(f"{machine}\n{ceilings}\n\n{lines.head()}", flush=True)
    rows: list[Row] = []
    for case in cases:
        for workload in of_case(case, passes):
            rows.append(measure(workload, device, args.seconds, clock, args.layout, args.each))
            print(lines.line(report.cells(rows[-1], ceilings)), flush=True)
            for name, times in rows[-1].kernels if args.each else ():
                print(f"    {name}  {report.duration(times.median) if times else ''}")
    if args.json:
        report.write_json(args.json, machine, ceilings, rows)
    return WRONG if any(row.status.startswith("wrong") for row in rows) else 0
