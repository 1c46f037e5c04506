"""State dicts as other programs write them: nested, with prefixed names, of their own tensors."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpuconv.arrays import device_of, to_numpy
from gpuconv.autograd import Tensor
from gpuconv.errors import Notice

INSIDE = ("state_dict", "model_state_dict", "model", "net", "network", "module")
# What DataParallel, torch.compile, FSDP, Lightning and training scripts put before a model's names,
# and the compilers also within them.
_WRAPPED = re.compile(
    rf"^(?:(?:{'|'.join(INSIDE)}|_orig_mod|_fsdp_wrapped_module)\.)+"
    r"|(?<=\.)(?:_orig_mod|_fsdp_wrapped_module)\."
)


def unwrapped(state: Any, what: str) -> dict[str, Any]:
    """The names and arrays of a state dict, or of the one within a training run's checkpoint.

    Raises TypeError for what is no mapping, or has names that are no strings.
    """
    while isinstance(state, Mapping):
        inner = (state.get(name) for name in INSIDE)
        found = next((part for part in inner if isinstance(part, Mapping)), None)
        if found is None:
            break
        state = found
    if not isinstance(state, Mapping):
        way = "; gpuconv.load_torch(path) reads a file" if isinstance(state, str | Path) else ""
        raise TypeError(
            f"{what}: a dict of names and arrays is expected, got {type(state).__name__}{way}"
        )
    for name in state:
        if not isinstance(name, str):
            raise TypeError(f"{what}: a state dict's names are strings, found {name!r}")
    return dict(state)


def renamed(state: dict[str, Any], own: Collection[str]) -> dict[str, Any]:
    """A state under a model's own names, where the two differ by what wraps a model. One warning
    says which prefix was left out, or is the model's own.
    """
    by_name = {_WRAPPED.sub("", name): name for name in own} | {name: name for name in own}
    taken: dict[str, str] = {}  # the model's name -> that in the state
    for name in state:
        target = by_name.get(_WRAPPED.sub("", name))
        if name not in own and target is not None and target not in state:
            taken.setdefault(target, name)
    if taken:
        target, name = next(iter(taken.items()))
        _say(name, target)
    new = {name: target for target, name in taken.items()}
    return {new.get(name, name): value for name, value in state.items()}


def without_prefix(state: dict[str, Any]) -> dict[str, Any]:
    """A state whose names all begin with the same wrapper's prefix, without it; a warning says so.

    `renamed` mends it for a model that has such names itself.
    """
    found = {match and match.group() for match in map(_WRAPPED.match, state)}
    if len(found) != 1 or found == {None}:
        return state
    first = next(iter(state))
    _say(first, _WRAPPED.sub("", first))
    return {_WRAPPED.sub("", name): value for name, value in state.items()}


def _say(name: str, target: str) -> None:
    prefix = "".join(_WRAPPED.findall(name)) or "".join(_WRAPPED.findall(target))
    warnings.warn(
        f"the prefix {prefix!r} is left out of a state dict's names: {name} is taken for {target}",
        Notice,
        stacklevel=4,
    )


def as_array(value: Any, what: str) -> np.ndarray:
    """A tensor of PyTorch or of ours, an array, or numbers, as a NumPy array; half precision as
    float32. Raises ValueError for anything else.
    """
    array = value
    if isinstance(value, Tensor) or device_of(value) is not None:
        array = to_numpy(value.data if isinstance(value, Tensor) else value)
    elif hasattr(value, "detach"):  # PyTorch's
        tensor = value.detach().cpu()
        half = tensor.is_floating_point() and tensor.element_size() < 4
        array = (tensor.float() if half else tensor).numpy()
    try:
        array = np.asarray(array)
    except ValueError:  # lists of several lengths
        array = np.asarray(None)
    if array.dtype.kind not in "biufc" and not isinstance(value, np.ndarray):
        raise ValueError(f"{what} is no tensor but {type(value).__name__}")
    return array.astype(np.float32) if array.dtype == np.float16 else array
