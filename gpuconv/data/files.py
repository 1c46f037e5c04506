"""What readers and writers of data share: the error for bad data, and whole-file writes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


class DataError(ValueError):
    """A data file or array that cannot be used: corrupted, truncated, or not what it should be.

    The message is one line: the file or image, what came, what was expected, the way out.
    """


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write `content` to `path` so that a kill or a full disk leaves the old file or the new one.

    Raises OSError where the folder cannot be written; nothing is left behind then.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: there is no folder {target.parent}; create it first")
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp's 0600 would hide a shared cache from its other readers
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
