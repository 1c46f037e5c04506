"""The decorator of every compiled function: Numba, without the interpreter lock, kept on disk.

Numba's own cache raises where it cannot read or write (a read-only installation, no home folder, a
full disk, a damaged file), and does not see an edit of a function that was inlined into one of
another file. This cache treats every failure as a miss, checks a digest before it unpickles
anything, and is keyed by the contents of all files of this folder. The private parts of Numba that
it uses are the dispatcher's `_cache` and the result's `_reduce` and `_rebuild`; should they change,
code is compiled in each run.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llvmlite
import numba

DIGEST_BYTES = 32


def compiled(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Compile a function of arrays and numbers at its first call, and keep the code on disk.

    options: Numba's own, such as `fastmath`. Usable with and without parentheses. A division by 0
    gives NumPy's infinity or NaN, as the definitions do.
    """
    if function is None:
        return functools.partial(compiled, **options)
    fixed: Any = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
    dispatcher = numba.njit(**fixed, **options)(function)
    dispatcher._cache = _CodeCache(function)
    return dispatcher


def inner(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """As `compiled`, for what other compiled functions call, and Python does not: without an entry
    from Python, LeNet's first step takes 11 s to compile in place of 14.
    """
    if function is None:
        return functools.partial(inner, **options)
    return _Inner(compiled(function, no_cpython_wrapper=True, **options))


class _Inner:
    """A compiled function that Numba knows as itself; a call from Python would crash."""

    def __init__(self, dispatcher: Any) -> None:
        self._dispatcher = dispatcher
        self._numba_type_ = numba.types.Dispatcher(dispatcher)

    def __call__(self, *_: Any) -> Any:
        name = self._dispatcher.py_func.__name__
        raise TypeError(f"{name} is for compiled functions to call, not for Python")


class _CodeCache:
    """What Numba's dispatcher asks for code: one file for each function, signature and processor.

    A file is a digest and a pickle. The digest covers the pickle and what the code was made from:
    sources, versions, signature and processor. A file of anything else is a miss, and overwritten.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._file = function.__code__.co_filename
        self._line = function.__code__.co_firstlineno
        self._name = f"{Path(self._file).stem}.{function.__qualname__}"
        # read now: when the code is compiled, the file may have been edited
        self._sources = _sources(self._file)

    @property
    def cache_path(self) -> str:
        """The preferred folder, for the dispatcher's `stats`."""
        return str(next(_folders(self._file)))

    def load_overload(self, signature: Any, target: Any) -> Any:
        """The code for this signature, or None where there is none that can be used."""
        try:
            from numba.core.compiler import CompileResult

            target.refresh()
            for path, identity in self._places(signature, target.codegen()):
                payload = _read(path, identity)
                if payload is not None:
                    return CompileResult._rebuild(target, *payload)
        except Exception:
            pass  # a miss, whatever went wrong: compiling the function overwrites the file
        return None

    def save_overload(self, signature: Any, code: Any) -> None:
        """Write the code to the first folder that takes it; say so, once, where none does."""
        try:
            from numba.core.serialize import dumps

            if code.lifted or code.library.has_dynamic_globals:
                return  # it holds addresses of this process
            content, errors = dumps(code._reduce()), []
            for path, identity in self._places(signature, code.codegen):
                try:
                    return _write(path, _digest(identity + content) + content)
                except OSError as error:
                    errors.append(error)
            raise errors[0]
        except Exception as error:
            _complain(error)

    def _places(self, signature: Any, codegen: Any) -> Iterator[tuple[Path, bytes]]:
        """Where the code may be kept, best first, and what identifies it there."""
        if not self._sources:
            raise OSError(f"no source file {self._file}")
        of_call = repr((str(signature), codegen.magic_tuple())).encode()
        versions = numba.__version__, llvmlite.__version__, sys.version, self._line
        identity = self._sources + repr(versions).encode() + of_call
        name = f"{self._name}.{sys.implementation.cache_tag}.{_digest(of_call).hex()[:20]}.code"
        for folder in _folders(self._file):
            yield folder / name, identity


def _folders(file: str) -> Iterator[Path]:
    """NUMBA_CACHE_DIR if it is set, `__pycache__` beside the source, the user's cache folder."""
    parent = Path(file).resolve().parent
    own = f"{parent.name}_{_digest(str(parent).encode()).hex()[:20]}"
    # for a user without a home folder "~" stays as it is
    chosen = os.path.expanduser(os.environ.get("NUMBA_CACHE_DIR", ""))
    if chosen and not chosen.startswith("~"):
        yield Path(chosen) / own
    yield parent / "__pycache__"
    cache = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"))
    if cache.is_absolute():
        yield cache / "gpuconv" / "compiled" / own


@functools.cache
def _sources(file: str) -> bytes:
    """A digest of `file` and of all files that its functions may call; empty where it is not there.

    Those are the files of this folder: about a millisecond, once in a process.
    """
    try:
        return _digest(Path(file).read_bytes() + _sources_of_this_folder())
    except OSError:
        return b""


@functools.cache
def _sources_of_this_folder() -> bytes:
    files = sorted(Path(__file__).parent.glob("*.py"))
    return b"".join(_digest(file.read_bytes()) for file in files)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


def _read(path: Path, identity: bytes) -> Any:
    """What was kept there under this identity, or None."""
    try:
        kept = path.read_bytes()
    except OSError:
        return None
    digest, content = kept[:DIGEST_BYTES], kept[DIGEST_BYTES:]
    return pickle.loads(content) if digest == _digest(identity + content) else None


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all: other processes may read and write the same file."""
    shared = path.parent.name == "__pycache__"  # its readers may be others than who installed it
    path.parent.mkdir(0o777 if shared else 0o700, parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


_complained = False


def _complain(error: Exception) -> None:
    global _complained
    if _complained or sys.stderr is None:
        return
    _complained = True
    with contextlib.suppress(OSError, ValueError):  # closed, or on a full disk
        print(
            f"gpuconv: compiled code cannot be kept, so every run compiles it: {error}. "
            "Set NUMBA_CACHE_DIR to a folder that can be written.",
            file=sys.stderr,
        )
