"""The backward pass: a walk over the recorded operations, the last one first."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv import arrays, ops
from gpuconv.autograd.state import Array, Node
from gpuconv.autograd.tensor import Tensor, nodes_of
from gpuconv.cuda.recording import adds_to
from gpuconv.precision import rounded
from gpuconv.strides import in_c_order, pixel_stride

# Gradients that a device's kernels complete in the pass that makes them, by the functions of nodes.
# `adding` ones take rest=, what their input's gradient has from elsewhere, and rectify=, whether
# the input came of a ReLU whose gradient to compute instead; they return the whole of it.
# `rectified` ones have a ReLU at their end and take masked=, whether dy is that ReLU's already.
_adding: set[Any] = set()
_rectified: set[Any] = set()


def adding(backward: Any) -> Any:
    """A node's backward, for a device: see `_adding`."""
    _adding.add(backward)
    return backward


def rectified(backward: Any) -> Any:
    """A node's backward, for a device: see `_rectified`."""
    _rectified.add(backward)
    return backward


def ends_with_relu(x: Tensor) -> bool:
    """Whether a tensor came of a ReLU in a node that is `rectified`."""
    node = x._node
    return node is not None and node.backward in _rectified


class Walk:
    """One backward pass.

    flying: each node's gradient so far, until all that reads the node's output has been visited;
    nodes are visited in the opposite order of their making. masked: nodes whose gradient so far is
    that before their ReLU. made: how many gradients in flight lie
    in each block of memory that this walk made, by the block's id. Where that is one, its holder
    may overwrite it. ready: see `Tensor.backward`. awaited: how many gradients of a leaf, by its
    id, are still to come.
    """

    def __init__(self, retain: bool, ready: Callable[[Tensor], None] | None = None) -> None:
        self.retain, self.ready = retain, ready
        self.awaited: Counter[int] = Counter()
        self.flying: dict[Any, Array] = {}
        self.made: dict[int, int] = {}
        self.masked: set[Node] = set()
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
            for hook in list(hooks) if hooks else ():
                count = self._disown(memory)
                if (replaced := hook(dy)) is not None:
                    dy = replacing(dy, replaced)
                    memory = _memory(dy)
            if isinstance(node, Tensor):
                _add_to_grad(node, dy, count == 1)
                if self.ready is not None:
                    self.ready(node)
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
        more = {} if isinstance(dy, np.ndarray) else self._completing(node)
        gradients = node.backward(dy, over, *node.saved, **more)
        if not self.retain:
            node.saved = None
        if node.rounded:  # gradients of parameters are not
            gradients = [
                g if g is None or not isinstance(target, Node) else rounded(g, node.rounded)
                for g, target in zip(gradients, node.inputs, strict=True)
            ]
        made, arrived = self.made, []
        for d, target in zip(gradients, node.inputs, strict=True):
            if d is not None and target is not None:
                block = id(d if d.base is None else d.base)
                arrived.append((d, target, block))
                if node.fresh and (count or block != id(memory)):
                    made[block] = made.get(block, 0) + 1
        del dy, gradients
        for d, target, block in arrived:
            if "rest" in more and target is node.inputs[0]:
                self._arrive_whole(target, d, more["rest"], more["rectify"])
            elif isinstance(target, Tensor) and target._hooks is None:
                _add_to_grad(target, d, made.get(block) == 1)
                self._release(block)
                if self.awaited:
                    self._came(target)
            else:
                self._arrive(target, d)

    def await_leaves(self, root: Tensor) -> None:
        """Count the gradients of leaves without hooks that are to come. A function of `checkpoint`
        reads leaves that are not known before it runs again: then none are counted.
        """
        nodes = list(nodes_of(root))
        if not any(node.name == "checkpoint" for node in nodes):
            inputs = (target for node in nodes for target in node.inputs)
            leaves = (t for t in inputs if isinstance(t, Tensor) and t._hooks is None)
            self.awaited.update(map(id, leaves))

    def _came(self, leaf: Tensor) -> None:
        self.awaited[id(leaf)] -= 1
        if self.ready is not None and not self.awaited[id(leaf)]:
            self.ready(leaf)

    def _completing(self, node: Node) -> dict[str, Any]:
        """What a node's backward is told so that it completes gradients, see `_adding`."""
        more: dict[str, Any] = {}
        if node in self.masked:
            self.masked.remove(node)
            more["masked"] = True
        target = node.inputs[0]
        if node.backward in _adding and isinstance(target, Node):
            more["rest"] = self.flying.get(target)
            more["rectify"] = target.backward in _rectified and not target.hooks
        return more

    def _arrive_whole(self, target: Node, d: Array, rest: Array, rectify: bool) -> None:
        """Take a gradient that has what the target had already, the rest, in it."""
        if rest is None:
            self._arrive(target, d)
        else:
            self._release(id(_memory(rest)))
            self.flying[target] = d
        if rectify:
            self.masked.add(target)
        else:
            self.masked.discard(target)

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
        self.masked.discard(target)
        for total, part in ((old, d), (d, old)):
            if total.ndim and self.made.get(id(_memory(total))) == 1 and _accumulates(total):
                self._release(id(_memory(part)))
                self.flying[target] = ops.accumulate.stored(total, part)
                if (name := getattr(target, "rounded", "")) != "":
                    total[...] = rounded(total, name)
                return
        self._release(id(_memory(old)))
        self._release(id(_memory(d)))
        total = _sum(old, d)
        if (name := getattr(target, "rounded", "")) != "":
            total = rounded(total, name)
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


def like(a: Any, model: Array) -> Array:
    """a as an array of the dtype and on the device of another."""
    if type(a) is not np.ndarray:
        a = arrays.native(a, "the gradient")
    if arrays.device_of(a) != "meta" and getattr(a, "dtype", None) != model.dtype:
        a = np.asarray(arrays.to_numpy(a), model.dtype)
    return arrays.to_device(a, arrays.device_of(model) or "cpu")


def replacing(dy: Array, new: Any) -> Array:
    """What a hook gave in place of the gradient dy. ValueError for another shape."""
    new = like(new.data if isinstance(new, Tensor) else new, dy)
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
        adds_to(leaf)
        leaf.grad = _sum(leaf.grad, d)


def _sum(a: Array, b: Array) -> Array:
    return ops.add.stored(a, b) if a.ndim else np.asarray(a + b)
