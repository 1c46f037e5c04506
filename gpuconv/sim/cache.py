"""Compiled kernels on disk, so that the next process need not compile them again.

The cache is never needed: whatever goes wrong with it (no home folder, a folder that cannot be
written or belongs to somebody else, a full disk, a damaged entry) is a miss, and the kernel is
compiled. An entry is executed as machine code, so it is read only from a folder that nobody else
can write (mode 0700) and only if its checksum is right.

An entry is one file: a SHA-256 of its name and contents, then the contents, pickled: they hold
machine code, so whoever could forge a pickle could do as much without. It is written under a
temporary name and renamed, so that a reader sees a whole entry or none.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import stat
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

_DIGEST = hashlib.sha256().digest_size


def folder() -> Path | None:
    """GPUCONV_CACHE_DIR, or the system's folder for a user's caches; None where there is none.

    A relative path would name another folder in every working directory, so it counts as none:
    it is also what `~` leaves behind for a user without HOME and without an entry in passwd.
    """
    if chosen := os.environ.get("GPUCONV_CACHE_DIR"):
        path = Path(os.path.expanduser(chosen), "sim")
    else:
        path = Path(_user_caches(), "gpuconv", "sim")
    return path if path.is_absolute() else None


def _user_caches() -> str:
    if sys.platform == "win32":
        return os.environ.get("LOCALAPPDATA") or os.path.expanduser("~/AppData/Local")
    if sys.platform == "darwin":
        return os.path.expanduser("~/Library/Caches")
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    return xdg if os.path.isabs(xdg) else os.path.expanduser("~/.cache")


@cache
def own_version() -> str:
    """Hash of the simulator's own sources: any change of them makes old entries unreachable."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.iterdir()):
        if path.suffix in (".py", ".cu"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def key(*parts: str) -> str:
    """Name of the entry for these parts and this version of the simulator."""
    digest = hashlib.sha256()
    for part in (own_version(), *parts):
        digest.update(len(part).to_bytes(8, "little") + part.encode())
    return digest.hexdigest()


def load(name: str) -> Any:
    """The contents of an entry, or None where there is none that can be trusted."""
    place = folder()
    if place is None or not _private(place):
        return None
    try:
        data = (place / name).read_bytes()
    except OSError:
        return None
    payload = data[_DIGEST:]
    return pickle.loads(payload) if data[:_DIGEST] == _checksum(name, payload) else None


def store(name: str, contents: Any) -> None:
    """Write an entry, if that can be done."""
    place = folder()
    if place is None:
        return
    payload = pickle.dumps(contents)
    with contextlib.suppress(OSError):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _private(place):
            _write(place / name, _checksum(name, payload) + payload)


def _write(path: Path, data: bytes) -> None:
    """Write a file as a whole or not at all. Raises OSError where that fails."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _checksum(name: str, payload: bytes) -> bytes:
    """It covers the name too: an entry under another entry's name is another kernel."""
    return hashlib.sha256(name.encode() + b"\0" + payload).digest()


def _private(place: Path) -> bool:
    """Whether nobody else can write to the folder; a folder of this user's is made so."""
    if not hasattr(os, "getuid"):
        return True  # Windows: the folder inherits the access rights of the user's profile
    try:
        status = os.stat(place)
        if status.st_uid != os.getuid():
            return False
        if stat.S_IMODE(status.st_mode) != 0o700:
            os.chmod(place, 0o700)
    except OSError:
        return False
    return True
