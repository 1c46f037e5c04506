"""Run one image through the article's five training steps and print every stage's numbers.

The network is fresh, its weights random; the loss is the article's total error, the sum of
1/2 (target - probability)^2; the update is plain gradient descent.
"""

from __future__ import annotations

import argparse

import numpy as np

from gpuconv import data, models, nn
from gpuconv.arrays import to_device, to_numpy
from gpuconv.cli.options import DEVICE, add_options, number, seed, whole
from gpuconv.data.preprocessing import image_size
from gpuconv.errors import printable
from gpuconv.nn import Conv2d
from gpuconv.ops import softmax
from gpuconv.optim import SGD

EXAMPLES = """\
  gpuconv steps
  gpuconv steps --index 7 --lr 0.001 --repeat 10
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(
        parser,
        ("--model", "NAME", str, "or mynet.py:build", "lenet"),
        ("--data", "NAME|PATH", str, "a data set", "mnist"),
        ("--index", "N", whole(0), "which training image", 0),
        ("--lr", "RATE", number(), "learning rate", 0.01),
        ("--repeat", "N", whole(0), "further steps with the same image at the end", 5),
        seed("the seed of the random weights"),
        DEVICE,
    )


def run(args: argparse.Namespace) -> int:
    undrawn = models.named(args.model, None)
    dataset = data.load(args.data, size=image_size(undrawn.input_shape), resize="fit")
    if args.index >= len(dataset):
        raise ValueError(
            f"steps: there is no image {args.index} in {dataset.name}, "
            f"expected 0 to {len(dataset) - 1}"
        )
    spec = {"num_classes": len(dataset.classes), "in_channels": dataset.image_shape[0]}
    model = models.named(args.model, args.seed, **spec)
    model.to(args.device)
    loss = nn.ArticleLoss()
    x = to_device(dataset.batch([args.index], size=image_size(model.input_shape)), model.device)
    labels = to_device(dataset.labels[args.index : args.index + 1], model.device)
    _show_image(dataset, args.index)
    _initialise(model, args.seed)
    scores = _forward(model, x)
    before = _error(loss, scores, labels, [printable(name) for name in dataset.classes])
    optimizer = SGD(model.parameters(), lr=args.lr)
    after = _backward(model, loss, optimizer, x, labels, before)
    _repeat(model, loss, optimizer, x, labels, args.repeat, after)
    return 0


def _show_image(dataset, index):
    image, name = dataset.images[index], printable(dataset.classes[dataset.labels[index]])
    if image.dtype != np.uint8:
        image = np.rint(image * 255).astype(np.int64)
    ink = image.max(axis=0) > 0
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    top, bottom = (rows[0], rows[-1]) if len(rows) else (0, 0)
    left, right = (columns[0], columns[-1]) if len(columns) else (0, 0)
    channels, height, width = image.shape
    print(f"image {index} of {dataset.name}, class {name}: ", end="")
    print(f"{height}x{width} pixels from 0, black (shown as a dot), to 255")
    note = ", first of its channels" if channels > 1 else ""
    print(f"rows {top} to {bottom}, columns {left} to {right}, the rest is black{note}:\n")
    for row in image[0, top : bottom + 1, left : right + 1]:
        print("  " + " ".join(f"{value or '.':>3}" for value in row))


def _initialise(model, seed):
    print(f"\nStep 1. Every filter and weight gets a random number (seed {seed}).\n")
    for name, parameter in model.named_parameters():
        shape = "x".join(map(str, parameter.shape))
        data = to_numpy(parameter.data)
        print(
            f"  {name:<14}{shape:<12}{data.size:>8,} numbers, {_g(data.min())} to {_g(data.max())}"
        )
    count = sum(parameter.data.size for parameter in model.parameters())
    print(f"  {'together':<26}{count:>8,} numbers")


def _forward(model, x):
    print("\nStep 2. Forward: the image, as numbers from 0 to 1 with a black border, passes every")
    print("layer; the last one's outputs are the scores.\n")
    print(f"  {'layer':<10}{'type':<12}{'output':<12}{'least':>10}{'mean':>10}{'largest':>10}")
    print(_line("image", "", to_numpy(x)))
    traced, worked = nn.trace(model, x, training=True), ""
    for call in traced.calls:
        before, y = (to_numpy(traced.tensors[step].data) for step in (call.source, call.output))
        print(_line(call.name, type(call.module).__name__, y))
        if isinstance(call.module, Conv2d) and not worked and call.module.window.taps_count <= 121:
            worked = _worked_number(call.name, call.module, before, y)
    print(worked)
    return traced.tensors[traced.outputs[""]].data


def _line(name, kind, y):
    shape = "x".join(map(str, y.shape[1:]))
    return f"  {name:<10}{kind:<12}{shape:<12}{_g(y.min()):>10}{_g(y.mean()):>10}{_g(y.max()):>10}"


def _worked_number(name, layer, x, y):
    """One output of a convolution as the sum of its products: the middle one of the first map."""
    p, q = y.shape[2] // 2, y.shape[3] // 2
    (top, _), (left, _) = layer.window.pads(*x.shape[2:])
    padded = np.pad(x[0, : layer.weight.shape[1]], ((0, 0), (top, top), (left, left)))
    weights = to_numpy(layer.weight.data)[0].astype(np.float64)
    bias = 0.0 if layer.bias is None else float(to_numpy(layer.bias.data)[0])
    (R, S), (dil_h, dil_w) = layer.window.kernel_size, layer.window.dilation
    r, s = p * layer.window.stride[0], q * layer.window.stride[1]
    pixels = padded[:, r : r + dil_h * R : dil_h, s : s + dil_w * S : dil_w].astype(np.float64)
    terms = [
        f"    {' + '.join(f'{a:.3f}*{b:.3f}' for a, b in zip(*pair, strict=True))}"
        for pair in zip(pixels[0], weights[0], strict=True)
    ]
    products = float((pixels * weights).sum())
    more = f" (and {len(weights) - 1} more channels)" if len(weights) > 1 else ""
    return (
        f"\n  One of them by hand: {name}, map 0, row {p}, column {q}, pixels x filter:\n"
        + " +\n".join(terms)
        + f"{more}\n    = {products:.5f}; with the bias {bias:.5f}: {products + bias:.5f}"
        + f" (the layer's own: {float(y[0, 0, p, q]):.5f})"
    )


def _error(loss, scores, labels, classes):
    error, right = float(loss(scores, labels)), int(to_numpy(labels)[0])
    scores = to_numpy(scores)
    probabilities = softmax.reference(scores)[0]
    print("\nStep 3. The softmax makes probabilities of the scores; the total error is the sum of")
    print("1/2 (target - probability)^2 over the classes.\n")
    print(f"  {'class':<14}{'score':>10}{'probability':>13}{'target':>8}{'1/2 (t-p)^2':>13}")
    for k, name in enumerate(classes):
        p, target = float(probabilities[k]), int(k == right)
        print(f"  {name:<14}{float(scores[0, k]):>10.5f}{p:>13.6f}{target:>8}", end="")
        print(f"{(target - p) ** 2 / 2:>13.6f}")
    print(f"\n  sum of the probabilities {probabilities.sum():.6f}; total error {error:.6f}")
    return error


def _backward(model, loss, optimizer, x, labels, before):
    lr = optimizer.lr
    optimizer.zero_grad()
    loss(model(x), labels).backward()
    print("\nStep 4. Backpropagation: the gradient says how the error changes with each number;")
    print(f"every number moves against it, by {lr:g} times its gradient.\n")
    print(f"  {'parameter':<14}{'gradient norm':>14}{'largest':>12}{'largest move':>14}")
    named = [
        (name, p, to_numpy(p.data).copy(), np.float64(to_numpy(p.grad)))
        for name, p in model.named_parameters()
    ]
    optimizer.step()
    total = 0.0
    for name, parameter, was, gradient in named:
        square = float((gradient**2).sum())
        total += square
        moved = np.abs(to_numpy(parameter.data) - was).max()
        print(f"  {name:<14}{square**0.5:>14.6f}{np.abs(gradient).max():>12.6f}{moved:>14.6f}")
    after = float(loss(model(x), labels))
    print(f"  {'together':<14}{total**0.5:>14.6f}")
    verb, change = "fell" if after < before else "did not fall", after - before
    print(f"\n  the error {verb}: {before:.6f} -> {after:.6f}, a change of {change:+.6f}")
    print(f"  (to first order -rate x norm^2 = {-lr * total:+.6f})")
    return after


def _repeat(model, loss, optimizer, x, labels, times, after):
    print("\nStep 5. Repeat with all images of the training set: gpuconv train --recipe article")
    if not times:
        return
    errors = [after]
    for _ in range(times):
        optimizer.zero_grad()
        loss(model(x), labels).backward()
        optimizer.step()
        errors.append(float(loss(model(x), labels)))
    print(f"With this image alone, {times} more times, the error goes\n")
    print("  " + " ".join(f"{error:.6f}" for error in errors))


def _g(value):
    return f"{float(value):.4f}"
