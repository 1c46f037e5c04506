"""What several commands read: a checkpoint, its network and its data."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from gpuconv import checkpoint
from gpuconv.checkpoint import Checkpoint
from gpuconv.cli.options import one_of
from gpuconv.data import Dataset, Preprocessing
from gpuconv.errors import printable
from gpuconv.nn import Module
from gpuconv.precision import PRECISIONS, require_precision

NAMES = ", ".join(PRECISIONS)
PRECISION = (
    "--precision", "NAME", one_of("precision", PRECISIONS), f"{NAMES}: see docs/devices.md", "ieee"
)  # fmt: skip


def open_checkpoint(args: Namespace) -> tuple[Checkpoint, Module, Preprocessing]:
    """A command's checkpoint, its network in evaluation mode on the device, and the format of its
    images.
    """
    found = checkpoint.read(args.checkpoint)
    model = found.build(args.built_by).to(args.device)
    return found, model, Preprocessing.from_metadata(found.metadata, model.input_shape)


def say_precision(args: Namespace, found: Checkpoint, model: Module) -> None:
    """One line where a command computes in another precision than the network was trained in.
    ValueError where the device lacks it.
    """
    require_precision("--precision", args.precision, model.device)
    trained = (found.metadata.get("settings") or {}).get("precision", "ieee")
    if trained != args.precision:
        print(f"computed in {args.precision}; trained in {trained} (--precision {trained})")


def load_images(args: Namespace, found: Checkpoint, preprocessing: Preprocessing) -> Dataset:
    """The images that a command's options name, as the network reads them; the set that the
    checkpoint was trained on unless --data names another.
    """
    name = args.data or (found.metadata.get("settings") or {}).get("data", "mnist")
    return preprocessing.load(name, args.split, args.limit, args.skip_bad)


def class_names(classes: Sequence[str] | None, count: int) -> list[str]:
    """So many names, each on one line; its number for a class without a name."""
    names = list(map(printable, (classes or ())[:count]))
    return names + [str(k) for k in range(len(names), count)]
