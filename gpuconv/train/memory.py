"""The memory of a training step, measured."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np

from gpuconv.nn import AuxiliaryLoss, Module, Parameter
from gpuconv.nn.module import in_mode
from gpuconv.optim import SGD, Optimizer
from gpuconv.train.state import stochastic_layers

Shape = tuple[int, ...]


def peak_memory(
    model: Module,
    batch: int,
    input_shape: Shape | None = None,
    make_optimizer: Callable[[list[Parameter]], Optimizer] | None = None,
) -> int:
    """The most bytes that arrays hold at once in the third training step on random images.

    Counted are parameters, buffers, gradients, the optimiser's state, activations, workspaces and
    the images, as NumPy tells them to tracemalloc; not the interpreter and compiled code. The first
    step makes the state and the workspaces; by the third all is in use.

    batch: images of a step. input_shape: one image's (C, H, W); may be left out for a model that
    knows its own. make_optimizer: from the parameters; SGD with momentum unless given. The model,
    its running statistics and random numbers are afterwards as before.
    Raises: ValueError for a model on a device, whose memory NumPy does not hold, and where no input
    shape is known.
    """
    shape = input_shape or model.input_shape
    if shape is None:
        raise ValueError("peak_memory: give input_shape=(channels, height, width)")
    if model.device not in ("cpu", "reference"):
        raise ValueError(f"peak_memory: measures the cpu, the model is on {model.device}")
    state = {name: array.copy() for name, array in model.state_dict().items()}
    generators = [(layer, layer.rng_state) for _, layer in stochastic_layers(model)]
    gradients = [(p, p.grad) for p in model.parameters()]
    make = make_optimizer or (lambda params: SGD(params, lr=1e-6, momentum=0.9))
    try:
        with in_mode(model, True):
            _steps(model, make, 1, shape, count=1)  # compiles what is not compiled yet
            held = sum(array.nbytes for array in model.state_dict().values())
            return held + _steps(model, make, batch, shape, count=3)
    finally:
        for layer, before in generators:
            layer.rng_state = before
        for parameter, gradient in gradients:
            parameter.grad = gradient
        model.load_state_dict(state)


def _steps(
    model: Module,
    make: Callable[[list[Parameter]], Optimizer],
    batch: int,
    shape: Shape,
    count: int,
) -> int:
    """The peak in the last of so many steps, without what was held before."""
    model.zero_grad()
    loss, rng = AuxiliaryLoss(), np.random.default_rng(0)
    tracemalloc.start()
    try:
        optimizer = make(model.parameters())
        x = rng.standard_normal((batch, *shape)).astype(model.parameters()[0].data.dtype)
        labels = np.zeros(batch, np.int64)
        for _ in range(count):
            tracemalloc.reset_peak()
            optimizer.zero_grad()
            loss(model(x), labels).backward()
            optimizer.step()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        model.zero_grad()
