"""What a training step takes, found by running the network's own code on outlines of its arrays."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuconv.cuda.outline import Meter, Outline
from gpuconv.nn.layer import Layer, Shape
from gpuconv.nn.losses import AuxiliaryLoss, CrossEntropyLoss


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes at the peak of a training step on the cpu path, in float32.

    batch: of how many examples. state: parameters, their gradients, the optimiser's arrays and
    buffers. activations: the rest: the input, what layers keep for backward, gradients on their
    way, workspaces.
    """

    batch: int
    state: int
    activations: int

    @property
    def total(self) -> int:
        return self.state + self.activations


def training_memory(
    network: Layer, shape: Shape, batch: int = 64, states: int = 1
) -> TrainingMemory:
    """Forward, loss, backward without the input's gradient, and an optimiser that keeps `states`
    arrays of each parameter's size: 1 is SGD with momentum, 2 Adam.

    shape: one example's, (C, H, W). The second step counts, and those after it: it finds the
    optimiser's arrays and the workspaces of the first. Nothing is computed and the network is left
    as it was. Raises NotImplementedError for a layer that computes with NumPy itself what an
    `Outline` cannot follow.

    >>> from gpuconv import models
    >>> training_memory(models.lenet(), (1, 32, 32), 64).state == 4 * 3 * 63_802
    True
    """
    meter = Meter()
    twin = _outlined(network, meter)
    size = meter.used
    _step(twin, meter, (batch, *shape))
    buffers = sum(buffer.data.nbytes for _, buffer in twin.named_buffers())
    state = size * (2 + states) + buffers
    peak = meter.peak + meter.kept + size * states + buffers
    return TrainingMemory(batch, state, peak - state)


def _step(network: Layer, meter: Meter, shape: Shape) -> None:
    """A training step, as gpuconv.train does it; what it leaves stays with the network."""
    x, labels = Outline(meter, shape), Outline(meter, shape[:1], np.int64)
    scores: Any = network.forward(x)  # type: ignore[arg-type]
    if not isinstance(scores, tuple) and scores.ndim != 2:
        network.backward(scores.empty(scores.shape), need_dx=False)  # no scores: any loss
        return
    loss = AuxiliaryLoss() if isinstance(scores, tuple) else CrossEntropyLoss()
    loss.forward(scores, labels)  # type: ignore[arg-type]
    del scores
    network.backward(loss.backward(), need_dx=False)  # type: ignore[arg-type]


def _outlined(network: Layer, meter: Meter) -> Layer:
    """A copy of the network for training on the cpu, its parameters outlines in float32."""
    known: dict[int, Any] = {}  # what copy.deepcopy shall take for a copy, by id
    for _, layer in network.layers():
        for name, empty in (("_saved", None), ("_steps", []), ("_ran", [])):
            if hasattr(layer, name):  # between a forward and its backward: may be large
                known[id(getattr(layer, name))] = empty
    for parameter in network.parameters():
        if id(parameter.data) not in known:
            known[id(parameter.data)] = Outline(meter, parameter.data.shape)
        known[id(parameter.grad)] = None
    for _, buffer in network.named_buffers():
        known[id(buffer.data)] = np.zeros(buffer.data.shape, buffer.data.dtype)
    twin = copy.deepcopy(network, known)
    for _, layer in twin.layers():
        layer.training, layer.device = True, "cpu"
    return twin
