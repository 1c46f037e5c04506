"""Networks of the user's own, built by a function in a Python file: "mynet.py:build".

The file runs only where the user names it. A checkpoint keeps the name, the function's arguments
and the file's sha256; it never makes a file run.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from gpuconv.errors import Notice, one_line, unknown
from gpuconv.nn import Linear, Module, init
from gpuconv.nn.rebuild import describe, foreign_layer

OFFERED = "in_channels, num_classes, input_size and seed"
_run: dict[tuple[str, str], ModuleType] = {}  # the files that ran, by name and sha256
_paths: dict[str, str] = {}  # by path as tracebacks have it, the path as the user gave it


def is_file(name: str) -> bool:
    """Whether a network's name is of a file: "mynet.py:build"."""
    return name.endswith(".py") or re.search(r"\.py:\w*$", name) is not None


def from_file(name: str, seed: int = 0, **offered: Any) -> Module:
    """The network that a function of a Python file returns, "nets/mynet.py:build"; a class does
    too. The file runs, with its folder first among those where Python looks for imports.

    seed: of the weights of layers that are given no `rng`. offered: arguments such as
    num_classes=5, which the function gets as far as it has parameters of these names, and `seed`.
    The network's `spec`, and so its checkpoints, have the file's name and sha256, unless all of its
    layers are gpuconv's own, which a checkpoint describes by themselves.

    Raises: FileNotFoundError; ValueError, in one line, for a name that is not in the file, for what
    the file or the function raises, and for a result that is no Module.

    >>> model = from_file("mynet.py:build", num_classes=5)  # doctest: +SKIP
    """
    path, _, function = name.partition(".py")
    path, function = f"{path}.py", function[1:]
    if not function:
        raise ValueError(f"{name}: name the function too that builds the network: {path}:build")
    digest, module = _load(path)
    return _called(module, function, name, digest, offered, seed)


def again(spec: Mapping[str, Any], seed: int | None) -> Module:
    """The network of a file that the user has named already, by its `spec`. ValueError for any
    other file: naming it is the user's to do.
    """
    name = spec["name"]
    file, _, function = name.rpartition(":")
    module = _run.get((file, spec.get("sha256", "")))
    if module is None:
        raise ValueError(
            f"the network was built by {name}, whose code runs only if you name it: add --model "
            f"{name}, in Python gpuconv.load(path, {name!r})"
        )
    offered = spec.get("arguments", {})
    network = _called(module, function, name, spec["sha256"], offered, seed or 0)
    if "head" in spec:
        replace_head(network, spec["head"])
    return network


def for_spec(name: str, spec: Mapping[str, Any], offered: Mapping[str, Any], where: str) -> Module:
    """The network of a file that the user names, for a checkpoint with that `spec`.

    offered: arguments, where the spec has none. A file that has changed since is named in a Notice;
    where: the checkpoint's path.
    """
    known = is_file(str(spec.get("name", "")))
    network = from_file(name, **(spec.get("arguments", {}) if known else offered))
    path = name.rpartition(":")[0]
    if spec.get("sha256") not in (None, _load(path)[0]):
        text = f"{path} is not the file that it was when {where} was written: it has changed"
        warnings.warn(text, Notice, stacklevel=3)
    if "head" in spec:
        replace_head(network, spec["head"])
    return network


def replace_head(network: Module, classes: int) -> str:
    """Put a new linear layer for so many classes in the place of the last one; its name.

    Raises ValueError where the network has none.
    """
    name = _head(network)
    if name is None:
        raise ValueError("the network has no linear layer that could be replaced by a new head")
    parent, _, own = name.rpartition(".")
    old: Any = network.get_submodule(name)
    new = Linear(old.in_features, classes, old.bias is not None)
    new.to(old.device, old.weight.dtype).train(old.training)
    setattr(network.get_submodule(parent) if parent else network, own, new)
    return name


