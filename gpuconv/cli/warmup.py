"""Compile what a network needs, so that the first run on this machine starts at once.

Two steps of training on random images, with SGD and with Adam: every kernel that they use is
compiled and kept in its cache on disk (CuPy's, the simulator's, or Numba's).
"""

from __future__ import annotations

import argparse
import time

from gpuconv import models, train
from gpuconv.cli.options import DEVICE, add_options, whole

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
    )


def run(args: argparse.Namespace) -> int:
    started = time.perf_counter()
    model = models.named(args.model).to(args.device)
    train.warm_up(model, args.batch)
    seconds = time.perf_counter() - started
    print(f"device {model.device}: {args.model} at batch {args.batch} is ready, {seconds:.1f} s")
    return 0
