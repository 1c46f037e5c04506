"""Train a network and test it: by default the article's LeNet on MNIST.

The run's folder gets last.safetensors, best.safetensors (the best accuracy on held-out training
images, where --validation holds some out), history.jsonl, curves.png and confusion.png. Without
--out it is runs/MODEL-DATA, or, where that is taken, the next free runs/MODEL-DATA-2 and so on; a
folder given by --out that holds a run is only replaced with --overwrite.

--data is mnist (the default), fashion-mnist, or a path: a folder of pictures by class, of IDX
files, of CIFAR-10 or CIFAR-100 (Python or binary version) or of .npy files, or an .npz file, with
arrays named x_train and y_train, or images and labels, say.
--recipe article sets the article's loss and plain gradient descent; other options go first.
--validation is 0.05, and 0 for small sets, unless it is given.
--size scales the pictures of a folder and pads other images; without it a folder has the model's
size, other images their own or the next that the model reads. --resize says how pictures get it,
also later (see predict): fit keeps their shape and pads, centre-crop keeps it and cuts, stretch
does not keep it.
--model mynet.py:build takes the network that the function `build` of mynet.py returns. The function
gets in_channels, num_classes, input_size and seed as far as it has such parameters. The checkpoint
keeps the file's name and sha256; the commands run the file only where --model names it.
--from FILE begins with the weights of a checkpoint, whose network it takes unless --model names
one, or of a file in torchvision's format (.safetensors, .pt, .pth). --classes N puts a new head in
place of one for another number of classes. --freeze leaves layers as they are: their weights, and
the running statistics of batch norm.
Under mpiexec or srun (mpiexec -n 4 gpuconv train ...) the ranks train together: each has its part
of every batch, --batch images are those of all ranks, and any number of ranks takes the same steps.
Batch norm takes each rank's part for the batch, unless --sync-batchnorm.
--ranks N starts N processes of this machine, each with its part of every batch; they share the
cores. mpiexec and srun start them on several machines (docs/distributed.md).
--resume goes on with the settings that the run began with, on any number of ranks. With more
--epochs than it had, it goes on from an epoch's end with a new schedule and the settings that are
given.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpuconv import distributed, train, viz
from gpuconv.cli.options import (
    DEVICE,
    PORT,
    SKIP_BAD,
    THREADS,
    add_options,
    image_size,
    number,
    one_of,
    path,
    seed,
    whole,
)
from gpuconv.devices import choose
from gpuconv.errors import one_line
from gpuconv.threads import thread_count
from gpuconv.train import PRESETS, Run
from gpuconv.train.config import CHOICES, DEFAULTS

SIGNALS = signal.SIGINT, signal.SIGTERM
EXAMPLES = """\
  gpuconv train
  gpuconv train --recipe article --seed 1
  gpuconv train --data fashion-mnist --epochs 5 --optimizer adam --lr 0.001 --schedule none
  gpuconv train --data pictures/ --augment shift+flip --out runs/pictures
  gpuconv train --model mynet.py:build --data pictures/
  gpuconv train --model resnet18 --from resnet18.safetensors --data pictures/ --classes 5 \\
                --freeze conv1,bn1,layer1,layer2
  gpuconv train --resume runs/lenet-mnist
  gpuconv train --resume runs/lenet-mnist --epochs 10 --lr 0.01   five more epochs
  gpuconv train --show                    watch it learn in the browser
  gpuconv train --ranks 2                 two processes, each with half of every batch
  mpiexec -n 8 gpuconv train              eight, see docs/distributed.md
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    def choice(name: str) -> tuple[str, Callable[[str], str]]:
        return "NAME", one_of(name, CHOICES[name])

    resize = one_of("way to resize", CHOICES["resize"])
    add_options(
        parser,
        ("--recipe", "NAME", one_of("recipe", PRESETS), "default or article: its loss, plain SGD"),
        ("--model", "NAME", str, "of a model, or mynet.py:build, see above (default: lenet)"),
        ("--from", "FILE", path, "weights to begin with, see above", {"dest": "weights"}),
        ("--freeze", "LAYERS", _names, "layers that do not train, as conv1,layer1"),
        ("--classes", "N", whole(1, 10**6), "of a new head, where the network has another number"),
        ("--data", "NAME|PATH", path, "mnist, fashion-mnist, or a folder, see above"),
        ("--epochs", "N", whole(1), "passes over the training images"),
        ("--batch", "N", whole(1), "images for each update"),
        ("--optimizer", *choice("optimizer"), listed("optimizer")),
        ("--lr", "RATE", number(positive=True), "learning rate, the highest of a schedule"),
        ("--momentum", "SHARE", number(below=1), "for sgd and lars"),
        ("--weight-decay", "RATE", number(), ""),
        ("--loss", *choice("loss"), listed("loss")),
        ("--schedule", *choice("schedule"), listed("schedule")),
        ("--warmup", "EPOCHS", number(), "in which the rate rises to the schedule's"),
        ("--base-batch", "N", whole(1), "images that --lr is for: it grows with --batch / N"),
        ("--label-smoothing", "SHARE", number(most=1), "of a label, spread over all classes"),
        ("--ema", "DECAY", number(below=1), "average weights over about 1 / (1 - DECAY) steps"),
        ("--clip", "NORM", number(positive=True), "the largest norm of all gradients together"),
        ("--augment", "NAMES", _augment, f"{listed('augment')}, or several as shift+flip"),
        ("--normalize", *choice("normalize"), "by the training set's mean and deviation, or not"),
        ("--validation", "FRACTION", number(below=1), "held out, to choose the best epoch by"),
        ("--limit", "N", whole(1), "only the first N training and test images"),
        ("--size", "N|HxW", image_size, "of the network's input, see above"),
        ("--resize", "NAME", resize, f"{listed('resize')}, see above (default: fit)"),
        ("--gray", None, bool, "make pictures of a folder gray"),
        SKIP_BAD,
        THREADS,
        ("--ranks", "N", whole(1, 4096), "processes of this machine, which share each batch"),
        seed("decides the weights, the order and the augmentation"),
        DEVICE,
        ("--precision", *choice("precision"), f"{listed('precision')}: see docs/devices.md"),
        ("--sync-batchnorm", None, bool, "on several ranks, batch norm of the whole batch"),
        ("--no-graph", None, bool, "on a device, run every step anew: see docs/devices.md"),
        ("--overwrite", None, bool, "replace the run that --out holds"),
        ("--show", None, bool, "follow and steer the run in the browser, see `show`"),
        PORT,
    )
    parser.set_defaults(**dict.fromkeys(DEFAULTS))
    where = parser.add_mutually_exclusive_group()
    add_options(where, ("--out", "DIR", path, "the run's folder (default: see above)"))
    add_options(where, ("--resume", "DIR", path, "go on with the run in DIR, see above"))


