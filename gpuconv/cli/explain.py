"""Show which pixels are evidence for a class: a map beside the picture.

Methods: gradient, saliency, input-x-gradient, smooth-grad, guided-backprop, deconvnet, grad-cam,
guided-grad-cam, occlusion, or all. Signed maps are gray at 0, white for and black against the
class; the others go from dark to light; a bar shows the scale. A map that marks parts of the
picture is also outlined on it. The picture is read as `gpuconv predict` reads it.
"""

from __future__ import annotations

import argparse

from gpuconv.cli.inputs import class_names, load_images, open_checkpoint
from gpuconv.cli.options import (
    CHECKPOINT,
    DEVICE,
    INVERT,
    MAY_LACK,
    OWN_NETWORK,
    REPEATED,
    SKIP_BAD,
    add_options,
    number,
    numbers,
    one_of,
    output,
    path,
    seed,
    whole,
)
from gpuconv.data import save_image
from gpuconv.errors import printable, unknown
from gpuconv.explain import METHODS, as_map, grad_cam_layer, method
from gpuconv.train.evaluate import probabilities
from gpuconv.viz import Panel, attribution_panel, outlined_panel, sheet

EXAMPLES = """\
  gpuconv explain runs/lenet-mnist/best.safetensors digit.png -o why.png
  gpuconv explain runs/lenet-mnist/best.safetensors digit.png --method occlusion --class 7
  gpuconv explain runs/lenet-mnist/best.safetensors --index 12 --method all
  gpuconv explain runs/lenet-mnist/best.safetensors digit.png --of conv2 --unit 3
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    how = "how to explain (default: grad-cam); may be repeated, and all is each once"
    add_options(
        parser,
        CHECKPOINT,
        ("image", "IMAGE", str, "PNG, JPEG and so on", MAY_LACK),
        ("--method", "NAME", one_of("method", [*METHODS, "all"]), how, REPEATED),
        ("--index", "N", whole(0), "instead of IMAGE: a test image of the data set"),
        ("--data", "NAME|PATH", path, "for --index (default: what the network learned from)"),
        ("--class", "NAME", str, "by name or number (default: the likeliest)"),
        ("--of", "LAYER", str, "explain a --unit of this layer, not a class"),
        ("--unit", "K[,P,Q]", numbers, "with --of: a channel, or one of its places"),
        ("--layer", "LAYER", str, "whose maps Grad-CAM weighs (default: the last maps)"),
        ("--window", "N", whole(1), "of the occlusion (default: a sixth)"),
        ("--stride", "N", whole(1), "of the occlusion (default: window / 4)"),
        ("--value", "X", number(-1e6), "what covers, as the network reads it (default: 0)"),
        ("--samples", "N", whole(1), "of SmoothGrad (default: 25)"),
        ("--noise", "X", number(), "of SmoothGrad, of the image's range (default: 0.15)"),
        output("explain.png"),
        SKIP_BAD,
        seed("of SmoothGrad's noise"),
        DEVICE,
        INVERT,
        OWN_NETWORK,
    )
    parser.set_defaults(of="", split="test", limit=None)


def run(args: argparse.Namespace) -> int:
    if (args.image is None) == (args.index is None):
        raise ValueError("explain: give a picture, or --index N for a test image; one of the two")
    args.target = getattr(args, "class")
    if bool(args.of) != (args.unit is not None):
        raise ValueError("explain: --of LAYER and --unit K go together: a unit of that layer")
    if args.of and args.target is not None:
        raise ValueError("explain: --class is of the network's output; it takes no --of")
    methods = _methods(args)
    found, model, preprocessing = open_checkpoint(args)
    x, name = _image(args, found, preprocessing)
    share = probabilities(model, x, batch_size=1)[0]
    classes = class_names(found.metadata.get("classes"), len(share))
    target, what = _target(args, share, classes)
    picture = preprocessing.to_pixels(x)[0]
    likeliest = int(share.argmax())
    panels = [Panel(name, picture, (f"read as {classes[likeliest]}, {share[likeliest]:.2%}",))]
    for chosen in methods:
        panels += _explained(args, chosen, model, x, picture, target)
    save_image(args.output, sheet(panels, columns=4))
    print(f"{name}: {classes[likeliest]} ({share[likeliest]:.2%}); explained: {what}")
    print(f"{args.output}: {', '.join(panel.title for panel in panels[1:])}")
    return 0


def _methods(args):
    """The names of the methods to use. ValueError for an option that none of them takes."""
    chosen = args.method or ["grad-cam"]
    chosen = list(METHODS) if "all" in chosen else list(dict.fromkeys(chosen))
    for option in ("layer", "window", "stride", "value", "samples", "noise"):
        takers = [name for name in METHODS if option in METHODS[name].options]
        if getattr(args, option) is not None and not set(takers).intersection(chosen):
            raise ValueError(f"explain: --{option} is for --method {' and '.join(takers)}")
    return chosen


def _image(args, found, preprocessing):
    """One example (1, C, H, W), and what to call it."""
    if args.image is not None:
        if args.data is not None:
            raise ValueError("explain: --data is for --index N, not for a picture")
        picture = preprocessing.picture(args.image, args.invert)
        name = args.image.rpartition("/")[2]
        name += (" (inverted)" if picture.inverted else "") + (" (blank)" if picture.blank else "")
        return preprocessing.to_float(picture.pixels), name
    if args.invert is not None:
        raise ValueError("explain: --invert is for a picture, not for --index")
    dataset = load_images(args, found, preprocessing)
    image = dataset.subset([args.index]).images
    return preprocessing.to_float(image), f"{dataset.name} {args.index}"


def _target(args, share, classes):
    """The target as the functions take it, and in words."""
    if args.of:
        place = f" at {args.unit[1:]}" if len(args.unit) > 1 else ""
        return args.unit, f"unit {args.unit[0]} of layer {args.of}{place}"
    if args.target is None:
        return int(share.argmax()), f"class {classes[int(share.argmax())]}"
    if printable(args.target) in classes:
        k = classes.index(printable(args.target))
    elif args.target.isdigit() and int(args.target) < len(classes):
        k = int(args.target)
    else:
        raise unknown("class", args.target, classes)
    return k, f"class {classes[k]} ({share[k]:.2%})"


def _explained(args, name, model, x, picture, target):
    """The panels of one method."""
    chosen = method(name)
    window = tuple(min(args.window or max(side // 6, 1), side) for side in x.shape[2:])
    values_of = {
        "layer": args.layer or ("layer" in chosen.options and grad_cam_layer(model, x, args.of)),
        "window": window,
        "stride": args.stride or tuple(max(side // 4, 1) for side in window),
        "value": 0.0 if args.value is None else args.value,
        "samples": args.samples or 25,
        "noise": 0.15 if args.noise is None else args.noise,
        "rng": args.seed,
    }
    options = {key: values_of[key] for key in chosen.options}
    values = as_map(chosen.function(model, x, target, args.of, **options))[0]
    formats = {"layer": "of layer {}", "window": "window {0[0]}x{0[1]}", "samples": "{} samples"}
    notes = tuple(formats[key].format(values_of[key]) for key in chosen.options if key in formats)
    panels = [attribution_panel(values, chosen.title, chosen.signed, notes=notes)]
    if chosen.areas:
        panels.append(outlined_panel(picture, values, f"{chosen.title}, where"))
    return panels
