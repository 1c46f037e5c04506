"""`op`: an operation is its reference implementation, with the others attached.

    @op
    def relu(x): ...                    # the definition: plain NumPy, float32 or float64

    @relu.check
    def relu_check(x): ...              # refuses wrong arguments, before anything is allocated

    @relu.output
    def relu_output(x): ...             # what it returns for shape-only arrays

    @relu.cost
    def relu_cost(x): ...               # the least arithmetic and traffic (gpuconv/ops/cost.py)

    @relu.cpu
    def relu_cpu(x): ...                # optional: only where it is measured faster

    @relu.launch
    def relu_launch(runtime, x): ...    # the kernels, for arrays on sim and cuda alike

Arrays of PyTorch, JAX and others are taken too, and the results given back as that library's
(gpuconv/interchange.py). float16 arrays are computed in float32, and so are the results: operations
have no kernels for less.

Calling `relu(x)` looks at the arrays, checks the arguments and runs that device's implementation;
`relu.reference(x)` checks them and runs the definition.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial, wraps
from itertools import chain
from typing import Any, Generic, ParamSpec, TypeVar

import numpy as np

from gpuconv.arguments import number
from gpuconv.arrays import (
    ShapeOnly,
    as_float32,
    device_of,
    foreign,
    is_device,
    native,
    to_numpy,
)
from gpuconv.cpu.elementwise import elementwise as on_all_threads
from gpuconv.cuda import runtime as runtimes
from gpuconv.interchange import Library, library_of
from gpuconv.ops.cast import cast, uncast
from gpuconv.ops.cost import Cost, moved
from gpuconv.precision import NAMES, is_stored

P = ParamSpec("P")  # an operation's parameters, those of its definition
R = TypeVar("R")  # and its result
Array = Any  # of NumPy, CuPy or the simulator, or a `ShapeOnly`
Shape = tuple[int, ...]
Size = int | tuple[int, int]  # of both axes of an image, or of its rows and columns
Padding = int | str | tuple[Any, ...]  # see `shapes.window`

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
SIGNATURES_KEPT = 512  # of each operation; a network has a few dozen

# Of these types a value's type and hash say all that a check or an implementation can see of it.
_SCALARS = frozenset(
    (int, float, bool, str, type(None), np.int32, np.int64, np.float32, np.float64, np.bool_)
)
_ARRAYS = {np.ndarray, ShapeOnly}  # and those of devices, once they have been seen


class Op(Generic[P, R]):
    """One operation: the function itself, its argument check, and an implementation per device.

    A check and the choice of an implementation depend on shapes, dtypes and scalars alone, so what
    was accepted once is accepted again without a look (`_signature_of`). What depends on values is
    checked at every call (`check_values`).
    """

    def __init__(self, definition: Callable[P, R]) -> None:
        self.definition: Callable[..., Any] = definition
        self.__name__ = definition.__name__
        self.__doc__ = definition.__doc__
        self.__module__ = definition.__module__
        self.__wrapped__ = definition
        self._signature = inspect.signature(definition)
        self._names = tuple(self._signature.parameters)
        defaults = [p.default for p in self._signature.parameters.values()]
        self._required = defaults.count(inspect.Parameter.empty)
        self._defaults = tuple(defaults[self._required :])
        self.in_place = False  # whether it writes into an argument, whose type it then keeps
        self.stores_16 = False  # whether its kernels read and write arrays of 16 bits
        self.stored_results = 1  # of its results the first so many are stored in 16 bits then
        self.onnx: tuple[str, dict[str, str]] | None = None  # a node: {its attribute: parameter}
        self._accepted: dict[tuple[Any, ...], Callable[..., Any]] = {}
        self._checks: list[Callable[..., Any]] = []
        self._check_values: Callable[..., Any] | None = None
        self._cpu: Callable[..., Any] = definition
        self._launch: Callable[..., Any] | None = None
        self._cost: Callable[..., Cost] | None = None
        self._output: Callable[..., Any] | None = None
        self._multiply_adds: Callable[..., int] | None = None

    def __repr__(self) -> str:
        return f"<op {self.__name__}{self._signature}>"

    def check(self, function: Callable[..., None]) -> Callable[..., None]:
        """Attach what refuses wrong arguments, with one text for every device; several run in turn.

        It reads shapes, dtypes and devices of arrays, never their values.
        """
        self._checks.append(self._same_parameters(function, self._names))
        return function

    def check_values(self, function: Callable[..., None]) -> Callable[..., None]:
        """Attach what refuses wrong values in arrays; it runs at every call, after the check."""
        self._check_values = self._same_parameters(function, self._names)
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

    @property
    def has_kernels(self) -> bool:
        """Whether it runs on sim and cuda."""
        return self._launch is not None

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The definition's parameters, in order."""
        return self._signature.parameters

    def work(self, *args: P.args, **kwargs: P.kwargs) -> Cost:
        """The least arithmetic and traffic of a call; of arrays only shapes and dtypes are read. A
        `ShapeOnly` of 16 bits stands for an array that `stored` takes.

        Raises as the call would for arguments that do not fit.
        """
        given = self._native(self._bound(args, kwargs))
        wide = self._widened(given)
        values = tuple(a if is_stored(a) else b for a, b in zip(given, wide, strict=True))
        if self._cost is None:
            raise NotImplementedError(f"{self.__name__}: its cost is not known")
        self._checked(_as_shapes(values))
        return self._cost(*values)

    def multiply_adds(self, *args: P.args, **kwargs: P.kwargs) -> int:
        """The multiply-adds of a call, as tables of networks count them: for each output the size
        of a filter, taps on padding too; without the bias. 0 for an operation that has no filters.

        Of arrays only shapes are read. `work` counts only arithmetic that cannot be avoided.
        """
        values = self._widened(self._native(self._bound(args, kwargs)))
        self._checked(values)
        return 0 if self._multiply_adds is None else self._multiply_adds(*values)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        values: tuple[Any, ...] = args
        if kwargs or not self._required <= len(values) <= len(self._names):
            values = self._bound(values, kwargs)
        elif len(values) < len(self._names):
            values += self._defaults[len(values) - self._required :]
        # the signature: types, shapes, dtypes and scalars (1, 1.0 and True are three keys)
        signature: list[Any] = []
        for a in values:
            kind = type(a)
            if kind in _ARRAYS:
                signature += kind, a.shape, a.dtype
            elif kind in _SCALARS:
                signature += kind, a
            elif kind is tuple and _SCALARS.issuperset(map(type, a)):
                signature += kind, a, *map(type, a)
            elif kind is tuple and (types := _types_of_pairs(a)) is not None:
                signature += kind, a, types
            else:
                if (library := foreign(values)) is not None:
                    return self._brought(self, library, values)
                run = self._accept(values)
                break
        else:
            key = tuple(signature)
            run = self._accepted.get(key)  # type: ignore[assignment]
            if run is None:
                run = self._accept(values)
                if len(self._accepted) >= SIGNATURES_KEPT:
                    self._accepted.clear()
                self._accepted[key] = run
        if self._check_values is not None:
            self._refuse(self._check_values, values)
        result: R = run(*values)
        return result

    def reference(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the definition, whatever faster implementations there are."""
        values = self._bound(args, kwargs)
        if (library := foreign(values)) is not None:
            return self._brought(self.reference, library, values)
        values = self._widened(values)
        if (device := self._device(values)) == "meta":
            return self(*args, **kwargs)
        if device != "cpu":
            raise TypeError(f"{self.__name__}: the reference takes NumPy arrays, not {device}'s")
        self._checked(values)
        if self._check_values is not None:
            self._refuse(self._check_values, values)
        result: R = self.definition(*values)
        return result

    def stored(self, *args: Any, **kwargs: Any) -> Any:
        """Run on a device's arrays of 16 bits (gpuconv/precision.py), all of one type: computed in
        float32, the result, or the first of several, stored in that type, others in float32.
        Without such arrays an ordinary call.
        """
        kinds = {a.dtype for a in chain(args, kwargs.values()) if is_stored(a)}
        if not kinds:
            return self(*args, **kwargs)
        values = self._bound(args, kwargs)
        if len(kinds) > 1:
            raise TypeError(
                f"{self.__name__}: arrays of both types of 16 bits; convert them to one"
            )
        self._checked(_as_shapes(values))
        arrays = [a for a in values if device_of(a) is not None]
        named = dict(zip(self._names, values, strict=True))
        native = self.stores_16 or named.get("precision", "ieee") != "ieee"
        if native and all(a.size for a in arrays):
            _ARRAYS.update(map(type, arrays))
            return self._on_device(self._device(values), *values)
        (precision,) = map(NAMES.__getitem__, kinds)
        found: Any = self(*(uncast(a) if is_stored(a) else a for a in values))  # type: ignore[call-arg]
        several = isinstance(found, tuple)
        parts = list(found) if several else [found]
        for i in range(self.stored_results):
            parts[i] = None if parts[i] is None else cast(parts[i], precision)
        return tuple(parts) if several else parts[0]

    def _brought(self, run: Callable[..., Any], library: Library, args: tuple[Any, ...]) -> Any:
        """Run on other libraries' arrays; what comes out is given back as that library's."""
        own = self._native(args)
        with library.inside(next(a for a in args if library_of(a) is library)):
            found = run(*own)
            parts = found if isinstance(found, tuple) else (found,)
            # what was written into an argument is that argument
            given = {id(mine): theirs for mine, theirs in zip(own, args, strict=True)}
            parts = tuple(
                given[id(part)]
                if id(part) in given
                else library.give(part)
                if device_of(part)
                else part
                for part in parts
            )
        return parts if isinstance(found, tuple) else parts[0]

    def _native(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        named = zip(self._names, args, strict=True)
        return tuple(native(a, f"{self.__name__}: {name}") for name, a in named)

    def _accept(self, args: tuple[Any, ...]) -> Callable[..., Any]:
        """The implementation for arguments like these; raises if they are wrong."""
        device = self._device(args)
        if self._widened(args) is not args:
            return lambda *given: self(*self._widened(given))  # type: ignore[call-arg]
        self._checked(args)
        arrays = [a for a in args if device_of(a) is not None]
        _ARRAYS.update(map(type, arrays))
        empty = any(a.size == 0 for a in arrays)
        if device == "meta":
            if self._output is None:
                raise NotImplementedError(
                    f"{self.__name__}: has no rule for the shape of its result"
                )
            return self._output
        if is_device(device):
            if self._launch is None:
                raise NotImplementedError(
                    f"{self.__name__}: has no kernel for {device} yet; use cpu"
                )
            return partial(self._on_device_empty if empty else self._on_device, device)
        # nothing to be fast about in an empty array, and no fast loop need handle it
        return self.definition if empty else self._cpu

    def _widened(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments, float16 arrays as float32."""
        if self.in_place or not any(getattr(a, "dtype", None) == np.float16 for a in args):
            return args
        return tuple(as_float32(a) if getattr(a, "dtype", None) == np.float16 else a for a in args)

    def _checked(self, args: tuple[Any, ...]) -> None:
        for check in self._checks:
            self._refuse(check, args)

    def _refuse(self, check: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Run a check; what it raises begins with the operation's name."""
        try:
            check(*args)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{self.__name__}: {error}") from error

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """All arguments in order, defaults included; TypeError as Python raises it for a call."""
        names = self._names[len(args) :]
        if len(args) <= len(self._names) and kwargs.keys() <= set(names):
            defaults = dict(zip(self._names[self._required :], self._defaults, strict=True))
            values = defaults | kwargs
            if values.keys() >= set(names):
                return (*args, *map(values.__getitem__, names))
        bound = self._signature.bind(*args, **kwargs)  # raises
        return bound.args

    def _device(self, args: tuple[Any, ...]) -> str:
        """The device whose implementation runs: "meta" where any array is shape-only.

        TypeError naming two arguments that are on different devices.
        """
        devices = [(n, d) for n, a in zip(self._names, args, strict=True) if (d := device_of(a))]
        if any(device == "meta" for _, device in devices):
            return "meta"
        for name, device in devices[1:]:
            first, expected = devices[0]
            if device != expected:
                host, away = (first, device) if expected == "cpu" else (name, expected)
                raise TypeError(
                    f"{self.__name__}: {first} is on {expected}, {name} on {device}; "
                    f"move one of them: gpuconv.to_device({host}, {away!r})"
                )
        return devices[0][1] if devices else "cpu"

    def _on_device(self, device: str, *args: Any) -> Any:
        on = runtimes.runtime(device)
        with on.inside(next(a for a in args if type(a) in _ARRAYS)):
            return self._launch(on, *args)  # type: ignore[misc]

    def _on_device_empty(self, device: str, *args: Any) -> Any:
        """A grid of no blocks is no launch; and CuPy would make one block of it."""
        on = runtimes.runtime(device)
        result = self.definition(*(to_numpy(a) for a in args))
        parts = result if isinstance(result, tuple) else (result,)
        parts = tuple(on.asarray(a) if isinstance(a, np.ndarray) else a for a in parts)
        return parts if isinstance(result, tuple) else parts[0]

    def _same_parameters(self, function: Callable[..., Any], expected: Any) -> Callable[..., Any]:
        """The function, if its parameters have the names of the definition's; a last `*rest` stands
        for all those from its place on.
        """
        parameters = inspect.signature(function).parameters
        names = tuple(n for n, p in parameters.items() if p.kind is not p.VAR_POSITIONAL)
        if names != (expected[: len(names)] if len(names) < len(parameters) else expected):
            raise TypeError(
                f"{self.__name__}: an implementation takes {names}, the definition {self._names}"
            )
        return function


def _as_shapes(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values, those that are stored in 16 bits as float32 arrays without contents."""
    return tuple(ShapeOnly(a.shape) if is_stored(a) else a for a in values)


def _types_of_pairs(pairs: tuple[Any, ...]) -> tuple[type, ...] | None:
    """The types inside a tuple of tuples of scalars, as a padding may be; None of anything else."""
    if any(type(pair) is not tuple for pair in pairs):
        return None
    types = tuple(map(type, chain.from_iterable(pairs)))
    return types if _SCALARS.issuperset(types) else None


def op(definition: Callable[P, R]) -> Op[P, R]:
    """Make an operation of its definition (the module's docstring shows how)."""
    return Op(definition)


def in_float64(definition: Callable[P, R]) -> Callable[P, R]:
    """The definition, computed in float64 and rounded once: what lies between does not overflow."""

    @wraps(definition)
    def computed(*args: Any, **kwargs: Any) -> Any:
        dtype = args[0].dtype
        if dtype == np.float64:
            return definition(*args, **kwargs)
        wide = (a.astype(np.float64) if isinstance(a, np.ndarray) else a for a in args)
        with np.errstate(over="ignore"):
            found: Any = definition(*wide, **kwargs)  # type: ignore[arg-type]
            parts = found if isinstance(found, tuple) else (found,)
            parts = tuple(a if a is None else a.astype(dtype) for a in parts)
        return parts if isinstance(found, tuple) else parts[0]

    return computed


def elementwise(
    operation: Op, kernels: str | None = None, cpu: Callable[..., Any] | None = None
) -> None:
    """Attach what operations on arrays of one shape share: the check, the result's shape, the cost.

    Their arrays are the parameters annotated as `Array`; those annotated as `float` must be finite
    numbers.
    kernels: the file whose kernel x_forward, or x_backward, takes these parameters under their
    names and writes y, or dx. cpu: function(*arrays, y), for any part of them, run on all threads.
    """
    kinds = {name: p.annotation for name, p in operation.parameters.items()}
    names = [name for name, kind in kinds.items() if kind == "Array"]

    @operation.check
    def check(*arguments: Any) -> None:
        given = dict(zip(kinds, arguments, strict=True))
        arrays = {name: given[name] for name in names}
        require_floats(**arrays)
        first, *others = reversed(names) if names[0] == "dy" else names
        require_shape(dict.fromkeys(others, arrays[first].shape), **arrays)
        for name, value in given.items():
            if kinds[name] == "float":
                number(name, value)

    @operation.output
    def output(*arguments: Any) -> Any:
        first = arguments[0]
        return first if operation.in_place else ShapeOnly(first.shape, first.dtype)

    @operation.cost
    def cost(*arguments: Any) -> Cost:
        return moved(*arguments[: len(names)], arguments[0])

    if cpu is not None:
        operation.cpu(partial(on_all_threads, cpu))
    if kernels is not None:
        operation.stores_16 = True
        backward = operation.__name__.endswith("_backward")
        kernel = operation.__name__ if backward else f"{operation.__name__}_forward"

        @operation.launch
        def launch(runtime: Any, *arguments: Any) -> Any:
            numbers = dict(zip(kinds, arguments, strict=True))
            arrays = {name: numbers.pop(name) for name in names}
            return runtime.each(kernels, kernel, "dx" if backward else "y", numbers, **arrays)


def require_floats(optional: tuple[str, ...] = (), **arrays: Any) -> None:
    """TypeError unless all are arrays of one float type, in which their device computes.

    optional: the names of those that may be None.
    """
    for key, a in arrays.items():
        if a is None and key not in optional:
            raise TypeError(f"{key} must be an array, got None")
    present = {key: a for key, a in arrays.items() if a is not None}
    for key, a in present.items():
        if not isinstance(a, np.ndarray):
            device = device_of(a)
            if device is None:
                raise TypeError(f"{key} must be a NumPy array, got {type(a).__name__}")
            if a.dtype == np.float64 and is_device(device):
                raise TypeError(f"{key} is float64, {device} computes in float32: convert it first")
        if a.dtype not in FLOATS:
            raise TypeError(
                f"{key} must be float32 or float64, got {a.dtype}; "
                f"convert it with .astype(np.float32)"
            )
    if len({a.dtype for a in present.values()}) > 1:
        kinds = ", ".join(f"{key} is {a.dtype}" for key, a in present.items())
        raise TypeError(f"arrays of different types: {kinds}; convert them to one")


def require_rank(rank: int, layout: str, **arrays: Any) -> None:
    """TypeError for None, ValueError unless every array has `rank` axes.

    layout: their names, as in "(N, C, H, W)".
    """
    for key, a in arrays.items():
        if a is None:
            raise TypeError(f"{key} must be an array, got None")
        if a.ndim != rank:
            raise ValueError(f"{key} must have {rank} axes {layout}, got shape {a.shape}")


def require_shape(expected: dict[str, tuple[int, ...]], **arrays: Any) -> None:
    """ValueError unless each named array has its expected shape."""
    for key, shape in expected.items():
        a = arrays[key]
        if a is not None and a.shape != tuple(shape):
            raise ValueError(f"{key} must have shape {tuple(shape)}, got {a.shape}")


def require_image_shape(x_shape: Any) -> None:
    """ValueError unless x_shape is four lengths, integers of 0 or more."""
    lengths = x_shape if isinstance(x_shape, tuple | list) else ()
    if len(lengths) != 4 or not all(isinstance(n, int | np.integer) and n >= 0 for n in lengths):
        raise ValueError(f"x_shape must be (N, C, H, W), got {x_shape!r}")
