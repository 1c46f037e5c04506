"""SGD, Adam and AdamW with PyTorch's formulas. A step changes each parameter's array in place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from gpuconv.arrays import to_numpy
from gpuconv.autograd import Parameter, settle
from gpuconv.optim import device, kernels
from gpuconv.optim.checks import number


class Optimizer:
    """What optimisers share: the parameters, their state, saving and loading it.

    State arrays are made when a parameter's first gradient arrives, one set per parameter.
    Parameters whose grad is None are skipped and age by no step.
    """

    # state arrays of one parameter, by PyTorch's names
    slots: ClassVar[tuple[str, ...]] = ()

    def __init__(self, params: Iterable[Parameter], lr: float) -> None:
        kept = list({id(p): p for p in params}.values())  # one used twice is updated once
        if not kept:
            raise ValueError(f"{self._name}: params is empty; give model.parameters()")
        for p in kept:
            if not isinstance(p, Parameter):
                raise TypeError(f"{self._name}: params must be Parameters, got {type(p).__name__}")
        self.params = kept
        self.lr = lr
        self.steps = [0] * len(kept)
        self._state: list[tuple[np.ndarray, ...] | None] = [None] * len(kept)

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def lr(self) -> float:
        """The learning rate; assign to it to change it. ValueError if negative or not finite."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = number(self._name, "lr", value)

    def hyperparameters(self) -> dict[str, Any]:
        """The arguments by name, as they are now."""
        raise NotImplementedError(f"{self._name} has no hyperparameters")

    def zero_grad(self) -> None:
        """Forget the gradients, before the next backward adds its own."""
        for p in self.params:
            p.grad = None

    def step(self) -> None:
        """Update every parameter that has a gradient.

        Raises: ValueError where a gradient's shape, or the parameter's type since the last step,
        does not fit.
        """
        settle()  # what still waits shall see the weights of before
        for i, p in enumerate(self.params):
            if p.grad is None:
                continue
            self.steps[i] += 1
            if not isinstance(p.data, np.ndarray):
                continue
            data = p.data if p.data.flags.c_contiguous else np.ascontiguousarray(p.data)
            self._update(i, data.reshape(-1), self._flat_gradient(i, p))
            if data is not p.data:
                p.data[...] = data
        device.step(self)

    def _update(self, index: int, p: np.ndarray, g: np.ndarray) -> None:
        raise NotImplementedError(f"{self._name} has no _update")

    def _launch(self) -> tuple[str, dict[str, float]]:
        """The kernel that updates parameters on a device, and its numbers by name."""
        raise NotImplementedError(f"{self._name} has no kernel; use a model on the cpu")

    def _numbers(self, index: int) -> tuple[float, float]:
        """That kernel's two numbers of one tensor; asked before the tensor's first slots exist."""
        return 0.0, 0.0

    def _flat_gradient(self, index: int, p: Parameter) -> np.ndarray:
        grad = p.grad
        assert grad is not None
        if grad.shape != p.data.shape:
            raise ValueError(
                f"{self._name}: parameter {index} has shape {p.data.shape}, its grad {grad.shape}"
            )
        return np.ascontiguousarray(grad, dtype=p.data.dtype).reshape(-1)

    def _slots_of(self, index: int, p: np.ndarray) -> tuple[np.ndarray, ...]:
        """This parameter's flat state arrays, zeros the first time."""
        state = self._state[index]
        if state is None:
            state = tuple(np.zeros_like(p) for _ in self.slots)
            self._state[index] = state
        elif state[0].dtype != p.dtype or state[0].shape != p.shape:
            raise ValueError(
                f"{self._name}: parameter {index} became {p.dtype} x {p.size}, its state is"
                f" {state[0].dtype} x {state[0].size}; make the optimiser after model.to()"
            )
        return state

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs.

        {"name", "hyperparameters": {}, "steps": [per parameter], "arrays": {"slot.index": array}};
        the arrays have the parameters' shapes and are the optimiser's own, not copies. All but the
        arrays is JSON.
        """
        arrays = {
            f"{slot}.{i}": to_numpy(array).reshape(self.params[i].shape)
            for i, state in enumerate(self._state)
            if state is not None
            for slot, array in zip(self.slots, state, strict=True)
        }
        return {
            "name": self._name,
            "hyperparameters": self.hyperparameters(),
            "steps": list(self.steps),
            "arrays": arrays,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over hyperparameters and copies of the arrays; nothing changes unless all fit.

        Raises: ValueError for another optimiser's state, or one of other parameters.
        """
        if state["name"] != self._name:
            raise ValueError(f"the state is {state['name']}'s, this optimiser is {self._name}")
        if len(state["steps"]) != len(self.params):
            found = f"{len(state['steps'])} parameters, here are {len(self.params)}"
            raise ValueError(f"{self._name}: the state is of {found}")
        loaded = [self._loaded(i, state["arrays"]) for i in range(len(self.params))]
        known = {f"{slot}.{i}" for i in range(len(self.params)) for slot in self.slots}
        if extra := sorted(set(state["arrays"]) - known):
            raise ValueError(f"{self._name}: unknown arrays in the state: {', '.join(extra[:4])}")
        fresh = type(self)(self.params, **state["hyperparameters"])  # its checks are the checks
        self.__dict__.update(fresh.__dict__)
        self.steps = [int(step) for step in state["steps"]]
        self._state = loaded

    def _loaded(self, i: int, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, ...] | None:
        found = [arrays[key] for slot in self.slots if (key := f"{slot}.{i}") in arrays]
        if not found:
            return None
        own = self.params[i].data
        if len(found) != len(self.slots) or any(a.shape != own.shape for a in found):
            shapes = ", ".join(str(a.shape) for a in found)
            raise ValueError(
                f"{self._name}: parameter {i} needs a state of {len(self.slots)} arrays of shape"
                f" {own.shape}, got {shapes}"
            )
        if not isinstance(own, np.ndarray):
            return tuple(device.like(own, a) for a in found)
        return tuple(np.array(a, dtype=own.dtype, order="C").reshape(-1) for a in found)


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum and Nesterov's variant: PyTorch's SGD.

    With d = grad + weight_decay * p: b = d the first time, then
    b = momentum * b + (1 - dampening) * d; p -= lr * b, with nesterov p -= lr * (d + momentum * b),
    without momentum p -= lr * d.

    Raises: TypeError or ValueError naming the argument.
    Source: Sutskever et al. 2013, "On the importance of initialization and momentum".

    >>> weight = Parameter(np.ones(1)); weight.grad = np.array([0.5])
    >>> SGD([weight], lr=0.1).step(); print(weight.data)
    [0.95]
    """

    slots = ("momentum_buffer",)

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float = 1e-3,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        dampening: float = 0.0,
    ) -> None:
        super().__init__(params, lr)
        self.momentum = momentum
        self.weight_decay = number("SGD", "weight_decay", weight_decay)
        self.dampening = number("SGD", "dampening", dampening)
        self.nesterov = bool(nesterov)
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError("SGD: nesterov needs a momentum greater than 0 and no dampening")

    @property
    def momentum(self) -> float:
        """The share of the last update that the next one keeps; assign to it to change it."""
        return self._momentum

    @momentum.setter
    def momentum(self, value: float) -> None:
        self._momentum = number("SGD", "momentum", value)

    def hyperparameters(self) -> dict[str, Any]:
        names = ("lr", "momentum", "nesterov", "weight_decay", "dampening")
        return {name: getattr(self, name) for name in names}

    def _update(self, index: int, p: np.ndarray, g: np.ndarray) -> None:
        cast = p.dtype.type
        lr, decay = cast(self.lr), cast(self.weight_decay)
        if self.momentum == 0:
            kernels.update(kernels.sgd, (p, g), (lr, decay))
            return
        share, _ = self._numbers(index)
        (buffer,) = self._slots_of(index, p)
        kernel = kernels.sgd_nesterov if self.nesterov else kernels.sgd_momentum
        kernels.update(kernel, (p, g, buffer), (lr, decay, cast(self.momentum), cast(share)))

    def _numbers(self, index: int) -> tuple[float, float]:
        # The first buffer is the gradient itself: momentum * 0 + 1 * d, dampening not applied.
        return 1.0 if self._state[index] is None else 1.0 - self.dampening, 0.0

    def _launch(self) -> tuple[str, dict[str, float]]:
        numbers = {"lr": self.lr, "decay": self.weight_decay}
        if self.momentum == 0:
            return "sgd", numbers
        return "sgd_momentum", {**numbers, "momentum": self.momentum, "nesterov": self.nesterov}


class Adam(Optimizer):
    """Adam: PyTorch's, weight decay added to the gradient.

    m = b1 * m + (1 - b1) * g, v = b2 * v + (1 - b2) * g^2 with g = grad + weight_decay * p, and
    after t steps p -= lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps).

    Raises: TypeError or ValueError naming the argument.
    Source: Kingma and Ba 2014, "Adam: a method for stochastic optimization".
    """

    slots = ("exp_avg", "exp_avg_sq")
    decoupled: ClassVar[bool] = False

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr)
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise TypeError(f"{self._name}: betas must be two numbers, got {betas!r}")
        self.momentum = betas[0]
        self.beta2 = number(self._name, "betas[1]", betas[1], below=1.0)
        self.eps = number(self._name, "eps", eps)
        self.weight_decay = number(self._name, "weight_decay", weight_decay)

    @property
    def momentum(self) -> float:
        """beta1 under the name that schedules use; assign to it to change it."""
        return self._beta1

    @momentum.setter
    def momentum(self, value: float) -> None:
        self._beta1 = number(self._name, "betas[0]", value, below=1.0)

    @property
    def betas(self) -> tuple[float, float]:
        """The decay rates of the two running means."""
        return (self._beta1, self.beta2)

    def hyperparameters(self) -> dict[str, Any]:
        names = ("lr", "eps", "weight_decay")
        return {"betas": list(self.betas), **{name: getattr(self, name) for name in names}}

    def _update(self, index: int, p: np.ndarray, g: np.ndarray) -> None:
        m, v = self._slots_of(index, p)
        *shared, eps = self._launch()[1].values()
        scalars = (*shared, *self._numbers(index), eps)
        kernels.update(kernels.adam, (p, g, m, v), tuple(p.dtype.type(s) for s in scalars))

    def _numbers(self, index: int) -> tuple[float, float]:
        """The step's size and the root that sqrt(v) is divided by, after t steps."""
        (beta1, beta2), t = self.betas, self.steps[index]
        return self.lr / (1 - beta1**t), (1 - beta2**t) ** 0.5

    def _launch(self) -> tuple[str, dict[str, float]]:
        beta1, beta2 = self.betas
        keep, decay = 1.0, self.weight_decay
        if self.decoupled:
            keep, decay = 1.0 - self.lr * self.weight_decay, 0.0
        shares = {"share1": 1 - beta1, "beta2": beta2, "share2": 1 - beta2, "eps": self.eps}
        return "adam", {"keep": keep, "decay": decay, **shares}


class AdamW(Adam):
    """Adam with decoupled weight decay: p *= 1 - lr * weight_decay before Adam's own update.

    Raises: TypeError or ValueError naming the argument.
    Source: Loshchilov and Hutter 2017, "Decoupled weight decay regularization".
    """

    decoupled = True

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)
