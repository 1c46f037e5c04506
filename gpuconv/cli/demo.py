"""Show one operation of the article on a small matrix, with every number.

conv  slides a filter over an image and prints each position's products and their sum
pool  takes the largest, the mean and the sum of each window
relu  replaces negative numbers by 0
"""

from __future__ import annotations

import argparse

import numpy as np

from gpuconv.arrays import is_device, require, to_device, to_numpy
from gpuconv.cli.options import DEVICE, add_options, matrix, whole
from gpuconv.devices import resolve
from gpuconv.filters import named
from gpuconv.ops import avg_pool2d, conv2d, max_pool2d, relu, sum_pool2d

EXAMPLES = """\
  gpuconv demo conv
  gpuconv demo conv --image "1 2 3; 4 5 6; 7 8 9" --filter "1 0; 0 -1"
  gpuconv demo conv --padding 1 --stride 2
  gpuconv demo pool --size 2 --stride 2
  gpuconv demo relu --image "-1 2; 3 -4"
"""
IMAGES = {
    "conv": "1 1 1 0 0; 0 1 1 1 0; 0 0 1 1 1; 0 0 1 1 0; 0 1 1 0 0",
    "pool": "1 1 2 4; 5 6 7 8; 3 2 1 0; 1 2 3 4",
    "relu": "-3 1 0; 2 -1 4; 0.5 -0.5 -2",
}
FILTER = "1 0 1; 0 1 0; 1 0 1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("operation", choices=list(IMAGES))
    by_name = "conv: a matrix, or the name of one of the article's filters, such as sharpen"
    add_options(
        parser,
        ("--image", "ROWS", matrix, "a matrix (default: the article's)"),
        ("--filter", "ROWS|NAME", _filter, by_name),
        ("--size", "N", whole(1), "pool: the window (default: 2)"),
        ("--stride", "N", whole(1), "(default: conv 1, pool the window's size)"),
        ("--padding", "N", whole(0), "zeros around the image (default: 0)"),
        DEVICE,
    )


def run(args: argparse.Namespace) -> int:
    _refuse_what_is_for_others(args)
    image = matrix(IMAGES[args.operation]) if args.image is None else args.image
    print(f"image, {image.shape[0]}x{image.shape[1]}:\n{_table(image)}\n")
    {"conv": _conv, "pool": _pool, "relu": _relu}[args.operation](args, image)
    return 0


def _filter(text):
    if any(character.isalpha() or character == "_" for character in text):
        try:
            return named(text).matrix
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return matrix(text)


def _refuse_what_is_for_others(args):
    used = {"conv": {"filter", "stride", "padding"}, "pool": {"size", "stride", "padding"}}
    for option in ("filter", "size", "stride", "padding"):
        if getattr(args, option) is not None and option not in used.get(args.operation, set()):
            raise ValueError(f"demo {args.operation}: takes no --{option}")


def _run_on(args, operation, *arguments):
    device = resolve(args.device)
    if not is_device(device):
        return (operation.reference if device == "reference" else operation)(*arguments)
    require(device)
    given = [
        to_device(a.astype(np.float32), device) if isinstance(a, np.ndarray) else a
        for a in arguments
    ]
    found = operation(*given)
    return tuple(map(to_numpy, found)) if isinstance(found, tuple) else to_numpy(found)


def _conv(args, image):
    weights = matrix(FILTER) if args.filter is None else args.filter
    stride, padding = args.stride or 1, args.padding or 0
    print(f"filter, {weights.shape[0]}x{weights.shape[1]}:\n{_table(weights)}\n")
    y = _run_on(args, conv2d, image[None, None], weights[None, None], None, stride, padding)[0, 0]
    padded = np.pad(image, padding)
    R, S = weights.shape
    print("each position: image x filter, added up")
    for p, q in np.ndindex(*y.shape):
        pixels = padded[p * stride : p * stride + R, q * stride : q * stride + S]
        products = " + ".join(
            f"{_show(a)}*{_show(b)}" for a, b in zip(pixels.flat, weights.flat, strict=True)
        )
        total = float((pixels * weights).sum())
        print(f"  row {p}, column {q}:  {products} = {_show(total)}")
    print(f"\nfeature map, {y.shape[0]}x{y.shape[1]}:\n{_table(y)}")
    print("\nThe filter is not flipped: mathematics calls this cross-correlation.")


def _pool(args, image):
    size = args.size or 2
    stride, padding = args.stride or size, args.padding or 0
    print(f"windows of {size}x{size}, stride {stride}, padding {padding}\n")
    for name, operation in (("max", max_pool2d), ("average", avg_pool2d), ("sum", sum_pool2d)):
        y = _run_on(args, operation, image[None, None], size, stride, padding)
        y = (y[0] if isinstance(y, tuple) else y)[0, 0]
        print(f"{name}, {y.shape[0]}x{y.shape[1]}:\n{_table(y)}\n")
    print("Padding never wins a maximum; for the average it counts as zeros.")


def _relu(args, image):
    y = _run_on(args, relu, image[None, None])[0, 0]
    print(f"max(x, 0), {y.shape[0]}x{y.shape[1]}:\n{_table(y)}")


def _show(value):
    return f"{value:.6g}"


def _table(values):
    cells = [[_show(value) for value in row] for row in values]
    width = max(len(cell) for row in cells for cell in row)
    return "\n".join("  " + " ".join(cell.rjust(width) for cell in row) for row in cells)
