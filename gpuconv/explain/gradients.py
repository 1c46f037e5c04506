"""Explanations by going backward: which pixels a unit's value depends on, and which way.

All take x, floats (N, C, H, W), and return an array of x's shape, an explanation for each image by
itself. target: which unit: a class of the network's output (None: each image's likeliest), or with
`of`, the name of a layer, a unit of that layer: a channel k, whose map is summed, or (k, p, q). A
list or array of N gives each image its own. They raise ValueError for a target or layer that the
network lacks. The network is run as in evaluation and left as it was.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuconv.explain.observe import Observer, Rule, deconvolved, guided
from gpuconv.nn import Module

Target = Any  # None, an int, a tuple, or a list or array of either, one for each example


def gradient(model: Module, x: np.ndarray, target: Target = None, of: str = "") -> np.ndarray:
    """d unit / d pixel: how much the unit's value grows as a pixel does, (N, C, H, W).

    Source: Simonyan, Vedaldi and Zisserman 2013, section 3; Captum's Saliency without `abs`.

    >>> from gpuconv import models
    >>> x = np.random.default_rng(0).random((2, 1, 32, 32), np.float32)
    >>> gradient(models.lenet(), x, target=7).shape
    (2, 1, 32, 32)
    """
    return _at_input(Observer(model, (of,)), x, target, of, None)


def saliency(model: Module, x: np.ndarray, target: Target = None, of: str = "") -> np.ndarray:
    """The largest absolute gradient among each pixel's channels, (N, H, W).

    Source: Simonyan, Vedaldi and Zisserman 2013, section 3.1.
    """
    return np.abs(gradient(model, x, target, of)).max(axis=1)


def input_x_gradient(
    model: Module, x: np.ndarray, target: Target = None, of: str = ""
) -> np.ndarray:
    """x times the gradient: for a linear network what each pixel adds to the unit's value.

    Source: Shrikumar et al. 2016; Captum's InputXGradient.
    """
    return x * gradient(model, x, target, of)


def smooth_grad(
    model: Module,
    x: np.ndarray,
    target: Target = None,
    of: str = "",
    samples: int = 25,
    noise: float = 0.15,
    rng: int | np.random.Generator = 0,
) -> np.ndarray:
    """The mean gradient over `samples` noisy copies of each image.

    noise: the standard deviation of the Gaussian noise, as a share of the image's range of values.
    rng: a seed or generator; all images of a batch get the same draws, so that an image's result
    does not depend on the others. A target of None is the likeliest class without noise.
    Also raises ValueError for samples < 1 and noise < 0. Source: Smilkov et al. 2017.
    """
    if samples < 1 or not noise >= 0:
        raise ValueError(
            f"smooth_grad: samples must be at least 1 and noise at least 0, got {samples}, {noise}"
        )
    observer = Observer(model, (of,))
    chosen = units(target, observer.run(x, gradients=False).output(of), where(of))
    spread = noise * (x.max(axis=(1, 2, 3)) - x.min(axis=(1, 2, 3))) if x.size else np.zeros(len(x))
    draws = np.random.default_rng(rng)
    total = np.zeros(x.shape, np.float64)
    for _ in range(samples):
        offset = draws.standard_normal(x.shape[1:]) * spread[:, None, None, None]
        total += _at_input(observer, (x + offset).astype(x.dtype), chosen, of, None)
    return (total / samples).astype(x.dtype)


def guided_backprop(
    model: Module, x: np.ndarray, target: Target = None, of: str = ""
) -> np.ndarray:
    """The gradient, where every ReLU also stops what is negative: what excites the unit.

    ReLUs are changed whether they are layers or calls of functional.relu; without any it is the
    gradient. Source: Springenberg et al. 2014; Captum's GuidedBackprop.
    """
    return _at_input(Observer(model, (of,)), x, target, of, guided)


def deconvnet(model: Module, x: np.ndarray, target: Target = None, of: str = "") -> np.ndarray:
    """The unit projected back to the pixels: transposed filters, max-pools' switches, and ReLU on
    the signal that comes back, whatever the ReLU passed on the way up.

    The unit's own value counts as 1: it would only scale the result. Biases have no part in it;
    batch norm goes back as its gradient does. Source: Zeiler and Fergus 2014, section 2.1;
    Captum's Deconvolution.
    """
    return _at_input(Observer(model, (of,)), x, target, of, deconvolved)


def layer_gradient(
    model: Module, x: np.ndarray, layer: str, target: Target = None, of: str = ""
) -> np.ndarray:
    """d unit / d output of a layer: an array of that output's shape.

    Raises ValueError where the unit does not depend on the layer.

    >>> from gpuconv import models
    >>> x = np.random.default_rng(0).random((2, 1, 32, 32), np.float32)
    >>> layer_gradient(models.lenet(), x, "pool1", target=7).shape
    (2, 6, 14, 14)
    """
    return output_and_gradient(model, x, layer, target, of)[1]


def output_and_gradient(
    model: Module, x: np.ndarray, layer: str, target: Target, of: str
) -> tuple[np.ndarray, np.ndarray]:
    """A layer's output, and `layer_gradient`'s result."""
    observed = Observer(model, (of, layer)).run(x)
    y = observed.output(of)
    found = observed.gradient(seed(y, units(target, y, where(of))), of, layer)
    if found is None:
        raise ValueError(f"explain: {where(of)} does not depend on the output of layer {layer}")
    return observed.output(layer), found


def where(of: str) -> str:
    """How messages call the layer that is explained."""
    return f"layer {of}" if of else "the network"


def _at_input(
    observer: Observer, x: np.ndarray, target: Target, of: str, rule: Rule | None
) -> np.ndarray:
    observed = observer.run(x)
    y = observed.output(of)
    found = observed.gradient(seed(y, units(target, y, where(of))), of, rule=rule)
    return np.zeros_like(x) if found is None else found


def units(target: Target, y: np.ndarray, where: str) -> list[tuple[int, ...]]:
    """Each example's unit: an index into y's axes after the first, (k,) or (k, p, q).

    y: the output (N, K) or (N, K, P, Q) of the layer that `where` names in errors.
    target: None, the largest of each example's K scores; an int or a tuple, the same unit for all;
    or a list or array of N of them, as Captum has it.
    Raises ValueError for a unit that the layer lacks, and for None where the output is no scores.
    """
    if target is None:
        if y.ndim != 2:
            raise ValueError(f"explain: name a target: the output of {where} is maps, not scores")
        return [(int(k),) for k in y.argmax(axis=1)]
    several = isinstance(target, list) or (isinstance(target, np.ndarray) and target.ndim > 0)
    chosen = list(target) if several else [target] * len(y)
    if len(chosen) != len(y):
        raise ValueError(f"explain: {len(chosen)} targets for {len(y)} images, expected as many")
    return [_unit(each, y.shape[1:], where) for each in chosen]


def seed(y: np.ndarray, chosen: list[tuple[int, ...]]) -> np.ndarray:
    """dy of y's shape: 1 at each example's unit, or all over its channel's map, and 0 elsewhere."""
    dy = np.zeros_like(y)
    for n, unit in enumerate(chosen):
        dy[(n, *unit)] = 1
    return dy


def scores(y: np.ndarray, chosen: list[tuple[int, ...]]) -> np.ndarray:
    """The value of each example's unit, or the sum of its channel's map: float64 (N,)."""
    values = [y[(n, *unit)].sum(dtype=np.float64) for n, unit in enumerate(chosen)]
    return np.array(values, np.float64)


def _unit(target: Any, shape: tuple[int, ...], where: str) -> tuple[int, ...]:
    unit = tuple(np.atleast_1d(target).tolist())
    if not all(isinstance(k, int) for k in unit) or len(unit) not in (1, len(shape)):
        forms = "an int" if len(shape) == 1 else "an int (a channel) or (channel, row, column)"
        raise ValueError(f"explain: a target of {where} is {forms}, got {target!r}")
    if not all(0 <= k < size for k, size in zip(unit, shape, strict=False)):
        size = "x".join(map(str, shape))
        raise ValueError(
            f"explain: {where} has no unit {target!r}: its output is {size}, counted from 0"
        )
    return unit
