"""Launches of a user's kernels: a launch file in Python, or one made up from a signature.

A launch file has a function `launch(run)`, which calls `run(kernel, grid, block, args)` with NumPy
arrays and numbers; `run.empty(shape)` is memory that nobody has written. After each call the arrays
hold what the kernel wrote, so that the file can test it. Nothing is converted: an array of another
type than the kernel's is an error, which names the kernel's parameter.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpuconv.sim import memory
from gpuconv.sim.errors import SimError
from gpuconv.sim.machine import Module
from gpuconv.sim.memory import POISON, Array
from gpuconv.sim.signature import Parameter, Signature, plain_name, signatures

Launches = Callable[["Runner"], None]
Extent = int | tuple[int, ...]
_SIZE = 997  # elements of made-up arrays: a prime, so that no block divides it
_BLOCK = 256


class SpecError(ValueError):
    """A launch file or its launch is wrong; the message has the file's line."""


@dataclass
class Source:
    """A .cu file: its text, its lines, and the signatures of its kernels."""

    path: str
    text: str
    signatures: dict[str, Signature]
    lines: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.lines = self.text.splitlines()

    @classmethod
    def read(cls, path: str) -> Source:
        """Raises OSError where the file cannot be read, ValueError where it is no text."""
        try:
            text = Path(path).read_text("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: is not text: byte {error.start} is not UTF-8") from None
        return cls(path, text, signatures(text))

    def options(self, options: Sequence[str] = ()) -> tuple[str, ...]:
        """Options for NVRTC: nvcc's default of fused multiply-adds, and headers beside the file."""
        beside = re.search(r'^\s*#\s*include\s*"', self.text, re.M)
        folder = (f"-I{Path(self.path).absolute().parent}",) if beside else ()
        return ("-fmad=true", *options, *folder)

    def module(
        self, options: Sequence[str] = (), check: bool = False, count: bool = False
    ) -> Module:
        """Compiled for the simulator.

        Raises SimError, and ValueError for a file without a kernel.
        """
        module = Module(self.text, self.options(options), name=self.path, check=check, count=count)
        if not module.kernels:
            raise ValueError(
                f"{self.path}: has no kernel: write a __global__ function "
                f"(a template needs an instantiation)"
            )
        return module


@dataclass
class Launched:
    """One launch of a launch file: as it was asked for, with the arrays on the device."""

    kernel: str
    grid: Extent
    block: Extent
    args: list[Any]
    shared: int
    signature: Signature | None


