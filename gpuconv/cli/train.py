"""Train a network and test it: by default the article's LeNet on MNIST.

The run's folder gets last.safetensors, best.safetensors (the best accuracy on held-out training
images, where --validation holds some out), history.jsonl, curves.png and confusion.png. Without
--out it is runs/MODEL-DATA, or, where that is taken, the next free runs/MODEL-DATA-2 and so on; a
folder given by --out that holds a run is only replaced with --overwrite.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuconv.cli.options import (
    add_device,
    add_port,
    add_seed,
    add_skip_bad,
    image_size,
    number,
    one_of,
    whole,
)

if TYPE_CHECKING:
    from gpuconv.train import Run

HELP = "train a network, by default the article's LeNet on MNIST, and test it"
EXAMPLES = """\
  gpuconv train
  gpuconv train --recipe article --seed 1
  gpuconv train --data fashion-mnist --epochs 5 --optimizer adam --lr 0.001 --schedule none
  gpuconv train --data pictures/ --augment shift+flip --out runs/pictures
  gpuconv train --resume runs/lenet-mnist
  gpuconv train --resume runs/lenet-mnist --epochs 10 --lr 0.01   five more epochs
  gpuconv train --show                    watch it learn in the browser
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from gpuconv.train.config import (
        AUGMENT,
        DEFAULTS,
        LEARNING_RATES,
        LOSSES,
        NORMALIZE,
        PRESETS,
        RESIZE,
        SCHEDULES,
    )

    add = parser.add_argument
    add(
        "--recipe",
        type=one_of("recipe", PRESETS),
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
        type=one_of("optimizer", LEARNING_RATES),
        metavar="NAME",
        help="sgd, adam, adamw",
    )
    add(
        "--lr",
        type=number(positive=True),
        metavar="RATE",
        help="learning rate, the highest of a schedule",
    )
    add("--momentum", type=number(below=1), metavar="SHARE", help="for sgd")
    add("--weight-decay", type=number(), metavar="RATE")
    add(
        "--loss",
        type=one_of("loss", LOSSES),
        metavar="NAME",
        help=", ".join(LOSSES),
    )
    add(
        "--schedule",
        type=one_of("schedule", SCHEDULES),
        metavar="NAME",
        help=", ".join(SCHEDULES),
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
    add(
        "--clip",
        type=number(positive=True),
        metavar="NORM",
        help="the largest norm of all gradients together",
    )
    add(
        "--augment",
        type=_augment,
        metavar="NAMES",
        help=f"{', '.join(AUGMENT)}, or several as shift+flip",
    )
    add(
        "--normalize",
        type=one_of("normalisation", NORMALIZE),
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
    add(
        "--size",
        type=image_size,
        metavar="N|HxW",
        help="of the network's input: pictures of a folder are scaled to it, other images padded "
        "(default: of a folder the model's own, else the images' own or the next that fits)",
    )
    add("--gray", action="store_const", const=True, help="make pictures of a folder gray")
    add(
        "--resize",
        type=one_of("way to resize", RESIZE),
        metavar="NAME",
        help="how pictures get the network's size, also later, see predict: fit keeps their shape "
        "and pads them, centre-crop keeps it and cuts, stretch does not keep it (default: fit)",
    )
    add_skip_bad(parser)
    add("--threads", type=whole(1), metavar="N", help="(default: all cores)")
    add_seed(parser, "decides the weights, the order and the augmentation")
    add_device(parser)
    parser.set_defaults(**dict.fromkeys(DEFAULTS))
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", metavar="DIR", help="the run's folder (default: see above)")
    where.add_argument(
        "--resume",
        metavar="DIR",
        help="go on with the run in DIR, with the settings it began with; with more --epochs than "
        "it had, from an epoch's end with a new schedule and the settings given",
    )
    add("--overwrite", action="store_true", help="replace the run that --out holds")
    add("--show", action="store_true", help="follow and steer the run in the browser, see `show`")
    add_port(parser)


def run(args: argparse.Namespace) -> int:
    from gpuconv import train
    from gpuconv.threads import set_thread_count
    from gpuconv.train.config import DEFAULTS

    for option, given in (("--recipe", args.recipe), ("--overwrite", args.overwrite)):
        if args.resume and given:
            raise ValueError(f"train: {option} is for a new run; --resume goes on with the old one")
    if args.threads is not None:
        set_thread_count(args.threads)
    stored = train.stored_config(args.resume) if args.resume else None
    extends = stored is not None and (args.epochs or 0) > stored["epochs"]
    if stored is not None and extends:
        stored = train.extended(args.resume, stored, args.epochs)
    changes = {name: getattr(args, name, None) for name in DEFAULTS}
    changes = {name: value for name, value in changes.items() if value is not None}
    if stored is not None and not extends:
        _require_unchanged(args.resume, stored, changes)
    prepared = train.prepare(train.run_config(args.recipe or "default", stored, **changes))
    if args.resume:
        folder = Path(args.resume)
    else:
        folder = train.make_run_folder(prepared.config, args.out, args.overwrite)
    prepared.trainer.out = folder
    _announce(prepared)

    def fit(again: bool) -> None:
        history = prepared.fit(resume="extend" if extends else again or bool(args.resume))
        _report(prepared, folder, history)

    try:
        if args.show:
            from gpuconv.page.opening import watch

            watch(prepared, args.port, fit)
        else:
            fit(again=False)
    except train.Interrupted as stop:
        hint = f"{stop}; to go on: gpuconv train --resume {folder}"
        raise train.Interrupted(stop.signal, hint) from None
    return 0


def _require_unchanged(folder: str, stored: dict[str, Any], changes: dict[str, Any]) -> None:
    """Refuse options that differ from the run's; of a device its name may: auto and cpu agree."""
    for name, value in changes.items():
        if name != "device" and stored.get(name) != value:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"train: {option} is {value}, the run in {folder} has {stored.get(name)}; leave it "
                "out to resume, or give more --epochs to go on with other settings"
            )


def _announce(prepared: Run) -> None:
    from gpuconv.devices import choose
    from gpuconv.threads import thread_count

    config, trainer = prepared.config, prepared.trainer
    count = sum(parameter.data.size for parameter in trainer.model.parameters())
    images = f"{len(prepared.training.dataset):,} training images"
    if prepared.validation is not None:
        images += f", {len(prepared.validation.dataset):,} held out"
    print(f"{config['model']}, {count:,} parameters; {config['data']}, {images}")
    device = trainer.model.device
    if config["device"] == "auto":
        device += f" (auto: {choose()[1]})"
    print(f"device {device}, {thread_count()} threads; folder {trainer.out}", flush=True)


def _report(prepared: Run, folder: Path, history: list[dict[str, Any]]) -> None:
    """Test the trained network; print the result and where everything is."""
    from gpuconv import train

    result = train.test(prepared)
    correct = int(result["confusion"].trace())
    note = "" if prepared.config["limit"] is None else ", limited"
    print(
        f"\ntest accuracy  {result['accuracy']:.2%} ({correct:,} of {result['images']:,}{note}), "
        f"loss {result['loss']:.4f}, weights of epoch {result['epoch']}"
    )
    print(f"checkpoint     {result['checkpoint']}")
    print(f"history        {prepared.trainer.history.path}", flush=True)
    _draw(folder, history, result)


def _draw(out: Path, history: list[dict[str, Any]], result: dict[str, Any]) -> None:
    from gpuconv.errors import one_line
    from gpuconv.viz import confusion, curves

    pictures = out / "curves.png", out / "confusion.png"
    try:
        curves(history, pictures[0])
        confusion(result["confusion"], result["dataset"].classes, pictures[1])
    except Exception as error:  # the run is finished, and all else is kept
        print(f"pictures       none: {one_line(error)}")
    else:
        print(f"pictures       {pictures[0]}, {pictures[1]}")


def _augment(text):
    from gpuconv.train.config import AUGMENT

    known = one_of("augmentation", AUGMENT)
    return "+".join(known(name) for name in text.split("+"))
