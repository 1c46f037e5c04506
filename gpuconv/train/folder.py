"""The folder of a run: which one it is, and that one run at a time trains in it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpuconv.train.config import RunConfig

RUN_FILES = ("last.safetensors", "best.safetensors", "history.jsonl")
PICTURES = ("curves.png", "confusion.png")


def make_run_folder(config: RunConfig, out: str | None, overwrite: bool) -> Path:
    """Make the folder of a new run.

    out: its path; None for runs/MODEL-DATA, or the first of runs/MODEL-DATA-2, -3, ... that does
    not exist. overwrite: take a folder that holds a run; its pictures are removed at once, the rest
    is replaced by the Trainer.
    Raises ValueError for a folder that holds a run, unless overwrite; OSError where no folder can
    be made.
    """
    if out is None:
        path = Path(os.path.expanduser(config["data"]))  # a data set's name stays as it is
        data = path.resolve().name or "data"
        model = Path(config["model"]).name.partition(".py")[0]
        return _next_free(Path("runs") / f"{model}-{data}")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    existing = [folder / name for name in RUN_FILES if (folder / name).exists()]
    if existing and not overwrite:
        raise ValueError(
            f"{folder}: holds a run already ({existing[0].name}); continue it with "
            f"--resume {folder}, replace it with --overwrite, or choose another folder"
        )
    with locked(folder):  # not while another run is in it
        for name in PICTURES:
            (folder / name).unlink(missing_ok=True)
    return folder


@contextmanager
def locked(folder: Path | None) -> Iterator[None]:
    """Make the folder; within, no other run can enter it.

    The lock is on the folder itself and leaves no file; it ends with the process, however that
    ends. On file systems without locks there is none. None stands for a run without a folder.
    Raises OSError in one line where the folder cannot be made or another run is in it.
    """
    if folder is None:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise type(error)(f"{folder}: cannot make this folder: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"{folder}: another run is training in this folder; wait for it, or choose another"
            ) from None
        except OSError:
            pass  # some network file systems lock no folders
        yield
    finally:
        os.close(descriptor)


def _next_free(folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    place, number = folder, 1
    while True:
        try:
            place.mkdir()
            return place
        except FileExistsError:
            number += 1
            place = folder.with_name(f"{folder.name}-{number}")
