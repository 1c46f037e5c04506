"""Initial weights: functions of a shape (out, in, ...) and a generator, returning float32 arrays.

Sources: Glorot and Bengio 2010 (xavier), He et al. 2015 (kaiming), LeCun et al. 1998 (lecun).
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from gpuconv.arrays import ShapeOnly
from gpuconv.autograd import Parameter
from gpuconv.nn.module import Module, Shape

Initialiser = Callable[[Shape, np.random.Generator], np.ndarray]
ByKind = Mapping[type[Module], Initialiser]


def fans(shape: Shape) -> tuple[int, int]:
    """(fan in, fan out): how many inputs one output sees, and how many outputs see one input."""
    if len(shape) < 2:
        raise ValueError(f"weights of shape {shape} have no fan: two or more axes are needed")
    taps = math.prod(shape[2:])
    return shape[1] * taps, shape[0] * taps


def uniform(shape: Shape, rng: np.random.Generator, bound: float) -> np.ndarray:
    """Uniform in [-bound, bound)."""
    w = rng.random(shape, np.float32)
    w *= 2
    w -= 1
    w *= np.float32(bound)
    return w


def normal(shape: Shape, rng: np.random.Generator, std: float) -> np.ndarray:
    """Normal with mean 0 and standard deviation std."""
    w = rng.standard_normal(shape, np.float32)
    w *= np.float32(std)
    return w


def kaiming_uniform(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Uniform with variance 2 / fan in: keeps the signal's size through layers with ReLU."""
    return uniform(shape, rng, math.sqrt(6 / fans(shape)[0]))


def kaiming_normal(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Normal with variance 2 / fan in: keeps the signal's size through layers with ReLU."""
    return normal(shape, rng, math.sqrt(2 / fans(shape)[0]))


def kaiming_normal_fan_out(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Normal with variance 2 / fan out: keeps the gradient's size instead."""
    return normal(shape, rng, math.sqrt(2 / fans(shape)[1]))


def xavier_uniform(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Uniform with variance 2 / (fan in + fan out): for tanh and sigmoid."""
    return uniform(shape, rng, math.sqrt(6 / sum(fans(shape))))


def xavier_normal(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Normal with variance 2 / (fan in + fan out): for tanh and sigmoid."""
    return normal(shape, rng, math.sqrt(2 / sum(fans(shape))))


def lecun_normal(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Normal with variance 1 / fan in: for the scaled tanh."""
    return normal(shape, rng, math.sqrt(1 / fans(shape)[0]))


def orthogonal(shape: Shape, rng: np.random.Generator, gain: float = 1.0) -> np.ndarray:
    """Rows (or columns, whichever are fewer) orthonormal, times gain (Saxe et al. 2013)."""
    rows, columns = shape[0], math.prod(shape[1:])
    q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
    q *= np.sign(np.diag(r))  # makes the draw uniform among orthogonal matrices
    q = q if rows >= columns else q.T
    return (gain * q).reshape(shape).astype(np.float32)


def small_normal(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Normal with standard deviation 0.01, as Krizhevsky et al. 2012 and VGG's last layers have."""
    return normal(shape, rng, 0.01)


def pytorch_uniform(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Uniform in +-1/sqrt(fan in): PyTorch's default for the weights of Conv2d and Linear."""
    return uniform(shape, rng, 1 / math.sqrt(fans(shape)[0]))


_later = threading.local()


@contextmanager
def deferred(shapes_only: bool = False) -> Iterator[None]:
    """Layers made in here get no weights yet, only memory: they are drawn or loaded afterwards.

    shapes_only: not even memory; `load_state_dict` brings it, once the shapes are known to fit.
    """
    before = getattr(_later, "array", None)
    try:
        _later.array = ShapeOnly if shapes_only or before is ShapeOnly else np.zeros
        yield
    finally:
        _later.array = before


def empty_weight(shape: Shape) -> tuple[Any, bool]:
    """The array of a weight, float32, and whether it is drawn at once."""
    make = getattr(_later, "array", None)
    return (make or np.zeros)(shape, np.float32), make is None


def filled(length: int, value: float) -> Any:
    """A vector of one value, float32; a shape alone where weights are."""
    if getattr(_later, "array", None) is ShapeOnly:
        return ShapeOnly((length,), np.float32)
    return np.full(length, value, np.float32)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Layers made in here without `rng` draw their weights from generators [seed, number of the
    layer], so that code which names no seed gives the same weights each time.
    """
    before = getattr(_later, "seeds", None)
    _later.seeds = ([seed, number] for number in itertools.count())
    try:
        yield
    finally:
        _later.seeds = before


def generator(rng: Any) -> np.random.Generator:
    """The generator of a layer's weights: rng or of that seed; of `seeded` where it is None."""
    seeds = getattr(_later, "seeds", None)
    return np.random.default_rng(next(seeds) if rng is None and seeds else rng)


def initialize(
    model: Module,
    seed: int,
    weights: Initialiser | ByKind | None = None,
    biases: Mapping[str, float] | None = None,
) -> None:
    """Draw all of a model's parameters anew, each layer from a generator of its own, [seed, number
    of the layer].

    weights: one of this module's functions for every weight of two or more axes, with biases 0; or
    one for each kind of layer, the others keeping their default; None for each layer's default.
    biases: constants instead, by the layer's name.
    """
    by_kind = weights if isinstance(weights, Mapping) else {}
    for number, (name, layer) in enumerate(model.named_modules()):
        rng = np.random.default_rng([seed, number])
        draw = by_kind.get(type(layer)) if isinstance(weights, Mapping) else weights
        if type(layer) not in by_kind:
            layer.reset_parameters(rng)
        if draw is not None:
            _draw(layer, draw, rng, (biases or {}).get(name, 0.0))


def _draw(layer: Module, draw: Initialiser, rng: np.random.Generator, bias: float) -> None:
    for name, parameter in vars(layer).items():
        if isinstance(parameter, Parameter) and parameter.data.ndim >= 2:
            parameter.data[...] = draw(parameter.shape, rng)
            layer.constrain()
        elif isinstance(parameter, Parameter) and name == "bias":
            parameter.data[...] = bias
