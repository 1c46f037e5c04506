"""`Layer`: what every layer and container is, and `Parameter`, what an optimiser updates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from gpuconv.arrays import device_of, require, to_device, to_numpy
from gpuconv.devices import resolve
from gpuconv.ops.op import Op

Shape = tuple[int, ...]


class Parameter:
    """An array that training changes. `grad` is None, or an array of data's shape that backward
    adds to.
    """

    __slots__ = ("data", "grad")

    def __init__(self, data: np.ndarray) -> None:
        self.data = data
        self.grad: np.ndarray | None = None

    def __repr__(self) -> str:
        return f"Parameter(shape={self.data.shape}, dtype={self.data.dtype})"

    @property
    def shape(self) -> Shape:
        return self.data.shape

    def add_grad(self, grad: np.ndarray) -> None:
        """Add to the gradient: a parameter used twice, or two backward passes, sum theirs."""
        if self.grad is None:
            self.grad = grad
        elif device_of(grad) == "cpu":
            self.grad += grad
        else:
            from gpuconv import ops  # whose package needs this module's users

            self.grad = ops.add(self.grad, grad)


class Buffer:
    """An array that belongs to the state but not to the optimiser, such as a running mean."""

    __slots__ = ("data",)

    def __init__(self, data: np.ndarray) -> None:
        self.data = data

    def __repr__(self) -> str:
        return f"Buffer(shape={self.data.shape}, dtype={self.data.dtype})"


@dataclass(frozen=True)
class Row:
    """One simple layer of a network, met while tracing shapes through it."""

    name: str
    layer: Layer
    input: Shape
    output: Shape


class Layer:
    """One step of a network: `forward(x)` gives y, `backward(dy)` gives dx and fills the
    parameters' `grad`.

    A subclass keeps parameters, buffers and inner layers as attributes and finds them again in
    `named_parameters`, `state_dict` and so on. It calls operations through `self.run`, keeps what
    backward needs with `self.save` and takes it back, once, with `self.saved`.
    """

    def __init__(self) -> None:
        self.training = True
        self.device = "cpu"
        self._saved: Any = None

    # ---- what a subclass defines ---------------------------------------------------------------

    def forward(self, x: np.ndarray) -> np.ndarray:
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        """dx: a new array, or dy itself or a view of it; with need_dx False a layer may return None
        instead and save the work, as a first layer can.
        """
        raise NotImplementedError(f"{type(self).__name__} has no backward")

    def forward_over(self, x: np.ndarray) -> np.ndarray:
        """`forward` for an x that nobody reads again: y may take its memory."""
        return self.forward(x)

    def backward_over(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        """`backward` for a dy that nobody reads again: dx may take its memory."""
        return self.backward(dy, need_dx)

    @property
    def frees_output(self) -> bool:
        """Whether nothing in here reads the last forward's output again, so that it may be
        overwritten. False unless a layer knows.
        """
        return False

    def output_shape(self, shape: Shape) -> Shape:
        """The shape of one example's output for one example's input: (C, H, W), or (features,)."""
        return shape

    def multiply_adds(self, shape: Shape) -> int:
        """Multiply-adds of one example's forward pass."""
        return 0

    def describe(self) -> str:
        """The arguments, as the summary prints them."""
        return ""

    def reset_parameters(self, rng: np.random.Generator) -> None:
        """Draw this layer's own parameters anew; nothing to do without any."""

    def trace(self, shape: Shape, name: str, rows: list[Row]) -> Shape:
        """Append a row for each simple layer in here, in order; return the output's shape."""
        out = self.output_shape(shape)
        rows.append(Row(name, self, shape, out))
        return out

    def children(self) -> dict[str, Layer]:
        """The layers directly inside this one, by name. One named "" lends its place only: what is
        inside it is named as if it were directly in here.
        """
        return {name: value for name, value in vars(self).items() if isinstance(value, Layer)}

    def generator_state(self) -> list[int] | None:
        """What a layer that draws random numbers must restore to repeat itself; None for the
        others.
        """
        return None

    def load_generator_state(self, state: list[int]) -> None:
        raise ValueError(f"{type(self).__name__} draws no random numbers")

    # ---- what a subclass uses ------------------------------------------------------------------

    def run(self, operation: Op, *args: Any) -> Any:
        """The operation on this layer's device: its definition on `reference`, else by the
        arrays.
        """
        if self.device == "reference":
            return operation.reference(*args)
        return operation(*args)

    def save(self, *values: Any) -> None:
        """Keep what backward needs."""
        self._saved = values

    def saved(self) -> Any:
        """What `save` kept, freed here: each forward serves one backward."""
        if self._saved is None:
            raise RuntimeError(
                f"{type(self).__name__}.backward: call forward first; "
                f"each forward serves one backward"
            )
        values, self._saved = self._saved, None
        return values

    # ---- what everybody uses -------------------------------------------------------------------

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.forward(x)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.describe()})"

    def infer(self, x: np.ndarray) -> np.ndarray:
        """`forward` that keeps nothing for backward, so that memory stays that of one layer."""
        y = self.forward(x)
        self._saved = None
        return y

    def layers(self, prefix: str = "") -> Iterator[tuple[str, Layer]]:
        """This layer and all inside it, depth first, with dotted names."""
        yield prefix.rstrip("."), self
        for name, child in self.children().items():
            yield from child.layers(f"{prefix}{name}." if name else prefix)

    def _own(self, *kinds: type) -> Iterator[tuple[str, Any]]:
        for path, layer in self.layers():
            for name, value in vars(layer).items():
                if isinstance(value, kinds):
                    yield f"{path}.{name}".lstrip("."), value

    def named_parameters(self) -> list[tuple[str, Parameter]]:
        return list(self._own(Parameter))

    def parameters(self) -> list[Parameter]:
        return [parameter for _, parameter in self.named_parameters()]

    def named_buffers(self) -> list[tuple[str, Buffer]]:
        return list(self._own(Buffer))

    def zero_grad(self) -> None:
        for parameter in self.parameters():
            parameter.grad = None

    def train(self, mode: bool = True) -> Self:
        """Training mode, or with False evaluation mode: dropout and batch norm differ between
        them.
        """
        for _, layer in self.layers():
            layer.training = mode
        return self

    def eval(self) -> Self:
        return self.train(False)

    def to(self, device: str | None = None, dtype: Any = None) -> Self:
        """Move parameters and computation to a device ("auto", "cpu", "reference", "cuda", "sim")
        or float type, in place. An optimiser with state is made after this.

        Raises: ValueError for an unknown device; DeviceError, one line with the way out, where
        the device cannot work here. Then nothing has moved.
        """
        if device is not None:
            device = resolve(device)
            require(device)
        for _, layer in self.layers():
            layer.device = device or layer.device
            layer._saved = None
        for _, holder in self._own(Parameter, Buffer):
            if not np.issubdtype(holder.data.dtype, np.floating):
                continue  # a counter: the host's own
            there = device or device_of(holder.data) or "cpu"
            if dtype is not None:
                holder.data = to_numpy(holder.data).astype(dtype)
            holder.data = to_device(holder.data, there, weights=True)
        self.zero_grad()
        return self

    def state_dict(self) -> dict[str, np.ndarray]:
        """Parameters and buffers by dotted name, as NumPy arrays: the arrays themselves, not
        copies, but for those of a device.
        """
        return {name: to_numpy(holder.data) for name, holder in self._own(Parameter, Buffer)}

    def load_state_dict(self, state: Mapping[str, np.ndarray], strict: bool = True) -> None:
        """Copy arrays in by name; nothing changes unless all fit.

        strict: refuse missing and unexpected names too. A wrong shape is always refused.
        Raises ValueError that names what is missing, unexpected, or of another shape.
        """
        own = dict(self._own(Parameter, Buffer))
        problems = [
            f"{name} has shape {tuple(np.shape(state[name]))}, this model's is {holder.data.shape}"
            for name, holder in own.items()
            if name in state and tuple(np.shape(state[name])) != holder.data.shape
        ]
        if strict:
            problems += [f"{name} is missing" for name in own if name not in state]
            problems += [f"{name} is not in this model" for name in state if name not in own]
        if problems:
            more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
            raise ValueError(
                "the weights are of another architecture: " + "; ".join(problems[:8]) + more
            )
        for name, holder in own.items():
            if name not in state:
                continue
            if isinstance(holder.data, np.ndarray):
                holder.data[...] = state[name]
            else:
                host = np.asarray(state[name], holder.data.dtype)
                holder.data = to_device(host, device_of(holder.data) or "cpu", weights=True)


