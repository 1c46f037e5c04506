"""The operations of a compiled network: a recorded pass, in which batch norm, sums and ReLU are
joined to the convolutions before them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpuconv import ops
from gpuconv.arrays import ShapeOnly
from gpuconv.autograd import Tensor
from gpuconv.cpu.conv_pool import is_fused
from gpuconv.cpu.precision import modes
from gpuconv.nn.module import Module
from gpuconv.nn.trace import Recording, Step, run

JOINED = ("cat", "append_channels")
POOLS = ("max_pool2d", "avg_pool2d", "sum_pool2d", "adaptive_avg_pool2d")
TAKE_PLANAR = ("conv2d", "reshape")  # images (N, C, H, W) as they are
KNOWN = ("conv2d", "linear", "batch_norm", "add", "relu", "reshape", *JOINED, *POOLS)


@dataclass
class Operation:
    """One operation: of the step `number`, and of what follows it up to the step `output`.

    inputs: the steps that it reads. w, b: weights with a batch norm folded in. scale, shift: of a
    batch norm by itself, or before a 1x1 convolution, then under a ReLU if `rectified`. rest: a
    step whose output is added at the end. relu: whether the sum is rectified. pooled: a convolution
    with its ReLU and the 2x2 max-pool after it, in one pass. read: what w and b are made from.
    """

    name: str
    step: Step
    inputs: list[int]
    output: int
    saved: Sequence[Any] = ()
    w: Any = None
    b: Any = None
    scale: Any = None
    shift: Any = None
    rectified: bool = False
    rest: int | None = None
    relu: bool = False
    pooled: bool = False
    read: tuple[Any, ...] = ()
    joins: list[str] = field(default_factory=list)  # the names of the steps joined to it


def operations(model: Module, shape: tuple[int, ...]) -> tuple[list[Operation], Recording, int]:
    """The operations of a network's pass in evaluation mode over a batch of `shape`, in order, the
    recorded pass, and the step that gives the output.

    Raises ValueError where the forward depends on values, mixes the images of a batch, or runs
    what cannot be compiled.
    """
    recorded = Recording(model)
    try:
        y = run(model, ShapeOnly(shape, np.dtype(np.float32)), False, recorded)
    except (TypeError, NotImplementedError) as error:
        where = recorded.failed or "the network"
        raise ValueError(f"compile: the forward of {where} depends on values: {error}") from error
    if not isinstance(y, Tensor) or y.ndim not in (2, 4):
        raise ValueError("compile: the network must return one tensor of scores or images")
    output = recorded.number(y)
    return _Fusion(recorded, output).operations(), recorded, output


class _Fusion:
    """Joins steps to the operations whose output only they read."""

    def __init__(self, recorded: Recording, output: int) -> None:
        self.recorded, self.steps = recorded, recorded.steps
        self.readers: dict[int, list[int]] = defaultdict(list)
        self.readers[output].append(len(self.steps))  # the caller
        self.data = {0}
        for number in range(len(self.steps)):
            if isinstance(recorded.tensors[number].data, ShapeOnly):
                self.data.add(number)
                for source in self._sources(number):
                    self.readers[source].append(number)
        self.taken: set[int] = {0}

    def _sources(self, number: int) -> list[int]:
        """The steps with data that one reads."""
        return [n for n in self.steps[number].inputs if n is not None and n in self.data]

    def operations(self) -> list[Operation]:
        found = [
            self._operation(number)
            for number in sorted(self.data)
            if number not in self.taken and self.readers[number]
        ]
        found.sort(key=lambda operation: operation.output)
        return self._with_norms_joined(found)

    def _operation(self, number: int) -> Operation:
        step, (_, saved) = self.steps[number], self.recorded.read.get(number, ((), ()))
        if step.name not in KNOWN and not hasattr(ops, f"{step.name}_backward"):
            where = f" of {step.module}" if step.module else ""
            raise ValueError(f"compile: {step.name}{where} cannot be compiled; call the network")
        made = Operation(step.name, step, self._sources(number), number, saved)
        if step.name in ("conv2d", "linear"):
            w, b = saved[2:4]
            if isinstance(w, ShapeOnly):
                raise ValueError(f"compile: the weights of {step.name} depend on the input")
            made.w = np.array(w, np.float32, order="C")  # as all loops read it
            made.b = np.zeros(len(w), np.float32) if b is None else np.array(b, np.float32)
            made.read = w, b
        elif step.name == "batch_norm":
            made.scale, made.shift = (a.astype(np.float32) for a in self._norm(number))
        elif step.name == "add" and len(made.inputs) == 2:
            made.rest = made.inputs.pop()
        elif step.name == "add":
            raise ValueError("compile: a sum with a constant cannot be compiled")
        self._extend(made)
        self._join_pool(made)
        return made

    def _norm(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(scale, shift) of a batch norm with its running statistics, in float64."""
        saved = self.recorded.read[number][1]
        _, w, b, mean, var, eps, _, of_batch = saved[1:9]
        if of_batch:
            raise ValueError("compile: a batch norm without running statistics mixes the images")
        mean, var = (np.asarray(a, np.float64) for a in (mean, var))
        scale = (1.0 if w is None else np.asarray(w, np.float64)) / np.sqrt(var + eps)
        return scale, (0.0 if b is None else np.asarray(b, np.float64)) - mean * scale

    def _extend(self, made: Operation) -> None:
        """Join what follows, as long as nothing else reads what lies between."""
        while not made.relu and made.name in ("conv2d", "linear", "batch_norm", "add"):
            readers = self.readers[made.output]
            if len(readers) != 1 or readers[0] in self.taken or readers[0] >= len(self.steps):
                return
            number = readers[0]
            step, others = self.steps[number], self._sources(number)
            if step.name == "batch_norm" and made.name == "conv2d" and made.rest is None:
                scale, shift = self._norm(number)
                made.b = (made.b * scale + shift).astype(np.float32)
                made.w = (made.w * scale[:, None, None, None]).astype(np.float32)
                made.read += tuple(self.recorded.read[number][1][2:7])
            elif step.name == "add" and made.rest is None and len(others) == 2:
                made.rest = others[0] if others[1] == made.output else others[1]
            elif step.name == "relu":
                made.relu = True
            else:
                return
            made.output = number
            made.joins.append(step.name)
            self.taken.add(number)

    def _join_pool(self, made: Operation) -> None:
        """A max-pool that alone reads a rectified convolution, where one pass computes both."""
        readers = self.readers[made.output]
        if made.name != "conv2d" or not made.relu or made.rest is not None or len(readers) != 1:
            return
        (number,) = readers
        following = self.readers[number]  # the caller is none of the steps
        if number >= len(self.steps) or max(following, default=0) >= len(self.steps):
            return
        given, pool, window = self.steps[made.inputs[0]], self.steps[number], made.step.window
        planar = all(self.steps[reader].name in TAKE_PLANAR for reader in following)
        if pool.name != "max_pool2d" or not planar:
            return
        assert window is not None
        assert pool.window is not None
        fixed = tuple(given.shape), np.dtype(np.float32), made.w.shape, window, made.saved[7]
        if is_fused(*fixed, pool.window, modes()):
            made.pooled = True
            made.output = number
            made.joins.append(pool.name)
            self.taken.add(number)

    def _with_norms_joined(self, found: list[Operation]) -> list[Operation]:
        """Batch norm and ReLU before a 1x1 convolution that alone reads them are done while the
        convolution reads its input.
        """
        by_input = {operation.inputs[0]: operation for operation in found if operation.inputs}
        joined: set[int] = set()
        for norm in found:
            conv = by_input.get(norm.output)
            if (
                norm.name == "batch_norm"
                and norm.rest is None
                and len(self.readers[norm.output]) == 1
                and conv is not None
                and conv.name == "conv2d"
                and conv.w.shape[2:] == (1, 1)
                and not conv.pooled
                and conv.saved[7] == 1
            ):
                conv.scale, conv.shift, conv.rectified = norm.scale, norm.shift, norm.relu
                conv.inputs = norm.inputs
                joined.add(id(norm))
        return [operation for operation in found if id(operation) not in joined]