def blame(error: BaseException) -> str | None:
    """The user's file and line in which an exception arose, "mynet.py line 7"; None for one that
    passed through no such file.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename in _paths]
    return f"{_paths[own[-1].filename]} line {own[-1].lineno}" if own else None


def _load(path: str) -> tuple[str, ModuleType]:
    """The sha256 of a file, and what it defines. It runs once, also if it is named again."""
    place = Path(path).expanduser()
    try:
        source = place.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file") from None
    digest = hashlib.sha256(source).hexdigest()
    if (place.name, digest) in _run:
        return digest, _run[place.name, digest]
    full = str(place.resolve())
    module = ModuleType(f"gpuconv_own_{place.stem}_{digest[:8]}")
    module.__file__ = full
    _paths[full] = path
    sys.modules[module.__name__] = module  # dataclasses look their module up
    if (folder := str(place.resolve().parent)) not in sys.path:
        sys.path.insert(0, folder)
    try:
        exec(compile(source, full, "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:
        raise _told(path, error) from error
    _run[place.name, digest] = module
    return digest, module


def _called(
    module: ModuleType, function: str, name: str, digest: str, offered: Mapping[str, Any], seed: int
) -> Module:
    found = getattr(module, function, None)
    if not callable(found):
        own = [n for n, each in vars(module).items() if _builds(each, module)]
        raise ValueError(f"{name}: {unknown('function', function, own)}")
    arguments = _accepted(found, name, offered)
    drawn = {"seed": seed} if "seed" in inspect.signature(found).parameters else {}
    try:
        with init.seeded(seed):
            network = found(**arguments, **drawn)
    except Exception as error:
        raise _told(name, error) from error
    if not isinstance(network, Module):
        what = f"{type(network).__module__}.{type(network).__qualname__}".removeprefix("builtins.")
        raise ValueError(f"{name}: returned {what}, expected a gpuconv.nn.Module")
    if foreign_layer(describe(network)) is not None:
        file = Path(str(module.__file__)).name
        spec = {"name": f"{file}:{function}", "sha256": digest, "arguments": arguments}
        network._described = partial(_spec, spec, dict(network.named_modules()), _head(network))
    return network


def _builds(value: Any, module: ModuleType) -> bool:
    """Whether it is a function or a network's class that the file defines itself."""
    own = getattr(value, "__module__", "") == module.__name__
    return own and (inspect.isfunction(value) or inspect.isclass(value))


def _accepted(
    function: Callable[..., Any], name: str, offered: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments that the function takes. ValueError for one that it needs and does not get."""
    parameters = inspect.signature(function).parameters.values()
    usual = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    for each in usual:
        if each.default is each.empty and each.name not in {*offered, "seed"}:
            raise ValueError(
                f"{name}: needs an argument {each.name}; give it a default: a function is offered "
                f"{OFFERED}, as far as they are known"
            )
    return {each.name: offered[each.name] for each in usual if each.name in offered}


def _told(name: str, error: BaseException) -> ValueError:
    """What the user's code raised, as one line."""
    if isinstance(error, SyntaxError):
        return ValueError(f"{name}: line {error.lineno}: {error.msg}")
    line = "".join(f" ({where})" for where in [blame(error)] if where)
    return ValueError(f"{name}: raised {type(error).__name__}: {one_line(error)}{line}")


def _spec(
    spec: dict[str, Any], layers: dict[str, Module], head: str | None, network: Module
) -> dict[str, Any] | None:
    """The spec of a network that was built of these layers: with "head" where its last linear layer
    was replaced by one for other classes, None where more was.
    """
    now: dict[str, Any] = dict(network.named_modules())
    differ = {name for name in {*now, *layers} if now.get(name) is not layers.get(name)}
    if not differ:
        return spec
    new, old = now.get(head or ""), layers.get(head or "")
    if differ != {head} or not (isinstance(new, Linear) and isinstance(old, Linear)):
        return None
    same = new.in_features == old.in_features and (new.bias is None) == (old.bias is None)
    return {**spec, "head": new.out_features} if same else None


def _head(network: Module) -> str | None:
    """The name of the last linear layer; None without one."""
    names = [name for name, layer in network.named_modules() if isinstance(layer, Linear)]
    return names[-1] if names and names[-1] else None
