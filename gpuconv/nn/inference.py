"""A network compiled for inference on the CPU: see `Module.compile`."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from operator import is_
from typing import Any

import numpy as np

from gpuconv import ops
from gpuconv.arrays import device_of
from gpuconv.autograd import Tensor, as_tensor
from gpuconv.cpu import channels_last as loops
from gpuconv.cpu import inference_conv
from gpuconv.cpu.direct_plan import abreast
from gpuconv.cpu.moves import NO_IMAGE, Image
from gpuconv.nn.inference_graph import JOINED, POOLS, Operation, operations
from gpuconv.nn.inference_places import Places, is_small
from gpuconv.nn.module import Module
from gpuconv.ops.avg_pool2d import taps_counted
from gpuconv.shapes import Window
from gpuconv.threads import alone, blas_threads, parallel, shards, thread_count

_one_thread = blas_threads(1)
FEW_ROWS = 4  # of a linear layer's input: for one, BLAS takes twice the time with its calls
# Multiply-adds of a network below which all its work is done by one thread. LeNet at batch 16, 7
# million, took 240 us so, with two threads 289; at 24 the same.
SMALL = 8_000_000
PLANS_KEPT = 4  # for so many shapes of the input, the buffers are kept


class Compiled:
    """A snapshot of a network's forward pass in evaluation mode, made for speed: see
    `Module.compile`.
    """

    def __init__(self, model: Module) -> None:
        if model.device != "cpu":
            raise ValueError(f"compile: the network is on {model.device}, compile is for cpu")
        for name, parameter in model.named_parameters():
            if parameter.data.dtype != np.float32:
                raise ValueError(f"compile: {name} is {parameter.data.dtype}, expected float32")
        self._model = copy.deepcopy(model)
        self._plans: OrderedDict[tuple[Any, ...], _Plan] = OrderedDict()
        self._packed: dict[Any, Any] = {}  # weights as loops read them, by step and form
        self._lock = threading.Lock()  # the buffers serve one call at a time

    def __call__(self, x: Any) -> Tensor:
        """The network's output, without a gradient, for images (N, C, H, W): float32 of the host.

        The first call for a shape plans it.
        """
        data = as_tensor(x).data
        if device_of(data) != "cpu" or data.ndim != 4 or data.dtype != np.float32:
            raise ValueError(
                "compile: images are float32 (N, C, H, W) on cpu, got "
                f"{data.dtype} {tuple(data.shape)} on {device_of(data)}"
            )
        if not len(data):
            return Tensor(self._model(x).data)
        with self._lock:
            key = data.shape, thread_count()
            plan = self._plans.pop(key, None) or _Plan(self._model, data.shape, self._packed)
            self._plans[key] = plan
            if len(self._plans) > PLANS_KEPT:
                self._plans.popitem(last=False)
            return Tensor(plan.run(data))

    def __repr__(self) -> str:
        return f"Compiled({type(self._model).__name__})"


class _Plan:
    """The calls for one shape of the input, and the buffers that they share."""

    def __init__(self, model: Module, shape: tuple[int, ...], packed: dict[Any, Any]) -> None:
        found, recorded, output = operations(model, shape)
        self.shapes = [tuple(step.shape) for step in recorded.steps]
        self.packed = packed
        first = Operation("input", recorded.steps[0], [], 0)
        self.places = Places([first, *found], self.shapes, output)
        self.blas: Any = nullcontext()
        self.small = sum(step.multiply_adds for step in recorded.steps) < SMALL
        self.calls = [call for each in found for call in self._calls(each)]
        self.given = self.places.images(0)
        self.made = self.places.images(output).reshape(self.shapes[output])

    def run(self, x: np.ndarray) -> np.ndarray:
        """The output for images of the plan's shape."""
        self.given[...] = x
        with self.blas, alone() if self.small else nullcontext():
            for call in self.calls:
                call()
        return self.made.copy(order="C")

    # ---- the calls of each operation -----------------------------------------------------------

    def _calls(self, each: Operation) -> Sequence[Callable[[], object]]:
        if each.name == "reshape" and each.inputs[0] in self.places.planar:
            x, y = (self.places.images(n) for n in (each.inputs[0], each.output))
            return [partial(np.copyto, y, x.reshape(y.shape))]
        if each.name in JOINED:
            return self._joins(each)
        if each.name in POOLS and (pool := self._pool(each)) is not None:
            return [pool]
        if each.name == "conv2d" and each.step.window is not None:
            shape, window, groups = self.shapes[each.inputs[0]], each.step.window, each.saved[7]
            sizes = shape[0], each.w.shape[1], len(each.w) // groups, groups
            if groups > 1 and each.scale is None and abreast(*sizes):
                return [partial(self._by_operation, each)]
            return [self._product(each, each.w, window, groups)]
        if each.name == "linear" and is_small(each):
            return [self._matmul(each)]
        if each.name == "linear":
            return [self._product(each, each.w[:, :, None, None], Window(1), 1)]
        if each.name in ("batch_norm", "add"):
            return [self._scale_and_add(each)]
        return [partial(self._by_operation, each)]

    def _matmul(self, each: Operation) -> Callable[[], None]:
        """A linear layer of few numbers: calls count more than what they compute."""
        x, y = (self.places.view(n)[:, 0, 0] for n in (each.inputs[0], each.output))
        w = self._pack(each, "columns", partial(np.ascontiguousarray, each.w.T))
        if len(x) <= FEW_ROWS:
            return partial(loops.few_rows, x, w, each.b, each.relu, y)
        self.blas = _one_thread

        def run() -> None:
            np.matmul(x, w, out=y)
            np.add(y, each.b, out=y)
            if each.relu:
                np.maximum(y, 0, out=y)

        return run

    def _at(self, number: int) -> tuple[np.ndarray, Image]:
        return self.places.at(number)

    def _rest(self, each: Operation) -> tuple[np.ndarray, Image] | None:
        return None if each.rest is None else self._at(each.rest)

    def _product(
        self, each: Operation, w: np.ndarray, window: Window, groups: int
    ) -> Callable[[], object]:
        given = self._at(each.inputs[0]), self._at(each.output), self._rest(each)
        before = None if each.scale is None else (each.scale, each.shift, each.rectified)
        pack = partial(self._pack, each)
        return inference_conv.convolution(
            *given, w, each.b, window, groups, before, each.relu, pack, each.pooled
        )

    def _pack(self, each: Operation, form: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once for all plans whose step reads the same arrays: a forward
        may take other steps for other shapes.
        """
        read, packed = self.packed.get((each.output, form), ((), None))
        if len(read) != len(each.read) or not all(map(is_, read, each.read)):
            packed = make()
            self.packed[each.output, form] = each.read, packed
        return packed

    def _scale_and_add(self, each: Operation) -> Callable[[], object]:
        (x, image), (y, to) = self._at(each.inputs[0]), self._at(each.output)
        rest = self._rest(each) or (np.zeros(to.C, np.float32), NO_IMAGE._replace(C=to.C))
        scale = np.ones(to.C, np.float32) if each.scale is None else each.scale
        shift = np.zeros(to.C, np.float32) if each.shift is None else each.shift
        run = partial(loops.scale_and_add, x, image, scale, shift, *rest, each.relu, y, to)
        return partial(parallel, run, shards(to.N * to.H * to.W, -(-(1 << 16) // to.C)))

    def _pool(self, each: Operation) -> Callable[[], object] | None:
        (x, image), (y, to) = self._at(each.inputs[0]), self._at(each.output)
        window = each.step.window
        if window is not None and window.dilation != (1, 1):
            return None
        rows, columns = _pooled_spans(window, (image.H, image.W), (to.H, to.W))
        lines = shards(to.N * to.H, -(-(1 << 13) // (to.W * to.C)))
        counts: Any = None
        if each.name == "avg_pool2d":
            counts = taps_counted(window, (image.H, image.W), each.step.count_include_pad)
        elif window is None:
            counts = np.multiply.outer(np.diff(rows)[:, 0], np.diff(columns)[:, 0])
        elif each.name == "sum_pool2d":
            counts = np.ones((to.H, to.W))
        if counts is not None:
            counts = np.ascontiguousarray(counts, np.float32)
        run = partial(loops.pool, x, image, rows, columns, counts, y, to)
        return partial(parallel, run, lines)

    def _joins(self, each: Operation) -> list[Callable[[], object]]:
        """Copies of those parts that were not computed in their place."""
        calls: list[Callable[[], object]] = []
        first = 0
        for number in each.inputs:
            count = self.shapes[number][1]
            if not self.places.is_part(number, each.output, first):
                target = self.places.view(each.output)[..., first : first + count]
                calls.append(partial(np.copyto, target, self.places.view(number)))
            first += count
        return calls

    def _by_operation(self, each: Operation) -> None:
        """The operation itself, on contiguous arrays (N, C, H, W) or (N, features)."""
        x = self._contiguous(each.inputs[0])
        if each.name == "conv2d":
            y = ops.conv2d(x, each.w, each.b, *each.saved[4:8])
            y = y if each.rest is None else ops.add(y, self._contiguous(each.rest))
            y = ops.relu(y) if each.relu else y
        elif each.name == "reshape":
            y = x.reshape(self.shapes[each.output])
        else:
            operation: Any = getattr(ops, each.name)
            y = operation(x, *_arguments(each, operation))
            y = y[0] if isinstance(y, tuple) else y
        to = self.places.images(each.output)
        to[...] = y.reshape(to.shape)

    def _contiguous(self, number: int) -> np.ndarray:
        return np.ascontiguousarray(self.places.images(number)).reshape(self.shapes[number])


def _arguments(each: Operation, operation: Any) -> list[Any]:
    """An operation's arguments after x, from what it saved for its gradient."""
    names = list(getattr(ops, f"{each.name}_backward").parameters)[1:]
    saved = dict(zip(names, each.saved[1:], strict=False))
    return [saved[name] for name in list(operation.parameters)[1:]]


def _pooled_spans(
    window: Window | None, size: tuple[int, int], outputs: tuple[int, int]
) -> list[np.ndarray]:
    """For rows and columns, the pixels (first, end) that each output reads; without a window those
    of adaptive pooling.
    """
    found = []
    for axis, (length, count) in enumerate(zip(size, outputs, strict=True)):
        if window is None:
            spans = [(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]
        else:
            stride, kernel = window.stride[axis], window.kernel_size[axis]
            firsts = [i * stride - window.pads(*size)[axis][0] for i in range(count)]
            spans = [(max(0, first), min(length, first + kernel)) for first in firsts]
        found.append(np.array(spans, np.int64))
    return found
