"""Test a checkpoint: loss, accuracy, accuracy by class, and which classes are taken for which.

The data is the set the network was trained on unless --data says otherwise; the loss is that of its
training. --device and --threads change the last digits at most. It computes in float32, whatever
the network was trained in, unless --precision says otherwise.
"""

from __future__ import annotations

import argparse

import numpy as np

from gpuconv import nn
from gpuconv.cli.inputs import (
    PRECISION,
    class_names,
    load_images,
    open_checkpoint,
    say_precision,
)
from gpuconv.cli.options import (
    CHECKPOINT,
    DEVICE,
    IMAGES,
    OWN_NETWORK,
    THREADS,
    add_options,
    whole,
)
from gpuconv.errors import require_known
from gpuconv.train.evaluate import evaluate

EXAMPLES = """\
  gpuconv evaluate runs/lenet-mnist/best.safetensors
  gpuconv evaluate runs/lenet-mnist/best.safetensors --data digits/ --split test
"""
MAX_CLASSES = 25  # up to which the whole matrix is printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    batch = ("--batch", "N", whole(1), "images at a time", 500)
    add_options(parser, CHECKPOINT, *IMAGES, batch, THREADS, DEVICE, PRECISION, OWN_NETWORK)


def run(args: argparse.Namespace) -> int:
    found, model, preprocessing = open_checkpoint(args)
    settings = found.metadata.get("settings") or {}
    dataset = load_images(args, found, preprocessing)
    known = nn.output_shape(model, (preprocessing.image_shape[0], *preprocessing.size))[0]
    if len(dataset.classes) > known:
        raise ValueError(
            f"evaluate: {dataset.name} has {len(dataset.classes)} classes, the network {known}"
        )
    name = require_known("loss", settings.get("loss", "cross_entropy"), nn.LOSSES)
    loss = nn.LOSSES[name]()
    say_precision(args, found, model)
    loader = preprocessing.loader(dataset, args.batch)
    result = evaluate(model, loss, loader, lambda: None, precision=args.precision)
    known_names = found.metadata.get("classes") or dataset.classes
    correct = round(result["accuracy"] * result["images"])
    print(f"{args.checkpoint} on {dataset.name}, {result['images']:,} images")
    print(f"loss      {result['loss']:.4f} ({type(loss).__name__})")
    print(f"accuracy  {result['accuracy']:.2%} ({correct:,} of {result['images']:,})")
    if (counts := result["confusion"]) is not None:
        classes = class_names(known_names, len(counts))
        print(_by_class(counts, classes))
        if len(classes) <= MAX_CLASSES:
            print(_matrix(counts, classes))
        print(_mistakes(counts, classes))
    return 0


def _by_class(counts, classes):
    width = max(map(len, classes))
    lines = ["\nby class: images, how many of them were recognised, recall"]
    for k, name in enumerate(classes):
        total, correct = int(counts[k].sum()), int(counts[k, k])
        share = f"{correct / total:.2%}" if total else "none"
        lines.append(f"  {name:<{width}}  {total:>6,}  {correct:>6,}  {share:>7}")
    return "\n".join(lines)


def _matrix(counts, classes):
    """Rows of counts, a dot for 0; columns are numbered where the names are long."""
    names = [name if len(name) <= 2 else str(k) for k, name in enumerate(classes)]
    head = [f"{k} {name}" if names[k] != name else name for k, name in enumerate(classes)]
    width = max(len(str(int(counts.max()))), *map(len, names)) + 1
    left = max(map(len, head))
    lines = ["\nconfusion matrix: a row for each true class, a column for each answer"]
    lines.append(" " * (left + 2) + "".join(name.rjust(width) for name in names))
    for name, row in zip(head, counts, strict=True):
        cells = "".join((str(count) if count else ".").rjust(width) for count in row)
        lines.append(f"  {name:<{left}}{cells}")
    return "\n".join(lines)


def _mistakes(counts, classes, shown=5):
    pairs = [(-int(counts[i, j]), i, j) for i, j in np.argwhere(counts) if i != j]
    if not pairs:
        return "\nno mistakes"
    worst = sorted(pairs)[:shown]
    listed = "; ".join(f"{classes[i]} taken for {classes[j]} {-count}x" for count, i, j in worst)
    return f"\nmost frequent mistakes: {listed}"
