"""The registry of models: each can be built by name, and remembers how it was built."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from gpuconv.errors import unknown
from gpuconv.nn import Module, init, recompute_blocks

Builder = Callable[..., Module]
MODELS: dict[str, Builder] = {}


def model(
    size: int,
    weights: init.Initialiser | init.ByKind | None = None,
    biases: Mapping[str, float] | None = None,
) -> Callable[[Builder], Builder]:
    """Register a model's builder: its images are `size` x `size`, or as its argument `input_size`
    says, and its weights come from an added `seed`.

    weights, biases: how to draw them, as `init.initialize` takes it; None for each layer's default.
    seed: an int; None leaves the weights undefined, for a model whose weights are loaded next.
    recompute: keep only each block's input for backward, see `nn.checkpoint`; the numbers stay.
    What it builds has `input_shape`, one example's (C, H, W), and `spec`, from which `build` makes
    it again.
    """

    def register(builder: Builder) -> Builder:
        signature = inspect.signature(builder)

        @functools.wraps(builder)
        def built(
            *args: Any, seed: int | None = 0, recompute: bool = False, **kwargs: Any
        ) -> Module:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            with init.deferred():
                network = builder(**bound.arguments)
            if seed is not None:
                init.initialize(network, seed, weights, biases)
            if recompute and not recompute_blocks(network):
                raise ValueError(
                    f"{builder.__name__}: has no blocks to recompute; set `recompute`"
                    f" of modules of your own"
                )
            side = bound.arguments.get("input_size", size)
            network.input_shape = (bound.arguments["in_channels"], side, side)
            network.spec = {"name": builder.__name__, "arguments": dict(bound.arguments)}
            return network

        MODELS[builder.__name__] = built
        return built

    return register


def build(spec: Mapping[str, Any]) -> Module:
    """The model that a `spec` {"name": ..., "arguments": {...}} describes. ValueError for what is
    unknown.
    """
    name = spec.get("name")
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    try:
        return MODELS[name](**spec.get("arguments", {}))
    except TypeError as error:
        raise ValueError(f"model {name}: {error}") from None
