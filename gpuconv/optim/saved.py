"""A saved state of an optimiser, checked as a whole before anything of it is taken over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.arguments import number, whole
from gpuconv.arrays import checked_cast
from gpuconv.autograd import Array
from gpuconv.optim import device

if TYPE_CHECKING:
    from gpuconv.optim.optimizer import Optimizer


# What an optimiser takes over: the settings of its groups, and for each parameter the count of its
# steps and its state arrays.
Saved = tuple[list[dict[str, Any]], list[int], list[dict[str, Array]]]


def read(optimizer: Optimizer, state: Mapping[str, Any]) -> Saved:
    """The state as the optimiser keeps it; ValueError where it does not fit."""
    name, count = optimizer._name, len(optimizer.params)
    try:
        if state["name"] != name:
            raise ValueError(f"the state is {state['name']}'s, this optimiser is {name}")
        if len(state["steps"]) != count:
            found = f"{len(state['steps'])} parameters, here are {count}"
            raise ValueError(f"{name}: the state is of {found}")
        steps = [whole(f"{name}: a count of steps", step, 0, 2**63 - 1) for step in state["steps"]]
        return _groups(optimizer, state), steps, _arrays(optimizer, state["arrays"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{name}: damaged state: {type(error).__name__}: {error}") from None


def _groups(optimizer: Optimizer, state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Settings for each group, without its parameters."""
    name, own = optimizer._name, optimizer.param_groups
    if "param_groups" in state:
        groups = state["param_groups"]
    else:  # version 0.1 had one group
        groups = [{**state["hyperparameters"], "params": state["steps"]}]
    sizes = [len(group["params"]) for group in groups]
    expected = [len(group["params"]) for group in own]
    if sizes != expected:
        raise ValueError(f"{name}: the state has groups of {sizes} parameters, here are {expected}")
    settings = []
    for group, mine in zip(groups, own, strict=True):
        given = {key: value for key, value in group.items() if key != "params"}
        if extra := given.keys() - mine.keys():
            raise ValueError(f"{name}: unknown settings in the state: {', '.join(sorted(extra))}")
        if missing := optimizer.defaults.keys() - given.keys() - optimizer.added:
            raise ValueError(f"{name}: the state lacks {', '.join(sorted(missing))}")
        optimizer._check({**optimizer.defaults, **given})
        number(f"{name}: initial_lr", given.get("initial_lr", 0.0), 0)
        settings.append({**dict.fromkeys(optimizer.added, False), **given})
    return settings


def _arrays(optimizer: Optimizer, arrays: Mapping[str, Any]) -> list[dict[str, Array]]:
    name, slots = optimizer._name, optimizer.slots
    known = {f"{slot}.{i}" for i in range(len(optimizer.params)) for slot in slots}
    if extra := sorted(set(arrays) - known):
        raise ValueError(f"{name}: unknown arrays in the state: {', '.join(extra[:4])}")
    loaded: list[dict[str, Array]] = []
    for i, p in enumerate(optimizer.params):
        found = {slot: arrays[key] for slot in slots if (key := f"{slot}.{i}") in arrays}
        needed = optimizer._slots(optimizer.param_groups[optimizer._owner[i]])
        if any(np.shape(a) != p.shape for a in found.values()) or (
            found and any(slot not in found for slot in needed)
        ):
            shapes = ", ".join(str(np.shape(a)) for a in found.values())
            raise ValueError(
                f"{name}: parameter {i} needs a state of {len(needed)} arrays of shape"
                f" {p.shape}, got {shapes}"
            )
        loaded.append({slot: _own(p.data, a, f"{name}: {slot}.{i}") for slot, a in found.items()})
    return loaded


def _own(data: Array, array: Any, what: str) -> Array:
    """A copy of a state array where the parameter's own array lies, in its type."""
    host = checked_cast(what, array, data.dtype)
    if not isinstance(data, np.ndarray):
        return device.like(data, host)
    return np.array(host, order="C").reshape(-1)