def is_new(a: Any, old: Any) -> bool:
    """Whether NumPy array `a` shares no memory with `old`, so that whoever made it may overwrite
    it. Arrays of a device are never overwritten.
    """
    return device_of(a) == device_of(old) == "cpu" and not np.may_share_memory(a, old)


class Fusible(Layer):
    """A layer that can apply an activation to its output while that is in the cache.

    `fuses` names the activations. Backward goes through the activation of the last forward.
    """

    fuses: tuple[str, ...] = ()

    def forward_activated(self, x: np.ndarray, activation: str | None) -> np.ndarray:
        """`forward` with an activation (or None) in the same pass."""
        raise NotImplementedError(f"{type(self).__name__} has no forward_activated")

    def infer_activated(self, x: np.ndarray, activation: str | None) -> np.ndarray:
        """`forward_activated` that keeps nothing for backward."""
        y = self.forward_activated(x, activation)
        self._saved = None
        return y

    def forward(self, x: np.ndarray) -> np.ndarray:
        return self.forward_activated(x, None)

    def infer(self, x: np.ndarray) -> np.ndarray:
        return self.infer_activated(x, None)


def join_names(outer: str, inner: str) -> str:
    """The dotted name of a layer called `inner` within `outer`; either may be empty."""
    return f"{outer}.{inner}" if outer and inner else outer or inner
