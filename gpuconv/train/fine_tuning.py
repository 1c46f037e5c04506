"""How a run's network begins: with weights from a file, a new head, frozen layers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpuconv import checkpoint, models
from gpuconv.interop.torch import load_torch
from gpuconv.nn import Linear, Module, init, output_shape
from gpuconv.train.config import RunConfig


def begin(
    model: Module, config: RunConfig, shape: tuple[int, int, int], classes: int, resumed: bool
) -> list[str]:
    """Give a network the head, the weights and the frozen layers that a run config asks for; lines
    that say so.

    shape: its input's, of one image. classes: the data's. resumed: its weights come from a
    checkpoint. Raises ValueError for a head that does not fit, unless config["classes"] asks for a
    new one, for weights that do not fit, and for a name in config["freeze"] that is no layer's.
    """
    wanted, path, notes = config["classes"], config["weights"], []
    if wanted is not None and wanted < classes:
        raise ValueError(f"train: the data has {classes} classes, --classes gives {wanted} scores")
    scores = output_shape(model, shape)
    if len(scores) != 1:
        raise ValueError(f"train: {config['model']} gives {scores} for an image, expected a score"
                         " for each class")  # fmt: skip
    if wanted not in (None, scores[0]):
        with init.seeded(config["seed"]):
            notes.append(f"new head {models.replace_head(model, wanted)}")
    elif scores[0] < classes or (path and wanted is None and scores[0] != classes):
        raise ValueError(
            f"train: {config['model']} gives {scores[0]} scores, the data has {classes} classes;"
            f" --classes {classes} gives it a new head"
        )
    if path and not resumed:
        new = load_weights(model, path, wanted)
        notes.append(f"weights of {path}" + (f", new: {', '.join(new)}" if new else ""))
    if config["freeze"]:
        model.freeze(*config["freeze"])
        count = sum(p.data.size for p in model.parameters() if p.requires_grad)
        if not count:
            raise ValueError("train: --freeze leaves nothing to train")
        notes.append(f"frozen {', '.join(config['freeze'])}; {count:,} parameters train")
    return notes


def load_weights(model: Module, path: str | Path, classes: int | None = None) -> list[str]:
    """Copy weights from a checkpoint, an ONNX file, or one of torchvision's format, into a network.

    classes: the number of scores of a head that may differ from the file's: it keeps its own
    weights, and the names of these are returned. Raises ValueError, in one line, for all else that
    does not fit.
    """
    own = model.state_dict()
    known = str(path).endswith(checkpoint.SUFFIXES)
    state = load_torch(checkpoint.read(path).weights if known else path)
    heads = _heads(model, state)
    new = [name for name in heads if len(own[name]) == classes]
    try:
        model.load_state_dict({**state, **{name: own[name] for name in new}})
    except ValueError as error:
        way = f"; --classes {len(own[heads[0]])} puts a new head there" if heads and not new else ""
        raise ValueError(f"{path}: {error}{way}") from None
    return new


def _heads(model: Module, state: Mapping[str, Any]) -> list[str]:
    """The parameters of linear layers that differ from a state's in the number of outputs alone."""
    linear = [name for name, layer in model.named_modules() if isinstance(layer, Linear)]
    return [
        name
        for name, own in model.named_parameters()
        if name.rpartition(".")[0] in linear
        and name in state
        and own.shape[1:] == state[name].shape[1:]
        and own.shape != state[name].shape
    ]
