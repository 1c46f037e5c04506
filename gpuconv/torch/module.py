"""Layers and networks as PyTorch's modules: a forward pass is one node of PyTorch's graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor as T

from gpuconv import nn
from gpuconv.arrays import native
from gpuconv.autograd import Parameter, Tensor, enable_grad, no_grad, record
from gpuconv.autograd.walk import like
from gpuconv.interchange import TORCH
from gpuconv.nn.module import Buffer
from gpuconv.torch.functions import refuse_graph

HALF = (torch.float16, torch.bfloat16)


class Module(torch.nn.Module):
    """A layer or network of gpuconv.nn as a module of PyTorch.

    Its parameters and buffers are PyTorch's, by the names that they have in gpuconv (torchvision's,
    for models.resnet18() and others), and share their memory, so torch.optim, state_dict, to and
    requires_grad_ work as ever. forward takes PyTorch's tensors and gives one, or a tuple; what it
    fuses in gpuconv is fused here. network: parts that are added to it later are not found.

    >>> module = Module(nn.Linear(3, 2))
    >>> [name for name, _ in module.named_parameters()]
    ['weight', 'bias']
    >>> module(torch.ones(4, 3)).sum().backward()
    >>> module.weight.grad.tolist()
    [[4.0, 4.0, 4.0], [4.0, 4.0, 4.0]]
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = network
        self._held: list[tuple[Parameter | Buffer, torch.nn.Module, str]] = []
        modules: dict[int, torch.nn.Module] = {id(network): self}
        tensors: dict[int, Any] = {}  # by the id of ours: shared layers and weights stay shared
        for path, module in network.named_modules(remove_duplicate=False):
            here = modules.setdefault(id(module), torch.nn.Module())
            parent, _, own_name = path.rpartition(".")
            if path:
                self.get_submodule(parent).add_module(own_name, here)
            for name, value in vars(module).items():
                if isinstance(value, Parameter | Buffer):
                    tensor = tensors.setdefault(id(value), _tensor_of(value))
                    if isinstance(value, Parameter):
                        here.register_parameter(name, tensor)
                    else:
                        here.register_buffer(name, tensor)
                    self._held.append((value, here, name))
        self.train(network.training)

    def __repr__(self) -> str:
        return f"gpuconv.torch.Module({self._network!r})"

    def train(self, mode: bool = True) -> Module:
        """As torch.nn.Module.train, and the same for the network."""
        super().train(mode)
        self._network.train(mode)
        return self

    @torch.compiler.disable
    def forward(self, *inputs: Any) -> Any:
        """The network's output for tensors; anything else is passed on as it is."""
        held: dict[int, tuple[Parameter, Any]] = {}
        for ours, owner, name in self._held:
            theirs = getattr(owner, name)
            if theirs.dtype in HALF:
                raise TypeError(
                    f"{name} is {theirs.dtype}: weights are kept in float32 or float64; inputs may "
                    "be of half precision"
                )
            ours.data = native(theirs.detach())  # it is another one after to(), say
            if isinstance(ours, Parameter):
                ours.requires_grad = theirs.requires_grad
                held[id(ours)] = ours, theirs
        parameters = [ours for ours, _ in held.values()]
        tensors = (*inputs, *(theirs for _, theirs in held.values()))
        found = _Network.apply(self._network, parameters, torch.is_grad_enabled(), *tensors)
        if self.training:
            torch.autograd.graph.increment_version(list(self.buffers()))
        return found[0] if len(found) == 1 else found


def _tensor_of(holder: Parameter | Buffer) -> Any:
    data = TORCH.give(holder.data)
    if isinstance(holder, Buffer):
        return data
    return torch.nn.Parameter(data, holder.requires_grad)


class _Network(torch.autograd.Function):
    """A network's own tape, from PyTorch's tensors to PyTorch's tensors."""

    @staticmethod
    def forward(ctx: Any, network: Any, parameters: Any, recorded: bool, *tensors: Any) -> Any:
        count = len(tensors) - len(parameters)
        inputs = [
            Tensor(native(x), requires_grad=wanted) if isinstance(x, T) else x
            for x, wanted in zip(tensors[:count], ctx.needs_input_grad[3:], strict=False)
        ]
        recorded = recorded and any(ctx.needs_input_grad)
        with TORCH.inside(_first(tensors)), enable_grad() if recorded else no_grad():
            found = network(*inputs)
            ys = found if isinstance(found, tuple) else (found,)
            given = tuple(_apart(TORCH.give(y.data), tensors) for y in ys)
        ctx.ys, ctx.leaves = ys, (*inputs, *parameters)
        # reading these in backward finds out whether they were changed in place, or freed
        ctx.save_for_backward(*(t for t in (*tensors, *given) if isinstance(t, T)))
        ctx.set_materialize_grads(False)
        dtype = _first(tensors).dtype
        return tuple(y.to(dtype) for y in given) if dtype in HALF else given

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        refuse_graph()
        _ = ctx.saved_tensors
        leaves = [leaf for leaf in ctx.leaves if isinstance(leaf, Tensor)]
        before = [leaf.grad for leaf in leaves]
        for leaf in leaves:
            leaf.grad = None
        try:
            with TORCH.inside(_first(gradients)), enable_grad():
                _walk(ctx.ys, gradients)
                found = [getattr(leaf, "grad", None) for leaf in ctx.leaves]
                found = [None if d is None else TORCH.give(d) for d in found]
        finally:
            for leaf, own in zip(leaves, before, strict=True):
                leaf.grad = own
        return None, None, None, *found


def _walk(ys: Sequence[Tensor], gradients: Sequence[Any]) -> None:
    """Backward from several outputs at once."""
    pairs = zip(ys, gradients, strict=True)
    arrays = [None if d is None else like(d, y.data) for y, d in pairs]
    nothing = np.zeros((), np.float32)
    whole = record("outputs", nothing, ys, lambda dy, over: arrays, fresh=False)
    if not whole.requires_grad:
        return
    kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
    whole.backward(retain_graph=kept())  # what a backward pass kept is freed with the graph


def _first(tensors: Sequence[Any]) -> Any:
    """The first tensor that is one."""
    return next((x for x in tensors if isinstance(x, T)), torch.empty(0))


def _apart(y: Any, tensors: Sequence[Any]) -> Any:
    """y in memory of its own: PyTorch must know of a view of an input."""
    for x in tensors:
        memory = x.untyped_storage() if isinstance(x, T) else None
        if memory and memory.data_ptr() <= y.data_ptr() < memory.data_ptr() + memory.nbytes():
            return y.clone()
    return y
