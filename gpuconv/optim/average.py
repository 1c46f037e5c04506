"""A moving average of the weights: it lags behind the last steps' noise and often tests better."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import numpy as np

from gpuconv.arguments import number
from gpuconv.arrays import checked_cast, device_of, to_device, to_numpy
from gpuconv.autograd import Array
from gpuconv.cuda.recording import again
from gpuconv.nn import Buffer, Module, Parameter
from gpuconv.optim import device
from gpuconv.optim.loss_scale import LossScaler


class EMA:
    """An exponential moving average of a model's state; call `update` after each step.

    average = decay * average + (1 - decay) * value for every parameter and every buffer of floats,
    the first average being the values after the first step: batch norm's running statistics must
    fit the averaged weights. Buffers of integers are copied. The averages of a device's arrays are
    on that device. As PyTorch's AveragedModel with get_ema_multi_avg_fn and use_buffers.
    Source: Polyak and Juditsky 1992.

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
        self._averages: dict[str, Array] = {}
        self._set_aside: dict[str, Array] = {}

    def update(self, scaler: LossScaler | None = None) -> None:
        """Move every average towards its value; not where a scaler skips the step."""
        skipped = scaler is not None and isinstance(scaler.skip, np.ndarray) and scaler.skip[0]
        pairs, on_host = [], {}
        for name, holder in self._holders().items():
            value, average = holder.data, self._averages.get(name)
            if isinstance(value, np.ndarray):
                if average is None or not skipped:
                    on_host[name] = holder
                continue
            if average is None:
                self._averages[name] = device.like(value, to_numpy(value))
                continue
            if device_of(average) != device_of(value):
                average = self._averages[name] = device.like(value, to_numpy(average))
            pairs.append((average, value))
        if pairs:
            device.move_averages(pairs, lambda: 1 - self.decay, scaler)
        again(partial(self._update_on_host, on_host), self._snapshot)

    def _update_on_host(self, holders: Mapping[str, Parameter | Buffer]) -> None:
        for name, holder in holders.items():
            value, average = holder.data, self._averages.get(name)
            if average is None or average.dtype.kind != "f":
                self._averages[name] = value.copy()
            else:
                average += (value - average) * average.dtype.type(1 - self.decay)

    def _snapshot(self) -> Callable[[], None]:
        on_host = {n: a.copy() for n, a in self._averages.items() if isinstance(a, np.ndarray)}
        return partial(self._averages.update, on_host)

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
        """The averages by the names of the model's state, as NumPy arrays: the arrays themselves,
        not copies, but for those of a device.
        """
        return {name: to_numpy(average) for name, average in self._averages.items()}

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
        self._averages = {}
        for name, a in state.items():
            value = holders[name].data
            host = np.array(checked_cast(f"EMA: {name}", a, value.dtype))
            on_host = isinstance(value, np.ndarray)
            self._averages[name] = host if on_host else device.like(value, host)
