"""Gradients: tensors record the operation that made them; `backward` visits these in reverse order.

    x = Tensor(images)                       # data: the array itself, of NumPy or of a device
    loss = criterion(model(x), labels)       # each function of nn.functional records what it ran
    loss.backward()                          # fills the grad of every parameter

The level below, `gpuconv.ops`, does not use this package: an operation is a function on arrays,
with a `*_backward` beside it. A function of `nn.functional` runs the operation and records its
`*_backward`.

Two rules keep it both safe and fast.

**Memory** (walk.py). A forward pass never overwrites an array. The backward pass overwrites
gradients alone: only those that it made itself, that no other pending gradient shares, and that no
hook and no `.grad` has seen. Arrays that an operation has read must stay as they are until backward
has run: unlike in PyTorch, this is not checked.

**Fusion** (fusion.py). Inside the call of a module, a function whose kernel can apply an activation
at its end returns a tensor without data, and the activation that follows completes it in one pass.
So a `forward` that overwrites arrays with NumPy must give an operation a copy, or first read its
result's `data`.
"""

from gpuconv.autograd.fusion import (
    activated,
    appended,
    chain_of,
    defer,
    forget,
    give,
    later,
    pooled,
    settle,
    statistics_of,
)
from gpuconv.autograd.modes import enable_grad, no_grad
from gpuconv.autograd.precision import precision
from gpuconv.autograd.recompute import checkpoint, keep_all, once
from gpuconv.autograd.state import Array, Backward, Hook, Node, state
from gpuconv.autograd.tensor import Handle, Parameter, Tensor, as_tensor, nodes_of, record
from gpuconv.autograd.walk import replacing

__all__ = [
    "Array", "Backward", "Handle", "Hook", "Node", "Parameter", "Tensor", "activated", "appended",
    "as_tensor", "chain_of", "checkpoint", "defer", "enable_grad", "forget", "give", "keep_all",
    "later", "no_grad", "nodes_of", "once", "pooled", "precision", "record", "replacing", "settle",
    "state", "statistics_of",
]  # fmt: skip
