"""The registry of models: each can be built by name, and remembers how it was built."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypedDict, TypeVar

from gpuconv.errors import require_known, unknown
from gpuconv.models import own
from gpuconv.nn import Conv2d, Linear, Module, init, rebuild, recompute_blocks

P = ParamSpec("P")
Network = TypeVar("Network", bound=Module)
MODELS: dict[str, Callable[..., Module]] = {}
STEMS = {"imagenet": (7, 2), "small": (3, 1)}  # kernel size and stride of the first convolution


class Common(TypedDict, total=False):
    """Arguments that every model has besides those of its builder.

    seed: of the weights, 0 unless given; None leaves them undefined because they are loaded next.
    recompute: keep only each block's input for the backward pass, see `nn.checkpoint`, with the
    same results.
    """

    seed: int | None
    recompute: bool


COMMON = inspect.signature(lambda *, seed=0, recompute=False: None).parameters


def model(
    size: int,
    weights: init.Initialiser | init.ByKind | None = None,
    biases: Mapping[str, float] | None = None,
) -> Callable[[Callable[P, Network]], Callable[P, Network]]:
    """Register a model's builder.

    size: of its images, unless it has an argument `input_size`. weights, biases: how to initialise
    them, as `init.initialize` takes it; None for each layer's default.
    The builder takes `Common` so that type checkers know those arguments; they are used here alone.
    The network gets `input_shape`, one example's (C, H, W), and `spec`, from which `build` makes it
    again.
    """

    def register(builder: Callable[P, Network]) -> Callable[P, Network]:
        signature = inspect.signature(builder)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        signature = signature.replace(parameters=[*own, *COMMON.values()])

        @functools.wraps(builder)
        def built(*args: P.args, **kwargs: P.kwargs) -> Network:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            arguments = dict(bound.arguments)
            seed, recompute = (arguments.pop(name) for name in COMMON)
            with init.deferred():
                network = builder(**arguments)  # type: ignore[call-arg]
            if seed is not None:
                init.initialize(network, seed, weights, biases)
            if recompute and not recompute_blocks(network):
                raise ValueError(
                    f"{builder.__name__}: has no blocks to recompute; set `recompute`"
                    f" of modules of your own"
                )
            side = arguments.get("input_size", size)
            network.input_shape = (arguments["in_channels"], side, side)
            network._described = functools.partial(_spec, builder.__name__, arguments)
            return network

        built.__signature__ = signature  # type: ignore[attr-defined]  # for help()
        MODELS[builder.__name__] = built
        return built

    return register


def _spec(name: str, arguments: dict[str, Any], network: Module) -> dict[str, Any] | None:
    """How to build a network again that was built so. Its last linear layer may have been replaced
    by one for other classes; where more was replaced, None.
    """
    heads = [layer for layer in network.modules() if isinstance(layer, Linear)]
    now = {**arguments, "num_classes": heads[-1].out_features} if heads else arguments
    if _described_layers(MODELS[name](**now, seed=None)) != _described_layers(network):
        return None
    return {"name": name, "arguments": now}


def _described_layers(network: Module) -> str:
    """All layers and arguments as text, without those that matter in training alone."""
    return re.sub(r"Dropout\(.*?\)|, momentum=[^,)]*", "", repr(network))


def stem_convolution(stem: str, in_channels: int) -> Conv2d:
    """The first convolution, of 64 filters, for images of that stem's size. ValueError for an
    unknown stem.
    """
    kernel, stride = STEMS[require_known("stem", stem, STEMS)]
    return Conv2d(in_channels, 64, kernel, stride, padding=kernel // 2, bias=False)


def build(spec: Mapping[str, Any]) -> Module:
    """The model that a `spec` {"name": ..., "arguments": {...}} describes: one from here, one of
    gpuconv's layers with its "children", or one of a file that `from_file` has run. ValueError for
    what is unknown.
    """
    name: Any = spec.get("name")
    arguments = dict(spec.get("arguments", {}))
    if own.is_file(str(name)):
        return own.again(spec, arguments.pop("seed", 0))
    if name in MODELS:
        try:
            return MODELS[name](**arguments)
        except TypeError as error:
            raise ValueError(f"model {name}: {error}") from None
    if foreign := rebuild.foreign_layer(spec) if "children" in spec else None:
        raise ValueError(
            f"layer {foreign[0]} is a {foreign[1]}, which gpuconv cannot build; give the code that "
            "builds the network: --model FILE.py:FUNCTION, in Python gpuconv.load(path, model)"
        )
    if name not in rebuild.LAYERS:
        raise unknown("model", name, MODELS)
    seed = arguments.pop("seed", 0)
    with init.deferred():
        network = rebuild.build({**spec, "arguments": arguments})
    if seed is not None:
        init.initialize(network, seed)
    return network


def named(name: str, seed: int | None = 0, **offered: Any) -> Module:
    """A model from here by its name, or that of a function in a Python file, see `from_file`.

    offered: arguments. A model from here has to take them all, but for input_size.
    """
    if own.is_file(name):
        return own.from_file(name, seed or 0, **offered)
    require_known("model", name, MODELS)
    if "input_size" not in inspect.signature(MODELS[name]).parameters:
        offered.pop("input_size", None)
    return build({"name": name, "arguments": {**offered, "seed": seed}})
