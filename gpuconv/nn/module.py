"""`Module`: the base class of every layer, container and network."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, TypeVar, overload

import numpy as np

from gpuconv import autograd
from gpuconv.arrays import checked_cast, device_of, require, to_device, to_numpy
from gpuconv.autograd import Array, Handle, Parameter, Tensor, as_tensor, record, settle, state
from gpuconv.devices import resolve
from gpuconv.errors import unknown
from gpuconv.interchange import library_of
from gpuconv.nn import foreign

if TYPE_CHECKING:
    from gpuconv.nn.inference import Compiled

Shape = tuple[int, ...]
Output = TypeVar("Output", covariant=True)


class Forward(Protocol[Output]):
    """For type checkers: anything with a forward, whose result a call returns."""

    def forward(self, *args: Any, **kwargs: Any) -> Output: ...


class Buffer:
    """An array that belongs to the state but not to the optimiser, such as a running mean."""

    __slots__ = ("data",)

    def __init__(self, data: np.ndarray) -> None:
        self.data = data

    def __repr__(self) -> str:
        return f"Buffer(shape={self.data.shape}, dtype={self.data.dtype})"


class Unmatched(NamedTuple):
    """The names that `load_state_dict(strict=False)` found on one side alone."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module:
    """A network or a part of one. A subclass sets parameters, buffers and inner modules as
    attributes in `__init__`, and computes its output in `forward`, from tensors.

    Calling a module, `model(x)`, takes arrays or tensors and returns what `forward` returns: a
    tensor, or a tuple of them. Gradients follow from what `forward` did; see gpuconv/autograd.

    training: whether dropout and batch norm act as in training; set by `train` and `eval`. device:
    where `to` put it. fusing: False runs every function of its forward by itself. recompute: True
    keeps only the module's input for backward and runs forward once more then. is_block: whether
    `recompute_blocks` may set that for it. input_shape: one example's (C, H, W); known for the
    models of gpuconv.models.

    >>> from gpuconv import nn
    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.conv = nn.Conv2d(3, 3, 3, padding=1)
    ...     def forward(self, x):
    ...         return nn.functional.relu(self.conv(x) + x)
    >>> Block()(np.zeros((1, 3, 8, 8), np.float32)).shape
    (1, 3, 8, 8)
    """

    training = True  # a subclass whose __init__ calls no super().__init__() works too
    device = "cpu"
    fusing = True
    recompute = False
    _frozen = False
    is_block = False
    input_shape: Shape | None = None
    holds: tuple[str, ...] = ()  # attributes that are a parameter or None
    counters: tuple[str, ...] = ()  # numbers that its forward changes by `cuda.recording.again`
    _hooks: Sequence[tuple[str, Callable[..., Any]]] = ()  # (when to call, what)
    _described: Callable[[Module], dict[str, Any] | None] | None = None  # gives `spec`

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute. TypeError for a value that would silently replace a parameter, a buffer
        or a module: an array, say, that training would not change. ValueError for one of these by
        a name that modules use themselves.
        """
        held = vars(self).get(name)
        if isinstance(value, _PARTS) and hasattr(Module, name):
            raise ValueError(f"{type(self).__name__}: {name!r} cannot be the name of a part")
        if not (value is None or isinstance(value, _PARTS)):
            kind = next((kind for kind in _PARTS if isinstance(held, kind)), None)
            if kind is not None or name in self.holds:
                part = (kind or Parameter).__name__
                way = "its `data` can be set" if kind is not Module else "Identity passes x on"
                raise TypeError(
                    f"{type(self).__name__}: {name} must be a {part} or None, got "
                    f"{type(value).__name__}; {way}"
                )
        super().__setattr__(name, value)

    @property
    def spec(self) -> dict[str, Any] | None:
        """What `models.build` makes it from again: the name and arguments of a model that is from
        there, or of all layers, where they are gpuconv's own. None for what only the user's code
        can build.
        """
        from gpuconv.nn.rebuild import describe, foreign_layer

        if self._described is not None and (found := self._described(self)) is not None:
            return found
        described = describe(self)
        return described if foreign_layer(described) is None else None

    # ---- what a subclass defines ---------------------------------------------------------------

    def forward(self, *inputs: Any) -> Any:
        """The output for tensors."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def extra_repr(self) -> str:
        """The arguments, as repr and the summary print them."""
        return ""

    def reset_parameters(self, rng: np.random.Generator) -> None:
        """Draw this module's own parameters anew; nothing to do without any."""

    def constrain(self) -> None:
        """Put the module's parameters back to where it allows them, after they were drawn."""

    # ---- call ----------------------------------------------------------------------------------

    @overload  # a call returns what the module's own forward declares
    def __call__(self: Forward[Output], *inputs: Any, **options: Any) -> Output: ...
    @overload
    def __call__(self, *inputs: Any, **options: Any) -> Any: ...
    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if (
            state.depth
            and self.fusing
            and not self._hooks
            and not self.recompute
            and state.trace is None
        ):
            return self.forward(*inputs, **options)
        return self._call(inputs, options)

    def _call(self, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """A call with something to be done around it."""
        if not state.depth:
            inputs = tuple(map(self._as_tensor, inputs))
            if options:
                options = {name: self._as_tensor(x) for name, x in options.items()}
        before = state.fusing
        state.depth += 1
        try:
            if not self.fusing:
                settle()
                state.fusing = False
            if state.trace is not None:
                y = state.trace.call(self, inputs, options)
            elif self._hooks:
                y = self._call_with_hooks(inputs, options)
            else:
                y = self._run(inputs, options)
            if state.depth == 1 or not self.fusing:
                settle()  # which computes, and may fail as forward may
            return y
        except BaseException:
            autograd.forget()
            raise
        finally:
            state.depth -= 1
            state.fusing = before

    def _run(self, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if not self.recompute:
            return self.forward(*inputs, **options)
        names, count = tuple(options), len(inputs)

        def forward(*given: Any) -> Any:
            return self.forward(*given[:count], **dict(zip(names, given[count:], strict=True)))

        return autograd.checkpoint(forward, *inputs, *options.values())

    def _as_tensor(self, x: Any) -> Any:
        if isinstance(x, list):  # of numbers; several inputs in a list stay one by one
            known = any(isinstance(part, Tensor) for part in x)
        elif type(x) is np.ndarray:
            known = False
        else:
            known = isinstance(x, Tensor) or (device_of(x) is None and library_of(x) is None)
        return x if known else as_tensor(x, self.device == "reference")

    @property
    def in_training(self) -> bool:
        """`training`, but where `checkpoint` runs forward again the mode of the first time."""
        if state.repeat is None:
            return self.training
        return autograd.once(getattr, self, "training")

    # ---- hooks ---------------------------------------------------------------------------------

    def register_forward_pre_hook(self, hook: Callable[[Module, tuple[Any, ...]], Any]) -> Handle:
        """Before each forward call `hook(module, inputs)`; what it returns, unless None, takes the
        place of the inputs.
        """
        return self._register("before", hook)

    def register_forward_hook(self, hook: Callable[[Module, tuple[Any, ...], Any], Any]) -> Handle:
        """After each forward call `hook(module, inputs, output)`; what it returns, unless None,
        takes the place of the output. A hooked module is not fused with its neighbours.
        """
        return self._register("after", hook)

    def register_full_backward_hook(
        self, hook: Callable[[Module, tuple[Array | None], tuple[Array]], Any]
    ) -> Handle:
        """In backward call `hook(module, (dx,), (dy,))` with the gradients, as arrays, of the
        module's input and output; dx is None where the input needs none. An array or a tuple of one
        that it returns takes the place of dx.

        For modules of one input and one output: TypeError in forward for others.
        """
        return self._register("backward", hook)

    def _register(self, kind: str, hook: Callable[..., Any]) -> Handle:
        if not isinstance(self._hooks, list):
            self._hooks = []
        return Handle(self._hooks, (kind, hook))

    def _changed(self, **defaults: Any) -> list[str]:
        """For extra_repr: the attributes that differ from their defaults, as name=value."""
        return [
            f"{name}={getattr(self, name)}"
            for name, usual in defaults.items()
            if getattr(self, name) != usual
        ]

    def _hooks_of(self, kind: str) -> list[Callable[..., Any]]:
        return [hook for its_kind, hook in self._hooks if its_kind == kind]

    def _call_with_hooks(self, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        settle()
        for hook in self._hooks_of("before"):
            if (replaced := hook(self, inputs)) is not None:
                inputs = replaced if isinstance(replaced, tuple) else (replaced,)
        if self._hooks_of("backward"):
            y = self._run_watched(inputs, options)
        else:
            y = self._run(inputs, options)
        settle()
        for hook in self._hooks_of("after"):
            if (replaced := hook(self, inputs, y)) is not None:
                y = replaced
        return y

    def _run_watched(self, inputs: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
        """A run whose input and output tell the backward hooks their gradients."""
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
            raise TypeError("a module with backward hooks takes one tensor")
        x = inputs[0]
        entered, seen = x.requires_grad and state.recording, {}

        def at_output(dy: Array, over: bool) -> tuple[Array]:
            seen["dy"] = dy
            if not entered:
                for hook in self._hooks_of("backward"):
                    hook(self, (None,), (dy,))
            return (dy,)

        def at_input(dx: Array, over: bool) -> tuple[Array]:
            for hook in self._hooks_of("backward"):
                new = hook(self, (dx,), (seen["dy"],))
                new = new[0] if isinstance(new, tuple | list) else new
                dx = dx if new is None else autograd.replacing(dx, new)
            return (dx,)

        y = self._run((record("watch", x.data, (x,), at_input, fresh=False),), options)
        if not isinstance(y, Tensor):
            raise TypeError("a module with backward hooks returns one tensor")
        return record("watch", y.data, (y,), at_output, fresh=False)

    # ---- parts ---------------------------------------------------------------------------------

    if TYPE_CHECKING:  # `models.lenet().conv1` is no error

        def __getattr__(self, name: str) -> Any: ...

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules directly inside this one, by attribute."""
        for name, value in tuple(vars(self).items()):
            if isinstance(value, Module):
                yield name, value

    def children(self) -> Iterator[Module]:
        """The modules directly inside this one."""
        for _, child in self.named_children():
            yield child

    def named_modules(
        self, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """This module, named "", and all inside it, depth first, with dotted names; one that stands
        in several places the first time only, unless remove_duplicate is False.
        """
        seen: dict[int, Module] = {}
        for name, module in self._walk(prefix):
            if not remove_duplicate or id(module) not in seen:
                seen[id(module)] = module
                yield name, module
        for module in seen.values():
            for name, value in vars(module).items():
                if isinstance(value, list) and any(
                    isinstance(part, Module) and id(part) not in seen for part in value
                ):
                    warnings.warn(
                        f"{type(module).__name__}: the modules of the list {name} are not found by "
                        "parameters(), to() and train(); make it an nn.ModuleList",
                        stacklevel=2,
                    )

    def _walk(self, prefix: str) -> Iterator[tuple[str, Module]]:
        yield prefix, self
        for name, child in self.named_children():
            yield from child._walk(f"{prefix}.{name}" if prefix else name)

    def modules(self) -> Iterator[Module]:
        """This module and all inside it, each once."""
        for _, module in self.named_modules():
            yield module

    def get_submodule(self, name: str) -> Module:
        """The module of a dotted name. ValueError, with the nearest name, if there is none."""
        found = dict(self.named_modules(remove_duplicate=False))
        if name not in found:
            raise unknown("layer", name, filter(None, found))
        return found[name]

    def add_module(self, name: str, module: Module) -> None:
        """Set a child by name. TypeError unless it is a module; ValueError for a name that modules
        use themselves.
        """
        if not isinstance(module, Module):
            raise TypeError(
                f"{type(self).__name__}: {name} must be a Module, got {type(module).__name__}"
            )
        if not name or "." in name or hasattr(type(self), name):
            raise ValueError(f"{type(self).__name__}: {name!r} cannot be the name of a module")
        setattr(self, name, module)

    def _holders(self, *kinds: type, once: bool = False) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        for path, module in self.named_modules(remove_duplicate=False):
            for name, value in vars(module).items():
                if isinstance(value, kinds) and not (once and id(value) in seen):
                    seen.add(id(value))
                    yield f"{path}.{name}" if path else name, value

    def named_parameters(self) -> list[tuple[str, Parameter]]:
        """The parameters by dotted name; one that stands in several places once."""
        return list(self._holders(Parameter, once=True))

    def parameters(self) -> list[Parameter]:
        return [parameter for _, parameter in self.named_parameters()]

    def named_buffers(self) -> list[tuple[str, Buffer]]:
        """The buffers by dotted name; one that stands in several places once."""
        return list(self._holders(Buffer, once=True))

    def buffers(self) -> list[Buffer]:
        return [buffer for _, buffer in self.named_buffers()]

    def apply(self, function: Callable[[Module], Any]) -> Self:
        """Call a function with each module inside, then with this one."""
        for module in reversed(list(self.modules())):
            function(module)
        return self

    # ---- modes, places and state ---------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Training mode, or with False evaluation mode: dropout and batch norm differ between
        them. TypeError unless mode is a bool.
        """
        if not isinstance(mode, bool | np.bool_):
            raise TypeError(f"train: mode must be True or False, got {type(mode).__name__}")
        for module in self.modules():
            wanted = mode and not module._frozen
            if vars(module).get("training") != wanted:
                module.training = wanted
        return self

    def eval(self) -> Self:
        return self.train(False)

    def zero_grad(self) -> None:
        """Clear the gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Whether the parameters get gradients: False keeps them as they are, True also undoes
        `freeze`.
        """
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        for module in self.modules():
            module._frozen = module._frozen and not requires_grad
        return self

    def freeze(self, *names: str) -> Self:
        """Leave layers of these names as they are in training: without gradients, and in evaluation
        mode, so that batch norm keeps its running statistics too. `requires_grad_(True)` undoes it.

        names: of layers or containers, "layer1", or of parameters, "fc.weight"; without any, all.
        ValueError, with the nearest name, for one that is neither, and for a layer with nothing to
        train in it.

        >>> from gpuconv import models
        >>> model = models.resnet18(num_classes=5).freeze("conv1", "bn1", "layer1")
        >>> model.train().layer1.training
        False
        """
        parameters = dict(self.named_parameters())
        for name in names or ("",):
            if name in parameters:
                continue
            if not self.get_submodule(name).parameters():
                raise ValueError(f"freeze: {name or 'the network'} has nothing to train")
        for name in names or ("",):
            if name in parameters:
                parameters[name].requires_grad = False
                continue
            for module in self.get_submodule(name).requires_grad_(False).modules():
                module._frozen, module.training = True, False
        return self

    def to(self, device: str | None = None, dtype: Any = None) -> Self:
        """Move parameters and computation to a device ("auto", "cpu", "reference", "cuda", "sim")
        or float type, in place. An optimiser with state is made after this.

        Raises: ValueError for an unknown device, and for a dtype but float32 and float64;
        DeviceError, which says what to do, where the device does not work here. Then nothing is
        moved.
        """
        settle()
        if dtype is not None and np.dtype(dtype) not in (np.float32, np.float64):
            raise ValueError(f"to: dtype must be float32 or float64, got {np.dtype(dtype)}")
        if device is not None:
            device = resolve(device)
            require(device)
            for module in self.modules():
                module.device = device
        for _, holder in self._holders(Parameter, Buffer):
            if isinstance(holder, Parameter):
                holder.grad = None
                holder.reference = self.device == "reference"
            if not np.issubdtype(holder.data.dtype, np.floating):
                continue  # a counter: the host's own
            there = device or device_of(holder.data) or "cpu"
            if dtype is not None:
                holder.data = to_numpy(holder.data).astype(dtype)
            holder.data = to_device(holder.data, there, weights=True)
        return self

    def state_dict(self) -> dict[str, np.ndarray]:
        """Parameters and buffers by dotted name, as NumPy arrays: the arrays themselves, not
        copies, but for those of a device.
        """
        return {name: to_numpy(holder.data) for name, holder in self._holders(Parameter, Buffer)}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> Unmatched:
        """Copy arrays in by name; nothing changes unless all fit.

        state: NumPy's or PyTorch's; also one within a training checkpoint {"state_dict": ...}, or
        with a wrapper's prefix before its names, such as "module."; a warning names the prefix.
        strict: refuse missing and unexpected names too; else they are returned, as by PyTorch.
        A wrong shape is always refused.
        Raises TypeError for what is no state dict; ValueError that names what is missing,
        unexpected, of another shape, or of values that this model's type cannot hold.
        """
        settle()
        own = dict(self._holders(Parameter, Buffer))
        state = foreign.renamed(foreign.unwrapped(state, "load_state_dict"), own)
        state = {n: foreign.as_array(a, n) if n in own else a for n, a in state.items()}
        for name, module in self.named_modules(remove_duplicate=False):
            module.convert_state(state, f"{name}." if name else "")
        problems = [
            f"{name} has shape {state[name].shape}, this model's is {holder.data.shape}"
            for name, holder in own.items()
            if name in state and state[name].shape != tuple(holder.data.shape)
        ]
        if strict:
            problems += [f"{name} is missing" for name in own if name not in state]
            problems += [f"{name} is not in this model" for name in state if name not in own]
        if problems:
            more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
            raise ValueError(
                "the weights are of another architecture: " + "; ".join(problems[:8]) + more
            )
        # All are converted before the first is copied, so that a bad one changes nothing.
        ready = {}
        for name in own.keys() & state.keys():
            array = checked_cast(name, state[name], own[name].data.dtype)
            ready[name] = to_device(array, device_of(own[name].data) or "cpu", weights=True)
        for name, array in ready.items():
            holder = own[name]
            if isinstance(holder.data, np.ndarray):
                holder.data[...] = array
            else:  # of a device, or a shape so far
                holder.data = array.copy() if array is state[name] else array
        return Unmatched([n for n in own if n not in state], [n for n in state if n not in own])

    def convert_state(self, state: dict[str, Any], prefix: str) -> None:
        """Replace entries of `state` that an earlier version wrote in another form."""

    # ---- look ----------------------------------------------------------------------------------

    def __repr__(self) -> str:
        children = list(self.named_children())
        inside = self.extra_repr()
        if not children:
            return f"{type(self).__name__}({inside})"
        lines = [f"  ({name}): " + repr(child).replace("\n", "\n  ") for name, child in children]
        return "\n".join([f"{type(self).__name__}({inside}", *lines, ")"])

    def plan(self, x: Any = None) -> str:
        """The functions that a forward pass runs, in order, a line each: what is fused is one.

        x: an input, of which only the shape counts, or the shape of one example, (C, H, W); may be
        left out for a model that knows its own. Nothing is computed.

        >>> from gpuconv import models
        >>> print(models.lenet().plan())
        conv2d_relu_max_pool2d (1, 6, 14, 14)
        conv2d_relu_max_pool2d (1, 16, 5, 5)
        reshape                (1, 400)
        linear_relu            (1, 120)
        linear_relu            (1, 100)
        linear                 (1, 10)
        """
        from gpuconv.nn.trace import plan

        return plan(self, x)

    def compile(self) -> Compiled:
        """A function of images that gives the network's output in evaluation mode, faster than
        calling it: for inference on the CPU.

        Batch norm is folded into the convolutions, activations and sums are done as their outputs
        are stored, weights are packed and buffers planned once. It is a snapshot: weights that
        change later do not count until `compile` is called again, and hooks do not run. The result
        differs from the network's by roundings. It keeps a copy of the weights and, for each shape
        of the input, buffers.
        Raises ValueError unless the network is float32 on cpu; its first call does where the
        forward depends on values or runs a function that cannot be compiled.

        >>> from gpuconv import models
        >>> model = models.lenet()
        >>> fast = model.compile()
        >>> fast(np.zeros((2, 1, 32, 32), np.float32)).shape
        (2, 10)
        """
        from gpuconv.nn.inference import Compiled

        return Compiled(self)

    def show(
        self,
        input_shape: tuple[int, int, int] | None = None,
        classes: Sequence[str] | None = None,
        port: int = 8123,
    ) -> Any:
        """Look inside the network, in a notebook's cell or in the browser: see `gpuconv.show`."""
        import gpuconv

        return gpuconv.show(self, input_shape, classes, port)

    def _repr_html_(self) -> str | None:
        """In a notebook, the table of layers of a network that knows its input; else the text."""
        if self.input_shape is None:
            return None
        from gpuconv.nn.summary import summary

        return summary(self)._repr_html_()


@contextmanager
def in_mode(model: Module, training: bool) -> Iterator[None]:
    """Within, all modules are in training or in evaluation mode; afterwards each in its own."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.train(training)
        yield
    finally:
        for module, mode in modes:
            module.training = mode


_PARTS = (Parameter, Buffer, Module)  # what the attributes of a module may hold of its state
