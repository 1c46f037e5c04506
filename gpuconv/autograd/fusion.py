"""Fusion: an operation waits for the activation after it, so that both are one pass over memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from gpuconv.autograd.state import state
from gpuconv.autograd.tensor import FUSED, Tensor


class Chain(Protocol):
    """Functions in a row, of which the last one's result is pending: computed at once, each leaves
    its own result and node.
    """

    def activated(self) -> Chain:
        """The same with a ReLU behind the last."""

    def compute(self, activation: str | None) -> Tensor:
        """The last result."""


class Deferred(NamedTuple):
    """What computes a pending tensor, alone or with the function that follows; see `defer`."""

    compute: Callable[[str | None], Tensor]
    activations: Sequence[str]
    pool: Callable[[tuple[Any, ...], bool], Tensor] | None = None
    statistics: Callable[..., Any] | None = None
    added: tuple[tuple[int, ...], Callable[..., Tensor]] | None = None
    chain: Chain | None = None


def defer(
    compute: Callable[[str | None], Tensor],
    inputs: Sequence[Tensor | None],
    activations: Sequence[str],
    pool: Callable[..., Tensor] | None = None,
    statistics: Callable[..., Any] | None = None,
    added: tuple[tuple[int, ...], Callable[..., Tensor]] | None = None,
    chain: Chain | None = None,
) -> Tensor:
    """A tensor that is computed when the next function is known, so that both can be one pass.

    compute(activation): the result with one of `activations` applied, or None for the plain one.
    pool(window, c_order): the result under ReLU and max-pool, in C order in memory if a Flatten
    follows. statistics(...): the plain result, and what batch norm needs of it, or None where they
    cannot be had together. added: the result's shape, and (other, activation) -> the activation of
    its sum with a tensor of this shape. chain: what functions of the same kind may be appended to.
    Outside a module's call, and where fusing is off, it is computed at once. At most one tensor
    waits, with those that its chain goes through; its data is there whenever it is read.
    """
    if not state.depth or not state.fusing:
        return compute(None)
    requires_grad = False
    for x in inputs:
        if x is not None:
            if x.reference:
                return compute(None)  # definitions are run one by one
            requires_grad = requires_grad or x.requires_grad
    if state.pending is not None and not any(x is state.pending for x in inputs):
        settle_one(state.pending)
    y = Tensor.__new__(Tensor)
    y.grad = y._hooks = None
    y.requires_grad, y.reference = requires_grad and state.recording, False
    # as Deferred(...) does, but without a call of Python
    y._deferred = tuple.__new__(Deferred, (compute, activations, pool, statistics, added, chain))
    state.pending = y
    return y


def chain_of(x: Tensor) -> Chain | None:
    """The functions that a pending tensor is the last result of, if others may be appended."""
    return x._deferred.chain if state.pending is x else None


def appended(x: Tensor, longer: Chain, inputs: Sequence[Tensor | None], then: Any) -> Tensor:
    """The pending result of a chain that goes on from x, also pending: whichever is read first, x
    gets its own data and node. then: the activations that may follow.
    """
    x._deferred = x._deferred._replace(activations=())
    return defer(longer.compute, (x, *inputs), then, chain=longer)


def give(x: Tensor, y: Tensor) -> None:
    """Data and node of y, which computed it, to a tensor that waits within a chain."""
    _complete(x, y)


def later(compute: Callable[[], Tensor]) -> Tensor:
    """A tensor without a gradient that is computed when its data is first read."""
    y = Tensor.__new__(Tensor)
    y.grad = y._hooks = None
    y.requires_grad = y.reference = False
    y._deferred = Deferred(lambda _: compute(), ())
    return y


def activated(x: Tensor, name: str) -> Tensor | None:
    """The activation of a pending tensor in that tensor's own pass; None where it has to be
    applied by itself.
    """
    if state.pending is not x or name not in x._deferred.activations:
        return None
    waiting = x._deferred
    _consume(x)
    if waiting.chain is not None and name == "relu":
        longer = waiting.chain.activated()
        return defer(longer.compute, (x,), (), chain=longer)
    if waiting.pool is None or name != "relu":
        return waiting.compute(name)
    return defer(lambda _: waiting.compute("relu"), (x,), (), waiting.pool)  # a max-pool may follow


def pooled(x: Tensor, window: tuple[Any, ...]) -> Tensor | None:
    """The max-pool of a pending convolution under ReLU in one pass; None where it has to be done
    by itself.
    """
    if state.pending is not x or x._deferred.activations or x._deferred.pool is None:
        return None
    pool = x._deferred.pool
    _consume(x)
    return defer(_Pooled(pool, window), (x,), ())


class _Pooled:
    """Computes a pooled tensor; c_order: as (N, C, H, W) in memory, whatever the device prefers."""

    def __init__(self, pool: Callable[..., Tensor], window: tuple[Any, ...]) -> None:
        self.pool, self.window, self.c_order = pool, window, False

    def __call__(self, activation: str | None) -> Tensor:
        return self.pool(self.window, self.c_order)


def flattening(x: Tensor) -> None:
    """What comes next reads x in C order: a pending pool can write it so."""
    if state.pending is x and isinstance(x._deferred.compute, _Pooled):
        x._deferred.compute.c_order = True


def summed(a: Any, b: Any) -> Tensor | None:
    """The sum of a pending tensor and another in the pending one's pass, which waits for a ReLU in
    turn; None where they have to be added by themselves.
    """
    x = state.pending
    if x is None or a is b or (x is not a and x is not b) or x._deferred.added is None:
        return None
    other, (shape, compute) = b if x is a else a, x._deferred.added
    if not isinstance(other, Tensor) or other.shape != shape or other.reference:
        return None
    _consume(x)
    return defer(lambda name: compute(other, name), (x, other), ("relu",))


def statistics_of(x: Tensor, *options: Any) -> Any:
    """What batch norm needs of a pending tensor, made in the pass that computes it now; None where
    it has to be made of its data.
    """
    if state.pending is not x or x._deferred.statistics is None:
        return None
    made = x._deferred.statistics(*options)
    if made is None:
        return None
    state.pending = None
    y, *found = made
    _complete(x, y)
    return found


def settle() -> None:
    """Compute the pending tensor, and those that something else replaced but that are still held.

    Whoever is about to change weights in place calls this first.
    """
    if state.pending is not None:
        settle_one(state.pending)
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


def settle_one(x: Tensor) -> None:
    """Compute a deferred tensor by itself."""
    if state.pending is x:
        state.pending = None
    elif x._deferred.activations or x._deferred.chain is None:
        x._hooks = FUSED  # something took its place: its own gradient is but a part
    _complete(x, x._deferred.compute(None))


def _complete(x: Tensor, y: Tensor) -> None:
    """What was computed for a pending tensor becomes its own."""
    x.data, x._node, x._deferred = y.data, y._node, None
    if state.trace is not None:
        state.trace.same(x, y)
