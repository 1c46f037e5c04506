"""Layers without weights that work element by element, and softmax."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from gpuconv.arguments import number, whole
from gpuconv.autograd import Tensor, once
from gpuconv.cuda.recording import again
from gpuconv.nn import functional
from gpuconv.nn.module import Module
from gpuconv.ops.dropout import mask_from


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x)


class LeakyReLU(Module):
    """x where x >= 0, else negative_slope * x."""

    def __init__(self, negative_slope: float = 0.01) -> None:
        super().__init__()
        self.negative_slope = number("LeakyReLU: negative_slope", negative_slope)

    def forward(self, x: Tensor) -> Tensor:
        return functional.leaky_relu(x, self.negative_slope)

    def extra_repr(self) -> str:
        return str(self.negative_slope)


class Tanh(Module):
    """tanh(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.tanh(x)


class ScaledTanh(Module):
    """1.7159 tanh(2x/3), LeNet-5's."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.scaled_tanh(x)


class Sigmoid(Module):
    """1 / (1 + exp(-x))."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.sigmoid(x)


class Softmax(Module):
    """Scores (N, classes, ...) to probabilities. The losses take scores, so a network for training
    ends without it.
    """

    def forward(self, x: Tensor) -> Tensor:
        return functional.softmax(x)


class Identity(Module):
    """y = x."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Dropout(Module):
    """In training each element is 0 with probability p and the others are multiplied by 1/(1-p); in
    evaluation y = x.

    seed: each forward pass in training uses the next mask of a sequence that depends on it alone.
    Source: Srivastava et al. 2014; torch.nn.Dropout.
    """

    counters = ("masks",)

    def __init__(self, p: float = 0.5, seed: int = 0) -> None:
        super().__init__()
        self.p = number("Dropout: p", p, 0, 1)
        self.seed, self.masks = whole("Dropout: seed", seed, 0, 2**32 - 1), 0
        self.first = 0  # images of the batch that are other ranks', before this one's

    def reset_parameters(self, rng: np.random.Generator) -> None:
        self.seed, self.masks = int(rng.integers(2**32)), 0

    @property
    def rng_state(self) -> list[int]:
        """The seed and how many masks were drawn: what a run must restore to repeat itself."""
        return [self.seed, self.masks]

    @rng_state.setter
    def rng_state(self, state: list[int]) -> None:
        self.seed, self.masks = state

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0 or not self.in_training:
            return x
        skipped = self.first * (x.size // max(len(x), 1))
        drawn = once(again, partial(self._next_mask, skipped), self._snapshot)
        return functional.dropout(x, self.p, drawn[0] if drawn else 0)

    def _next_mask(self, skipped: int) -> tuple[int]:
        number = self.seed << 32 | self.masks
        self.masks += 1
        return (mask_from(number, skipped),)

    def _snapshot(self) -> Callable[[], None]:
        return partial(setattr, self, "rng_state", self.rng_state)

    def extra_repr(self) -> str:
        return str(self.p)
