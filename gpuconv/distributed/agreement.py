"""What the ranks of a run must have in common, compared before it begins."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import socket
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import gpuconv
from gpuconv.cuda import source
from gpuconv.distributed.communicator import Communicator
from gpuconv.errors import DataError

# What computes: another release may give other bits, and then ranks would drift apart.
PACKAGES = ("numpy", "numba", "llvmlite", "mpi4py", "cupy-cuda12x", "cupy-cuda13x")
SUFFIXES = (".py", ".cu", ".cuh", ".h")
MANY = 3  # differences that are named


def software() -> dict[str, str | None]:
    """Versions of what a run computes with, and a checksum over gpuconv's own code."""
    found: dict[str, str | None] = {
        "gpuconv": gpuconv.__version__,
        "gpuconv's code": code(),
        "Python": platform.python_version(),
        "byte order": sys.byteorder,
    }
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


@cache
def code() -> str:
    """The first 12 digits of the SHA-256 over gpuconv's Python files and kernels."""
    digest = hashlib.sha256()
    for folder in (Path(gpuconv.__file__).parent, source.folder()):
        for path in sorted(folder.rglob("*")):
            if path.suffix in SUFFIXES:
                digest.update(f"{path.relative_to(folder)}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def require_equal(communicator: Communicator, facts: Mapping[str, Any]) -> None:
    """Refuse ranks whose facts are not rank 0's: on all ranks DataError, in one line that names the
    first such rank, its machine and what differs.

    facts: names and values that can be pickled; a mapping within stands for its own names, as
    "data.size".
    """
    every = communicator.all_gather((socket.gethostname(), dict(_flat(facts))))
    own = every[0][1]
    for rank, (host, theirs) in enumerate(every):
        names = [name for name in {**own, **theirs} if own.get(name) != theirs.get(name)]
        if names:
            texts = [f"{n} is {theirs.get(n)}, not {own.get(n)}" for n in names[:MANY]]
            more = f" (and {len(names) - MANY} more)" if len(names) > MANY else ""
            raise DataError(
                f"rank {rank} on {host} differs from rank 0: {'; '.join(texts)}{more}; all ranks "
                "need the same software, files and settings"
            )


def _flat(facts: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name.replace("_crc32", "' checksum"), value
