"""Fusion: an operation waits for the activation after it, so that both are one pass over memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

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


def defer(
    compute: Callable[[str | None], Tensor],
    inputs: Sequence[Tensor | None],
    activations: Sequence[str],
    pool: Callable[..., Tensor] | None = None,
    chain: Chain | None = None,
) -> Tensor:
    """A tensor that is computed when the next function is known, so that both can be one pass.

    compute(activation): the result with one of `activations` applied, or None for the plain one.
    pool(*window): the result under ReLU and max-pool. chain: what functions may be appended to.
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
    y._deferred = (compute, activations, pool, chain)
    state.pending = y
    return y


def chain_of(x: Tensor) -> Chain | None:
    """The functions that a pending tensor is the last result of, if others may be appended."""
    return x._deferred[3] if state.pending is x else None


def appended(x: Tensor, longer: Chain, inputs: Sequence[Tensor | None], then: Any) -> Tensor:
    """The pending result of a chain that goes on from x, also pending: whichever is read first, x
    gets its own data and node. then: the activations that may follow.
    """
    x._deferred = (x._deferred[0], (), None, x._deferred[3])
    return defer(longer.compute, (x, *inputs), then, None, longer)


def give(x: Tensor, y: Tensor) -> None:
    """Data and node of y, which computed it, to a tensor that waits within a chain."""
    x.data, x._node, x._deferred = y.data, y._node, None


def activated(x: Tensor, name: str) -> Tensor | None:
    """The activation of a pending tensor in that tensor's own pass; None where it has to be
    applied by itself.
    """
    if state.pending is not x or name not in x._deferred[1]:
        return None
    compute, _, pool, chain = x._deferred
    _consume(x)
    if chain is not None and name == "relu":
        longer = chain.activated()
        return defer(longer.compute, (x,), (), None, longer)
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
    return defer(_Pooled(pool, window), (x,), ())


class _Pooled:
    """Computes a pooled tensor; c_order: as (N, C, H, W) in memory, whatever the device prefers."""

    def __init__(self, pool: Callable[..., Tensor], window: tuple[Any, ...]) -> None:
        self.pool, self.window, self.c_order = pool, window, False

    def __call__(self, activation: str | None) -> Tensor:
        return self.pool(self.window, self.c_order)


def flattening(x: Tensor) -> None:
    """What comes next reads x in C order: a pending pool can write it so."""
    if state.pending is x and isinstance(x._deferred[0], _Pooled):
        x._deferred[0].c_order = True


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
    elif x._deferred[1] or x._deferred[3] is None:
        x._hooks = FUSED  # something took its place: its own gradient is but a part
    y = x._deferred[0](None)
    x.data, x._node, x._deferred = y.data, y._node, None
    if state.trace is not None:
        state.trace.same(x, y)
