"""Atomic writes: a reader of the path sees the old file or the new one, never a part of either."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


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
        raise cannot_write(target, FileNotFoundError(errno.ENOENT, reason))
    try:
        temporary, descriptor = _temporary(target)
        try:
            with os.fdopen(descriptor, "wb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, target)  # while it is open, and so locked
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)
    except OSError as error:
        raise cannot_write(target, error) from None


def remove_leftovers(folder: Path) -> None:
    """Delete the files that killed processes left half written; those of living ones stay.

    A writer holds a lock on its file, which ends with the process, whatever its number or its
    container. Where that does not tell, on file systems without locks and for files of version 0.1,
    files of the last day stay.
    """
    for leftover in folder.glob(".*.tmp"):
        match = _NAME.fullmatch(leftover.name)
        if match and _is_dead(leftover, locked=match["by_lock"] is not None):
            leftover.unlink(missing_ok=True)


_NAME = re.compile(r"\..+\.((?P<by_lock>[0-9a-f]{16})|\d+-\d+)\.tmp")
_DAY = 86400.0


def _temporary(target: Path) -> tuple[Path, int]:
    """A new file beside the target, open and locked by this process."""
    while True:
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            continue
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        os.close(descriptor)  # somebody tidied it away before it was locked


def _is_dead(leftover: Path, locked: bool) -> bool:
    """Whether nobody writes the file. locked: whether its writer locks it."""
    try:
        descriptor = os.open(leftover, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False  # gone, or not ours to read
    try:
        if locked:
            with contextlib.suppress(OSError):  # no locks here
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
                return True
        return time.time() - os.fstat(descriptor).st_mtime > _DAY
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems cannot sync a folder; the rename itself is done
    finally:
        os.close(descriptor)


def cannot_write(path: Path, error: OSError) -> OSError:
    """The error in one line that names the path."""
    named = type(error)(f"{path}: cannot write: {error.strerror or error}")
    named.errno = error.errno
    return named