def listed(name: str) -> str:
    return ", ".join(CHOICES[name])


def run(args: argparse.Namespace) -> int:
    if args.ranks and args.ranks > 1 and not distributed.launched():
        return distributed.launch.run(args.ranks, args.given)
    ranks = distributed.init()
    if args.ranks not in (None, ranks.size):
        raise ValueError(f"train: --ranks is {args.ranks}, the launcher started {ranks.size}")
    for_new = ("--recipe", args.recipe), ("--overwrite", args.overwrite), ("--from", args.weights)
    for option, given in for_new:
        if args.resume and given:
            raise ValueError(f"train: {option} is for a new run; --resume goes on with the old one")
    stored = train.stored_config(args.resume, args.model) if args.resume else None
    extends = stored is not None and (args.epochs or 0) > stored["epochs"]
    if stored is not None and extends:
        stored = train.extended(args.resume, stored, args.epochs)
    changes = {name: getattr(args, name, None) for name in DEFAULTS}
    changes = {name: value for name, value in changes.items() if value is not None}
    if args.weights and args.model is None and stored is None:
        changes |= train.source(args.weights)
    if stored is not None and not extends:
        _require_unchanged(args.resume, stored, changes)
    config = train.run_config(args.recipe or "default", stored, **changes)
    # The page shows the weights before they are loaded.
    prepared = train.prepare(config, resumed=bool(args.resume and not args.show))
    if args.resume:
        folder = Path(args.resume)
    else:
        folder = ranks.from_root(
            lambda: train.make_run_folder(prepared.config, args.out, args.overwrite)
        )
    prepared.trainer.out, prepared.trainer.graph = folder, not args.no_graph
    distributed.on_failure(f"; to go on: gpuconv train --resume {folder}")
    if ranks.rank == 0:
        _announce(prepared)

    def fit(again: bool) -> None:
        history = prepared.fit(resume="extend" if extends else again or bool(args.resume))
        _report(prepared, folder, history)

    try:
        if args.show:
            _watch(prepared, args.port, fit)
        else:
            fit(again=False)
    except train.Interrupted as stop:
        hint = f"{stop}; to go on: gpuconv train --resume {folder}"
        raise train.Interrupted(stop.signal, hint) from None
    return 0


