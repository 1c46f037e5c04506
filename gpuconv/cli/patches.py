"""Show what each filter of a layer responds to: the image patches that activate it most.

For every filter, the position of its largest activation in each image is found, and the images
with the largest of them are shown, cropped to the filter's receptive field there. Beside them is
the activation projected back through the network by a deconvnet (Zeiler and Fergus 2014), gray at
0, so that deeper filters can be seen as images too. Coordinates are pixels of the
network's input: top-bottom, left-right, the last one not included.
"""

from __future__ import annotations

import argparse

from gpuconv import explain
from gpuconv.cli.inputs import load_images, open_checkpoint
from gpuconv.cli.options import (
    CHECKPOINT,
    DEVICE,
    IMAGES,
    OWN_NETWORK,
    add_options,
    numbers,
    output,
    whole,
)
from gpuconv.data import save_image
from gpuconv.errors import printable
from gpuconv.explain.patches import cut
from gpuconv.nn import Conv2d
from gpuconv.viz import Panel, sheet
from gpuconv.viz.attribution import mosaic
from gpuconv.viz.sheet import signed_pixels

EXAMPLES = """\
  gpuconv patches runs/lenet-mnist/best.safetensors --layer conv2 -o patches.png
  gpuconv patches runs/lenet-mnist/best.safetensors --layer fc3 --filters 7,9 --count 16
"""
MAX_FILTERS = 32  # that are shown without --filters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(
        parser,
        CHECKPOINT,
        ("--layer", "NAME", str, "see gpuconv summary (default: the last convolution)"),
        ("--filters", "K,K", numbers, f"which (default: the first {MAX_FILTERS})"),
        ("--count", "N", whole(1), "parts for each", 9),
        *IMAGES,
        output("patches.png"),
        DEVICE,
        OWN_NETWORK,
    )


def run(args: argparse.Namespace) -> int:
    found, model, preprocessing = open_checkpoint(args)
    layer = args.layer or _last_convolution(model)
    dataset = load_images(args, found, preprocessing)
    images = _Images(dataset, preprocessing)
    loader = preprocessing.loader(dataset, 250)
    ranked = explain.top_activating_patches(model, loader, layer, args.count, args.filters)
    left_out = 0 if args.filters else max(0, len(ranked) - MAX_FILTERS)
    ranked = ranked[: len(ranked) - left_out]
    panels = []
    for patches in ranked:
        panels += _panels(patches, images, explain.projections(model, images, patches, layer))
        _print(patches, dataset)
    columns = 2 * max(1, min(4, round(len(ranked) ** 0.5)))
    save_image(args.output, sheet(panels, columns=columns, size=160))
    note = f"; left out: {left_out} filters, see --filters" if left_out else ""
    print(f"{args.output}: {len(ranked)} filters of {layer}, {len(dataset):,} images{note}")
    return 0


class _Images:
    """A data set's images as the network reads them, by number."""

    def __init__(self, dataset, preprocessing):
        self.dataset, self.preprocessing = dataset, preprocessing

    def __getitem__(self, number):
        return self.preprocessing.to_float(self.dataset.images[number])[0]


def _last_convolution(model):
    names = [name for name, layer in model.named_modules() if isinstance(layer, Conv2d)]
    if not names:
        raise ValueError("patches: the network has no convolution; name a --layer")
    return names[-1]


def _panels(patches, images, projections):
    columns = round(len(patches) ** 0.5)
    parts = [cut(images.preprocessing.to_pixels(images[p.image][None])[0], p.box) for p in patches]
    back = [signed_pixels(each.sum(axis=0, keepdims=True)) for each in projections]
    strongest = f"strongest {patches[0].value:.3g}"
    return [
        Panel(f"filter {patches[0].filter}", mosaic(parts, columns, paper=128), (strongest,)),
        Panel("projected", mosaic(back, columns), ("gray is 0",)),
    ]


def _print(patches, dataset):
    first = patches[0]
    places = []
    for patch in patches[:3]:
        top, bottom, left, right = patch.box
        label = printable(dataset.classes[dataset.labels[patch.image]])
        places.append(f"image {patch.image} ({label}) {top}-{bottom},{left}-{right}")
    print(f"filter {first.filter:>3}  {first.value:8.3f}  {'; '.join(places)}")
