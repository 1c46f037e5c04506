"""Print a network's layers: shapes, parameters, multiply-adds and memory.

Where a layer does not fit its input, the rows up to it are printed and the exit code is 2. A model
by name is built for the input's channels; a checkpoint's weights fit one number of them only.
"""

from __future__ import annotations

import argparse

from gpuconv import checkpoint
from gpuconv.cli.options import OWN_NETWORK, add_options, image_shape, whole
from gpuconv.models import MODELS, is_file, named
from gpuconv.nn.summary import size_text, summary
from gpuconv.train import peak_memory

EXAMPLES = """\
  gpuconv summary lenet
  gpuconv summary lenet --input 3,32,32 --classes 2
  gpuconv summary runs/lenet-mnist/best.safetensors
  gpuconv summary resnet18 --measure --batch 8
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    own = "(default: the model's own)"
    what = "a name, mynet.py:build, or a .safetensors or .onnx file"
    measure = "train three steps on random images on the cpu, in float32: print the peak of memory"
    add_options(
        parser,
        ("model", "MODEL|CHECKPOINT", str, what),
        ("--input", "C,H,W", image_shape, f"one image's channels, height and width {own}"),
        ("--classes", "N", whole(1), f"how many classes {own}"),
        ("--measure", None, bool, measure),
        ("--batch", "N", whole(1), "images of a measured step (default: 64)"),
        OWN_NETWORK,
    )


def run(args: argparse.Namespace) -> int:
    if args.batch is not None and not args.measure:
        raise ValueError("summary: --batch is for --measure")
    network = _network(args)
    found = summary(network, args.input)
    print(found)
    if found.error is not None:
        raise ValueError(f"summary: {found.error}")
    if args.measure:
        batch = args.batch or 64
        peak = peak_memory(network, batch, found.input)
        print(f"measured        {size_text(peak)} at the peak of a training step at batch {batch}")
    return 0


def _network(args):
    by_name = args.model in MODELS or is_file(args.model)
    if not by_name and (args.model.endswith(checkpoint.SUFFIXES) or "/" in args.model):
        if args.classes is not None:
            raise ValueError("summary: --classes is for a model by name, not for a checkpoint")
        return checkpoint.load(args.model, args.built_by)
    arguments = {}
    if args.input is not None:
        arguments["in_channels"] = args.input[0]
    if args.classes is not None:
        arguments["num_classes"] = args.classes
    return named(args.model, **arguments)
