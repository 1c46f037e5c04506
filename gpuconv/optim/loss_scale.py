"""Loss scaling: gradients in half precision, kept from becoming 0 or infinite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.arguments import number, whole
from gpuconv.arrays import is_device
from gpuconv.autograd import Parameter
from gpuconv.optim import device as on_device

if TYPE_CHECKING:
    from gpuconv.optim.optimizer import Optimizer

SCALE, INVERSE, GOOD, SKIPPED, ENDED = range(5)  # of `state`: kernels/scaler.cu


class LossScaler:
    """The factor by which a loss's gradient is multiplied before it passes through fp16.

    A step whose gradients are not all finite is skipped, and the scale is halved; after `growth`
    good steps in a row it is doubled. Nothing of it waits for the device: scale, counters and the
    decision lie where the model is, so that a recorded step makes them anew.

    device: the model's. scale: to begin with, a power of two. factor: the scale, one float32 there.
    skip: one word there, 1 where the step is skipped. skipped: how many were, as far as `settle`
    has looked.
    Raises: TypeError or ValueError naming the argument.
    Source: Micikevicius et al. 2018, "Mixed precision training"; torch.amp.GradScaler.

    >>> from gpuconv import autograd, nn, optim
    >>> model, criterion = nn.Linear(2, 3, rng=0).to("reference"), nn.CrossEntropyLoss()
    >>> optimizer = optim.SGD(model.parameters(), lr=0.1)
    >>> scaler = LossScaler(model.device)
    >>> with autograd.precision("fp16", scaler.factor):
    ...     scores = model(np.ones((4, 2), np.float32))
    >>> criterion(scores, np.array([0, 1, 2, 0])).backward()
    >>> scaler.unscale(optimizer.params)
    >>> optimizer.step(scaler)
    >>> scaler.scale
    65536.0
    """

    counters = ("skipped",)  # what changes and decides nothing

    def __init__(self, device: str, scale: float = 2.0**16, growth: int = 2000) -> None:
        self.growth = whole("LossScaler: growth", growth)
        scale = number("LossScaler: scale", scale, least=1)
        state = np.array([scale, 1 / scale, 0, 0, 0], np.float32)
        self.skipped = 0
        self._on: Any = on_device.runtime_named(device) if is_device(device) else None
        self.state = state if self._on is None else self._on.asarray(state)
        self.found, self.skip = (
            np.zeros(1, np.uint32) if self._on is None else self._on.zeros(1, np.uint32)
            for _ in range(2)
        )

    @property
    def factor(self) -> Any:
        return self.state[:1]

    @property
    def scale(self) -> float:
        """The scale as it is now, after all that was started."""
        return float(self._read()[SCALE])

    def unscale(self, parameters: Iterable[Parameter]) -> None:
        """Divide the gradients by the scale, in place; then decide whether this step is skipped,
        and what the next one's scale is. To be called once a step, before gradients are clipped.
        """
        chosen = [p for p in parameters if p.grad is not None and p.requires_grad]
        if self._on is not None:
            on_device.unscale(self._on, chosen, self)
            return
        for p in chosen:
            gradient: Any = p.grad
            np.multiply(gradient, self.state[INVERSE], out=gradient)
            self.found[0] |= not np.isfinite(gradient).all()
        self._turn()

    def _turn(self) -> None:
        """As turn_scale of kernels/scaler.cu."""
        state, bad = self.state, bool(self.found[0])
        self.found[0], self.skip[0] = 0, bad or state[ENDED] > 0
        if state[ENDED]:
            return
        state[GOOD] = 0 if bad else state[GOOD] + 1
        if bad:
            state[SCALE] /= 2
            state[SKIPPED] += 1
        elif state[GOOD] >= self.growth:
            state[GOOD] = 0
            if np.isfinite(state[SCALE] * np.float32(2)):
                state[SCALE] *= 2
        state[INVERSE] = 1 / state[SCALE]
        state[ENDED] = state[SCALE] < 1

    def settle(self, optimizer: Optimizer, before: Sequence[int]) -> None:
        """Take skipped steps out of the optimiser's counts. before: `optimizer.steps` as they were
        when this was last done.

        Raises FloatingPointError where the scale fell below 1.
        """
        state = self._read()
        fewer, self.skipped = int(state[SKIPPED]) - self.skipped, int(state[SKIPPED])
        if self._on is not None:  # on the host a skipped step was not counted
            for i, count in enumerate(before):
                if optimizer.steps[i] > count:
                    optimizer.steps[i] -= fewer
        if state[ENDED]:
            raise FloatingPointError(
                "the loss scale fell below 1: gradients are not finite at any scale; lower the "
                "learning rate, or train in bf16, which has float32's range"
            )

    def state_dict(self) -> dict[str, float]:
        """What a resumed run needs."""
        state = self._read()
        return {"scale": float(state[SCALE]), "good": int(state[GOOD])}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there. TypeError or ValueError for what is no such state."""
        scale = number("LossScaler: scale", state["scale"], least=1)
        good = whole("LossScaler: good", state["good"], 0)
        host = self._read()
        host[: GOOD + 1] = scale, 1 / scale, good
        if self._on is None:
            self.state[:] = host
        else:
            self._on.queue().copy(self.state, host)

    def _read(self) -> np.ndarray:
        return self.state.copy() if self._on is None else self._on.read(self.state)
