"""What several commands read: a checkpoint, its network and its data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuconv.errors import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpuconv.checkpoint import Checkpoint
    from gpuconv.data import Preprocessing
    from gpuconv.nn import Module


def open_checkpoint(path: str, device: str) -> tuple[Checkpoint, Module, Preprocessing]:
    """A checkpoint, its network in evaluation mode on the device, and the format of its images."""
    from gpuconv import checkpoint
    from gpuconv.data import Preprocessing

    found = checkpoint.read(path)
    model = found.build().to(device)
    return found, model, Preprocessing.from_metadata(found.metadata, model.input_shape)


def data_name(name_or_path: str | None, found: Checkpoint) -> str:
    """The data set that was asked for, else the one that the checkpoint was trained on."""
    settings = found.metadata.get("settings") or {}
    name: str = name_or_path or settings.get("data", "mnist")
    return name


def class_names(classes: Sequence[str] | None, count: int) -> list[str]:
    """So many names, each on one line; its number for a class without a name."""
    names = list(map(printable, (classes or ())[:count]))
    return names + [str(k) for k in range(len(names), count)]
