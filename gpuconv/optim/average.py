"""A moving average of the weights: it lags behind the last steps' noise and often tests better."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from gpuconv.arguments import number
from gpuconv.arrays import checked_cast, device_of, to_device, to_numpy
from gpuconv.nn import Buffer, Module, Parameter


class EMA:
    """An exponential moving average of a model's state; call `update` after each step.

    average = decay * average + (1 - decay) * value for every parameter and every buffer of floats,
    the first average being the values after the first step: batch norm's running statistics must
    fit the averaged weights. Buffers of integers are copied. The averages are NumPy arrays on every
    device. As PyTorch's AveragedModel with get_ema_multi_avg_fn and use_buffers. Source: Polyak and
    Juditsky 1992.

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

    def __init__(self, model: Module, decay: float = 0.999) -> None:
        self.model, self.decay = model, number("EMA: decay", decay, 0, below=1.0)
        self._averages: dict[str, np.ndarray] = {}
        self._set_aside: dict[str, np.ndarray] = {}

    def update(self) -> None:
        """Move every average towards its value."""
        for name, holder in self._holders().items():
            value, average = to_numpy(holder.data), self._averages.get(name)
            if average is None or average.dtype.kind != "f":
                self._averages[name] = value.copy()
            else:
                average += (value - average) * average.dtype.type(1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the model has the averages for its state; nothing changes before the first
        `update`.
        """
        holders = self._holders()
        self._set_aside = {name: holders[name].data for name in self._averages}
        for name, own in self._set_aside.items():
            on = device_of(own) or "cpu"
            holders[name].data = to_device(self._averages[name], on, weights=True)
        try:
            yield
        finally:
            for name, own in self._set_aside.items():
                holders[name].data = own
            self._set_aside = {}

    def _holders(self) -> dict[str, Parameter | Buffer]:
        return dict([*self.model.named_parameters(), *self.model.named_buffers()])

    def own_state(self) -> dict[str, np.ndarray]:
        """The model's own state, also while the averages are applied."""
        own = {name: to_numpy(array) for name, array in self._set_aside.items()}
        return {**self.model.state_dict(), **own}

    def state_dict(self) -> dict[str, np.ndarray]:
        """The averages by the names of the model's state: the arrays themselves."""
        return dict(self._averages)

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over copies of the averages; ValueError for another model's, and for values that
        its type cannot hold.
        """
        holders = self._holders()
        shapes = {name: holder.data.shape for name, holder in holders.items()}
        if state and {name: a.shape for name, a in state.items()} != shapes:
            raise ValueError(
                f"EMA: the state holds {len(state)} averages that are not this model's"
                f" {len(shapes)} arrays, in name and shape"
            )
        self._averages = {
            name: np.array(checked_cast(f"EMA: {name}", a, holders[name].data.dtype))
            for name, a in state.items()
        }
