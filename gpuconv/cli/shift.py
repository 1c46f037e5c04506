"""Test the article's claim that pooling makes a network bear small shifts.

The article's LeNet is trained with its max-pools, with average pools, with every second pixel taken
instead (as small, but nothing is pooled) and without any of these, each with every seed; images are
not moved in training. Then test images are moved 1, 2 and 3 pixels in eight directions, within a
field of 32x32 that hardly any of MNIST's ink leaves (0.015% at 3 pixels, none before). Printed
are the accuracy, how many answers stay the same, and how far the features move that enter the
first fully connected layer, as a share of their length: the mean of the seeds, and in brackets the
smallest and the largest.
"""

from __future__ import annotations

import argparse

from gpuconv.cli.options import add_device, numbers, whole

HELP = "the pooling experiment: digits moved 1 to 3 pixels, with and without pooling"
EXAMPLES = """\
  gpuconv shift
  gpuconv shift --seeds 0,1,2,3,4 --train 60000 --test 10000 --epochs 5
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seeds", type=numbers, default=(0, 1, 2), metavar="N,N", help="(default: 0,1,2)"
    )
    parser.add_argument(
        "--train", type=whole(1), default=10000, metavar="N", help="images (default: 10000)"
    )
    parser.add_argument(
        "--test", type=whole(1), default=2000, metavar="N", help="images (default: 2000)"
    )
    parser.add_argument("--epochs", type=whole(1), default=3, metavar="N", help="(default: 3)")
    parser.add_argument(
        "--data",
        default="mnist",
        metavar="NAME|PATH",
        help="light figures on black (default: mnist)",
    )
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    from gpuconv.cli.inputs import load_data
    from gpuconv.devices import resolve
    from gpuconv.explain.shift import POOLS, shift_experiment

    train = load_data(args.data, "train", None, False, args.train)
    test = load_data(args.data, "test", None, False, args.test)
    print(
        f"{train.name}: trained on {len(train):,} images, {args.epochs} epochs, Adam 1e-3; "
        f"tested on {len(test):,}; seeds {', '.join(map(str, args.seeds))}",
        flush=True,
    )
    device = resolve(args.device)
    found = []
    given = {"seeds": args.seeds, "epochs": args.epochs, "device": device}
    for result in shift_experiment(train, test, **given):
        found.append(result)
        print(f"  seed {result.seed}, {result.pooling}: {result.accuracy[0]:.2%}", flush=True)
    print(_table("accuracy", found, POOLS, lambda one: one.accuracy, parameters=True))
    print(_table("answers that stay the same", found, POOLS, lambda one: one.same))
    print(_table("movement of the features", found, POOLS, lambda one: one.change))
    return 0


def _table(title, found, poolings, values, parameters=False):
    rows = []
    for pooling in poolings:
        ours = [one for one in found if one.pooling == pooling]
        cells = [_spread(column) for column in zip(*map(values, ours), strict=True)]
        count = f"{ours[0].parameters:,}" if parameters else ""
        rows.append([pooling, count, *cells])
    moved = [f"{d} px" for d in range(len(rows[0]) - 2)]
    head = [title, "parameters" if parameters else "", *moved]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    widths[0] = max(widths[0], len("movement of the features"))
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    ]
    return "\n" + "\n".join(line.rstrip() for line in lines)


def _spread(values):
    mean = sum(values) / len(values)
    return f"{100 * mean:.1f}% ({100 * min(values):.1f} to {100 * max(values):.1f})"
