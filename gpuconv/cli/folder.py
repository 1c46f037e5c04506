"""The folder of a run: a new one, the next free one, or one to replace."""

from __future__ import annotations

import itertools
from pathlib import Path

from gpuconv.cli.recipes import Settings

RUN = ("last.safetensors", "best.safetensors", "history.jsonl")
PICTURES = ("curves.png", "confusion.png")


def begin_folder(chosen: Settings, out: str | None, overwrite: bool) -> Path:
    """The folder for a new run, made.

    out None: runs/MODEL-DATA, or the first of runs/MODEL-DATA-2, -3, ... that is not there yet.
    Raises ValueError for a folder that holds a run, unless overwrite, which removes its
    pictures at once and leaves the rest for the Trainer to replace;
    OSError where no folder can be made there.
    """
    if out is None:
        data = Path(chosen["data"]).expanduser().resolve().name or "data"  # a set's name stays
        return _next_free(Path("runs") / f"{chosen['model']}-{data}")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    held = [folder / name for name in RUN if (folder / name).exists()]
    if held and not overwrite:
        raise ValueError(
            f"{folder}: holds a run already ({held[0].name}); continue it with --resume {folder}, "
            f"replace it with --overwrite, or choose another folder"
        )
    for name in PICTURES:
        (folder / name).unlink(missing_ok=True)
    return folder


def _next_free(folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        place = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            place.mkdir()
        except FileExistsError:
            continue
        return place
    raise AssertionError("there is always a next number")
