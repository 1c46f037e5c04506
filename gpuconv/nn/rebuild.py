"""Networks of gpuconv's own layers as JSON: each layer's class, arguments and children.

    {"name": "Sequential", "children": {"0": {"name": "Conv2d", "arguments": {...}}, ...}}

A checkpoint keeps this of a network that is not from gpuconv.models. `build` makes layers by their
names from a fixed table, so that a file can name nothing else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from gpuconv.autograd import Parameter
from gpuconv.nn import activation, containers, conv, linear, norm, pool
from gpuconv.nn.module import Module

LAYERS: dict[str, type[Module]] = {
    name: kind
    for part in (activation, containers, conv, linear, norm, pool)
    for name, kind in vars(part).items()
    if isinstance(kind, type) and issubclass(kind, Module) and kind.__module__ == part.__name__
    # those that have a forward of their own
    if not name.startswith("_") and "forward" in vars(kind)
}
_DRAWN = ("rng", "seed")  # decide the first weights and masks, not what the layer is


def _nth(place: int, layer: Any) -> Any:
    return layer.arguments[place]


# Arguments that a layer keeps otherwise than under their own name.
_READ: dict[tuple[type[Module], str], Callable[[Any], Any]] = {
    (conv.Conv2d, "kernel_size"): lambda layer: layer.window.kernel_size,
    (conv.Conv2d, "bias"): lambda layer: layer.bias is not None,
    (conv.Conv2d, "connections"): lambda layer: (
        None if layer.connections is None else layer.connections.T.astype(int)
    ),
    (linear.Linear, "bias"): lambda layer: layer.bias is not None,
    (norm.BatchNorm2d, "affine"): lambda layer: layer.weight is not None,
    (norm.BatchNorm2d, "track_running_stats"): lambda layer: layer.running_mean is not None,
    (pool.AdaptiveAvgPool2d, "output_size"): lambda layer: layer.size,
    **{
        (norm.LocalResponseNorm, name): partial(_nth, place)
        for place, name in enumerate(("size", "alpha", "beta", "k", "convention"))
    },
}


def describe(network: Module) -> dict[str, Any]:
    """A network as JSON can hold it. What `build` cannot make, a layer of the user's own, has its
    class's name alone; see `foreign_layer`. A layer that stands in two places is named the second
    time.
    """
    return _describe(network, "", {}, set())


def _describe(
    layer: Module, path: str, seen: dict[int, str], parameters: set[int]
) -> dict[str, Any]:
    if id(layer) in seen:
        return {"same_as": seen[id(layer)]}
    seen[id(layer)] = path
    kind, name = _kind(layer), type(layer).__name__
    own = {id(p) for p in vars(layer).values() if isinstance(p, Parameter)}
    if kind is None:
        return {"name": name + " of your own" * (name in LAYERS)}
    if "forward" in vars(layer):
        return {"name": f"{name} with a forward of its own"}
    if own & parameters or (own and kind is containers.Sequential):
        return {"name": f"{name} with parameters of its own or of another layer"}
    parameters |= own
    found: dict[str, Any] = {"name": kind.__name__}
    if arguments := _arguments(layer, kind):
        found["arguments"] = arguments
    children = {
        name: _describe(child, f"{path}.{name}" if path else name, seen, parameters)
        for name, child in layer.named_children()
    }
    return found | ({"children": children} if children else {})


def _kind(layer: Module) -> type[Module] | None:
    """The class of gpuconv's that computes what a layer does; None for what only the user's does.

    A Sequential's subclass that changes no forward is one.
    """
    kind, plain = type(layer), containers.Sequential
    if isinstance(layer, plain) and kind.forward is plain.forward:
        kind = plain
    return kind if LAYERS.get(kind.__name__) is kind else None


def _arguments(layer: Module, kind: type[Module]) -> dict[str, Any]:
    """The arguments that differ from their defaults."""
    found = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if variable or name in _DRAWN or kind is containers.Residual:
            continue
        read = _READ.get((kind, name))
        value = _plain(read(layer) if read else getattr(layer, name))
        if value != _plain(parameter.default):
            found[name] = value
    return found


def _plain(value: Any) -> Any:
    """A value as JSON gives it back."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def foreign_layer(description: Mapping[str, Any], path: str = "") -> tuple[str, str] | None:
    """The dotted name and the class of the first layer that `build` cannot make; None if it can
    make all.
    """
    for name, each in _walk(description, path):
        if "same_as" not in each and each.get("name") not in LAYERS:
            return name, str(each.get("name"))
    return None


def _walk(description: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield path, description
    for name, child in description.get("children", {}).items():
        yield from _walk(child, f"{path}.{name}" if path else name)


def build(description: Mapping[str, Any]) -> Module:
    """The network that `describe` described, with fresh weights. ValueError, in one line, for a
    layer that is not gpuconv's and for arguments that do not fit it.
    """
    return _build(description, "", {})


def _build(description: Mapping[str, Any], path: str, made: dict[str, Module]) -> Module:
    if "same_as" in description:
        if description["same_as"] not in made:
            raise ValueError(f"layer {path} is said to be {description['same_as']!r}, which is not")
        return made[description["same_as"]]
    name = description.get("name")
    where = f"layer {path}" if path else "the network"
    if name not in LAYERS:
        raise ValueError(f"{where} is a {name}, which is no layer of gpuconv")
    children = {
        child: _build(each, f"{path}.{child}" if path else child, made)
        for child, each in description.get("children", {}).items()
    }
    arguments = {key: _tuples(each) for key, each in description.get("arguments", {}).items()}
    try:
        if arguments and LAYERS[name] is containers.Residual:
            raise TypeError("a Residual has children alone")
        layer = LAYERS[name](**arguments, **children)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None
    made[path] = layer
    return layer
