"""`Tensor`: an array that remembers how it was computed, and `record`, which notes an operation."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv import arrays
from gpuconv.autograd import operators
from gpuconv.autograd.state import Array, Backward, Hook, Node, state
from gpuconv.cuda import recording

FUSED: Any = ()  # in place of the hooks of a tensor that another one replaced


class Tensor:
    """An array that remembers how it was computed.

    data: the array, of NumPy or of a device; float16 and lists of floats become float32, and so do
    lists of integers with requires_grad. grad: None, or an array of data's shape, to which every
    `backward` adds. requires_grad: whether `backward` computes its gradient; the result of a
    recorded operation takes it from the inputs. device: "reference" makes operations on it run
    their definitions.

    >>> x = Tensor([1.0, -2.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad
    array([ 2., -4.], dtype=float32)
    """

    __slots__ = (
        "__weakref__", "_deferred", "_hooks", "_node", "data", "grad", "reference", "requires_grad",
    )  # fmt: skip

    __array_ufunc__ = None  # array + tensor is the tensor's to compute

    data: Array
    grad: Array
    requires_grad: bool
    reference: bool
    _node: Node | None  # what made it
    _deferred: Any  # what computes it, while it is pending: see fusion.py
    _hooks: list[Hook] | None  # of a leaf; those of a result are its node's

    def __init__(self, data: Any, requires_grad: bool = False, device: str | None = None) -> None:
        if type(data) is not np.ndarray:
            data = _array_of(data, requires_grad)
        if data.dtype == np.float16:
            data = arrays.as_float32(data)
        if requires_grad and data.dtype.kind != "f":
            raise TypeError(f"a tensor of {data.dtype} cannot require a gradient: it has no floats")
        self.data, self.grad, self.requires_grad = data, None, requires_grad
        self.reference = device == "reference"
        self._node = self._deferred = self._hooks = None

    if not TYPE_CHECKING:  # to a type checker, a name that is not declared stays an error

        def __getattr__(self, name: str) -> Any:
            # Reached for an empty slot alone: a pending tensor has neither data nor node yet.
            if name in ("data", "_node") and self._deferred is not None:
                fusion.settle_one(self)
                return getattr(self, name)
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __getstate__(self) -> Any:
        """A copy, or what is read from a pickle, has no past and no hooks."""
        kept = {
            name: getattr(self, name) for name in ("data", "grad", "requires_grad", "reference")
        }
        return None, kept | dict.fromkeys(("_node", "_deferred", "_hooks"))

    def __repr__(self) -> str:
        flag = ", requires_grad=True" if self.requires_grad else ""
        if self.data.size > 1000 or self.device not in ("cpu", "reference"):
            shape = f"shape={self.shape}, dtype={self.dtype}, device={self.device!r}"
            return f"{type(self).__name__}({shape}{flag})"
        return f"{type(self).__name__}({self.data!r}{flag})"

    def _repr_html_(self) -> str | None:
        """In a notebook, the numbers, or pictures of the maps."""
        if isinstance(self.data, arrays.ShapeOnly) or not self.data.size:
            return None
        from gpuconv.viz import html

        values = self.numpy()
        text = f"Tensor {self.dtype} {self.shape} on {self.device}"
        text += f", from {values.min():.4g} to {values.max():.4g}, mean {values.mean():.4g}"
        text += ", requires_grad" if self.requires_grad else ""
        return f"<div>{text}</div>{html.array(values)}"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def device(self) -> str:
        """ "reference", "cpu", "sim" or "cuda"."""
        return "reference" if self.reference else arrays.device_of(self.data) or "cpu"

    @property
    def is_leaf(self) -> bool:
        """Whether no recorded operation made it."""
        return self._node is None

    def __len__(self) -> int:
        return len(self.data)

    def numpy(self) -> np.ndarray:
        """The data as a NumPy array: the array itself, or a copy of a device's."""
        found = arrays.to_numpy(self.data)
        recording.refuse("the host reads a tensor's value")
        return found

    def item(self) -> float:
        """The value of a tensor of one element."""
        return self.numpy().item()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.numpy())

    def __format__(self, spec: str) -> str:
        return format(self.item() if spec else str(self), spec)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    # Comparisons give arrays of booleans, or one.
    __hash__ = object.__hash__
    __eq__, __ne__ = operators.compared(operator.eq), operators.compared(operator.ne)
    __lt__, __le__ = operators.compared(operator.lt), operators.compared(operator.le)
    __gt__, __ge__ = operators.compared(operator.gt), operators.compared(operator.ge)
    __add__ = __radd__ = operators.add
    __sub__, __rsub__ = operators.subtract, operators.reflected(operators.subtract)
    __mul__ = __rmul__ = operators.multiply
    __truediv__, __rtruediv__ = operators.divide, operators.reflected(operators.divide)
    __neg__, __pow__, __getitem__ = operators.negate, operators.power, operators.take
    __matmul__, __rmatmul__ = operators.matmul, operators.reflected(operators.matmul)
    sum, mean, max, flatten = operators.total, operators.mean, operators.largest, operators.flatten
    T = property(operators.transpose)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False and not isinstance(self.data, np.ndarray):
            raise ValueError(f"a tensor on {self.device} becomes a NumPy array only by a copy")
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, **options: Any) -> Any:
        """The data for another library, without a copy: `torch.from_dlpack(tensor.detach())`.

        BufferError where the other library would lose a gradient, and for arrays of "sim".
        """
        if self.requires_grad:
            raise BufferError("this tensor requires a gradient: give tensor.detach()")
        return self._shared().__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = self._shared().__dlpack_device__()
        return device

    def _shared(self) -> Array:
        if not hasattr(self.data, "__dlpack__"):
            raise BufferError(f"arrays on {self.device} are not shared: give tensor.numpy()")
        return self.data

    def argmax(self, axis: int | None = None) -> Any:
        """The index of the largest element, or those along an axis: integers, a NumPy array."""
        return self.numpy().argmax(axis)

    def reshape(self, *shape: Any) -> Tensor:
        """The same elements in C order under another shape; one length may be -1."""
        return operators.reshape(self, shape[0] if isinstance(shape[0], tuple) else shape)

    def detach(self) -> Tensor:
        """The same data without a recorded operation: gradients stop here."""
        return Tensor(self.data, device="reference" if self.reference else None)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Set requires_grad; returns the tensor."""
        self.requires_grad = requires_grad
        return self

    def register_hook(self, hook: Hook) -> Handle:
        """Call `hook(gradient)` when backward has found this tensor's whole gradient, an array.

        What the hook returns, unless None, replaces the gradient. Raises RuntimeError for a tensor
        without a gradient, and for one that an activation or a pool was fused with: its gradient is
        never computed by itself.
        """
        node = self._node
        recording.refuse("a gradient has a hook")
        if not self.requires_grad:
            raise RuntimeError("register_hook: this tensor does not require a gradient")
        if self._hooks is FUSED:
            raise RuntimeError(
                "register_hook: what came next was computed in one pass with this tensor; register "
                "the hook before, or set fusing = False on the module that holds both"
            )
        if node is not None:
            return Handle(node.hooks, hook)
        if self._hooks is None:
            self._hooks = []
        return Handle(self._hooks, hook)

    def retain_grad(self) -> None:
        """Keep this result's gradient in `grad`, as leaves do."""
        kept = weakref.ref(self)

        def keep(gradient: Array) -> None:
            if (tensor := kept()) is not None:
                tensor.grad = gradient

        self.register_hook(keep)

    def backward(
        self,
        gradient: Array | None = None,
        retain_graph: bool = False,
        ready: Callable[[Tensor], None] | None = None,
    ) -> None:
        """Add the gradient of sum(self * gradient) to `grad` of every leaf that self depends on.

        gradient: an array of this shape, converted to this tensor's dtype and device; may be left
        out for a tensor of one element, where it is 1. retain_graph: keep what was saved, so that
        backward can run over it again. ready: called with a leaf as soon as its `grad` is whole,
        while backward goes on; not with every leaf where parts of the network run in `checkpoint`.

        Raises RuntimeError for a tensor that depends on no leaf with requires_grad, and where the
        saved arrays were freed; ValueError for a gradient of another shape, or none where one is
        needed.
        """
        data = self.data
        if not self.requires_grad:
            raise RuntimeError("backward: nothing that this tensor depends on requires a gradient")
        if gradient is None:
            if data.size != 1:
                raise ValueError(
                    f"backward: a tensor of shape {data.shape} needs the gradient of its elements"
                )
            ones = np.ones(data.shape, data.dtype)
            gradient = arrays.to_device(ones, arrays.device_of(data) or "cpu")
        else:
            gradient = walk.like(gradient.data if isinstance(gradient, Tensor) else gradient, data)
        if tuple(gradient.shape) != tuple(data.shape):
            raise ValueError(
                f"backward: the gradient has shape {gradient.shape}, the tensor {data.shape}"
            )
        pass_ = walk.Walk(retain_graph, ready)
        if ready is not None:
            pass_.await_leaves(self)
        pass_.run(self if self._node is None else self._node, gradient)