def _watch(prepared: Run, port: int, fit: Callable[[bool], None]) -> None:
    """Train as the page of rank 0 says; the other ranks do what it does."""
    ranks = prepared.trainer.communicator
    if ranks.rank == 0:
        from gpuconv.page.opening import watch

        def fit_all(again: bool) -> None:
            ranks.all_gather(again)
            fit(again)

        try:
            with distributed.patient():  # the page waits for its user
                watch(prepared, port, fit_all)
        finally:
            ranks.all_gather(None)
        return
    while (again := _told(ranks)) is not None:
        with suppress(train.Interrupted, ValueError, OSError, FloatingPointError):  # rank 0's too
            fit(again)


def _told(ranks: distributed.Communicator) -> bool | None:
    """What rank 0 says: whether to go on with the run, or None where there is nothing more to do.
    It has the same signals, and says what follows.
    """
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        return ranks.all_gather(None)[0]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _require_unchanged(folder: str, stored: dict[str, Any], changes: dict[str, Any]) -> None:
    """Refuse options that differ from the run's; of a device its name may: auto and cpu agree."""
    for name, value in changes.items():
        if name != "device" and stored.get(name) != value:
            option = "--from" if name == "weights" else f"--{name.replace('_', '-')}"
            raise ValueError(
                f"train: {option} is {value}, the run in {folder} has {stored.get(name)}; leave it "
                "out to resume, or give more --epochs to go on with other settings"
            )


def _announce(prepared: Run) -> None:
    config, trainer = prepared.config, prepared.trainer
    count = sum(parameter.data.size for parameter in trainer.model.parameters())
    images = f"{len(prepared.training.dataset):,} training images"
    if prepared.validation is not None:
        images += f", {len(prepared.validation.dataset):,} held out"
    print(f"{config['model']}, {count:,} parameters; {config['data']}, {images}")
    for note in prepared.notes:
        print(note)
    device = trainer.model.device
    if config["device"] == "auto":
        device += f" (auto: {choose()[1]})"
    if trainer.precision != "ieee":
        device += f", precision {trainer.precision} (float32 throughout: --precision ieee)"
    ranks = trainer.communicator.size
    several = f"{ranks} ranks of {thread_count()} threads" if ranks > 1 else ""
    print(
        f"device {device}, {several or f'{thread_count()} threads'}; folder {trainer.out}",
        flush=True,
    )


def _report(prepared: Run, folder: Path, history: list[dict[str, Any]]) -> None:
    """Test the trained network, on all ranks; print the result and where everything is."""
    result = train.test(prepared)
    if not prepared.trainer.leads:
        return
    correct = round(result["accuracy"] * result["images"])
    note = "" if prepared.config["limit"] is None else ", limited"
    print(
        f"\ntest accuracy  {result['accuracy']:.2%} ({correct:,} of {result['images']:,}{note}), "
        f"loss {result['loss']:.4f}, weights of epoch {result['epoch']}"
    )
    print(f"checkpoint     {result['checkpoint']}")
    print(f"history        {prepared.trainer.history.path}", flush=True)
    _draw(folder, history, result)


def _draw(out: Path, history: list[dict[str, Any]], result: dict[str, Any]) -> None:
    pictures = [out / "curves.png"]
    try:
        viz.curves(history, pictures[0])
        if result["confusion"] is not None:
            pictures.append(out / "confusion.png")
            viz.confusion(result["confusion"], result["dataset"].classes, pictures[1])
    except Exception as error:  # the run is finished, and all else is kept
        print(f"pictures       none: {one_line(error)}")
    else:
        print(f"pictures       {', '.join(map(str, pictures))}")


def _names(text):
    return [name.strip() for name in text.split(",") if name.strip()]


def _augment(text):
    known = one_of("augmentation", CHOICES["augment"])
    return "+".join(known(name) for name in text.split("+"))
