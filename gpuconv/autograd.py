"""A tape: tensors remember the operation that made them, and `backward` walks back over it.

    x = Tensor(images)                       # data: the array itself, of NumPy or of a device
    loss = criterion(model(x), labels)       # each function of nn.functional records what it ran
    loss.backward()                          # fills the grad of every parameter

The level below, `gpuconv.ops`, knows nothing of this file: an operation is a function on arrays,
with a `*_backward` beside it. A function of `nn.functional` runs the one and records the other.

Two rules keep it both safe and fast. **Memory**: a forward pass never overwrites an array; the
backward pass overwrites gradients alone, only those that it made itself and that nothing else in
flight shares (`_Walk` counts them), never one that a hook or a `.grad` has seen. Arrays that an
operation has read must stay as they are until backward has run: unlike PyTorch, nothing checks it.
**Fusion**: inside
the call of a module, a function whose kernel can apply an activation at its end returns a tensor
without data, and the activation that follows completes it in one pass; see `defer`. So a `forward`
that overwrites arrays with NumPy gives an operation a copy, or reads its result's `data` before.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gpuconv import arrays, ops
from gpuconv.strides import in_c_order, pixel_stride

Array = Any  # np.ndarray, gpuconv.sim.Array, cupy.ndarray or arrays.ShapeOnly
Hook = Callable[[Array], Array | None]
# From dy, the gradient of the output, whether its memory may be overwritten, and what was saved:
# the gradient of each input, in order, or None.
Backward = Callable[..., Sequence[Array | None]]

_numbers = itertools.count()
_FUSED: Any = ()  # in place of the hooks of a tensor that another one replaced


class _State(threading.local):
    """What the functions of one thread share."""

    recording = True  # False within no_grad
    depth = 0  # calls of modules that are under way
    fusing = True
    pending: Tensor | None = None  # the one tensor that waits for an activation
    consumed: list[weakref.ref[Tensor]]  # tensors whose activation took their place
    trace: Any = None  # told of everything recorded, see nn/trace.py
    repeat: _Repeat | None = None  # within `checkpoint`
    keeping = False  # within `keep_all`

    def __init__(self) -> None:
        self.consumed = []


state = _State()


class Node:
    """One recorded operation.

    inputs: for each input the node that made it, the tensor itself if it is a leaf that wants a
    gradient, or None. fresh: whether `backward` returns new arrays, or dy and views of it, and
    nothing else; only such gradients may be overwritten later on.
    """

    __slots__ = ("backward", "fresh", "hooks", "inputs", "name", "number", "reference", "saved")

    def __init__(self, name: str, inputs: tuple[Any, ...], backward: Backward, fresh: bool) -> None:
        self.name, self.inputs, self.backward, self.fresh = name, inputs, backward, fresh
        self.number = next(_numbers)
        self.hooks: list[Hook] = []
        self.saved: tuple[Any, ...] | None = None
        self.reference = False


class Tensor:
    """An array that remembers how it was computed.

    data: the array, of NumPy or of a device; lists of fractions become float32, and so do
    those of integers that want a gradient. grad: None, or an
    array of data's shape, to which every `backward` adds. requires_grad: whether `backward`
    shall find the gradient for it; results of recorded operations have it from their inputs.
    device: "reference" makes operations on it run their definitions.

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
    _deferred: Any  # what computes it, while it is pending: (compute, activations, pool)
    _hooks: list[Hook] | None  # of a leaf; those of a result are its node's

    def __init__(self, data: Any, requires_grad: bool = False, device: str | None = None) -> None:
        if arrays.device_of(data) is None:
            data = np.asarray(data)
            if data.dtype == np.float64 or (requires_grad and data.dtype.kind in "iu"):
                data = data.astype(np.float32)
        if requires_grad and data.dtype.kind != "f":
            raise TypeError(f"a tensor of {data.dtype} cannot require a gradient: it has no floats")
        self.data, self.grad, self.requires_grad = data, None, requires_grad
        self.reference = device == "reference"
        self._node = self._deferred = self._hooks = None

    def __getattr__(self, name: str) -> Any:
        # Reached for an empty slot alone: a pending tensor has neither data nor node yet.
        if name in ("data", "_node") and self._deferred is not None:
            _settle(self)
            return getattr(self, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __reduce__(self) -> Any:
        """A copy, or what is read from a pickle, has no past and no hooks."""
        values = (self.data, self.grad, self.requires_grad, self.reference)
        return _restored, (type(self), *values)

    def __repr__(self) -> str:
        flag = ", requires_grad=True" if self.requires_grad else ""
        if self.data.size > 1000 or self.device not in ("cpu", "reference"):
            shape = f"shape={self.shape}, dtype={self.dtype}, device={self.device!r}"
            return f"{type(self).__name__}({shape}{flag})"
        return f"{type(self).__name__}({self.data!r}{flag})"

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
        return arrays.to_numpy(self.data)

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

    # Comparisons give arrays of booleans, or one; == is identity, as of any object.

    def __lt__(self, other: Any) -> Any:
        return self.numpy() < other

    def __le__(self, other: Any) -> Any:
        return self.numpy() <= other

    def __gt__(self, other: Any) -> Any:
        return self.numpy() > other

    def __ge__(self, other: Any) -> Any:
        return self.numpy() >= other

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy or None)

    # Arithmetic: see gpuconv/operators.py.

    def __add__(self, other: Any) -> Tensor:
        return operators.add(self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Tensor:
        return operators.subtract(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return operators.subtract(other, self)

    def __mul__(self, other: Any) -> Tensor:
        return operators.multiply(self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Tensor:
        return operators.divide(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return operators.multiply(operators.power(self, -1.0), other)

    def __neg__(self) -> Tensor:
        return operators.scale(self, -1.0)

    def __pow__(self, exponent: float) -> Tensor:
        return operators.power(self, exponent)

    def __matmul__(self, other: Any) -> Tensor:
        return operators.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return operators.matmul(other, self)

    def __getitem__(self, index: Any) -> Tensor:
        return operators.take(self, index)

    def sum(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """The sum over all elements, or along the axes given."""
        return operators.total(self, axis, keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """The mean over all elements, or along the axes given."""
        return operators.mean(self, axis, keepdims)

    def max(self, axis: int | None = None) -> Tensor:
        """The largest element, or those along an axis; the first of equal ones has the gradient."""
        return operators.largest(self, axis)

    def argmax(self, axis: int | None = None) -> Any:
        """Where the largest element is, or those along an axis: integers, an array of NumPy."""
        return self.numpy().argmax(axis)

    @property
    def T(self) -> Tensor:
        """The axes in reverse order."""
        return operators.transpose(self)

    def reshape(self, *shape: Any) -> Tensor:
        """The same elements in C order under another shape; one length may be -1."""
        return operators.reshape(self, shape[0] if isinstance(shape[0], tuple) else shape)

    def flatten(self, start_dim: int = 0) -> Tensor:
        """The axes from start_dim on as one."""
        return operators.flatten(self, start_dim)

    def detach(self) -> Tensor:
        """The same data without a past: gradients end here."""
        return Tensor(self.data, device="reference" if self.reference else None)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Set requires_grad; returns the tensor."""
        self.requires_grad = requires_grad
        return self

    def register_hook(self, hook: Hook) -> Handle:
        """Call `hook(gradient)` when backward has found this tensor's whole gradient, an array.

        What the hook returns, unless None, takes the gradient's place. Raises RuntimeError for a
        tensor without a gradient, and for one that an activation or a pool was fused with: its
        gradient is never there by itself.
        """
        node = self._node
        if not self.requires_grad:
            raise RuntimeError("register_hook: this tensor does not require a gradient")
        if self._hooks is _FUSED:
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

    def backward(self, gradient: Array | None = None, retain_graph: bool = False) -> None:
        """Add to `grad` of every leaf this tensor depends on the gradient of sum(self * gradient).

        gradient: an array of this shape, taken to this tensor's dtype and device; may be left out
        for a tensor of one element, where it is 1. retain_graph: keep what was saved, so that
        backward can run over it again.

        Raises RuntimeError for a tensor that depends on no leaf with requires_grad, and where the
        saved arrays are gone; ValueError for a gradient of another shape, or none where one is
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
            gradient = _like(gradient.data if isinstance(gradient, Tensor) else gradient, data)
        if tuple(gradient.shape) != tuple(data.shape):
            raise ValueError(
                f"backward: the gradient has shape {gradient.shape}, the tensor {data.shape}"
            )
        _Walk(retain_graph).run(self if self._node is None else self._node, gradient)


def _restored(kind: Any, data: Array, grad: Any, requires_grad: bool, reference: bool) -> Tensor:
    tensor: Tensor = kind(data, False)
    tensor.grad, tensor.requires_grad, tensor.reference = grad, requires_grad, reference
    return tensor


class Parameter(Tensor):
    """A tensor that training changes: `Module.parameters` finds it."""

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        super().__init__(data, requires_grad)


class Handle:
    """A registered hook, to be taken away again with `remove`."""

    def __init__(self, hooks: list[Any], hook: Any) -> None:
        self._hooks, self._hook = hooks, hook
        hooks.append(hook)

    def remove(self) -> None:
        """Take the hook away; nothing happens where it is gone already."""
        if self._hook in self._hooks:
            self._hooks.remove(self._hook)


def as_tensor(x: Any, reference: bool = False) -> Tensor:
    """x itself if it is a tensor, else a tensor of the array x."""
    return x if isinstance(x, Tensor) else Tensor(x, device="reference" if reference else None)


# ---- recording ---------------------------------------------------------------------------------


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


class _Mode(contextlib.ContextDecorator):
    """Within, operations are recorded, or not."""

    recording: bool

    def __new__(cls, function: Any = None) -> Any:
        mode = super().__new__(cls)
        if function is None:
            return mode
        mode.__init__()  # type: ignore[misc]
        return mode(function)  # a decorator without brackets

    def __init__(self) -> None:
        self._before: list[bool] = []

    def _recreate_cm(self) -> _Mode:
        return type(self)()  # a decorated function may run in several threads at once

    def __enter__(self) -> None:
        settle()
        self._before.append(state.recording)
        state.recording = self.recording

    def __exit__(self, *_: object) -> None:
        try:
            settle()
        finally:
            state.recording = self._before.pop()


class no_grad(_Mode):
    """Within, nothing is recorded: results have no past, and nothing is kept for `backward`.

    A context or a decorator, as torch.no_grad.
    """

    recording = False


class enable_grad(_Mode):
    """Within, operations are recorded even inside `no_grad`."""

    recording = True


# ---- fusion ------------------------------------------------------------------------------------


def defer(
    compute: Callable[[str | None], Tensor],
    inputs: Sequence[Tensor | None],
    activations: Sequence[str],
    pool: Callable[..., Tensor] | None = None,
) -> Tensor:
    """A tensor that is computed when the next function is known, so that both can be one pass.

    compute(activation): the result with one of `activations` applied, or None for the plain one.
    pool(*window): the result under ReLU and max-pool. Outside a module's call, and where fusing
    is off, it is computed at once. At most one tensor waits; its data is there whenever it is read.
    """
    if not state.depth or not state.fusing:
        return compute(None)
    requires_grad = False
    for x in inputs:
        if x is not None:
            if x.reference:
                return compute(None)  # definitions are run one by one
            requires_grad = requires_grad or x.requires_grad
    if state.pending is not None:
        _settle(state.pending)
    y = Tensor.__new__(Tensor)
    y.grad = y._hooks = None
    y.requires_grad, y.reference = requires_grad and state.recording, False
    y._deferred = (compute, activations, pool)
    state.pending = y
    return y


def activated(x: Tensor, name: str) -> Tensor | None:
    """The activation of a pending tensor in that tensor's own pass; None where it has to be
    applied by itself.
    """
    if state.pending is not x or name not in x._deferred[1]:
        return None
    compute, _, pool = x._deferred
    _consume(x)
    if pool is None or name != "relu":
        return compute(name)
    return defer(lambda _: compute("relu"), (x,), (), pool)  # a max-pool may follow


def pooled(x: Tensor, window: tuple[Any, ...]) -> Tensor | None:
    """The max-pool of a pending convolution under ReLU in one pass; None where it has to be done
    by itself.
    """
    if state.pending is not x or x._deferred[1] or x._deferred[2] is None:
        return None
    pool = x._deferred[2]
    _consume(x)
    return pool(*window)


def settle() -> None:
    """Compute the pending tensor, and those that something else replaced but that are still held.

    Whoever is about to change weights in place calls this first.
    """
    if state.pending is not None:
        _settle(state.pending)
    if state.consumed:
        held, state.consumed = state.consumed, []
        for reference in held:
            if (tensor := reference()) is not None:
                _ = tensor.data


def forget() -> None:
    """After an error: nothing waits any more."""
    state.pending = None
    state.consumed.clear()


def _consume(x: Tensor) -> None:
    state.pending = None
    state.consumed.append(weakref.ref(x))


def _settle(x: Tensor) -> None:
    """Compute a deferred tensor by itself."""
    if state.pending is x:
        state.pending = None
    else:
        x._hooks = _FUSED  # something took its place: its own gradient is but a part
    y = x._deferred[0](None)
    x.data, x._node, x._deferred = y.data, y._node, None
    if state.trace is not None:
        state.trace.same(x, y)


# ---- the walk back -----------------------------------------------------------------------------


class _Walk:
    """One backward pass.

    flying: each node's gradient so far, until all that reads the node's output has been visited;
    nodes are visited in the opposite order of their making. made: how many gradients in flight lie
    in each block of memory that this walk made, by the block's id. Where that is one, its holder
    may overwrite it.
    """

    def __init__(self, retain: bool) -> None:
        self.retain = retain
        self.flying: dict[Any, Array] = {}
        self.made: dict[int, int] = {}
        self.heap: list[tuple[int, int, Any]] = []

    def run(self, root: Any, gradient: Array) -> None:
        self._arrive(root, gradient)
        flying, made, heap = self.flying, self.made, self.heap
        while heap:
            node = heapq.heappop(heap)[2]
            dy = flying.pop(node)
            memory = dy if dy.base is None else dy.base
            count = made.pop(id(memory), 0)
            if count > 1:
                made[id(memory)] = count - 1
            hooks = node._hooks if isinstance(node, Tensor) else node.hooks
            for hook in list(hooks or ()):
                count = self._disown(memory)
                if (replaced := hook(dy)) is not None:
                    dy = replacing(dy, replaced)
                    memory = _memory(dy)
            if isinstance(node, Tensor):
                _add_to_grad(node, dy, count == 1)
            else:
                self._visit(node, dy, memory, count)

    def _visit(self, node: Node, dy: Array, memory: Any, count: int) -> None:
        """Run one node's backward and send its gradients to the inputs."""
        if node.saved is None:
            raise RuntimeError(
                f"backward: what {node.name} had saved is gone; each forward pass serves one "
                f"backward, or more with retain_graph=True"
            )
        if not node.fresh:
            count = self._disown(memory)
        over = count == 1 and not node.reference
        gradients = node.backward(dy, over, *node.saved)
        if not self.retain:
            node.saved = None
        made, arrived = self.made, []
        for d, target in zip(gradients, node.inputs, strict=True):
            if d is not None and target is not None:
                block = id(d if d.base is None else d.base)
                arrived.append((d, target, block))
                if node.fresh and (count or block != id(memory)):
                    made[block] = made.get(block, 0) + 1
        del dy, gradients
        for d, target, block in arrived:
            if isinstance(target, Tensor) and target._hooks is None:
                _add_to_grad(target, d, made.get(block) == 1)
                self._release(block)
            else:
                self._arrive(target, d)

    def _arrive(self, target: Any, d: Array) -> None:
        """Add a gradient to what the target has already."""
        old = self.flying.get(target)
        if old is None:
            self.flying[target] = d
            number = -1 if isinstance(target, Tensor) else target.number
            heapq.heappush(self.heap, (-number, id(target), target))
            return
        if old.shape != d.shape:
            raise ValueError(f"backward: gradients of shapes {old.shape} and {d.shape} meet")
        for total, part in ((old, d), (d, old)):
            if total.ndim and self.made.get(id(_memory(total))) == 1 and _accumulates(total):
                self._release(id(_memory(part)))
                self.flying[target] = ops.accumulate(total, part)
                return
        self._release(id(_memory(old)))
        self._release(id(_memory(d)))
        total = _sum(old, d)
        self.flying[target] = total
        self.made[id(_memory(total))] = 1

    def _disown(self, memory: Any) -> int:
        """Overwrite a block of memory no more: somebody outside has seen a gradient in it."""
        self.made.pop(id(memory), None)
        return 0

    def _release(self, block: int) -> None:
        """Count one gradient less in a block of memory."""
        count = self.made.pop(block, 0)
        if count > 1:
            self.made[block] = count - 1


def _like(a: Any, like: Array) -> Array:
    """a as an array of the dtype and on the device of another."""
    device = arrays.device_of(a)
    if device in (None, "cpu") and arrays.device_of(like) != "meta":
        a = np.asarray(a, like.dtype)
    return arrays.to_device(a, arrays.device_of(like) or "cpu")


def replacing(dy: Array, new: Any) -> Array:
    """What a hook gave in place of the gradient dy. ValueError for another shape."""
    new = _like(new.data if isinstance(new, Tensor) else new, dy)
    if tuple(new.shape) != tuple(dy.shape):
        raise ValueError(f"a hook gave shape {new.shape} for a gradient of {dy.shape}")
    return new


def _memory(a: Array) -> Any:
    """What arrays that share memory have in common."""
    base = a.base
    return a if base is None else base


def _accumulates(a: Array) -> bool:
    """Whether `ops.accumulate` can write into it: kernels take two layouts only."""
    if isinstance(a, np.ndarray):
        return a.flags.writeable
    dense = in_c_order(a.shape, a.strides, a.dtype.itemsize)
    return dense or pixel_stride(a) is not None


def _add_to_grad(leaf: Tensor, d: Array, ours: bool) -> None:
    """leaf.grad += d; ours: whether d may be kept without a copy."""
    if d.shape != leaf.data.shape:
        raise ValueError(f"backward: a gradient of {d.shape} for a tensor of {leaf.data.shape}")
    if not leaf.requires_grad:
        return  # frozen since the forward pass
    if leaf.grad is None:
        leaf.grad = d if ours else arrays.copy(d)
    else:  # a new array: whoever kept the old one still has it
        leaf.grad = _sum(leaf.grad, d)


def _sum(a: Array, b: Array) -> Array:
    return ops.add(arrays.contiguous(a), arrays.contiguous(b)) if a.ndim else np.asarray(a + b)


# ---- memory for time ---------------------------------------------------------------------------


class _Repeat:
    """What happens once in a function that `checkpoint` runs twice."""

    def __init__(self, outer: _Repeat | None) -> None:
        self.outer = outer
        self.fusing = state.depth > 0 and state.fusing
        self.results: deque[Any] = deque()
        self.again = False


def once(function: Callable[..., Any], *args: Any) -> Any:
    """function(*args), but where `checkpoint` runs the caller for the second time: then what it
    returned the first time. For draws of random numbers and for running statistics.
    """
    if state.trace is not None:
        return 0  # nothing is computed: nothing shall be drawn or counted
    repeat = state.repeat
    if repeat is None:
        return function(*args)
    if repeat.again:
        return repeat.results.popleft()
    state.repeat = repeat.outer
    try:
        result = once(function, *args)
    finally:
        state.repeat = repeat
    repeat.results.append(result)
    return result


def checkpoint(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """function(*inputs), of which only the inputs are kept; backward runs it forward once more.

    inputs: tensors, arrays, and whatever else the function takes; it returns one tensor. Scores,
    gradients and running statistics are those of the plain call, to the bit: the second run
    repeats the random numbers of the first and leaves running statistics as they are.
    Source: Chen et al. 2016, "Training deep nets with sublinear memory cost";
    torch.utils.checkpoint.
    """
    if not state.recording or state.keeping or state.trace is not None:
        return function(*inputs)
    settle()
    given = tuple(x if arrays.device_of(x) is None else Tensor(x) for x in inputs)
    tensors = tuple(x if isinstance(x, Tensor) else None for x in given)
    repeat = _Repeat(state.repeat)
    with no_grad(), _repeating(repeat):
        result = function(*given)
        if not isinstance(result, Tensor):
            raise TypeError(
                f"checkpoint: the function must return one tensor, got {type(result).__name__}"
            )
        data = result.data
    y = record("checkpoint", data, tensors, _again, function, given, repeat)
    if y._node is None:  # no input wants a gradient, but parameters within may
        y._node = node = Node("checkpoint", (None,) * len(tensors), _again, True)
        node.saved, y.requires_grad = (function, given, repeat), True
    return y


def _again(
    dy: Array, over: bool, function: Callable[..., Tensor], inputs: Any, repeat: _Repeat
) -> list[Array | None]:
    repeat.again = True
    leaves = []
    for x in inputs:
        leaf = x
        if isinstance(x, Tensor):
            leaf = x.detach()
            leaf.requires_grad = x.requires_grad
        leaves.append(leaf)
    results = deque(repeat.results)
    try:
        with enable_grad(), _repeating(repeat):
            y = function(*leaves)
            node = y._node
    finally:
        repeat.results = results  # for another backward over the same graph
    if y.requires_grad:
        _Walk(False).run(y if node is None else node, dy)
    return [leaf.grad if isinstance(leaf, Tensor) else None for leaf in leaves]


@contextlib.contextmanager
def keep_all() -> Any:
    """Within, `checkpoint` just calls its function, so that all results inside can be reached."""
    before, state.keeping = state.keeping, True
    try:
        yield
    finally:
        state.keeping = before


@contextlib.contextmanager
def _repeating(repeat: _Repeat) -> Any:
    """Within, things happen once, and functions are fused as at the first time."""
    before = state.repeat, state.fusing
    state.repeat, state.fusing = repeat, repeat.fusing
    state.depth += repeat.fusing
    try:
        yield
        settle()
    except BaseException:
        forget()
        raise
    finally:
        state.depth -= repeat.fusing
        state.repeat, state.fusing = before


from gpuconv import operators  # noqa: E402  which is written with this module's functions
