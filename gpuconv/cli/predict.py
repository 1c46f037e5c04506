"""Read pictures with a trained network: a probability for each class.

A picture is made gray or coloured as the network needs, scaled to the size of its training images
keeping the aspect ratio, and set in the middle; what remains takes the colour of the picture's
border. Networks trained on light figures on a dark ground, such as MNIST, get a picture with a
light border inverted, which is said; --invert and --no-invert decide by hand.
"""

from __future__ import annotations

import argparse

from gpuconv.cli.options import add_device, whole

HELP = "read pictures with a trained network: a probability for each class"
EXAMPLES = """\
  gpuconv predict runs/lenet-mnist/best.safetensors digit.png
  gpuconv predict runs/lenet-mnist/best.safetensors scans/*.jpg --top 1 --invert
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a .safetensors file")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="PNG, JPEG and so on")
    parser.add_argument(
        "--top", type=whole(1), metavar="N", help="only the N likeliest classes (default: all)"
    )
    parser.add_argument(
        "--invert",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="for dark figures on a light ground (default: decided by the picture's border)",
    )
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    from gpuconv.cli.inputs import class_names, open_checkpoint
    from gpuconv.train.evaluate import probabilities

    found, model, preprocessing = open_checkpoint(args.checkpoint, args.device)
    # All pictures are read before any answer is printed: a damaged one is named at once.
    pictures = [preprocessing.picture(path, args.invert) for path in args.images]
    for path, (x, inverted) in zip(args.images, pictures, strict=True):
        share = probabilities(model, x, batch_size=1)[0]
        classes = class_names(found.metadata.get("classes"), len(share))
        order = sorted(range(len(share)), key=lambda k: (-share[k], k))
        note = " (inverted: its border is light)" if inverted and args.invert is None else ""
        print(f"{path}: {classes[order[0]]}{note}")
        width = max(map(len, classes))
        for k in order[: args.top]:
            bar = "#" * round(30 * float(share[k]))
            print(f"  {classes[k]:<{width}}  {share[k]:8.4%}  {bar}".rstrip())
    return 0
