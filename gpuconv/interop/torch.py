"""Weights from PyTorch: a state dict as torchvision publishes it, for `load_state_dict`.

Never a bare unpickle: a .pt file goes through torch.load(weights_only=True), which takes tensors
and refuses code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpuconv import tensor_file
from gpuconv.nn import foreign

# torchvision's first DenseNet files call denselayer1.norm1 denselayer1.norm.1
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
INTEGERS = (np.integer, np.bool_)


def load_torch(source: Any) -> dict[str, np.ndarray]:
    """The arrays of a PyTorch state dict by name, for `model.load_state_dict`.

    source: a .safetensors file; a .pt or .pth file, where PyTorch is installed; or a mapping of
    names to tensors or arrays. A state dict within a training checkpoint, {"state_dict": ...}, is
    found. Half precision becomes float32. Names stay, but for a wrapper's prefix before all of
    them, such as "module.", which a warning names, the old names of torchvision's DenseNet files,
    and num_batches_tracked, which files of before PyTorch 0.4.1 lack and which is then 0.
    Raises FileNotFoundError; TypeError for what is no state dict; ValueError for a file that is
    damaged or holds something else than tensors; ImportError for a .pt file without PyTorch.
    """
    if isinstance(source, Mapping):
        return _state(source, "load_torch")
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    found: Any = tensor_file.read(path)[0] if path.suffix == ".safetensors" else _pickled(path)
    return _state(found, str(path))


def _pickled(path: Path) -> Any:
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(
            f"{path}: only PyTorch reads this file safely, and it is not installed; "
            "install torch, or convert the file to .safetensors where it is"
        ) from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{path}: PyTorch cannot read it as weights alone: {first[0]}") from None


def _state(found: Any, where: str) -> dict[str, np.ndarray]:
    state = {}
    for name, value in foreign.without_prefix(foreign.unwrapped(found, where)).items():
        state[OLD_DENSENET.sub(r"\1\2", name)] = _array(value, f"{where}: {name}")
    for name in [name for name in state if name.endswith("running_var")]:
        count = f"{name.removesuffix('running_var')}num_batches_tracked"
        state.setdefault(count, np.zeros((), np.int64))
    return state


def _array(value: Any, what: str) -> np.ndarray:
    """A tensor or array as an array of its own, floats as float32 or float64."""
    array = np.array(foreign.as_array(value, what), order="C")
    if array.dtype in (np.float32, np.float64) or issubclass(array.dtype.type, INTEGERS):
        return array
    raise ValueError(f"{what} has type {array.dtype}, expected floats or integers")
