"""Read pictures with a trained network: a probability for each class.

A picture is prepared as the network's training pictures were, see `gpuconv train --resize`: made
gray or coloured, and brought to their size. Networks trained on light figures on a dark ground,
such as MNIST, get a picture with a light border inverted, which is said; --invert and --no-invert
decide by hand. Probabilities are computed in float32 unless --precision says otherwise.
"""

from __future__ import annotations

import argparse

from gpuconv.cli.inputs import PRECISION, class_names, open_checkpoint, say_precision
from gpuconv.cli.options import (
    CHECKPOINT,
    DEVICE,
    INVERT,
    ONE_OR_MORE,
    OWN_NETWORK,
    SKIP_BAD,
    add_options,
    whole,
)
from gpuconv.data import DataError
from gpuconv.errors import one_line
from gpuconv.train.evaluate import probabilities

EXAMPLES = """\
  gpuconv predict runs/lenet-mnist/best.safetensors digit.png
  gpuconv predict runs/lenet-mnist/best.safetensors scans/*.jpg --top 1 --invert
"""
INVERTED = " (inverted: its border is light)"
BLANK = " (warning: a picture of one colour, the answer means nothing)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    top = ("--top", "N", whole(1), "only the N likeliest classes (default: all)")
    images = ("images", "IMAGE", str, "PNG, JPEG and so on", ONE_OR_MORE)
    add_options(parser, CHECKPOINT, images, top, SKIP_BAD, DEVICE, PRECISION, INVERT, OWN_NETWORK)


def run(args: argparse.Namespace) -> int:
    found, model, preprocessing = open_checkpoint(args)
    say_precision(args, found, model)
    for path, picture in _pictures(args, preprocessing):
        x = preprocessing.to_float(picture.pixels)
        share = probabilities(model, x, batch_size=1, precision=args.precision)[0]
        classes = class_names(found.metadata.get("classes"), len(share))
        order = sorted(range(len(share)), key=lambda k: (-share[k], k))
        note = INVERTED if picture.inverted and args.invert is None else ""
        note += BLANK if picture.blank else ""
        print(f"{path}: {classes[order[0]]}{note}")
        width = max(map(len, classes))
        for k in order[: args.top]:
            bar = "#" * round(30 * float(share[k]))
            print(f"  {classes[k]:<{width}}  {share[k]:8.4%}  {bar}".rstrip())
    return 0


def _pictures(args, preprocessing):
    """The paths and pictures. All are read before any answer is printed: a bad one is named at
    once.
    """
    found, bad = [], []
    for path in args.images:
        try:
            found.append((path, preprocessing.picture(path, args.invert)))
        except (DataError, OSError) as error:
            if not args.skip_bad:
                raise
            bad.append(one_line(error))
    if bad:
        text = f"passed over {len(bad):,} of {len(args.images):,} pictures: {'; '.join(bad)}"
        if not found:
            raise ValueError(text)
        print(text)
    return found
