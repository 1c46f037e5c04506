"""`recorded`: a training step of your own, recorded on a device and replayed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator
from functools import partial, wraps
from typing import Any

import numpy as np

from gpuconv.arrays import device_of, is_device, to_device
from gpuconv.autograd import later
from gpuconv.cuda import recording
from gpuconv.cuda.recording import Recorder
from gpuconv.cuda.replay import Record
from gpuconv.cuda.runtime import Runtime, runtime
from gpuconv.nn import Module, Tensor
from gpuconv.train.python_state import python_state
from gpuconv.train.records import Fixed, Records

Step = Callable[..., Any]
Given = tuple[tuple[Any, ...], dict[str, Any]]  # arguments, also those with a name
SETTINGS = "it changes a setting of the optimiser, such as the rate: change it between the steps"


def recorded(step: Step, *parts: Any) -> Step:
    """The function `step`, which is recorded on the devices sim and cuda, and then replayed.

    step(*arguments, **options): what it is to do for a batch: forward, loss, backward, update; it
    returns a tensor, a tuple of tensors, or None. Arrays among its arguments may be NumPy's or the
    device's, also within tuples, lists and dicts; it gets them on the device. parts: the modules
    and optimisers that it uses.

    Its first calls run as they are. When one launches the same kernels as the one before for
    arguments of the same shapes, its launches are kept and replayed from then on, on cuda as a CUDA
    graph; Python does not run `step` any more. Rates and settings of optimisers, modes of modules
    and frozen parameters may change between calls as ever, and so may numbers and other values of
    Python that `step` reads. Gradients may add up over several calls. A step that reads arrays on
    the host, copies some to the device, or changes values of Python as it runs (a count, the rate)
    cannot be recorded: a warning says so, and it runs as it is. On the host it always does.

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

    @wraps(step)
    def run(*arguments: Any, **options: Any) -> Any:
        device = modules[0].device
        if not is_device(device):
            return step(*arguments, **options)
        if device not in runs:
            runs[device] = _Runs(step, (*parts, step), device)
        return runs[device]((arguments, options))

    return run


class _Runs:
    """The runs of a step on one device. parts: what it uses, itself among them."""

    def __init__(self, step: Step, parts: tuple[Any, ...], device: str) -> None:
        self._step, self._device, self._parts = step, device, parts
        self._on: Runtime = runtime(device)
        self._records = Records(self._on, lambda text: warnings.warn(text, stacklevel=6))

    def __call__(self, given: Given) -> Any:
        fixed, arguments = Fixed(*self._parts), [*_leaves(given)]
        gradients = fixed.gradients()
        kept: list[Any] = []
        kind = fixed.now(_shape(given, kept), tuple(g is None for _, g in gradients))
        if any(isinstance(a, Tensor) and (a.requires_grad or not a.is_leaf) for a in arguments):
            kind = None
        if (record := self._records.find(kind)) is not None:
            self._replay(record, arguments)
            return _result(record)

        def ordinary(recorder: Recorder | None) -> Any:
            if recorder is None or not recorder.keeping:
                with recording.paused():
                    there = _mapped(given, self._there)
                return self._run(there)
            with recording.paused(), self._on.shared_memory():
                held = _mapped(given, self._copied)
                for parameter, gradient in gradients:
                    if gradient is not None:
                        parameter.grad = recorder.before[id(parameter)] = self._on.copy(gradient)
            result = self._run(held)
            recorder.before.clear()
            recorder.keep((held, kept, fixed.arrays()))
            recorder.inputs = [*_leaves(held)]
            recorder.outputs, recorder.gradients = result, fixed.gradients()
            _require_known(recorder, result)
            return result

        return self._records.run(kind, ordinary, guard=partial(_guard, fixed))

    def _run(self, given: Given) -> Any:
        return self._step(*given[0], **given[1])

    def _there(self, value: Any) -> Any:
        return to_device(value, self._device) if isinstance(value, np.ndarray) else value

    def _copied(self, value: Any) -> Any:
        """A copy where a recorded step looks for it."""
        if isinstance(value, Tensor):
            return Tensor(self._copied(value.data))
        if not device_of(value):
            return value
        array = self._on.empty(value.shape, value.dtype)
        self._copy(array, value)
        return array

    def _copy(self, to: Any, value: Any) -> None:
        if isinstance(value, np.ndarray):
            self._on.queue().copy(to, np.ascontiguousarray(value))
        else:
            self._on.assign(to, value)

    def _replay(self, record: Record, arguments: list[Any]) -> None:
        recorder = record.recorder
        for to, value in zip(map(_data, recorder.inputs), map(_data, arguments), strict=True):
            if device_of(value):
                self._copy(to, value)
        for parameter, gradient in recorder.added_to:
            self._copy(gradient, parameter.grad)
        record.start()


def _guard(fixed: Fixed) -> Callable[[], str]:
    """As `Fixed.guard`; also of the optimisers' settings, which a Trainer changes by `again`."""
    changed, before = fixed.guard(), fixed.settings()
    return lambda: changed() or ("" if fixed.settings() == before else SETTINGS)


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """Tuples, lists and dicts as they are, with function(value) for each value in them."""
    if isinstance(value, dict):
        return {name: _mapped(each, function) for name, each in value.items()}
    if isinstance(value, list):
        return [_mapped(each, function) for each in value]
    if isinstance(value, tuple):
        parts = [_mapped(each, function) for each in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return function(value)


def _leaves(value: Any) -> Iterator[Any]:
    """The values in tuples, lists and dicts."""
    if isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _leaves(each)
    else:
        yield value


def _shape(value: Any, kept: list[Any]) -> Hashable:
    """What stands for arguments of a step in what decides which record serves it."""
    if isinstance(value, dict):
        return dict, tuple((name, _shape(each, kept)) for name, each in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(_shape(each, kept) for each in value)
    if isinstance(value, Tensor):
        return Tensor, _shape(value.data, kept)
    if device_of(value):
        return value.shape, value.dtype.str
    return type(value), python_state([value], kept=kept)


def _data(value: Any) -> Any:
    return value.data if isinstance(value, Tensor) else value


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
