"""`checkpoint` saves memory by running a part of a network forward twice."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any

from gpuconv import arrays
from gpuconv.autograd.fusion import forget, settle
from gpuconv.autograd.modes import enable_grad, no_grad
from gpuconv.autograd.state import Array, Node, state
from gpuconv.autograd.tensor import Tensor, record
from gpuconv.autograd.walk import Walk


class Repeat:
    """What happens once in a function that `checkpoint` runs twice."""

    def __init__(self, outer: Repeat | None) -> None:
        self.outer = outer
        self.fusing = state.depth > 0 and state.fusing
        self.precision = state.precision, state.entered
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
    repeat = Repeat(state.repeat)
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
    dy: Array, over: bool, function: Callable[..., Tensor], inputs: Any, repeat: Repeat
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
        Walk(False).run(y if node is None else node, dy)
    return [leaf.grad if isinstance(leaf, Tensor) else None for leaf in leaves]


@contextlib.contextmanager
def keep_all() -> Any:
    """Inside, `checkpoint` just calls its function, so that all results inside can be reached."""
    before, state.keeping = state.keeping, True
    try:
        yield
    finally:
        state.keeping = before


@contextlib.contextmanager
def _repeating(repeat: Repeat) -> Any:
    """Within, things happen once, and functions are fused as at the first time."""
    before, precision = (state.repeat, state.fusing), (state.precision, state.entered)
    state.repeat, state.fusing = repeat, repeat.fusing
    state.precision, state.entered = repeat.precision
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
        state.precision, state.entered = precision
