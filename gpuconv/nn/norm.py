"""Normalisation layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from gpuconv.arguments import flag, number, whole
from gpuconv.autograd import Parameter, Tensor, once, state
from gpuconv.cuda.recording import again
from gpuconv.distributed.communicator import Communicator
from gpuconv.errors import require_known
from gpuconv.nn import init
from gpuconv.nn.functional import batch_norm, local_response_norm
from gpuconv.nn.module import Buffer, Module
from gpuconv.nn.synchronised_batch_norm import synchronised_batch_norm
from gpuconv.ops.local_response_norm import CONVENTIONS


class BatchNorm2d(Module):
    """Each channel minus its mean, divided by its standard deviation, times weight plus bias.

    In training mean and biased variance are the batch's, and the running ones move towards them:
    running = (1 - momentum) * running + momentum * batch's, the variance made unbiased by
    n / (n - 1), n = N*H*W; in evaluation the running ones are used. With momentum=None they are the
    mean of all batches so far; with track_running_stats=False there are none, and evaluation uses
    the batch's as well. State, as torchvision's: weight, bias (affine only), running_mean,
    running_var, num_batches_tracked (int64; all three only with track_running_stats).
    forward: x (N, num_features, H, W) -> y, the same shape; ValueError in training for one value
    per channel. Source: Ioffe and Szegedy 2015; torch.nn.BatchNorm2d.
    """

    holds = ("weight", "bias")
    counters = ("num_batches_tracked",)

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        self.num_features = C = whole("BatchNorm2d: num_features", num_features)
        self.eps = number("BatchNorm2d: eps", eps, least=0)
        if momentum is not None:
            momentum = number("BatchNorm2d: momentum", momentum, 0, 1)
        self.momentum = momentum
        affine = flag("BatchNorm2d: affine", affine)
        self.weight = Parameter(init.filled(C, 1)) if affine else None
        self.bias = Parameter(init.filled(C, 0)) if affine else None
        tracked = flag("BatchNorm2d: track_running_stats", track_running_stats)
        self.running_mean = Buffer(init.filled(C, 0)) if tracked else None
        self.running_var = Buffer(init.filled(C, 1)) if tracked else None
        self.num_batches_tracked = Buffer(np.zeros((), np.int64)) if tracked else None
        # Of a run on several ranks, while it goes on: those whose parts of the batch are one for
        # this layer; and whether this rank has no part of it. See gpuconv/train/ranks.py.
        self.communicator: Communicator | None = None
        self.idle = False

    def reset_parameters(self, rng: np.random.Generator) -> None:
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            if (holder := getattr(self, name)) is not None:
                holder.data[...] = 1 if name in ("weight", "running_var") else 0

    def forward(self, x: Tensor) -> Tensor:
        training, momentum, run = self.in_training, self.momentum, batch_norm
        if training and self.communicator is not None and state.trace is None:
            run = partial(synchronised_batch_norm, self.communicator)
        share = None
        if training and self.num_batches_tracked is not None:
            share = once(again, self._count_batch, self._snapshot)
        if training and self.idle and self.communicator is None:
            return x  # of no images
        if self.running_mean is None or self.running_var is None:
            return run(x, None, None, self.weight, self.bias, True, eps=self.eps)
        if momentum is None:
            momentum = share[0] if share else 1.0
        running = self.running_mean.data, self.running_var.data
        return run(x, *running, self.weight, self.bias, training, momentum, self.eps)

    def _count_batch(self) -> tuple[float] | None:
        """Count a batch; momentum=None makes the running statistics the mean of all of them."""
        assert self.num_batches_tracked is not None
        count = self.num_batches_tracked.data
        np.add(count, 1, count)
        return (1 / int(count),) if self.momentum is None else None

    def _snapshot(self) -> Callable[[], None]:
        assert self.num_batches_tracked is not None
        count = self.num_batches_tracked.data
        return partial(np.copyto, count, count.copy())

    def extra_repr(self) -> str:
        parts = [str(self.num_features), *self._changed(eps=1e-5, momentum=0.1)]
        parts += ["affine=False"] if self.weight is None else []
        parts += ["track_running_stats=False"] if self.running_mean is None else []
        return ", ".join(parts)


class LocalResponseNorm(Module):
    """Each value divided by a power of the sum of squares over neighbouring channels.

    y[c] = x[c] / (k + a * sum of x[j]**2)**beta, over the `size` channels j around c. convention:
    "torch" (also ONNX's and Caffe's) has a = alpha / size, "paper" has a = alpha: the paper's
    alpha 1e-4 with size 5 is torch's 5e-4. Arguments as torch.nn.LocalResponseNorm.
    Source: Krizhevsky et al. 2012, section 3.3.
    """

    def __init__(
        self,
        size: int,
        alpha: float = 1e-4,
        beta: float = 0.75,
        k: float = 1.0,
        convention: str = "torch",
    ) -> None:
        super().__init__()
        size = whole("LocalResponseNorm: size", size)
        alpha = number("LocalResponseNorm: alpha", alpha)
        beta = number("LocalResponseNorm: beta", beta)
        k = number("LocalResponseNorm: k", k, above=0)
        require_known("convention", convention, CONVENTIONS)
        self.arguments = (size, alpha, beta, k, convention)

    def forward(self, x: Tensor) -> Tensor:
        return local_response_norm(x, *self.arguments)

    def extra_repr(self) -> str:
        size, alpha, beta, k, convention = self.arguments
        text = f"{size}, alpha={alpha:g}, beta={beta:g}, k={k:g}"
        return text if convention == "torch" else f"{text}, convention={convention}"
