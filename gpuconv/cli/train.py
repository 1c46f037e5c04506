"""Train a network and test it: by default the article's LeNet on MNIST.

The run's folder gets last.safetensors, best.safetensors (the best accuracy on held-out training
images, where --validation holds some out), history.jsonl, curves.png and confusion.png. Without
--out it is runs/MODEL-DATA, or, where that is taken, the next free runs/MODEL-DATA-2 and so on; a
folder given by --out that holds a run is only replaced with --overwrite.
"""

from __future__ import annotations

import argparse

from gpuconv.cli import recipes
from gpuconv.cli.options import add_device, add_port, add_seed, number, one_of, whole

HELP = "train a network, by default the article's LeNet on MNIST, and test it"
EXAMPLES = """\
  gpuconv train
  gpuconv train --recipe article --seed 1
  gpuconv train --data fashion-mnist --epochs 5 --optimizer adam --lr 0.001 --schedule none
  gpuconv train --data pictures/ --augment shift+flip --out runs/pictures
  gpuconv train --resume runs/lenet-mnist
  gpuconv train --show                    watch it learn in the browser
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--recipe",
        default="default",
        type=one_of("recipe", recipes.RECIPES),
        metavar="NAME",
        help="default, or article: its own loss, plain gradient descent; other options go first",
    )
    add("--model", metavar="NAME", help="(default: lenet)")
    add(
        "--data",
        metavar="NAME|PATH",
        help="mnist, fashion-mnist, a folder of IDX files or of pictures by class (default: mnist)",
    )
    add("--epochs", type=whole(1), metavar="N", help="passes over the training images")
    add("--batch", type=whole(1), metavar="N", help="images for each update")
    add(
        "--optimizer",
        type=one_of("optimizer", recipes.LEARNING_RATES),
        metavar="NAME",
        help="sgd, adam, adamw",
    )
    add("--lr", type=number(), metavar="RATE", help="learning rate, the highest of a schedule")
    add("--momentum", type=number(below=1), metavar="SHARE", help="for sgd")
    add("--weight-decay", type=number(), metavar="RATE")
    add(
        "--loss",
        type=one_of("loss", recipes.LOSSES),
        metavar="NAME",
        help=", ".join(recipes.LOSSES),
    )
    add(
        "--schedule",
        type=one_of("schedule", recipes.SCHEDULES),
        metavar="NAME",
        help=", ".join(recipes.SCHEDULES),
    )
    add(
        "--label-smoothing",
        type=number(below=1.0),
        metavar="SHARE",
        help="of each label, spread over all classes; with --loss cross_entropy",
    )
    add(
        "--ema",
        type=number(below=1.0),
        metavar="DECAY",
        help="test and keep the weights' moving average over about 1 / (1 - DECAY) steps",
    )
    add("--clip", type=number(), metavar="NORM", help="the largest norm of all gradients together")
    add(
        "--augment",
        type=_augment,
        metavar="NAMES",
        help=f"{', '.join(recipes.AUGMENT)}, or several as shift+flip",
    )
    add(
        "--normalize",
        type=one_of("normalisation", recipes.NORMALIZE),
        metavar="NAME",
        help="data: subtract the training set's mean, divide by its deviation; none: pixels 0 to 1",
    )
    add(
        "--validation",
        type=number(below=1),
        metavar="FRACTION",
        help="training images held out, to choose the best epoch by (default: 0.05; small sets 0)",
    )
    add("--limit", type=whole(1), metavar="N", help="only the first N training and test images")
    add("--gray", action="store_const", const=True, help="make pictures of a folder gray")
    add("--threads", type=whole(1), metavar="N", help="(default: all cores)")
    add_seed(parser, "decides the weights, the order and the augmentation")
    add_device(parser)
    parser.set_defaults(**dict.fromkeys(recipes.DEFAULT))
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", metavar="DIR", help="the run's folder (default: see above)")
    where.add_argument(
        "--resume", metavar="DIR", help="go on with the run in DIR, with the settings it began with"
    )
    add("--overwrite", action="store_true", help="replace the run that --out holds")
    add("--show", action="store_true", help="follow and steer the run in the browser, see `show`")
    add_port(parser)


def run(args: argparse.Namespace) -> int:
    from gpuconv.cli.training import train

    given = {name: getattr(args, name) for name in recipes.DEFAULT}
    train(args, {name: value for name, value in given.items() if value is not None})
    return 0


def _augment(text):
    known = one_of("augmentation", recipes.AUGMENT)
    return "+".join(known(name) for name in text.split("+"))
