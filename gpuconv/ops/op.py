"""`op`: an operation is its definition, with implementations attached.

    @op
    def relu(x): ...            # the definition: plain NumPy, float32 or float64, the arbiter in
    tests

    @relu.check
    def _(x): ...               # raises on arguments that no device accepts, before anything is
    allocated

    @relu.cpu
    def _(x): ...               # optional: only where it is measured faster than the definition

Calling `relu(x)` checks the arguments, looks at the arrays, and runs that device's implementation;
`relu.reference(x)` checks them and runs the definition.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


class Op:
    """One operation: the function itself, its argument check, and an implementation per device."""

    def __init__(self, definition: Callable[..., Any]) -> None:
        self.definition = definition
        self.__name__ = definition.__name__
        self.__doc__ = definition.__doc__
        self.__module__ = definition.__module__
        self.__wrapped__ = definition
        self._signature = inspect.signature(definition)
        self._names = tuple(self._signature.parameters)
        self._check: Callable[..., Any] | None = None
        self._cpu = definition

    def __repr__(self) -> str:
        return f"<op {self.__name__}{self._signature}>"

    def check(self, function: Callable[..., None]) -> Callable[..., None]:
        """Attach what refuses wrong arguments, with one text for every device."""
        self._check = self._same_parameters(function)
        return function

    def cpu(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Attach the fast implementation for NumPy arrays."""
        self._cpu = self._same_parameters(function)
        return function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args = self._checked(args, kwargs)
        if any(type(a) is np.ndarray and a.size == 0 for a in args):
            return self.definition(
                *args
            )  # nothing to be fast about, and no fast loop need handle it
        return self._cpu(*args)

    def reference(self, *args: Any, **kwargs: Any) -> Any:
        """Run the definition, whatever faster implementations there are."""
        return self.definition(*self._checked(args, kwargs))

    def _checked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        if kwargs or len(args) != len(self._names):
            bound = self._signature.bind(*args, **kwargs)
            bound.apply_defaults()
            args = bound.args
        if self._check is not None:
            self._check(*args)
        return args

    def _same_parameters(self, function: Callable[..., Any]) -> Callable[..., Any]:
        names = tuple(inspect.signature(function).parameters)
        if names != self._names:
            raise TypeError(
                f"{self.__name__}: an implementation takes {names}, the definition {self._names}"
            )
        return function


def op(definition: Callable[..., Any]) -> Op:
    """Make an operation of its definition (the module's docstring shows how)."""
    return Op(definition)


def require_floats(name: str, **arrays: Any) -> None:
    """TypeError unless every array is a NumPy array of one float type; None passes, for what is
    optional.
    """
    given = {key: a for key, a in arrays.items() if a is not None}
    for key, a in given.items():
        if not isinstance(a, np.ndarray):
            raise TypeError(f"{name}: {key} must be a NumPy array, got {type(a).__name__}")
        if a.dtype not in FLOATS:
            raise TypeError(
                f"{name}: {key} must be float32 or float64, got {a.dtype}; "
                f"convert it with .astype(np.float32)"
            )
    if len({a.dtype for a in given.values()}) > 1:
        kinds = ", ".join(f"{key} is {a.dtype}" for key, a in given.items())
        raise TypeError(f"{name}: arrays of different types: {kinds}; convert them to one")


def require_rank(name: str, rank: int, layout: str, **arrays: Any) -> None:
    """ValueError unless every array has `rank` axes; `layout` names them, as in "(N, C, H, W)"."""
    for key, a in arrays.items():
        if a is not None and a.ndim != rank:
            raise ValueError(f"{name}: {key} must have {rank} axes {layout}, got shape {a.shape}")


def require_shape(name: str, expected: dict[str, tuple[int, ...]], **arrays: Any) -> None:
    """ValueError unless each named array has its expected shape."""
    for key, shape in expected.items():
        a = arrays[key]
        if a is not None and a.shape != tuple(shape):
            raise ValueError(f"{name}: {key} must have shape {tuple(shape)}, got {a.shape}")