class Parameter(Tensor):
    """A tensor that training changes: `Module.parameters` finds it."""

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        super().__init__(data, requires_grad)


class Handle:
    """A registered hook, which `remove` removes."""

    def __init__(self, hooks: list[Any], hook: Any) -> None:
        self._hooks, self._hook = hooks, hook
        hooks.append(hook)

    def remove(self) -> None:
        """Remove the hook; nothing happens if it is removed already."""
        hooks, self._hooks = self._hooks, []  # another handle's equal hook stays
        if self._hook in hooks:
            hooks.remove(self._hook)


def _array_of(data: Any, requires_grad: bool) -> Array:
    """The array of another library, or of numbers."""
    data = arrays.native(data, "Tensor: data")
    if arrays.device_of(data) is None:
        data = np.asarray(data)
        if data.dtype == np.float64 or (requires_grad and data.dtype.kind in "iu"):
            data = data.astype(np.float32)
    return data


def as_tensor(x: Any, reference: bool = False) -> Tensor:
    """x itself if it is a tensor, else a tensor of the array x."""
    return x if isinstance(x, Tensor) else Tensor(x, device="reference" if reference else None)


def record(
    name: str,
    data: Array,
    inputs: Sequence[Tensor | None],
    backward: Backward,
    *saved: Any,
    fresh: bool = True,
) -> Tensor:
    """The result of an operation on tensors, with what its gradient needs.

    data: the result's array. backward(dy, over, *saved): the gradient of each input, or None;
    `over` says whether it may write into dy. fresh: whether it only returns new arrays and views of
    dy; False is always right.

    >>> def double(x):
    ...     return record("double", 2 * x.data, (x,), lambda dy, over: (2 * dy,))
    >>> x = Tensor([3.0], requires_grad=True)
    >>> double(double(x)).backward()
    >>> x.grad
    array([4.], dtype=float32)
    """
    y = Tensor.__new__(Tensor)
    y.data, y.grad, y.requires_grad, y.reference = data, None, False, False
    y._node = y._deferred = y._hooks = None
    edges: list[Node | Tensor | None] = []
    for x in inputs:
        if x is None or not x.requires_grad:
            edges.append(None)
        else:
            edges.append(x._node or x)
            y.requires_grad = True
        if x is not None and x.reference:
            y.reference = True
    if not state.recording:
        y.requires_grad = False
    elif y.requires_grad:
        y._node = node = Node(name, tuple(edges), backward, fresh)
        node.saved, node.reference = saved, y.reference
    if state.trace is not None:
        state.trace.record(name, inputs, y, saved)
    return y


def nodes_of(y: Tensor) -> Iterator[Node]:
    """The recorded operations that y depends on, each once, in no particular order."""
    found = [] if y._node is None else [y._node]
    seen = set(found)
    while found:
        node = found.pop()
        yield node
        for source in node.inputs:
            if isinstance(source, Node) and source not in seen:
                seen.add(source)
                found.append(source)


# Written with this module's names, and used by the methods above.
from gpuconv.autograd import fusion, walk  # noqa: E402