class Runner:
    """What a launch file calls: `run(kernel, grid, block, args)`.

    kernels: the names that the compiler gave them. start: what is done with each launch. device:
    what makes its arrays (asarray, asnumpy, empty).
    """

    def __init__(
        self,
        source: Source,
        kernels: Sequence[str],
        start: Callable[[Launched], Any],
        device: Any = memory,
    ) -> None:
        self.source, self._kernels, self._start, self._device = source, kernels, start, device
        self._arrays: dict[int, tuple[np.ndarray, Any]] = {}  # by the id of the array on the host
        self.launches: list[Launched] = []

    def empty(self, shape: int | tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        """An array whose elements count as never written: a kernel that reads them is wrong."""
        array = np.empty(shape, dtype)
        array.reshape(-1).view(np.uint8)[...] = POISON
        self._arrays[id(array)] = array, self._device.empty(array.shape, array.dtype)
        return array

    def __call__(
        self, kernel: str, grid: Extent, block: Extent, args: Sequence[Any] = (), shared: int = 0
    ) -> None:
        """Launch a kernel. shared: bytes of dynamic shared memory."""
        symbol = self._symbol(kernel)
        signature = self.source.signatures.get(plain_name(symbol))
        if signature is not None:
            _require_arguments(self.source.path, signature, args)
        given = [self._given(a) for a in args]
        one = Launched(symbol, grid, block, given, shared, signature)
        self.launches.append(one)
        try:
            self._start(one)
        finally:
            for host, device in self._arrays.values():
                if host.flags.writeable:
                    host[...] = self._device.asnumpy(device)

    def _symbol(self, kernel: str) -> str:
        found = [name for name in self._kernels if kernel in (name, plain_name(name))]
        if len(found) == 1:
            return found[0]
        names = ", ".join(found or map(plain_name, self._kernels))
        if not found:
            raise SpecError(f"{self.source.path}: no kernel {kernel!r}, it has: {names}")
        raise SpecError(f"{self.source.path}: {kernel!r} is several kernels, name one: {names}")

    def _given(self, value: Any) -> Any:
        """An argument with its arrays on the device; a tuple holds the members of a structure."""
        if isinstance(value, tuple | list):
            return tuple(map(self._given, value))
        return self._put(value) if isinstance(value, np.ndarray) and value.ndim else value

    def _put(self, host: np.ndarray) -> Any:
        """The array on the device; a view of another array is one there too."""
        root = host
        while isinstance(root.base, np.ndarray) and id(root) not in self._arrays:
            root = root.base
        _, device = self._arrays.get(id(root), (None, None))
        if device is None:
            device = self._device.asarray(root)
            self._arrays[id(root)] = root, device
        elif self._device.asnumpy(device).tobytes() != root.tobytes():
            device.set(root)
        if root is host:
            return device
        if host.dtype != root.dtype:
            raise TypeError(f"a view of {root.dtype} as {host.dtype}: give an array of its own")
        begin = (host.ctypes.data - root.ctypes.data) // host.itemsize
        return device.reshape(-1)[begin : begin + host.size].reshape(*host.shape)


def _require_arguments(path: str, signature: Signature, args: Sequence[Any]) -> None:
    """Raises SpecError, naming the parameter, unless each argument is what the kernel declares."""
    where = f"{path}:{signature.line}"
    if not isinstance(args, list | tuple):
        raise SpecError(f"{signature.name}: args must be a list, got {type(args).__name__}")
    if len(args) != len(signature.parameters):
        raise SpecError(
            f"{signature} takes {len(signature.parameters)} arguments ({where}), got {len(args)}"
        )
    for number, (parameter, value) in enumerate(zip(signature.parameters, args, strict=True)):
        if problem := _misfit(parameter, value):
            what = f"argument {number}, '{parameter.text}' ({where})"
            raise SpecError(f"{signature.name}: {what}: {problem}")


def _misfit(parameter: Parameter, value: Any) -> str:
    """Why a value does not fit a parameter, or ""."""
    if not parameter.pointer:
        if isinstance(value, np.ndarray) and value.ndim:
            members = " (a structure: a tuple of its members)" if parameter.dtype is None else ""
            return f"got an array of {value.dtype}, give a number{members}"
        fraction = isinstance(value, float | np.floating) and not float(value).is_integer()
        if fraction and parameter.dtype is not None and parameter.dtype.kind in "iu":
            return f"got {value!r}, give an integer"
        return ""
    if isinstance(value, Array):
        return ""
    if not isinstance(value, np.ndarray) or not value.ndim:
        return f"got {value!r} ({type(value).__name__}), give a NumPy array"
    if not value.flags.c_contiguous:
        return (
            f"got a view of shape {value.shape} with gaps (a slice or a transpose), "
            f"give numpy.ascontiguousarray of it"
        )
    expected = parameter.dtype
    if expected is not None and value.dtype.itemsize == expected.itemsize == 1:
        return ""
    if expected is not None and (value.dtype.itemsize, _sort(value)) != (
        expected.itemsize,
        _sort(np.empty(0, expected)),
    ):
        return f"got an array of {value.dtype}, give one of {expected}: x.astype(numpy.{expected})"
    return ""


def _sort(array: np.ndarray) -> str:
    return {"u": "i", "b": "i"}.get(array.dtype.kind, array.dtype.kind)


# ---- launch files --------------------------------------------------------------------------------


def load(path: str) -> Launches:
    """The function `launch` of a launch file. Raises SpecError or OSError."""
    return load_names(path)[0]


def load_names(path: str) -> tuple[Launches, dict[str, Any]]:
    """`load`, and everything else that the file defines."""
    try:
        text = Path(path).read_text("utf-8")
        code = compile(text, path, "exec")
    except (SyntaxError, UnicodeDecodeError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
        raise SpecError(f"{path}{line}: {error.args[0] if error.args else error}") from None
    names: dict[str, Any] = {"__name__": "launch_file", "__file__": path}
    guarded(path, lambda: exec(code, names))
    launch = names.get("launch")
    if not callable(launch):
        raise SpecError(f"{path}: has no function launch(run)")
    return lambda run: guarded(path, lambda: launch(run)), names


def guarded(path: str, call: Callable[[], Any]) -> None:
    """Call code of a launch file; what goes wrong is a SpecError with the file's line."""
    try:
        call()
    except (SimError, SpecError) as error:
        raise SpecError(f"{_line_of(path, error)}{error}") from None
    except Exception as error:
        text = " ".join(str(error).split()) or "failed"
        own = isinstance(error, TypeError | ValueError) and _inside(error)
        name = "" if own else f"{type(error).__name__}: "
        raise SpecError(f"{_line_of(path, error)}{name}{text}") from None


def _inside(error: BaseException) -> bool:
    """Whether the simulator raised an error itself."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    return Path(last).parent == Path(__file__).parent


def _line_of(path: str, error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    return f"{path}:{frames[-1].lineno}: " if frames else f"{path}: "


# ---- without a launch file -----------------------------------------------------------------------


def default_launches(source: Source, module: Module) -> tuple[Launches, list[str]]:
    """A launch of each kernel that explains itself, and what it was, in words.

    That is one of pointers to numbers, of floats, and of one integer at most, which is taken for
    the number of elements. Raises SpecError, with a launch file to begin with, for any other.
    """
    made, words = [], []
    grid = -(-_SIZE // _BLOCK) if "blockIdx" in source.text else 1
    for symbol in module.kernels:
        signature = source.signatures.get(plain_name(symbol))
        if signature is None:
            raise SpecError(_skeleton(source, symbol, None, "its declaration was not found"))
        integers = [p for p in signature.parameters if not p.pointer and _kind(p) in "iu"]
        strange = [p for p in signature.parameters if p.dtype is None]
        if strange:
            why = f"the type of '{strange[0].text}' is not known"
        elif len(integers) > 1:
            why = f"it takes {len(integers)} integers"
        elif module.function(symbol).kernel.dynamic_shared:
            why = "it uses dynamic shared memory"
        else:
            made.append((symbol, signature))
            words.append(_in_words(signature, integers, grid))
            continue
        raise SpecError(_skeleton(source, symbol, signature, why))

    def launches(run: Runner) -> None:
        for symbol, signature in made:
            rng = np.random.default_rng(0)
            args = [_made_up(p, rng) for p in signature.parameters]
            run(symbol, grid, _BLOCK, args)

    return launches, words


def _kind(parameter: Parameter) -> str:
    return parameter.dtype.kind if parameter.dtype is not None else "?"


def _made_up(parameter: Parameter, rng: np.random.Generator) -> Any:
    dtype = parameter.dtype
    assert dtype is not None
    if not parameter.pointer:
        return _SIZE if dtype.kind in "iu" else dtype.type(1)
    count = _SIZE * parameter.width
    if dtype.kind == "f":
        return rng.random(count).astype(dtype)
    return rng.integers(0, 2 if dtype.kind == "b" else 100, count).astype(dtype)


def _in_words(signature: Signature, integers: list[Parameter], grid: int) -> str:
    pointers = [p.name for p in signature.parameters if p.pointer]
    count = f"{integers[0].name} = {_SIZE}, " if integers else ""
    arrays = f"{', '.join(pointers)}: {_SIZE} elements each, " if pointers else ""
    return f"{signature.name}: {count}{arrays}grid {grid}, block {_BLOCK}"


def _skeleton(source: Source, symbol: str, signature: Signature | None, why: str) -> str:
    name = plain_name(symbol)
    args = ", ".join(p.name for p in signature.parameters) if signature else "..."
    return (
        f"{source.path}: how to launch {name} cannot be guessed ({why}): write a file with "
        f"`def launch(run): run({name!r}, grid=..., block=..., args=[{args}])`, NumPy arrays for "
        f"pointers, and pass --launch FILE"
    )
