"""Compile what a network needs, so that the first run on this machine starts at once.

Two steps of training on random images, with SGD and with Adam: every kernel that they use is
compiled and kept in its cache on disk (CuPy's, the simulator's, or Numba's).
"""

from __future__ import annotations

import argparse
import time

from gpuconv import models, train
from gpuconv.cli.inputs import NAMES
from gpuconv.cli.options import DEVICE, add_options, one_of, whole
from gpuconv.precision import PRECISIONS, require_precision
from gpuconv.train.config import default_precision

EXAMPLES = """\
  gpuconv warmup
  gpuconv warmup --model lenet --batch 64 --device cuda
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    batch = "images for each update; kernels are chosen by shape"
    add_options(
        parser,
        ("--model", "NAME", str, "or mynet.py:build", "lenet"),
        ("--batch", "N", whole(1), batch, 32),
        DEVICE,
        ("--precision", "NAME", one_of("precision", PRECISIONS), f"{NAMES} (default: train's)"),
    )


def run(args: argparse.Namespace) -> int:
    started = time.perf_counter()
    model = models.named(args.model).to(args.device)
    precision = args.precision or default_precision(model.device)
    train.warm_up(model, args.batch, require_precision("--precision", precision, model.device))
    seconds = time.perf_counter() - started
    what = f"{args.model} at batch {args.batch}"
    print(f"device {model.device}: {what} is ready, {seconds:.1f} s, {precision}")
    return 0
