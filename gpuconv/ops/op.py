"""`op`: an operation is its definition, with implementations attached.

    @op
    def relu(x): ...            # the definition: plain NumPy, float32 or float64, the arbiter in
    tests

    @relu.check
    def _(x): ...               # raises on arguments that no device accepts, before anything is
    allocated

    @relu.cpu
    def _(x): ...               # optional: only where it is measured faster than the definition

    @relu.launch
    def _(runtime, x): ...      # the kernels, for arrays on sim and cuda alike

    @relu.cost
    def _(x): ...               # the least arithmetic and traffic (gpuconv/ops/cost.py)

    @relu.output
    def relu_output(x): ...     # what it returns for shape-only arrays

    @relu.memory
    def _(x): ...               # optional: the arrays and workspaces that NumPy arrays would take

Calling `relu(x)` looks at the arrays, checks the arguments, and runs that device's implementation;
`relu.reference(x)` checks them and runs the definition.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gpuconv.arrays import ShapeOnly, device_of, is_device, to_numpy
from gpuconv.cuda.outline import Outline
from gpuconv.ops.cost import Cost

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
# Arguments of these types are no arrays of a device: what every call on NumPy arrays is made of.
_PLAIN = frozenset((np.ndarray, int, float, str, bool, tuple, list, type(None)))


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
        self._launch: Callable[..., Any] | None = None
        self._cost: Callable[..., Cost] | None = None
        self._memory: Callable[..., Any] = like_the_first
        self._output: Callable[..., Any] | None = None
        self._multiply_adds: Callable[..., int] | None = None

    def __repr__(self) -> str:
        return f"<op {self.__name__}{self._signature}>"

    def check(self, function: Callable[..., None]) -> Callable[..., None]:
        """Attach what refuses wrong arguments, with one text for every device."""
        self._check = self._same_parameters(function, self._names)
        return function

    def cpu(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Attach the fast implementation for NumPy arrays."""
        self._cpu = self._same_parameters(function, self._names)
        return function

    def launch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Attach what launches the kernels; its first parameter is the `Runtime`."""
        self._launch = self._same_parameters(function, ("runtime", *self._names))
        return function

    def cost(self, function: Callable[..., Cost]) -> Callable[..., Cost]:
        """Attach the least arithmetic and traffic, a function of the arguments' shapes."""
        self._cost = self._same_parameters(function, self._names)
        return function

    def output(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Attach the shape rule: what the operation returns where an argument is a `ShapeOnly`.

        It reads shapes and dtypes alone, of arguments that passed the check.
        """
        self._output = self._same_parameters(function, self._names)
        return function

    def count(self, function: Callable[..., int]) -> Callable[..., int]:
        """Attach the number of multiply-adds, a function of the arguments' shapes."""
        self._multiply_adds = self._same_parameters(function, self._names)
        return function

    def memory(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Attach what makes the outlines (gpuconv/cuda/outline.py) of all arrays that the cpu
        path makes, in its order, and returns those that it returns.

        Without it: one array like the first argument, and copies of arguments not in C order.
        """
        self._memory = self._same_parameters(function, self._names)
        return function

    @property
    def has_kernels(self) -> bool:
        """Whether it runs on sim and cuda."""
        return self._launch is not None

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The definition's parameters, in order."""
        return self._signature.parameters

    def work(self, *args: Any, **kwargs: Any) -> Cost:
        """The least arithmetic and traffic of a call, of whose arrays only shapes are read.

        Raises as the call would for arguments that do not fit.
        """
        args = self._bound(args, kwargs)
        if self._cost is None:
            raise NotImplementedError(f"{self.__name__}: its cost is not known")
        if self._check is not None:
            self._check(*args)
        return self._cost(*args)

    def multiply_adds(self, *args: Any, **kwargs: Any) -> int:
        """The multiply-adds of a call, as tables of networks count them: for each output the size
        of a filter, taps on padding too; without the bias. 0 for an operation that has no filters.

        Of arrays only shapes are read; `work` counts what arithmetic cannot be avoided.
        """
        args = self._bound(args, kwargs)
        self._checked(args)
        return 0 if self._multiply_adds is None else self._multiply_adds(*args)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args = self._bound(args, kwargs)
        empty = device = None
        for a in args:
            if type(a) not in _PLAIN:
                if any(type(b) is Outline for b in args):
                    return self._memory(*args)
                if any(type(b) is ShapeOnly for b in args):
                    return self._shape_of_result(args)
                device = self._device(args)
                break
        self._checked(args)
        if device is not None:
            return self._on_device(device, args)
        for a in args:
            if type(a) is np.ndarray and a.size == 0:
                empty = True
        # nothing to be fast about in an empty array, and no fast loop need handle it
        return self.definition(*args) if empty else self._cpu(*args)

    def reference(self, *args: Any, **kwargs: Any) -> Any:
        """Run the definition, whatever faster implementations there are."""
        args = self._bound(args, kwargs)
        if any(type(a) is ShapeOnly for a in args):
            return self._shape_of_result(args)
        if (device := self._device(args)) is not None:
            raise TypeError(f"{self.__name__}: the reference takes NumPy arrays, not {device}'s")
        self._checked(args)
        return self.definition(*args)

    def _shape_of_result(self, args: tuple[Any, ...]) -> Any:
        self._checked(args)
        if self._output is None:
            raise NotImplementedError(f"{self.__name__}: has no rule for the shape of its result")
        return self._output(*args)

    def _checked(self, args: tuple[Any, ...]) -> None:
        """Run the check; what it raises begins with the operation's name."""
        if self._check is None:
            return
        try:
            self._check(*args)
        except (TypeError, ValueError) as error:
            if str(error).startswith(f"{self.__name__}: "):
                raise
            raise type(error)(f"{self.__name__}: {error}") from error

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        if kwargs or len(args) != len(self._names):
            bound = self._signature.bind(*args, **kwargs)
            bound.apply_defaults()
            args = bound.args
        return args

    def _device(self, args: tuple[Any, ...]) -> str | None:
        """Where kernels shall run, None for NumPy. TypeError naming two arguments that are on
        different devices.
        """
        found = [(n, d) for n, a in zip(self._names, args, strict=True) if (d := device_of(a))]
        for name, device in found[1:]:
            if device != found[0][1]:
                first, there = found[0]
                raise TypeError(
                    f"{self.__name__}: {first} is on {there}, {name} on {device}; "
                    f"move one of them: gpuconv.to_device(x, {there!r})"
                )
        return found[0][1] if found and found[0][1] != "cpu" else None

    def _on_device(self, device: str, args: tuple[Any, ...]) -> Any:
        from gpuconv.cuda.runtime import runtime

        if self._launch is None:
            raise NotImplementedError(f"{self.__name__}: has no kernel for {device} yet; use cpu")
        on = runtime(device)
        arrays = [a for a in args if device_of(a)]
        if all(a.size for a in arrays):
            with on.inside(arrays[0]):
                return self._launch(on, *args)
        # A grid of no blocks is no launch; and CuPy would make one block of it.
        found = self.definition(*(to_numpy(a) for a in args))
        return _each(lambda a: on.asarray(a) if isinstance(a, np.ndarray) else a, found)

    def _same_parameters(self, function: Callable[..., Any], wanted: Any) -> Callable[..., Any]:
        names = tuple(inspect.signature(function).parameters)
        if names != wanted:
            raise TypeError(
                f"{self.__name__}: an implementation takes {names}, the definition {self._names}"
            )
        return function


def like_the_first(first: Any, *others: Any) -> Any:
    """What an operation takes that makes one array like its first argument in one pass."""
    copies = [a.plain() for a in (first, *others) if isinstance(a, Outline)]
    return copies[0].empty(first.shape)


def _each(function: Callable[[Any], Any], found: Any) -> Any:
    return tuple(map(function, found)) if isinstance(found, tuple) else function(found)


def op(definition: Callable[..., Any]) -> Op:
    """Make an operation of its definition (the module's docstring shows how)."""
    return Op(definition)


def require_floats(name: str, **arrays: Any) -> None:
    """TypeError unless every array is one, of NumPy or a device, of one float type that its device
    computes in; None passes, for what is optional.
    """
    given = {key: a for key, a in arrays.items() if a is not None}
    for key, a in given.items():
        if not isinstance(a, np.ndarray):
            device = device_of(a)
            if device is None:
                raise TypeError(f"{name}: {key} must be a NumPy array, got {type(a).__name__}")
            if a.dtype == np.float64 and is_device(device):
                raise TypeError(
                    f"{name}: {key} is float64, {device} computes in float32: convert it first"
                )
        if a.dtype not in FLOATS:
            raise TypeError(
                f"{name}: {key} must be float32 or float64, got {a.dtype}; "
                f"convert it with .astype(np.float32)"
            )
    if len({a.dtype for a in given.values()}) > 1:
        kinds = ", ".join(f"{key} is {a.dtype}" for key, a in given.items())
        raise TypeError(f"{name}: arrays of different types: {kinds}; convert them to one")


def require_rank(name: str, rank: int, layout: str, **arrays: Any) -> None:
    """TypeError for None, ValueError unless every array has `rank` axes; `layout` names them, as in
    "(N, C, H, W)".
    """
    for key, a in arrays.items():
        if a is None:
            raise TypeError(f"{name}: {key} must be an array, got None")
        if a.ndim != rank:
            raise ValueError(f"{name}: {key} must have {rank} axes {layout}, got shape {a.shape}")


def require_shape(name: str, expected: dict[str, tuple[int, ...]], **arrays: Any) -> None:
    """ValueError unless each named array has its expected shape."""
    for key, shape in expected.items():
        a = arrays[key]
        if a is not None and a.shape != tuple(shape):
            raise ValueError(f"{name}: {key} must have shape {tuple(shape)}, got {a.shape}")


def require_image_shape(name: str, x_shape: Any) -> None:
    """ValueError unless x_shape is four whole lengths, as images have them."""
    whole = isinstance(x_shape, tuple | list) and all(
        isinstance(n, int | np.integer) for n in x_shape
    )
    if not whole or len(x_shape) != 4 or min(x_shape) < 0:
        raise ValueError(f"{name}: x_shape must be (N, C, H, W), got {x_shape!r}")


def require_number(name: str, whole: bool = False, **values: Any) -> None:
    """TypeError unless each value is a number, with `whole` an integer."""
    kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, kinds):
            kind = "an int" if whole else "a number"
            raise TypeError(f"{name}: {key} must be {kind}, got {value!r}")


def require_finite(name: str, **values: Any) -> None:
    """TypeError unless each value is a number, ValueError unless it is finite."""
    require_number(name, **values)
    for key, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name}: {key} must be finite, got {value!r}")
