"""Compiled kernels on disk, so that a second run starts at once. A file that cannot be read or
written is no error.

One file an entry: SHA-256 of the rest, length of the JSON, JSON, machine code. Written aside and
renamed, so a reader sees a whole entry or none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from functools import cache
from pathlib import Path

_TRIED: set[str] = set()


def folder() -> Path:
    """GPUCONV_CACHE_DIR, else the user's cache folder of this system."""
    if given := os.environ.get("GPUCONV_CACHE_DIR"):
        return Path(given) / "sim"
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or os.path.expanduser("~/AppData/Local")
    elif sys.platform == "darwin":
        base = os.path.expanduser("~/Library/Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "gpuconv" / "sim"


@cache
def own_version() -> str:
    """Hash of the simulator's own sources: any change of it makes old entries unreachable."""
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


def load(name: str) -> tuple[dict, bytes] | None:
    """The entry, or None where there is none or it is damaged."""
    try:
        data = (folder() / name).read_bytes()
    except OSError:
        return None
    if len(data) < 40 or hashlib.sha256(data[32:]).digest() != data[:32]:
        return None
    length = int.from_bytes(data[32:40], "little")
    return json.loads(data[40 : 40 + length]), data[40 + length :]


def store(name: str, facts: dict, code: bytes) -> None:
    """Write an entry; a folder that cannot be written is left alone."""
    text = json.dumps(facts).encode()
    payload = len(text).to_bytes(8, "little") + text + code
    with contextlib.suppress(OSError):
        folder().mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder(), prefix=".new-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(payload).digest() + payload)
            os.replace(temporary, folder() / name)
        except OSError:
            os.unlink(temporary)
            raise
