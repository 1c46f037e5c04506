"""Layers without weights that work element by element, and softmax."""

from __future__ import annotations

import numpy as np

from gpuconv import ops
from gpuconv.nn.layer import Layer
from gpuconv.ops.activation import ACTIVATIONS
from gpuconv.ops.in_place import can_overwrite, dropout_into, relu_backward_into, relu_into


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

    def forward_over(self, x: np.ndarray) -> np.ndarray:
        if not (self.device == "cpu" and can_overwrite(x)):
            return self.forward(x)
        y = relu_into(x)
        self.save(y)
        return y

    def backward_over(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray:
        if not (self.device == "cpu" and can_overwrite(dy)):
            return self.backward(dy, need_dx)
        return relu_backward_into(dy, *self.saved())


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
        return self._masked(x, self._draw(), False)

    def forward_over(self, x: np.ndarray) -> np.ndarray:
        return self._masked(x, self._draw(), True)

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray:
        (seed,) = self.saved()
        return self._masked(dy, seed, False)

    def backward_over(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray:
        (seed,) = self.saved()
        return self._masked(dy, seed, True)

    @property
    def frees_output(self) -> bool:
        return True

    def _draw(self) -> int | None:
        """The next mask's seed, saved for backward; None where nothing is dropped."""
        seed = None
        if self.training and self.p > 0:
            seed = self.seed << 32 | self.masks
            self.masks += 1
        self.save(seed)
        return seed

    def _masked(self, a: np.ndarray, seed: int | None, over: bool) -> np.ndarray:
        """The mask on a; over: in a's memory where that can be."""
        if seed is None:
            return a
        if over and self.device == "cpu" and can_overwrite(a):
            return dropout_into(a, self.p, seed)
        return self.run(ops.dropout, a, self.p, seed)

    def describe(self) -> str:
        return str(self.p)
