"""Containers: modules in a row, side by side, and with a shortcut around them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Self

from gpuconv.autograd import Tensor
from gpuconv.nn.functional import ChannelBuffer, cat
from gpuconv.nn.module import Module


class _Container(Module):
    """Modules by name: positional ones are "0", "1", ..., as PyTorch numbers them."""

    def __init__(self, *modules: Module, **named: Module) -> None:
        super().__init__()
        if modules and named:
            raise TypeError(f"{type(self).__name__}: give modules by position or by name, not both")
        for name, module in [*((str(i), m) for i, m in enumerate(modules)), *named.items()]:
            self.add_module(name, module)

    def __setattr__(self, name: str, value: Any) -> None:
        if value is None and isinstance(vars(self).get(name), Module):
            raise TypeError(
                f"{type(self).__name__}: {name} cannot be None; `del` takes a module out, "
                "Identity passes x on"
            )
        super().__setattr__(name, value)

    def __iter__(self) -> Iterator[Module]:
        return self.children()

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __getitem__(self, key: int | str | slice) -> Any:
        """A module by place or by name. A slice of a Sequential is one, of the same modules."""
        if isinstance(key, slice) and isinstance(self, Sequential):
            part = Sequential(**dict(list(self.named_children())[key]))
            part.training, part.device = self.training, self.device
            return part
        return dict(self.named_children())[key] if isinstance(key, str) else list(self)[key]

    def __setitem__(self, key: int | str, module: Module) -> None:
        names = [name for name, _ in self.named_children()]
        setattr(self, key if isinstance(key, str) else names[key], module)

    def __delitem__(self, key: int) -> None:
        """Take a module out; numbered ones are numbered anew."""
        children = dict(self.named_children())
        numbered, gone = all(name.isdigit() for name in children), list(children)[key]
        for name in children:
            delattr(self, name)
        del children[gone]
        for number, (name, module) in enumerate(children.items()):
            setattr(self, str(number) if numbered else name, module)

    def append(self, module: Module) -> Self:
        """Add one more, numbered."""
        number = len(self)
        while hasattr(self, str(number)):  # where another one was deleted
            number += 1
        self.add_module(str(number), module)
        return self


class Sequential(_Container):
    """Modules one after another: Sequential(Conv2d(1, 6, 5), ReLU()) or Sequential(conv=...,
    relu=...). Each is an attribute by its name, so that `model.fc = Linear(512, 5)` replaces it.
    """

    def forward(self, x: Tensor) -> Tensor:
        for module in tuple(vars(self).values()):  # a hook may set attributes
            if isinstance(module, Module):
                x = module(x)
        return x


class ModuleList(_Container):
    """Modules in a list, ModuleList([Linear(8, 8), Linear(8, 2)]), for a `forward` that goes over
    them itself. A plain list of Python would hide them from `parameters`, `to` and `train`.
    """

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__(*modules)


class Residual(Module):
    """body(x) + shortcut(x), the shortcut being x itself unless one is given (He et al. 2015)."""

    is_block = True

    def __init__(self, body: Module, shortcut: Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        around = x if self.shortcut is None else self.shortcut(x)
        if y.shape != around.shape:
            raise ValueError(f"the branches' shapes differ: {y.shape} and {around.shape}")
        return y + around


class Concat(_Container):
    """Branches side by side on the same x, their outputs joined along the channels (Szegedy et al.
    2014).
    """

    is_block = True

    def __init__(self, *modules: Module, **named: Module) -> None:
        super().__init__(*modules, **named)
        if not len(self):
            raise ValueError("Concat: at least one branch is needed")

    def forward(self, x: Tensor) -> Tensor:
        return cat([branch(x) for branch in self])


class DenseBlock(_Container):
    """x joined along the channels with layer 1's output for x, layer 2's for both, and so on.

    growth: the channels that each layer adds. All of it lies in one array, so that each layer's
    input is the first channels of it and nothing is copied or kept twice.
    forward: x (N, C, H, W) -> y (N, C + len(self) * growth, H, W). Source: Huang et al. 2017.
    """

    def __init__(self, growth: int, *modules: Module, **named: Module) -> None:
        super().__init__(*modules, **named)
        self.growth = growth

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1] + len(self) * self.growth
        buffer = ChannelBuffer(channels)
        x = buffer.append(x)
        for layer in self:
            x = buffer.append(layer(x))
        if x.shape[1] != channels:
            raise ValueError(
                f"DenseBlock: the layers gave {x.shape[1]} channels in all, "
                f"growth={self.growth} makes {channels}"
            )
        return x


def recompute_blocks(network: Module) -> int:
    """Set `recompute` for every outermost block of a network; returns their number.

    Blocks are modules with `is_block`: a residual, inception or dense layer of gpuconv.models, a
    Residual, a Concat.
    """
    if network.is_block:
        network.recompute = True
        return 1
    return sum(map(recompute_blocks, network.children()))
