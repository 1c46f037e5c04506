"""Draw the results of filters: the article's seven on a picture, or a network's learned filters.

A picture is first shrunk to --size pixels on its longer side, then each filter is applied to each
of its channels. Beyond the border the edge pixels repeat. Results are clipped to 0..255, so the
negative side of an edge is black.

A network's filters are drawn weight by weight: gray is 0. Deeper ones have many channels; see them
by the image patches that activate them: `gpuconv patches`.
"""

from __future__ import annotations

import argparse

from gpuconv import checkpoint, models
from gpuconv.cli.options import OWN_NETWORK, REPEATED, add_options, matrix, output, seed, whole
from gpuconv.data import load_image, save_image
from gpuconv.errors import require_known
from gpuconv.filters import FILTERS, apply, to_pixels
from gpuconv.models import MODELS
from gpuconv.nn import Conv2d, Module
from gpuconv.viz import Panel, sheet, weight_panels

EXAMPLES = """\
  gpuconv filters photo.png -o sheet.png
  gpuconv filters photo.png --matrix "0 -1 0; -1 5 -1; 0 -1 0" -o sheet.png
  gpuconv filters runs/lenet-mnist/best.safetensors -o learned.png
  gpuconv filters lenet --seed 0 -o before-training.png
"""
MAX_PANELS = 256  # of a network's filters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = "a picture, a .safetensors or .onnx, or a model's name or mynet.py:build"
    own = 'a filter of your own, such as "1 1; -1 -1", shown after the seven; may be repeated'
    size = "shrink the picture's longer side to N pixels; 0 keeps it"
    add_options(
        parser,
        ("source", "IMAGE|CHECKPOINT|MODEL", str, source),
        ("--matrix", "ROWS", matrix, own, REPEATED),
        output("filters.png"),
        ("--gray", None, bool, "make the picture gray first"),
        ("--size", "N", whole(0), size, 360),
        ("--layer", "NAME", str, "which convolution of a network (default: the first)"),
        seed("of the first weights of a MODEL"),
        OWN_NETWORK,
    )


def run(args: argparse.Namespace) -> int:
    left_out = 0
    if args.source.endswith(checkpoint.SUFFIXES) or _is_name(args.source):
        panels, size = _learned(args), 80
        left_out = max(0, len(panels) - MAX_PANELS)
        panels = panels[:MAX_PANELS]
    else:
        panels, size = _through(args), args.size or 1
    columns = 4 if len(panels) <= 16 else 8
    save_image(args.output, sheet(panels, columns=columns, size=size))
    print(f"{args.output}: {len(panels)} panels, {', '.join(panel.title for panel in panels[:9])}")
    if left_out:
        print(f"left out: {left_out} more; gpuconv patches shows deeper filters as images")
    return 0


def _is_name(source):
    return source in MODELS or models.is_file(source)


def _through(args):
    """Panels of the picture, its seven results, and those of the matrices given by hand."""
    image = load_image(args.source, grayscale=args.gray, longest=args.size or None)
    height, width = image.shape[1:]
    panels = [Panel("the picture", image, (f"{width} x {height}",))]
    for one in FILTERS.values():
        panels.append(Panel(one.title, to_pixels(apply(image, one)), _rows(one.rows, one.divisor)))
    for number, by_hand in enumerate(args.matrix or [], 1):
        title = "by hand" if len(args.matrix) == 1 else f"by hand {number}"
        panels.append(Panel(title, to_pixels(apply(image, by_hand)), _rows(by_hand)))
    return panels


def _rows(rows, divisor=1):
    lines = ["   ".join(f"{value:g}" for value in row) for row in rows]
    if divisor != 1:
        lines[-1] += f"     / {divisor}"
    return tuple(lines)


def _learned(args):
    """Panels of the filters of a network's convolution."""
    model: Module
    if _is_name(args.source):
        model = models.named(args.source, args.seed)
    else:
        model = checkpoint.load(args.source, args.built_by)
    convolutions = {
        name: layer for name, layer in model.named_modules() if isinstance(layer, Conv2d)
    }
    if not convolutions:
        raise ValueError(f"{args.source}: the network has no convolution")
    name = require_known("convolution", args.layer or next(iter(convolutions)), convolutions)
    return weight_panels(convolutions[name].weight.numpy())
