"""Checkpoints: one safetensors file with the weights, the optimiser's arrays and JSON metadata.

A file appears whole or not at all: it is written beside its place, fsynced, renamed over the old
one, and the folder is fsynced. A sha256 over metadata and tensors tells a damaged file. Nothing is
unpickled. Any safetensors reader opens the file; the weights have the model's own names, all that
belongs to the optimiser begins with "optimizer/".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gpuconv import onnx, tensor_file
from gpuconv.arrays import checked_cast
from gpuconv.errors import require_known
from gpuconv.files import write_atomically
from gpuconv.metadata import LARGEST_SIDE, parse
from gpuconv.nn import Module
from gpuconv.nn.init import deferred
from gpuconv.nn.rebuild import LAYERS, describe
from gpuconv.precision import STORAGE, rounded, stored

FORMAT_VERSION = 1
SUFFIXES = (".safetensors", ".onnx")
_OPTIMIZER = "optimizer/"


@dataclass
class Checkpoint:
    """What a file holds: the model's arrays, the optimiser's arrays, and metadata that is JSON.

    The metadata keys gpuconv itself uses: "model" (the model's `spec`, or what `nn.rebuild` says of
    it), "input" and "classes" (preprocessing and class names, if they were given), and in
    training checkpoints what `gpuconv.train` keeps.
    """

    weights: dict[str, np.ndarray]
    metadata: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, np.ndarray] = field(default_factory=dict)
    path: str = "the checkpoint"
    network: Module | None = None  # of an ONNX file

    def build(self, model: Module | Callable[..., Module] | str | None = None) -> Module:
        """The model that the file describes, with its weights, in evaluation mode.

        model: what to build instead, for a network that the file cannot describe: "mynet.py:build",
        see `models.from_file`, or another model's name; a function or class that builds it; or a
        network, which gets the weights.
        Raises: ValueError if the file describes no network that gpuconv can build and none is
        given, or its weights do not fit.
        """
        if self.network is not None and model is None:
            return self.network
        network = self._described() if model is None else self._given(model)
        self.load_into(network)
        trained_on = (self.metadata.get("input") or {}).get("input_shape") or ()
        if len(trained_on) == 3:
            network.input_shape = tuple(trained_on)
        return network.eval()

    def _described(self) -> Module:
        from gpuconv import models  # models save and load through this module

        spec = self.metadata.get("model") or {}
        if spec.keys() <= {"name"} and spec.get("name") not in {*models.MODELS, *LAYERS}:
            of = f"its network is a {spec['name']}" if spec else "names no model of gpuconv.models"
            raise ValueError(
                f"{self.path}: {of}; name the code that builds it, --model FILE.py:FUNCTION; in"
                " Python gpuconv.load(path, model), or load_state_dict"
            )
        arguments = {**spec.get("arguments", {}), "seed": None}
        own = models.is_file(str(spec.get("name")))  # may do with arrays whatever it likes
        try:
            # Nothing is allocated that the weights do not fit.
            with nullcontext() if own else deferred(shapes_only=True):
                return models.build({**spec, "arguments": arguments})
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None

    def _given(self, model: Module | Callable[..., Module] | str) -> Module:
        from gpuconv import models
        from gpuconv.models import own

        if isinstance(model, Module):
            return model
        if not isinstance(model, str):
            return model()
        shape = (self.metadata.get("input") or {}).get("input_shape")
        offered = {"num_classes": len(self.metadata.get("classes") or ())}
        offered |= {"in_channels": shape[0]} if shape else {}
        offered = {name: value for name, value in offered.items() if value}
        if not models.is_file(model):
            return models.named(model, None, **offered)
        return own.for_spec(model, self.metadata.get("model") or {}, offered, self.path)

    def load_into(self, model: Module) -> None:
        """Copy the weights into a model. ValueError that names what does not fit."""
        try:
            model.load_state_dict(self.weights)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None


def save(
    model_or_state: Module | Mapping[str, np.ndarray],
    path: Any,
    precision: str = "ieee",
    **metadata: Any,
) -> None:
    """Save a model's weights, or a dict of arrays, as safetensors.

    A model of `gpuconv.models` is saved with its name and arguments, and one of gpuconv's layers in
    containers with these, so that `load` can rebuild it; any other with its class's name.
    precision: "bf16" or "fp16" rounds float32 arrays to 16 bits, in half the space; "ieee" leaves
    all as it is. metadata: what JSON can hold, such as classes=[...]; `read(path).metadata` has it
    again.

    Raises: TypeError for arrays or metadata the format cannot hold; ValueError for an unknown
    precision, and numbers that fp16 cannot hold; OSError, in one line, if the
    file cannot be written: then an older file of that name is untouched.

    >>> save({"weight": np.ones((2, 2))}, "example.safetensors")  # doctest: +SKIP
    """
    if isinstance(model_or_state, Module):
        metadata = {"model": model_or_state.spec or describe(model_or_state), **metadata}
        shape = model_or_state.input_shape
        if shape is not None and max(shape, default=0) <= LARGEST_SIDE:  # else `read` refuses it
            metadata.setdefault("input", {"input_shape": shape})
        weights = model_or_state.state_dict()
    else:
        weights = dict(model_or_state)
    require_known("precision", precision, ("ieee", *STORAGE))
    single = [name for name, a in weights.items() if np.asarray(a).dtype == np.float32]
    if precision == "fp16":
        weights |= {n: checked_cast(f"{path}: {n}", weights[n], np.float16) for n in single}
    elif precision == "bf16":
        weights |= {name: rounded(weights[name], precision) for name in single}
    write(path, Checkpoint(weights, metadata), single if precision == "bf16" else ())


def load(path: Any, model: Module | Callable[..., Module] | str | None = None) -> Module:
    """The model of a checkpoint or an ONNX file, with its weights and in evaluation mode.

    model: how to build one that the file cannot describe, see `Checkpoint.build`.
    Raises: FileNotFoundError; ValueError, in one line, for a file that is damaged, truncated, not
    safetensors, of a newer format, of another architecture, or without a model's name.
    """
    return read(path).build(model)


def write(path: Any, checkpoint: Checkpoint, brain: Collection[str] = ()) -> None:
    """Write a checkpoint so that a kill at any moment leaves the old file or the new one, whole.

    brain: names of float32 weights whose numbers bf16 holds, to be written as BF16.
    Raises: TypeError for what the format cannot hold, ValueError for names of weights that it
    keeps for itself ("__metadata__", "optimizer/..."), OSError in one line naming the path.
    """
    for name in checkpoint.weights:
        if name.startswith(_OPTIMIZER):
            raise ValueError(f"{path}: a weight cannot be called {name}: optimisers' arrays are")
    arrays = dict(checkpoint.weights)
    arrays.update({_OPTIMIZER + name: a for name, a in checkpoint.optimizer.items()})
    # safetensors ignores strides: another layout would be saved as other numbers.
    arrays = {name: np.ascontiguousarray(a).reshape(np.shape(a)) for name, a in arrays.items()}
    try:
        text = json.dumps(checkpoint.metadata)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{path}: the metadata must be what JSON can hold: {error}") from None
    head = {
        "gpuconv": text,
        "gpuconv_format": str(FORMAT_VERSION),
        "sha256": _digest(text, arrays),
    }

    arrays |= {name: stored(arrays[name], "bf16") for name in brain}
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))  # keeps alignment
    header = tensor_file.header(head, [(name, arrays[name]) for name in order], brain)

    def content(file: BinaryIO) -> None:
        file.write(header)
        for name in order:
            file.write(_bytes(arrays[name]))

    write_atomically(path, content)


def read(path: Any) -> Checkpoint:
    """Read any safetensors file; one that gpuconv wrote is checked against its sha256. Of an ONNX
    file, whose name ends with .onnx, the network is read too, see `gpuconv.onnx.load`.

    BF16 tensors become float32. Raises: FileNotFoundError; ValueError, in one line, for a file that
    is damaged, truncated, not safetensors, of a newer format, or whose metadata are not as they
    should be, see gpuconv/metadata.py.
    """
    path = Path(path)
    if path.suffix == ".onnx":
        return _of_onnx(path)
    arrays, head = tensor_file.read(path)
    if "gpuconv" not in head and "sha256" not in head:
        return Checkpoint(arrays, path=str(path))  # somebody else's safetensors
    metadata = _checked_metadata(path, head, arrays)
    weights = {name: a for name, a in arrays.items() if not name.startswith(_OPTIMIZER)}
    optimizer = {n.removeprefix(_OPTIMIZER): a for n, a in arrays.items() if n not in weights}
    return Checkpoint(weights, metadata, optimizer, str(path))


def _of_onnx(path: Path) -> Checkpoint:
    network = onnx.load(path)
    try:
        metadata = parse(json.dumps(network.metadata))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Checkpoint(network.state_dict(), metadata, path=str(path), network=network)


def _checked_metadata(
    path: Path, head: dict[str, str], arrays: dict[str, np.ndarray]
) -> dict[str, Any]:
    version = head.get("gpuconv_format", "")
    if version.isdigit() and int(version) > FORMAT_VERSION:
        raise ValueError(
            f"{path}: written by a newer gpuconv (format {version}, this one reads up to"
            f" {FORMAT_VERSION}); upgrade gpuconv"
        )
    text = head.get("gpuconv", "")
    if version != str(FORMAT_VERSION) or head.get("sha256") != _digest(text, arrays):
        raise ValueError(f"{path}: damaged or altered: its contents do not match its checksum")
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _digest(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        a = np.ascontiguousarray(arrays[name])
        digest.update(f"\0{name}\0{a.dtype.name}\0{np.shape(arrays[name])}\0".encode())
        digest.update(_bytes(a))
    return digest.hexdigest()


def _bytes(contiguous: np.ndarray) -> memoryview:
    return contiguous.reshape(-1).view(np.uint8).data
