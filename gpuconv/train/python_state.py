"""What Python objects hold, as a value to compare: what a recorded step has fixed without a kernel.

A recorded step does not run Python, so a layer or a loss of the user's own that keeps a number, an
array or a random generator, and changes it as it runs, would silently stay at the recorded values.
"""

from __future__ import annotations

import functools
import random
from collections import deque
from collections.abc import Hashable
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from gpuconv.autograd import Tensor
from gpuconv.nn import Buffer, Module

PLAIN = (int, float, complex, str, bytes, type(None), np.generic)
MOST_BYTES = 1 << 20  # of an array whose numbers are compared; of a larger one its identity is
MOST = 20_000  # objects that are looked at


def python_state(values: Any, apart: Any = (), kept: list[Any] | None = None) -> Hashable:
    """A value that stays equal as long as nothing that can be reached from these values changes:
    numbers, texts, containers, NumPy arrays, random generators, attributes, closures. Arrays of a
    device are known by identity. apart: identities of objects that are looked at by themselves.
    kept: gets what the value knows by identity. What holds more than MOST objects is equal to
    nothing.
    """
    found: list[Hashable] = []
    seen: dict[int, Any] = {}
    left = [*values][::-1]
    while left:
        value = left.pop()
        if isinstance(value, PLAIN):
            found.append(value)
            continue
        if not isinstance(value, tuple):
            found.append(id(value))
        if id(value) in seen or id(value) in apart:
            continue
        seen[id(value)] = value
        if len(seen) > MOST:
            return object()
        left += [*_parts(value)][::-1]
    if kept is not None:
        kept += seen.values()
    return tuple(found)


def global_random_state() -> Hashable:
    """Of the generators that all modules of Python and NumPy share."""
    return random.getstate(), str(np.random.get_state(legacy=False))  # noqa: NPY002


def _parts(value: Any) -> Any:
    """What a value consists of."""
    if isinstance(value, Tensor | Buffer):
        held = value.data
        return _parts(held) if isinstance(held, np.ndarray) else (id(held),)
    if isinstance(value, np.ndarray):
        small = value.nbytes <= MOST_BYTES and value.dtype != object
        return (value.shape, value.dtype.str, value.tobytes()) if small else ()
    if isinstance(value, dict):
        return (len(value), *value.keys(), *value.values())
    if isinstance(value, list | tuple | deque):
        return (len(value), *value)
    if isinstance(value, set | frozenset):
        return (frozenset(part for part in value if isinstance(part, PLAIN)),)
    if isinstance(value, random.Random):
        return (str(value.getstate()),)
    if isinstance(value, np.random.Generator):
        return (str(value.bit_generator.state),)
    if isinstance(value, np.random.RandomState):
        return (str(value.get_state()),)
    if isinstance(value, functools.partial):
        return (value.func, value.args, value.keywords)
    if isinstance(value, MethodType):
        return (value.__func__, value.__self__)
    if isinstance(value, FunctionType):
        return (*map(_content, value.__closure__ or ()), value.__defaults__, value.__kwdefaults__)
    if isinstance(value, type | ModuleType):
        return ()
    counters = value.counters if isinstance(value, Module) else ()
    slots = [getattr(value, name, None) for name in getattr(type(value), "__slots__", ())]
    return (*slots, *(v for n, v in getattr(value, "__dict__", {}).items() if n not in counters))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that has no value yet
        return None
