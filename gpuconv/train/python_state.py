"""What Python objects hold, as a value to compare: what a recorded step has fixed without a kernel.

A recorded step does not run Python, so a layer or a loss of the user's own that keeps a number, an
array or a random generator, and changes it as it runs, would silently stay at the recorded values;
and so would one that reads a global variable, or an attribute of its class.
"""

from __future__ import annotations

import dis
import functools
import random
import sys
from argparse import Namespace
from collections import deque
from collections.abc import Hashable
from types import CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from gpuconv.autograd import Tensor
from gpuconv.nn import Buffer, Module
from gpuconv.optim import EMA, LossScaler

PLAIN = (int, float, complex, str, bytes, type(None), np.generic)
MOST_BYTES = 1 << 20  # of an array whose numbers are compared; of a larger one its identity is
MOST = 20_000  # objects that are looked at
# Kinds of installed packages whose objects keep what users put there, or what training changes.
STATE = (
    *(list, tuple, dict, set, frozenset, deque, functools.partial, MethodType, SimpleNamespace),
    *(Namespace, random.Random, np.ndarray, np.random.Generator, np.random.RandomState),
    *(Tensor, Buffer, Module),
)
# Modules of whose objects nothing counts.
OPAQUE = ("logging", "threading", "_thread", "_io", "gpuconv.cuda", "gpuconv.sim")


def python_state(values: Any, apart: Any = (), kept: list[Any] | None = None) -> Hashable:
    """A value that stays equal as long as nothing that can be reached from these values changes:
    numbers, texts, containers, NumPy arrays, random generators, attributes, also of classes,
    closures, and the global variables that a function names. Arrays of a device are known by
    identity; classes and functions of installed packages have no state. apart: identities of
    objects that are looked at by themselves. kept: gets what the value knows by identity. What
    holds more than MOST objects is equal to nothing.
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
        return (len(value), *sorted((p for p in value if isinstance(p, PLAIN)), key=repr))
    if isinstance(value, random.Random):
        return (str(value.getstate()),)
    if isinstance(value, np.random.Generator):
        return (str(value.bit_generator.state),)
    if isinstance(value, np.random.RandomState):
        return (str(value.get_state()),)
    if isinstance(value, functools.partial):
        return (value.func, value.args, value.keywords)
    if isinstance(value, MethodType):
        return (value.__func__, *_attributes(value.__self__, value.__func__))
    if isinstance(value, EMA):  # its own numbers change by `again`
        return [id(a) for a in value._averages.values() if not isinstance(a, np.ndarray)]
    if isinstance(value, FunctionType):
        defaults = value.__defaults__, value.__kwdefaults__
        return (*map(_content, value.__closure__ or ()), *defaults, *_globals(value))
    if isinstance(value, type):
        return () if _installed(value.__module__) else (*value.__bases__, *vars(value).values())
    if isinstance(value, staticmethod | classmethod | property):
        return (value.fget if isinstance(value, property) else value.__func__,)
    if isinstance(value, ModuleType) or type(value).__module__.startswith(OPAQUE):
        return ()
    counters = value.counters if isinstance(value, Module | LossScaler) else ()
    slots = [getattr(value, name, None) for name in getattr(type(value), "__slots__", ())]
    own = getattr(value, "__dict__", {}).items()
    return (type(value), *slots, *(v for name, v in own if name not in counters))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that has no value yet
        return None


def _globals(function: FunctionType) -> list[Any]:
    """The values that a function's code names: of its own module, and numbers, texts and functions
    of modules that it names.
    """
    if _installed(function.__module__ or ""):
        return []
    names, attributes = _names(function.__code__)
    found = [function.__globals__.get(name) for name in names]
    for module in [value for value in found if isinstance(value, ModuleType)]:
        held = [vars(module).get(name) for name in attributes]
        found += [value for value in held if isinstance(value, (*PLAIN, FunctionType))]
    return [value for value in found if _has_state(value)]


def _attributes(owner: Any, method: Any) -> list[Any]:
    """Of a method's owner those attributes that it names, or another method that it names does."""
    own = getattr(owner, "__dict__", None)
    if own is None or isinstance(owner, Module) or not isinstance(method, FunctionType):
        return [owner]
    names: dict[str, None] = {}
    left = [method]
    while left:
        for name in _names(left.pop().__code__)[1]:
            of_class = getattr(type(owner), name, None)
            if name not in names and isinstance(of_class, FunctionType):
                left.append(of_class)
            names[name] = None
    return [each for n in names for each in (own.get(n), getattr(type(owner), n, None))]


def _has_state(value: Any) -> bool:
    """Whether a global variable may change what code of the user's own computes."""
    if isinstance(value, PLAIN + STATE):
        return True
    kind = value if isinstance(value, FunctionType | type) else type(value)
    return not _installed(kind.__module__ or "")


@functools.cache
def _names(code: CodeType) -> tuple[list[str], list[str]]:
    """Of the global variables of a function's code, and of all attributes, inner functions' too."""
    globals_ = [i.argval for i in dis.get_instructions(code) if i.opname.endswith("_GLOBAL")]
    attributes = list(code.co_names)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            for names, more in zip((globals_, attributes), _names(inner), strict=True):
                names += more
    return globals_, attributes


@functools.cache
def _installed(module: str) -> bool:
    """Whether a module is of Python itself, of gpuconv or of an installed package."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top == "gpuconv":
        return True
    file = getattr(sys.modules.get(top), "__file__", None) or ""
    return "site-packages" in file or "dist-packages" in file
