"""Layers without weights that work element by element, and softmax."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuconv import ops
from gpuconv.nn.layer import Layer
from gpuconv.ops.activation import ACTIVATIONS


class _Activation(Layer):
    """Keeps its output: every one of these derivatives is a function of it."""

    name: str

    def forward(self, x: np.ndarray) -> np.ndarray:
        y = self.run(ACTIVATIONS[self.name][0], x)
        self.save(y)
        return y

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray:
        return self.run(ACTIVATIONS[self.name][1], dy, *self.saved())


class ReLU(_Activation):
    """max(x, 0)."""

    name = "relu"


class Tanh(_Activation):
    """tanh(x)."""

    name = "tanh"


class ScaledTanh(_Activation):
    """1.7159 tanh(2x/3), LeNet-5's."""

    name = "scaled_tanh"


class Sigmoid(_Activation):
    """1 / (1 + exp(-x))."""

    name = "sigmoid"


class Softmax(Layer):
    """Scores (N, classes, ...) to probabilities. The losses take scores: leave it out of a network
    to train.
    """

    def forward(self, x: np.ndarray) -> np.ndarray:
        y = self.run(ops.softmax, x)
        self.save(y)
        return y

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray:
        return self.run(ops.softmax_backward, dy, *self.saved())


class Identity(Layer):
    """y = x."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        return x

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray:
        return dy


class Dropout(Layer):
    """In training each element is 0 with probability p and the others grow by 1/(1-p); in
    evaluation y = x.

    seed: each forward pass in training uses the next mask of a sequence that depends on it alone.
    Source: Srivastava et al. 2014; torch.nn.Dropout.
    """

    def __init__(self, p: float = 0.5, seed: int = 0) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: p must be in [0, 1), got {p!r}")
        self.p, self.seed, self.masks = p, seed, 0

    def reset_parameters(self, rng: np.random.Generator) -> None:
        self.seed, self.masks = int(rng.integers(2**32)), 0

    def generator_state(self) -> list[int]:
        return [self.seed, self.masks]

    def load_generator_state(self, state: list[int]) -> None:
        self.seed, self.masks = state

    def forward(self, x: np.ndarray) -> np.ndarray:
        active = self.training and self.p > 0
        seed: Any = None
        if active:
            seed = self.seed << 32 | self.masks
            self.masks += 1
        self.save(seed)
        return self.run(ops.dropout, x, self.p, seed) if active else x

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray:
        (seed,) = self.saved()
        return dy if seed is None else self.run(ops.dropout, dy, self.p, seed)

    def describe(self) -> str:
        return str(self.p)
