"""Normalisation layers."""

from __future__ import annotations

import numpy as np

from gpuconv.autograd import Parameter, Tensor, once
from gpuconv.nn.functional import batch_norm, local_response_norm
from gpuconv.nn.module import Buffer, Module


class BatchNorm2d(Module):
    """Each channel minus its mean, divided by its standard deviation, times weight plus bias.

    In training mean and biased variance are the batch's, and the running ones move towards them:
    running = (1 - momentum) * running + momentum * batch's, the variance made unbiased by
    n / (n - 1), n = N*H*W; in evaluation the running ones are used. State, as torchvision's:
    weight, bias (affine only), running_mean, running_var, num_batches_tracked (int64).
    forward: x (N, num_features, H, W) -> y, the same shape; ValueError in training for one value
    per channel. Source: Ioffe and Szegedy 2015; torch.nn.BatchNorm2d.
    """

    holds = ("weight", "bias")

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True
    ) -> None:
        super().__init__()
        if num_features < 1:
            raise ValueError(f"BatchNorm2d: num_features must be at least 1, got {num_features}")
        if not 0 <= momentum <= 1:
            raise ValueError(f"BatchNorm2d: momentum must be in [0, 1], got {momentum!r}")
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = Parameter(np.ones(num_features, np.float32)) if affine else None
        self.bias = Parameter(np.zeros(num_features, np.float32)) if affine else None
        self.running_mean = Buffer(np.zeros(num_features, np.float32))
        self.running_var = Buffer(np.ones(num_features, np.float32))
        self.num_batches_tracked = Buffer(np.zeros((), np.int64))

    def reset_parameters(self, rng: np.random.Generator) -> None:
        for holder, value in (
            (self.weight, 1),
            (self.bias, 0),
            (self.running_mean, 0),
            (self.running_var, 1),
            (self.num_batches_tracked, 0),
        ):
            if holder is not None:
                holder.data[...] = value

    def forward(self, x: Tensor) -> Tensor:
        training = self.in_training
        if training:
            once(self._count)
        running = self.running_mean.data, self.running_var.data
        return batch_norm(x, *running, self.weight, self.bias, training, self.momentum, self.eps)

    def _count(self) -> None:
        self.num_batches_tracked.data += 1

    def extra_repr(self) -> str:
        parts = [str(self.num_features)]
        parts += [f"eps={self.eps:g}"] if self.eps != 1e-5 else []
        parts += [f"momentum={self.momentum:g}"] if self.momentum != 0.1 else []
        return ", ".join(parts + ([] if self.weight is not None else ["affine=False"]))


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
        self.arguments = (size, alpha, beta, k, convention)

    def forward(self, x: Tensor) -> Tensor:
        return local_response_norm(x, *self.arguments)

    def extra_repr(self) -> str:
        size, alpha, beta, k, convention = self.arguments
        text = f"{size}, alpha={alpha:g}, beta={beta:g}, k={k:g}"
        return text if convention == "torch" else f"{text}, convention={convention}"
