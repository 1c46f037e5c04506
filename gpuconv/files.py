"""Atomic writes: a reader of the path sees the old file or the new one, never a part of either."""

from __future__ import annotations

import errno
import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_counter = itertools.count()


def write_atomically(
    path: str | os.PathLike[str], content: bytes | Callable[[BinaryIO], None]
) -> None:
    """Write a file so that a kill or a full disk leaves the old file or the new one, whole.

    The content is written beside its place, fsynced and renamed over the old file; then the folder
    is fsynced. content: the bytes, or a function that writes them to an open file.

    Raises: OSError in one line that names the path, with errno kept; nothing is left behind then.

    >>> write_atomically("numbers.json", b"[1, 2]")  # doctest: +SKIP
    """
    target = Path(path)
    if not target.parent.exists():
        reason = f"there is no folder {target.parent}; create it first"
        raise _cannot_write(target, FileNotFoundError(errno.ENOENT, reason))
    # The process's number lets `remove_leftovers` tell a dead writer's file from a living one's.
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{next(_counter)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)
    except OSError as error:
        raise _cannot_write(target, error) from None


def remove_leftovers(folder: Path) -> None:
    """Delete the files that killed processes left half written; those of living ones stay."""
    for leftover in folder.glob(".*.tmp"):
        match = re.fullmatch(r"\..+\.(\d+)-\d+\.tmp", leftover.name)
        if match and not _alive(int(match[1])):
            leftover.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return False  # this process has not written yet: a dead one had the same number
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems cannot sync a folder; the rename itself is done
    finally:
        os.close(descriptor)


def _cannot_write(path: Path, error: OSError) -> OSError:
    named = type(error)(f"{path}: cannot write: {error.strerror or error}")
    named.errno = error.errno
    return named
