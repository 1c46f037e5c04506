"""Initial weights: functions of a shape (out, in, ...) and a generator, returning float32 arrays.

Sources: Glorot and Bengio 2010 (xavier), He et al. 2015 (kaiming), LeCun et al. 1998 (lecun).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from gpuconv.nn.layer import Layer, Parameter, Shape

Initialiser = Callable[[Shape, np.random.Generator], np.ndarray]


def fans(shape: Shape) -> tuple[int, int]:
    """(fan in, fan out): how many inputs one output sees, and how many outputs see one input."""
    if len(shape) < 2:
        raise ValueError(f"weights of shape {shape} have no fan: two or more axes are needed")
    taps = math.prod(shape[2:])
    return shape[1] * taps, shape[0] * taps


def uniform(shape: Shape, rng: np.random.Generator, bound: float) -> np.ndarray:
    """Uniform in [-bound, bound)."""
    return ((rng.random(shape, np.float32) * 2 - 1) * np.float32(bound)).astype(np.float32)


def normal(shape: Shape, rng: np.random.Generator, std: float) -> np.ndarray:
    """Normal with mean 0 and standard deviation std."""
    return rng.standard_normal(shape, np.float32) * np.float32(std)


def kaiming_uniform(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Uniform with variance 2 / fan in: keeps the signal's size through layers with ReLU."""
    return uniform(shape, rng, math.sqrt(6 / fans(shape)[0]))


def kaiming_normal(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Normal with variance 2 / fan in: keeps the signal's size through layers with ReLU."""
    return normal(shape, rng, math.sqrt(2 / fans(shape)[0]))


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


def reset_as_pytorch(weight: Parameter, bias: Parameter | None, rng: np.random.Generator) -> None:
    """PyTorch's default for Conv2d and Linear: weights and bias uniform in +-1/sqrt(fan in)."""
    bound = 1 / math.sqrt(fans(weight.shape)[0])
    weight.data = uniform(weight.shape, rng, bound).astype(weight.data.dtype)
    if bias is not None:
        bias.data = uniform(bias.shape, rng, bound).astype(bias.data.dtype)


def initialize(model: Layer, seed: int, weights: Initialiser | None = None) -> None:
    """Draw all of a model's parameters anew, each layer from a generator of its own, [seed, number
    of the layer].

    weights: one of this module's functions for every weight of two or more axes, with biases 0;
    None for each layer's default.
    """
    for number, (_, layer) in enumerate(model.layers()):
        rng = np.random.default_rng([seed, number])
        layer.reset_parameters(rng)
        if weights is None:
            continue
        for name, parameter in vars(layer).items():
            if isinstance(parameter, Parameter) and parameter.data.ndim >= 2:
                parameter.data[...] = weights(parameter.shape, rng)
            elif isinstance(parameter, Parameter) and name == "bias":
                parameter.data[...] = 0
