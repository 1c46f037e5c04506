"""The registry of models: each can be built by name, and remembers how it was built."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from gpuconv.errors import unknown
from gpuconv.nn import Sequential, init

Builder = Callable[..., Sequential]
MODELS: dict[str, Builder] = {}


def model(size: int) -> Callable[[Builder], Builder]:
    """Register a model's builder: its images are `size` x `size`, and its weights come from an
    added `seed`.

    What it builds has `input_shape`, one example's (C, H, W), and `spec`, from which `build` makes
    it again.
    """

    def register(builder: Builder) -> Builder:
        signature = inspect.signature(builder)

        @functools.wraps(builder)
        def built(*args: Any, seed: int = 0, **kwargs: Any) -> Sequential:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            network = builder(**bound.arguments)
            init.initialize(network, seed)
            network.input_shape = (bound.arguments["in_channels"], size, size)
            network.spec = {"name": builder.__name__, "arguments": dict(bound.arguments)}
            return network

        MODELS[builder.__name__] = built
        return built

    return register


def build(spec: Mapping[str, Any]) -> Sequential:
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
