"""What the optimisers share: groups of parameters, a step over them, and their saved state."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import Any, ClassVar

import numpy as np

from gpuconv.arguments import number
from gpuconv.arrays import device_of, to_numpy
from gpuconv.autograd import Array, Parameter, settle
from gpuconv.errors import unknown
from gpuconv.optim import device, kernels, saved
from gpuconv.threads import over_shards

Group = dict[str, Any]
Task = tuple[Any, list[np.ndarray], list[Any]]  # a kernel, its flat arrays and its numbers


class Optimizer:
    """The base of SGD, Adam and AdamW. A step changes each parameter's array in place.

    params: Parameters, or groups of them: dicts with "params" and any of the optimiser's arguments,
    which hold for that group in place of the optimiser's own, as in PyTorch.
    param_groups: those dicts, complete; a value set there holds from the next step on.
    State arrays are made when a parameter's first gradient arrives. A parameter without a gradient,
    or with requires_grad=False, is skipped: it does not decay and its count of steps stays.

    >>> from gpuconv import nn, optim
    >>> body, head = nn.Linear(8, 8), nn.Linear(8, 2)
    >>> groups = [{"params": body.parameters(), "lr": 0.01}, {"params": head.parameters()}]
    >>> optimizer = optim.SGD(groups, lr=0.1)
    >>> [group["lr"] for group in optimizer.param_groups]
    [0.01, 0.1]
    >>> optimizer.lr = 0.05; [group["lr"] for group in optimizer.param_groups]
    [0.005, 0.05]
    """

    # the names of the state arrays that a parameter may have, PyTorch's
    slots: ClassVar[tuple[str, ...]] = ()
    # settings that saved states of before version 0.2 lack; they were False then
    added: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, params: Iterable[Any], defaults: Mapping[str, Any]) -> None:
        self.defaults = dict(defaults)
        self._check(self.defaults)
        self.params: list[Parameter] = []
        self.param_groups: list[Group] = []
        self.steps: list[int] = []
        self._state: list[dict[str, Array]] = []
        self._owner: list[int] = []  # each parameter's group
        self._ready: list[tuple[Any, ...]] = []  # what `_task` prepared for each parameter
        self._checked: list[tuple[Any, ...]] = []  # each group's values when they were checked
        self._values = itemgetter(*self.defaults)
        groups = list(params)
        if not groups:
            raise ValueError(f"{self._name}: params is empty; give model.parameters()")
        if not isinstance(groups[0], Mapping):
            groups = [{"params": groups}]
        for group in groups:
            self.add_param_group(group)
        without = [i for i, group in enumerate(groups) if "lr" not in group]
        rates = [group["lr"] for group in self.param_groups]
        self._lead = without[0] if without else rates.index(max(rates))

    @property
    def _name(self) -> str:
        return type(self).__name__

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add parameters with settings of their own; what is not given is the optimiser's.

        Raises: TypeError or ValueError for a setting that is unknown or bad, for what is no
        Parameter, and for a parameter that another group has.
        """
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError(f"{self._name}: a group is a dict with 'params', got {group!r}")
        for key in group:
            if key != "params" and key not in self.defaults:
                raise unknown(f"{self._name} setting", key, self.defaults)
        given = group["params"]
        given = [given] if isinstance(given, Parameter) else list(given)
        for p in given:
            if not isinstance(p, Parameter):
                raise TypeError(f"{self._name}: params must be Parameters, got {type(p).__name__}")
        params = tuple({id(p): p for p in given}.values())  # one used twice is updated once
        if not params:
            raise ValueError(f"{self._name}: params is empty; give model.parameters()")
        if {id(p) for p in params} & {id(p) for p in self.params}:
            raise ValueError(f"{self._name}: a parameter is in two groups")
        complete = {**self.defaults, **group, "params": params}
        self._check(complete)
        complete["initial_lr"] = complete["lr"]
        self._owner += [len(self.param_groups)] * len(params)
        self.param_groups.append(complete)
        self.params += params
        self.steps += [0] * len(params)
        self._state += [{} for _ in params]
        self._checked.append(self._values(complete))
        self._ready = [()] * len(self.params)

    @property
    def lr(self) -> float:
        """The learning rate: of the first group without one of its own, else the highest.

        Assign to it to change it: the rates of the other groups change by the same factor.
        ValueError if negative or not finite.
        """
        return self.param_groups[self._lead]["lr"]

    @lr.setter
    def lr(self, value: float) -> None:
        if type(value) is not float or not 0 <= value < math.inf:  # at every step: quickly
            value = number(f"{self._name}: lr", value, 0)
        usual = self.param_groups[self._lead]["initial_lr"]
        if usual == 0 and any(group["initial_lr"] != 0 for group in self.param_groups):
            raise ValueError(
                f"{self._name}: the groups' rates have no ratio to lr=0; set param_groups[i]['lr']"
            )
        for group in self.param_groups:
            own = group["initial_lr"]
            group["lr"] = value if own == usual else value * (own / usual)

    def hyperparameters(self) -> list[dict[str, Any]]:
        """The settings of each group, as they are now."""
        return [{name: group[name] for name in self.defaults} for group in self.param_groups]

    # ---- what a subclass defines ---------------------------------------------------------------

    def _check(self, group: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError naming a setting of a group that is bad."""
        raise NotImplementedError(f"{self._name} has no _check")

    def _slots(self, group: Group) -> tuple[str, ...]:
        """The state arrays that this group's parameters need."""
        return self.slots

    def _kernel(self, group: Group) -> tuple[str, dict[str, float]]:
        """The kernel for a group, by its name in gpuconv/optim/kernels.py and kernels/optim.cu, and
        the numbers that it takes, by name.
        """
        raise NotImplementedError(f"{self._name} has no kernel")

    def _numbers(self, group: Group, step: int, first: bool) -> tuple[float, ...]:
        """The kernel's further numbers, of one parameter. step: this one, counted from 1. first:
        whether the parameter had no state arrays.
        """
        return ()

    # ---- the step ------------------------------------------------------------------------------

    def zero_grad(self) -> None:
        """Forget the gradients, before the next backward adds its own."""
        for p in self.params:
            p.grad = None

    def step(self) -> None:
        """Update every parameter that has a gradient.

        Raises: TypeError or ValueError where a gradient's shape or device, a setting of a group, or
        the parameter's type since the last step does not fit; then nothing has changed.
        """
        settle()  # what still waits shall see the weights of before
        values = self._values
        for i, group in enumerate(self.param_groups):
            if values(group) != self._checked[i]:
                self._check(group)
                self._checked[i] = values(group)
        numbers: dict[Any, tuple[Any, ...]] = {}
        tasks: dict[int, Task] = {}
        elsewhere: list[int] = []
        for i, p in enumerate(self.params):
            if p.grad is None or not p.requires_grad:
                continue
            if isinstance(p.data, np.ndarray):
                tasks[i] = self._task(i, p, numbers)
            else:
                elsewhere.append(i)
        if elsewhere:
            device.step(self, elsewhere)
        for i, (kernel, arrays, scalars) in tasks.items():
            p = self.params[i].data
            self.steps[i] += 1
            self._state[i] = self._ready[i][4]
            if p.size < 2 * kernels.GRAIN:
                kernel(*arrays, *scalars)
            else:
                over_shards(kernel, arrays, *scalars, grain=kernels.GRAIN)
            if not p.flags.c_contiguous:
                p[...] = arrays[0].reshape(p.shape)

    def _task(self, i: int, p: Parameter, numbers: dict[Any, tuple[Any, ...]]) -> Task:
        """What a parameter's update runs.

        The flat arrays are made once for each array that `p.data` is; what a caller may change
        between two steps is compared here. numbers: the scalars of this step, by what decides them.
        """
        data, grad = p.data, p.grad
        if not isinstance(grad, np.ndarray):
            raise TypeError(f"{self._named(i)} is on cpu, its grad on {device_of(grad)}")
        if grad.shape != data.shape:
            raise ValueError(f"{self._named(i)} has shape {data.shape}, its grad {grad.shape}")
        owner, dtype, first = self._owner[i], data.dtype, not self._state[i]
        group = self.param_groups[owner]
        key = owner, dtype, self.steps[i], first
        if key not in numbers:
            name, shared = self._kernel(group)
            more = self._numbers(group, self.steps[i] + 1, first)
            numbers[key] = (name, *map(dtype.type, (*shared.values(), *more)))
        name, *scalars = numbers[key]
        ready = self._ready[i]
        if not ready or ready[0] is not data or ready[1] != dtype or ready[2] != name:
            ready = self._ready[i] = self._prepare(i, name)
        if grad.dtype != dtype or not grad.flags.c_contiguous:
            grad = np.ascontiguousarray(grad, dtype=dtype)
        flat, arrays = ready[3], ready[5]
        if flat is None:  # no view of it is contiguous: the step copies it back
            flat = np.ascontiguousarray(data).reshape(-1)
        return kernels.KERNELS[name], [flat, grad.reshape(-1), *arrays], scalars

    def _prepare(self, i: int, name: str) -> tuple[Any, ...]:
        """(array, its dtype, kernel, flat view or None, state by name, state as the kernel takes
        it); state arrays are zeros the first time.
        """
        data, state = self.params[i].data, self._state[i]
        if data.dtype not in (np.float32, np.float64):
            raise TypeError(f"{self._named(i)} must be float32 or float64, got {data.dtype}")
        if not data.flags.writeable:
            raise ValueError(f"{self._named(i)} is a read-only array")
        for array in state.values():
            same = isinstance(array, np.ndarray) and array.dtype == data.dtype
            if not same or array.size != data.size:
                raise ValueError(
                    f"{self._named(i)} became {data.dtype} x {data.size}, its state is"
                    f" {array.dtype} x {array.size}; make the optimiser after model.to()"
                )
        used = self._slots(self.param_groups[self._owner[i]])
        state = state | {s: np.zeros(data.size, data.dtype) for s in used if s not in state}
        flat = data.reshape(-1) if data.flags.c_contiguous else None
        return data, data.dtype, name, flat, state, [state[slot] for slot in used]

    def _named(self, i: int) -> str:
        return f"{self._name}: parameter {i}"

    # ---- saved state ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs.

        {"name", "param_groups": [{"params": indices, ...settings}], "steps": [per parameter],
        "arrays": {"slot.index": array}}; the arrays have the parameters' shapes and are the
        optimiser's own, not copies. All but the arrays is JSON.
        """
        places = [[i for i, o in enumerate(self._owner) if o == k] for k in set(self._owner)]
        arrays = {
            f"{slot}.{i}": to_numpy(array).reshape(self.params[i].shape)
            for i, state in enumerate(self._state)
            for slot, array in state.items()
        }
        groups = [{**g, "params": i} for g, i in zip(self.param_groups, places, strict=True)]
        steps = list(self.steps)
        return {"name": self._name, "param_groups": groups, "steps": steps, "arrays": arrays}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over settings and copies of the arrays; nothing changes unless all fit.

        Raises: ValueError for another optimiser's state, one of other parameters or groups, and
        for arrays whose values this one's type cannot hold.
        """
        groups, self.steps, self._state = saved.read(self, state)
        for group, settings in zip(self.param_groups, groups, strict=True):
            group.update(settings)
        self._ready = [()] * len(self.params)
