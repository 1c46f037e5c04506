"""Workloads: one pass of one operation at one shape, with its inputs and its expected results.

`PASSES` and `of_case` are the one table of what is benchmarked: the benchmarks, `gpuconv bench`
and the GPU check go through it, and find the kernels by recording what an operation launches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from gpuconv import ops
from gpuconv.arrays import ShapeOnly
from gpuconv.bench.batches import BatchWorkload
from gpuconv.bench.cases import Case
from gpuconv.bench.casts import CASTS, CastWorkload
from gpuconv.bench.optimizers import OPTIMIZERS, OptimizerWorkload
from gpuconv.cpu import conv as cpu_conv
from gpuconv.cpu.elementwise import contiguous
from gpuconv.cpu.matmul import matmul
from gpuconv.ops.activation import activation_backward
from gpuconv.ops.cost import Cost, nbytes
from gpuconv.ops.op import Op
from gpuconv.precision import STORAGE, as_floats, rounded, stored
from gpuconv.shapes import window
from gpuconv.threads import blas_threads, parallel, shards

FORWARD, BACKWARD, DATA, WEIGHT = PASSES = (
    "forward", "backward", "backward-data", "backward-weight",
)  # fmt: skip
# What an operation returns, by the names that its backward pass has for it.
RETURNS: dict[str, tuple[str, ...]] = {
    "max_pool2d": ("y", "argmax"),
    "conv2d_relu_max_pool2d": ("y", "argmax"),
    "batch_norm2d": ("y", "mean", "var"),
    "cross_entropy": ("loss", "probabilities"),
    "half_squared_error": ("loss", "probabilities"),
    "hinge": ("loss", "excess"),
}
# These select among their inputs, so the results must be equal.
EXACT = ("relu", "relu_backward", "max_pool2d", "assign")
SPLIT = ("conv2d", "linear")  # whose backward pass is timed in two halves
# The bound of a float32 result's error relative to the largest result: by the length of its sums,
# at least MIN_ERROR. Tests check kernels against proved bounds; for long sums this one is tighter,
# and it needs no second reference.
MIN_ERROR, ERROR_OF_TERMS = 1e-5, 4e-7
IN_PLACE = ("accumulate", "assign", "batch_norm2d_track")
BATCHED = ("x", "dy", "y", "argmax")  # arrays of an image each
# Arguments that 16-bit precisions store so; of SUMMANDS b too. And how far a stored result is off.
IMAGES = ("x", "dy", "y", "a", "total", "part")
SUMMANDS = ("add", "accumulate", "multiply")
ROUNDING = {"bf16": 2.0**-8, "fp16": 2.0**-11}
CUT = 2  # tensor cores cut their sums instead of rounding them


@dataclass(frozen=True, eq=False)
class Workload:
    """A pass of an operation: `op` called with `arguments`, NumPy arrays and numbers.

    direction: of PASSES. in_place: whether a call changes its arguments.
    """

    case: Case
    direction: str
    op: Op
    arguments: tuple[Any, ...]
    cost: Cost
    in_place: bool = False

    @property
    def kernels(self) -> bool:
        """Whether the operation runs on sim and cuda."""
        return self.op.has_kernels

    def prepare(self, arguments: tuple[Any, ...]) -> Callable[[], tuple[Any, ...]]:
        """A call over these arrays, of any device, that returns what it computes."""
        if self.direction == DATA and isinstance(arguments[0], np.ndarray):
            return _cpu_data(self.case, arguments)
        return lambda: self.chosen(self.run(arguments))

    def run(self, arguments: tuple[Any, ...]) -> Any:
        """The operation on these arrays, in the case's precision."""
        if self.case.precision == "ieee":
            return self.op(*arguments)
        if "precision" in self.op.parameters:  # the last one
            arguments = (*arguments[:-1], self.case.precision)
        return self.op.stored(*arguments)

    def expected(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Each expected result, in float64 by the reference implementation, and its error bound."""
        exact = self.chosen(_reference(self.op, self.arguments))
        found = [(one, self._bound(one)) for one in map(np.asarray, exact)]
        if self.case.precision in STORAGE and self.direction != WEIGHT:
            one, bound = found[0]
            found[0] = one, bound + ROUNDING[self.case.precision] * np.abs(one)
        return found

    def chosen(self, found: Any) -> tuple[Any, ...]:
        """The results of the operation that belong to this pass."""
        several = found if isinstance(found, tuple) else (found,)
        several = several[:1] if self.direction == DATA else several
        if self.case.op == "conv2d_relu_max_pool2d" and self.direction == FORWARD:
            several = several[:1]  # rounding decides the argmax of a near tie
        return tuple(one for one in several if one is not None)

    def _bound(self, exact: np.ndarray) -> np.ndarray:
        if exact.dtype != np.float64 or self.op.__name__ in EXACT:
            return np.zeros(exact.shape)
        terms = self.cost.flops / max(exact.size, 1)
        error = max(MIN_ERROR, ERROR_OF_TERMS * terms**0.5)
        error *= 1 if self.case.precision == "ieee" else CUT
        return np.full(exact.shape, error * np.abs(exact).max(initial=0))


AnyWorkload = Workload | OptimizerWorkload | BatchWorkload | CastWorkload
# What is no operation of gpuconv.ops.
OTHERS: dict[str, Any] = {
    **dict.fromkeys(OPTIMIZERS, OptimizerWorkload), "image_batch": BatchWorkload,
    **dict.fromkeys(CASTS, CastWorkload),
}  # fmt: skip


def of_case(case: Case, passes: tuple[str, ...] = (), seed: int = 0) -> Iterator[AnyWorkload]:
    """The workloads of a case, with random inputs; without `passes` one for each of its passes.

    The backward pass of a convolution or linear layer is split into two halves.

    Raises as the operation does for shapes that do not fit.
    """
    rng = np.random.default_rng(seed)
    floats = partial(rng.standard_normal, dtype=np.float32)
    return _workloads(case, passes, floats, rng.integers)


def counted(case: Case, passes: tuple[str, ...] = ()) -> Iterator[tuple[str, Cost]]:
    """The passes of `of_case` and the least cost of each, from shapes alone."""
    workloads = _workloads(case, passes, ShapeOnly, lambda _, __, n: ShapeOnly((n,), np.int64))
    return ((one.direction, one.cost) for one in workloads)


def _workloads(
    case: Case, passes: tuple[str, ...], floats: Any, integers: Any
) -> Iterator[AnyWorkload]:
    """floats(shape), integers(low, high, count): what draws arrays, or stands in for them."""
    if case.op in OTHERS:
        if not passes or FORWARD in passes:
            yield OTHERS[case.op](case, floats)
        return
    chosen = passes or ((FORWARD, DATA, WEIGHT) if case.op in SPLIT else (FORWARD, BACKWARD))
    forward, backward = getattr(ops, case.op), getattr(ops, f"{case.op}_backward", None)
    values = _values(case, floats, integers)
    given = _arguments(forward, values)
    forward.work(*map(_shape, given))  # which refuses what does not fit
    if FORWARD in chosen:
        yield _workload(case, FORWARD, forward, given)
    if backward is None or not set(chosen) - {FORWARD}:
        return
    if case.op in SPLIT and not case.activation:  # of y only the shape is needed
        given = tuple(map(_shape, given))
    found = forward(*map(_number, given))
    several = found if isinstance(found, tuple) else (found,)
    values |= zip(RETURNS.get(case.op, ("y",)), several, strict=True)
    values |= {f"d{name}": floats(values[name].shape) for name in ("y", "w") if name in values}
    values |= {name: _held(case, name, values[name]) for name in ("y", "dy") if name in values}
    for direction in chosen:
        if direction == BACKWARD or (direction in (DATA, WEIGHT) and case.op in SPLIT):
            values["need_dx"] = direction != WEIGHT
            yield _workload(case, direction, backward, _arguments(backward, values))


def _workload(case: Case, direction: str, function: Op, given: tuple[Any, ...]) -> Workload:
    cost = function.work(*map(_shape, given))
    if direction == DATA:
        (dy, x, w), y = given[:3], _output_of(function, given)
        cost = Cost(cost.flops // 2, nbytes(dy, w, x, y))
    return Workload(case, direction, function, given, cost, case.op in IN_PLACE)


def _output_of(backward: Op, arguments: tuple[Any, ...]) -> Any:
    """What the forward operation returned, among a gradient's arguments."""
    return arguments[list(backward.parameters).index("y")]


def _values(case: Case, floats: Any, integers: Any) -> dict[str, Any]:
    """An operation's arguments by the names that its definition has for them."""
    x, K, stride = floats(case.x), case.filters, case.stride
    if case.op.startswith("conv2d") and stride is None:
        stride = 1
    values = {
        **{"x": x, "total": x, "a": x, "scores": x, "seed": 1, "p": 0.5, "x_shape": x.shape},
        **{"stride": stride, "padding": case.padding, "dilation": case.dilation},
        **{"groups": case.groups, "activation": case.activation, "kernel_size": case.kernel},
        **{"output_size": case.kernel, "size": case.filters},
        **{"factor": 0.5, "count": 1000, "momentum": 0.1},
    }
    if case.op.startswith("conv2d"):
        seen, left = divmod(case.x[1], case.groups)
        if left:
            raise ValueError(
                f"bench: {case.groups} groups do not divide the {case.x[1]} channels of x"
            )
        values |= {"w": floats((K, seen, *case.kernel)), "b": floats((K,))}
    elif case.op == "linear":
        values |= {"w": floats((K, case.x[1])), "b": floats((K,))}
    elif case.op == "batch_norm2d":
        values |= {"w": floats(case.x[1:2]), "b": floats(case.x[1:2])}
    elif case.op == "batch_norm2d_track":
        values |= {name: floats(case.x) for name in ("running_mean", "running_var", "mean", "var")}
    elif case.op == "assign":
        values["part"] = floats(case.x)
    elif case.op in ("add", "accumulate", "multiply"):
        values["b"] = floats(case.x)
    elif "scores" in getattr(ops, case.op).parameters:
        values["labels"] = integers(0, case.x[1], case.x[0])
    return {name: _held(case, name, value) for name, value in values.items()}


def _held(case: Case, name: str, value: Any) -> Any:
    """An argument as a device holds it in the case's precision. What is multiplied is rounded, so
    that the products are exact.
    """
    weight = name == "w" and case.op in SPLIT
    image = name in IMAGES or (name == "b" and case.op in SUMMANDS)
    if case.precision == "ieee" or not (weight or image):
        return value
    if weight or case.precision not in STORAGE:
        return rounded(value, case.precision)
    if isinstance(value, ShapeOnly):
        return ShapeOnly(value.shape, STORAGE[case.precision])
    return stored(value, case.precision)


def _shape(value: Any) -> Any:
    """An array without its values."""
    return ShapeOnly(value.shape, value.dtype) if isinstance(value, np.ndarray) else value


def _number(value: Any) -> Any:
    """An array of 16 bits as the float32 numbers that it stands for."""
    if isinstance(value, ShapeOnly):
        return ShapeOnly(value.shape) if value.dtype in STORAGE.values() else value
    return as_floats(value) if isinstance(value, np.ndarray) else value


def _arguments(function: Op, values: dict[str, Any]) -> tuple[Any, ...]:
    """Arguments in the function's order, its defaults where there is no value."""
    given: list[Any] = []
    for name, parameter in function.parameters.items():
        if name == "y" and "activation" in function.parameters and not values["activation"]:
            given.append(None)
        elif name in values:
            given.append(values[name])
        elif parameter.default is not parameter.empty:
            given.append(parameter.default)
        else:
            raise NotImplementedError(f"bench: {function.__name__}: no value for its {name}")
    return tuple(given)


def _reference(op: Op, arguments: tuple[Any, ...]) -> Any:
    """The reference implementation in float64.

    A convolution runs image by image on all cores: one image's arrays stay in the cache.
    """
    if not op.__name__.startswith("conv2d") or len(arguments[0]) < 2:
        return op.reference(*_floats(arguments))
    batched = [name in BATCHED for name in op.parameters]

    def some(begin: int, end: int) -> list[Any]:
        return [op.reference(*_floats(tuple(
            a[n : n + 1] if whole and a is not None else a
            for a, whole in zip(arguments, batched, strict=True)
        ))) for n in range(begin, end)]  # fmt: skip

    with blas_threads(1):
        shares = parallel(some, shards(len(arguments[0])))
    return _together([one for share in shares for one in share])  # type: ignore[attr-defined]


def _together(images: list[Any]) -> Any:
    """The images' results joined; gradients of shared parameters are summed."""
    if not isinstance(images[0], tuple):
        return np.concatenate(images)
    found: list[Any] = []
    for number, parts in enumerate(zip(*images, strict=True)):
        if parts[0] is None:
            found.append(None)
        else:  # a convolution's backward pass returns dx, dw, db; the others are of the images
            found.append(np.concatenate(parts) if number == 0 or len(parts[0]) == 1 else sum(parts))
    return tuple(found)


def _floats(arguments: tuple[Any, ...]) -> list[Any]:
    """Float arrays as float64 copies, because an operation may work in place."""
    return [
        a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a
        for a in map(_number, arguments)
    ]


def _cpu_data(case: Case, arguments: tuple[Any, ...]) -> Callable[[], tuple[Any, ...]]:
    """dx alone on the CPU path, by the functions that the operation itself calls."""
    backward = getattr(ops, f"{case.op}_backward")
    (dy, x, w), y = arguments[:3], _output_of(backward, arguments)
    if case.op == "linear":
        return lambda: (matmul(activation_backward(dy, y, case.activation), w),)
    stride = 1 if case.stride is None else case.stride
    geometry = window(w.shape[2:], stride, case.padding, case.dilation)

    def call() -> tuple[Any, ...]:
        before = contiguous(activation_backward(dy, y, case.activation))
        return (cpu_conv.input_gradient(before, w, x.shape, geometry, case.groups),)

    return call
