"""Normalisation layers."""

from __future__ import annotations

import numpy as np

from gpuconv import ops
from gpuconv.nn.layer import Buffer, Fusible, Layer, Parameter, Shape
from gpuconv.ops.in_place import batch_norm2d_backward_into, can_overwrite


class BatchNorm2d(Fusible):
    """Each channel less its mean, over its deviation, times weight plus bias.

    In training mean and biased variance are the batch's, and the running ones move towards them:
    running = (1 - momentum) * running + momentum * batch's, the variance made unbiased by
    n / (n - 1), n = N*H*W; in evaluation the running ones are used. State, as torchvision's:
    weight, bias (affine only), running_mean, running_var, num_batches_tracked (int64).
    forward: x (N, num_features, H, W) -> y, the same shape; ValueError in training for one value a
    channel. Source: Ioffe and Szegedy 2015; torch.nn.BatchNorm2d.
    """

    fuses = ("relu",)

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

    def forward_activated(self, x: np.ndarray, activation: str | None) -> np.ndarray:
        mean, var = (None, None) if self.training else self._running()
        y, mean, var = self.run(
            ops.batch_norm2d, x, *self._affine(), mean, var, self.eps, activation
        )
        if self.training:
            self._track(mean, var, x.size // x.shape[1], x.shape)
        self.save(x, mean, var, activation, self.training)
        return y

    def backward_over(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        if not (need_dx and dy.size and can_overwrite(dy) and self.device == "cpu"):
            return self.backward(dy, need_dx)
        x, mean, var, activation, of_batch = self.saved()
        arguments = (dy, x, *self._affine(), mean, var, self.eps, activation, of_batch)
        dx, dw, db = batch_norm2d_backward_into(*arguments)
        if self.weight is not None and self.bias is not None:
            self.weight.add_grad(dw)  # type: ignore[arg-type]
            self.bias.add_grad(db)  # type: ignore[arg-type]
        return dx

    @property
    def frees_output(self) -> bool:
        return True  # backward finds the sign before the ReLU again from x

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        x, mean, var, activation, of_batch = self.saved()
        arguments = (dy, x, *self._affine(), mean, var, self.eps, activation, of_batch, need_dx)
        dx, dw, db = self.run(ops.batch_norm2d_backward, *arguments)
        if self.weight is not None and self.bias is not None:
            self.weight.add_grad(dw)
            self.bias.add_grad(db)
        return dx

    def _affine(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        return (
            None if self.weight is None else self.weight.data,
            None if self.bias is None else self.bias.data,
        )

    def _running(self) -> tuple[np.ndarray, np.ndarray]:
        return self.running_mean.data, self.running_var.data

    def _track(self, mean: np.ndarray, var: np.ndarray, count: int, shape: Shape) -> None:
        if count < 2:
            raise ValueError(
                f"BatchNorm2d: training needs more than one value a channel, got x of shape {shape}"
            )
        self.run(ops.batch_norm2d_track, *self._running(), mean, var, count, self.momentum)
        self.num_batches_tracked.data += 1

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) != 3 or shape[0] != self.num_features:
            raise ValueError(
                f"BatchNorm2d: the input must be (channels, height, width) with "
                f"{self.num_features} channels, got {shape}"
            )
        return shape

    def describe(self) -> str:
        parts = [str(self.num_features)]
        parts += [f"eps={self.eps:g}"] if self.eps != 1e-5 else []
        parts += [f"momentum={self.momentum:g}"] if self.momentum != 0.1 else []
        return ", ".join(parts + ([] if self.weight is not None else ["affine=False"]))


class LocalResponseNorm(Layer):
    """Each value over a power of its neighbouring channels' sum of squares.

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

    def forward(self, x: np.ndarray) -> np.ndarray:
        y = self.run(ops.local_response_norm, x, *self.arguments)
        self.save(x)
        return y

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray:
        return self.run(ops.local_response_norm_backward, dy, *self.saved(), *self.arguments)

    @property
    def frees_output(self) -> bool:
        return True

    def describe(self) -> str:
        size, alpha, beta, k, convention = self.arguments
        text = f"{size}, alpha={alpha:g}, beta={beta:g}, k={k:g}"
        return text if convention == "torch" else f"{text}, convention={convention}"
