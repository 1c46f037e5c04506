"""What the functions of one thread share, and the node that stands for a recorded operation."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpuconv.autograd.recompute import Repeat
    from gpuconv.autograd.tensor import Tensor

Array = Any  # np.ndarray, gpuconv.sim.Array, cupy.ndarray or arrays.ShapeOnly
Hook = Callable[[Array], Array | None]
# From dy, the gradient of the output, whether its memory may be overwritten, and what was saved:
# the gradient of each input, in order, or None.
Backward = Callable[..., Sequence[Array | None]]

_numbers = itertools.count()


class _State(threading.local):
    """What the functions of one thread share."""

    recording = True  # False within no_grad
    depth = 0  # calls of modules that are under way
    fusing = True
    pending: Tensor | None = None  # the one tensor that waits for an activation
    consumed: list[weakref.ref[Tensor]]  # tensors whose activation took their place
    trace: Any = None  # told of everything recorded, see nn/trace.py
    repeat: Repeat | None = None  # within `checkpoint`
    keeping = False  # within `keep_all`
    precision = "ieee"  # see precision.py
    entered = False  # whether a module that computes in it is being called
    scale: Array = None  # by which gradients that enter a module of 16 bits are multiplied

    def __init__(self) -> None:
        self.consumed = []


state = _State()


class Node:
    """One recorded operation.

    inputs: for each input the node that made it, the tensor itself if it is a leaf that wants a
    gradient, or None. fresh: whether `backward` returns new arrays, or dy and views of it, and
    nothing else; only such gradients may be overwritten later on. rounded: the precision to which
    the inputs' gradients are rounded, or "".
    """

    __slots__ = (
        "backward", "fresh", "hooks", "inputs", "name", "number", "reference", "rounded", "saved",
    )  # fmt: skip

    def __init__(self, name: str, inputs: tuple[Any, ...], backward: Backward, fresh: bool) -> None:
        self.name, self.inputs, self.backward, self.fresh = name, inputs, backward, fresh
        self.number = next(_numbers)
        self.hooks: list[Hook] = []
        self.saved: tuple[Any, ...] | None = None
        self.reference, self.rounded = False, ""
