"""A moving average of the weights: it lags behind the last steps' noise and often tests better."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from gpuconv.nn.layer import Layer
from gpuconv.optim.checks import number
from gpuconv.runtime.arrays import device_of, to_device, to_numpy


class EMA:
    """An exponential moving average of a model's parameters; call `update` after each step.

    average = decay * average + (1 - decay) * parameter, the first average being the parameters
    after the first step. Buffers, such as batch norm's running statistics, are averages already
    and stay the model's own. The averages are NumPy arrays on every device. As PyTorch's
    AveragedModel with get_ema_multi_avg_fn. Source: Polyak and Juditsky 1992.

    Raises TypeError or ValueError for a decay that is not in [0, 1).

    >>> from gpuconv import nn
    >>> model = nn.Linear(1, 1, bias=False); average = EMA(model, decay=0.75)
    >>> for value in (0.0, 4.0):
    ...     model.weight.data[...] = value
    ...     average.update()
    >>> with average.applied():
    ...     print(model.weight.data)
    [[1.]]
    >>> print(model.weight.data)
    [[4.]]
    """

    def __init__(self, model: Layer, decay: float = 0.999) -> None:
        self.model, self.decay = model, number("EMA", "decay", decay, below=1.0)
        self._averages: dict[str, np.ndarray] = {}
        self._set_aside: dict[str, np.ndarray] = {}

    def update(self) -> None:
        """Move every average towards its parameter."""
        for name, parameter in self.model.named_parameters():
            value, average = to_numpy(parameter.data), self._averages.get(name)
            if average is None:
                self._averages[name] = value.copy()
            else:
                average += (value - average) * average.dtype.type(1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the model has the averages for its parameters; nothing changes before the first
        `update`.
        """
        parameters = dict(self.model.named_parameters())
        self._set_aside = {name: parameters[name].data for name in self._averages}
        for name, own in self._set_aside.items():
            on = device_of(own) or "cpu"
            parameters[name].data = to_device(self._averages[name], on, weights=True)
        try:
            yield
        finally:
            for name, own in self._set_aside.items():
                parameters[name].data = own
            self._set_aside = {}

    def own_state(self) -> dict[str, np.ndarray]:
        """The model's state with its own parameters, also while the averages are applied."""
        own = {name: to_numpy(array) for name, array in self._set_aside.items()}
        return {**self.model.state_dict(), **own}

    def state_dict(self) -> dict[str, np.ndarray]:
        """The averages by the parameters' names: the arrays themselves, none before `update`."""
        return dict(self._averages)

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over copies of the averages; ValueError for another model's."""
        shapes = {name: parameter.shape for name, parameter in self.model.named_parameters()}
        if state and {name: a.shape for name, a in state.items()} != shapes:
            raise ValueError(
                f"EMA: the state holds {len(state)} averages that are not this model's"
                f" {len(shapes)} parameters, in name and shape"
            )
        self._averages = {name: np.array(a) for name, a in state.items()}
