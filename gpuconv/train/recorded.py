"""`recorded`: a training step of your own, recorded on a device and replayed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from gpuconv.arrays import device_of, is_device, to_device
from gpuconv.autograd import later
from gpuconv.cuda.recording import Recorder
from gpuconv.cuda.replay import Record
from gpuconv.cuda.runtime import Runtime, runtime
from gpuconv.nn import Module, Tensor
from gpuconv.train.records import Fixed, Records

Step = Callable[..., Any]


def recorded(step: Step, *parts: Any) -> Step:
    """The function `step`, which is recorded on the devices sim and cuda, and then replayed.

    step(*arguments): what it is to do for a batch: forward, loss, backward, update; it returns a
    tensor, a tuple of tensors, or None. Arrays among its arguments may be NumPy's or the device's;
    it gets them on the device. parts: the modules and optimisers that it uses.

    Its first calls run as they are. When one launches the same kernels as the one before for
    arguments of the same shapes, its launches are kept and replayed from then on, on cuda as a CUDA
    graph; Python does not run `step` any more. Rates and settings of optimisers, modes of modules
    and frozen parameters may change between calls as ever. What `step` reads besides, such as a
    global variable, is what it was at the first time. A step that reads arrays on the host or
    copies some to the device cannot be recorded: a warning says so, and it runs as it is. On the
    host it always does.

    The tensors that a replayed call returns are overwritten by the next one, but for losses. A call
    does not wait for the device; who reads a loss does.

    >>> from gpuconv import nn, optim
    >>> model, criterion = nn.Linear(2, 3, rng=0), nn.CrossEntropyLoss()
    >>> optimizer = optim.SGD(model.parameters(), lr=0.1)
    >>> def step(x, labels):
    ...     optimizer.zero_grad()
    ...     loss = criterion(model(x), labels)
    ...     loss.backward()
    ...     optimizer.step()
    ...     return loss
    >>> step = recorded(step, model, optimizer)
    >>> step(np.ones((4, 2), np.float32), np.array([0, 1, 2, 0])).item() > 0
    True
    """
    modules = [part for part in parts if isinstance(part, Module)]
    if not modules:
        raise TypeError("recorded: give the modules and optimisers that the step uses")
    runs: dict[str, _Runs] = {}

    def run(*arguments: Any) -> Any:
        device = modules[0].device
        if not is_device(device):
            return step(*arguments)
        if device not in runs:
            runs[device] = _Runs(step, parts, device)
        return runs[device](*arguments)

    return run


class _Runs:
    """The runs of a step on one device."""

    def __init__(self, step: Step, parts: tuple[Any, ...], device: str) -> None:
        self._step, self._device, self._parts = step, device, parts
        self._on: Runtime = runtime(device)
        self._records = Records(self._on, lambda text: warnings.warn(text, stacklevel=5))
        self._inputs: dict[Hashable, list[Any]] = {}  # by shape, where a recorded step looks

    def __call__(self, *arguments: Any) -> Any:
        fixed, shape = Fixed(*self._parts), tuple(map(_shape, arguments))
        kind = fixed.now(shape)
        held = self._put(shape, arguments)
        if (record := self._records.find(kind)) is not None:
            record.start()
            return _result(record)
        there = [to_device(a, self._device) if device_of(a) else a for a in arguments]

        def ordinary(recorder: Recorder | None) -> Any:
            if recorder is None or not recorder.keeping:
                return self._step(*there)
            result = self._step(*held)
            recorder.keep((held, fixed.arrays()))
            recorder.outputs, recorder.gradients = result, fixed.gradients()
            _require_known(recorder, result)
            return result

        return self._records.run(kind, ordinary, guard=fixed.guard)

    def _put(self, shape: Hashable, arguments: tuple[Any, ...]) -> list[Any]:
        """The arguments, arrays where a recorded step looks for them."""
        on = self._on
        if shape not in self._inputs:
            self._inputs[shape] = [
                on.constant(np.zeros(a.shape, a.dtype)) if device_of(a) else a for a in arguments
            ]
        held = self._inputs[shape]
        for array, given in zip(held, arguments, strict=True):
            if isinstance(given, np.ndarray):
                on.queue().copy(array, np.ascontiguousarray(given))
            elif device_of(given):
                on.assign(array, given)
        return held


def _shape(argument: Any) -> Hashable:
    if device_of(argument):
        return argument.shape, argument.dtype.str
    return argument


def _tensors(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else () if result is None else (result,)


def _read(on: Runtime, kept: dict[int, Any]) -> dict[int, float]:
    return {place: float(on.read(loss)[0]) for place, loss in kept.items()}


def _is_host(tensor: Tensor) -> bool:
    return isinstance(tensor.data, np.ndarray)


def _require_known(recorder: Recorder, result: Any) -> None:
    """Refuse results that a replay could not give again."""
    tensors = _tensors(result)
    if not all(isinstance(t, Tensor) for t in tensors):
        recorder.refused = recorder.refused or "it returns something else than tensors"
    elif not all(recorder.host_numbers.find(t.data) for t in tensors if _is_host(t)):
        recorder.refused = recorder.refused or "the loss is computed further by the host"


def _result(record: Record) -> Any:
    """What a replayed step returns: its tensors, and its losses, which are copied on the device and
    read from there when somebody wants to know them.
    """
    on, recorder = record.on, record.recorder

    def number(array: np.ndarray) -> Tensor:
        known = recorder.host_numbers.find(array)
        assert known is not None  # by `_require_known`
        kept = {place: on.empty(1) for place in known.losses}
        for place, loss in kept.items():
            on.assign(loss, recorder.scalars[place])
        return later(lambda: Tensor(np.asarray(known.of(_read(on, kept)))))

    found = tuple(number(t.data) if _is_host(t) else t.detach() for t in _tensors(record.outputs))
    return found if isinstance(record.outputs, tuple) else found[0] if found else None
