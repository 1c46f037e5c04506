"""Benchmark cases, an operation at a shape: from the command line's words or a network's layers.

    conv2d 16x64x56x56 64 3x3 stride=2 padding=1

is one case: the operation, the input's shape, then what that operation takes (`OPERANDS`), then
options.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gpuconv import ops
from gpuconv.errors import require_known, unknown
from gpuconv.ops.op import Op
from gpuconv.precision import STORAGE

Shape = tuple[int, ...]

# What each operation takes after the shape of its input. A name can be abbreviated.
OPERANDS: dict[str, tuple[str, ...]] = {
    **{
        name: ()
        for name in ops.__all__
        if isinstance(getattr(ops, name), Op) and not name.endswith("_backward")
    },
    **dict.fromkeys(("conv2d", "conv2d_relu_max_pool2d"), ("filters", "kernel")),
    **dict.fromkeys(("linear", "local_response_norm"), ("filters",)),
    **dict.fromkeys(
        (f"{kind}_pool2d" for kind in ("max", "avg", "sum", "adaptive_avg")), ("kernel",)
    ),
    **dict.fromkeys(("sgd", "sgd_momentum", "adam", "adam_amsgrad", "clip_grad_norm"), ()),
    **dict.fromkeys(("image_batch", "cast", "uncast"), ()),
}
# Beside ieee: the precisions that an operation's kernels have.
STORED = tuple(STORAGE)
PRECISIONS: dict[str, tuple[str, ...]] = {
    **{name: STORED for name in OPERANDS if getattr(getattr(ops, name, None), "stores_16", False)},
    **dict.fromkeys(("conv2d", "linear"), ("tf32", *STORED)),
    **dict.fromkeys(("cast", "uncast"), STORED),
    **dict.fromkeys(("sgd_momentum", "adam"), ("fp16",)),
}
RANKS = {
    **dict.fromkeys(("assign", "image_batch"), 4),
    **dict.fromkeys(("linear", "cross_entropy", "half_squared_error", "hinge"), 2),
    "loss_and_gradient": 2,
    **{name: 4 for name in OPERANDS if name.endswith("2d") or name == "local_response_norm"},
}
AXES = {2: "rows x features, as 128x1024", 4: "N x C x H x W, as 16x64x56x56"}
ALIASES = {"conv": "conv2d", "max_pool": "max_pool2d", "avg_pool": "avg_pool2d", "lrn":
           "local_response_norm", "batch_norm": "batch_norm2d"}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One operation at one shape.

    x: the input's shape, (N, C, H, W) or any other that the operation takes. filters: K, or the
    features of a linear layer's output, or the channels of a local response norm's window. kernel:
    R and S, or the output's size of adaptive pooling. stride None: 1, a pool's is its window.
    precision: of the device's arrays; an optimiser's step in fp16 is one with scaled gradients.
    """

    op: str
    x: Shape
    filters: int = 0
    kernel: tuple[int, int] = (0, 0)
    stride: Any = None
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    activation: str | None = None
    precision: str = "ieee"
    label: str = field(default="", compare=False)

    def __str__(self) -> str:
        words = [self.op, *(_written(getattr(self, name)) for name in ("x", *OPERANDS[self.op]))]
        for name in OPTIONS:
            value = getattr(self, name)
            if value != getattr(Case, name):
                words.append(f"{name}={_written(value)}")
        return " ".join(words)


OPTIONS = ("stride", "padding", "dilation", "groups", "activation", "precision")


def parse(words: str | Sequence[str], **options: Any) -> Case:
    """The case that is described by words; options as Case has them override those of the words.

    Raises ValueError, in one line, for words that describe no case.

    >>> parse("conv 16x64x56x56 64 3x3", padding=1).op
    'conv2d'
    """
    parts = words.split() if isinstance(words, str) else list(words)
    plain = [word for word in parts if "=" not in word]
    if not plain:
        raise ValueError("bench: no operation given, such as: conv2d 16x64x56x56 64 3x3 padding=1")
    name = operation(plain[0])
    operands = OPERANDS[name]
    if len(plain) != 2 + len(operands):
        expected = " ".join(["SHAPE", *map(str.upper, operands)])
        raise ValueError(f"bench: {name} takes {expected}, got {' '.join(plain[1:]) or 'nothing'}")
    values: dict[str, Any] = {"x": _sizes("SHAPE", plain[1])}
    rank = RANKS.get(name)
    if rank is not None and len(values["x"]) != rank:
        raise ValueError(f"bench: {name} takes a shape of {AXES[rank]}, got {plain[1]!r}")
    for operand, word in zip(operands, plain[2:], strict=True):
        values[operand] = _operand(operand, word)
    for word in parts:
        key, equals, value = word.partition("=")
        if equals:
            values[key] = option(require_known("option", key, OPTIONS), value)
    values.update({key: value for key, value in options.items() if value is not None})
    if name.startswith("conv2d") and values.get("stride") in (1, (1, 1)):
        del values["stride"]
    case = Case(name, **values)
    if case.precision not in precisions(name):
        have = ", ".join(precisions(name))
        raise ValueError(f"bench: {name} has the precision {have}, got {case.precision!r}")
    return case


def precisions(name: str) -> tuple[str, ...]:
    """The precisions of an operation; a cast is to 16 bits or from them."""
    more = PRECISIONS.get(name, ())
    return more if name in ("cast", "uncast") else ("ieee", *more)


def operation(name: str) -> str:
    """The full name of an operation: conv, max_pool, cross. ValueError for an unknown one."""
    name = ALIASES.get(name, name).replace("-", "_")
    if name in OPERANDS:
        return name
    begin = [known for known in OPERANDS if known.startswith(name)]
    if len(begin) == 1:
        return begin[0]
    raise unknown("operation", name, OPERANDS)


def option(name: str, text: str) -> Any:
    """The value of an option: a number, a pair as 1x2, a padding's or an activation's name."""
    if name == "precision":
        return text
    if name == "activation":
        if text != "relu":
            raise ValueError(f"bench: activation is relu or not given, got {text!r}")
        return text
    if name == "padding" and text in ("same", "valid", "full"):
        return text
    sizes = _sizes(name, text, minimum=0 if name == "padding" else 1)
    if len(sizes) > 2 or (name == "groups" and len(sizes) > 1):
        raise ValueError(f"bench: {name} must be a number or two, as 1x2, got {text!r}")
    return sizes[0] if len(sizes) == 1 else sizes


def network(name: str, batch: int, shape: Shape | None = None) -> list[Case]:
    """The distinct operations of a model of `gpuconv.models`, or of "mynet.py:build", at this
    batch. shape: its input's, (C, H, W), unless it knows that.

    ValueError for an unknown model, and where no shape is known.
    """
    from gpuconv import models
    from gpuconv.nn import trace

    model = models.named(name, **({"in_channels": shape[0]} if shape else {}))
    shape = shape or model.input_shape
    if shape is None:
        raise ValueError(f"bench: {name} does not say what it reads; give --input C,H,W")
    found: dict[Case, str] = {}
    for row in trace(model, shape, training=True).calls:
        case = _of_layer(row.module, (batch, *row.input_shape))
        if case is not None:
            found.setdefault(case, row.name)
    return [replace(case, label=label) for case, label in found.items()]


# n is the batch; 8n and so on are its multiples. Operations without a line here, such as those that
# work element by element, have one at the shape of USUAL.
STANDARD = """
conv2d                  n x 64 x 56 x 56     64 3x3 padding=1
conv2d                  n x 128 x 28 x 28    128 3x3 padding=1
conv2d                  n x 256 x 14 x 14    256 3x3 padding=1
conv2d                  n x 3 x 224 x 224    64 7x7 stride=2 padding=3
conv2d                  n x 64 x 56 x 56     256 1x1
conv2d                  n x 256 x 56 x 56    128 1x1 stride=2
conv2d                  n x 128 x 28 x 28    128 3x3 padding=1 groups=32
conv2d                  n x 64 x 56 x 56     64 3x3 padding=1 groups=64
conv2d                  n x 1 x 32 x 32      6 5x5
conv2d                  n x 6 x 14 x 14      16 5x5 activation=relu
conv2d_relu_max_pool2d  n x 1 x 32 x 32      6 5x5
conv2d_relu_max_pool2d  n x 6 x 14 x 14      16 5x5
conv2d_relu_max_pool2d  n x 64 x 56 x 56     64 3x3 padding=1
max_pool2d              n x 64 x 112 x 112   2x2
max_pool2d              n x 64 x 112 x 112   3x3 stride=2 padding=1
avg_pool2d              n x 64 x 56 x 56     2x2
sum_pool2d              n x 64 x 56 x 56     2x2
adaptive_avg_pool2d     n x 512 x 14 x 14    1x1
adaptive_avg_pool2d     n x 256 x 13 x 13    6x6
local_response_norm     n x 96 x 55 x 55     5
add                     n x 64 x 56 x 56     activation=relu
batch_norm2d_track      64n
linear                  8n x 1024            1000
linear                  8n x 400             120
softmax                 64n x 1000
cross_entropy           64n x 1000
loss_and_gradient       8n x 10
half_squared_error      64n x 1000
hinge                   64n x 1000
sgd                     64n x 4096
sgd_momentum            64n x 4096
adam                    64n x 4096
adam_amsgrad            64n x 4096
clip_grad_norm          64n x 4096
image_batch             n x 3 x 224 x 224
"""
# In each of the precisions at the end of the line; operations that store 16 bits and have no line
# here, in bf16 at the shape of their first line above, or at USUAL.
IN_PRECISIONS = """
conv2d        n x 64 x 56 x 56     64 3x3 padding=1               tf32,bf16,fp16
conv2d        n x 256 x 14 x 14    256 3x3 padding=1              tf32,bf16
conv2d        n x 3 x 224 x 224    64 7x7 stride=2 padding=3      tf32,bf16
conv2d        n x 64 x 56 x 56     256 1x1                        tf32,bf16
linear        8n x 1024            1000                           tf32,bf16,fp16
add           n x 64 x 56 x 56     activation=relu                bf16,fp16
cast          n x 64 x 56 x 56     bf16,fp16
uncast        n x 64 x 56 x 56     bf16,fp16
sgd_momentum  64n x 4096           fp16
adam          64n x 4096           fp16
"""
USUAL = "nx64x56x56"


def standard(batch: int) -> list[Case]:
    """Cases of every operation at this batch in float32, for `gpuconv bench all`, the benchmarks
    and the GPU check, which finds the kernels by what these and `in_precisions` launch.

    >>> str(standard(2)[0])
    'conv2d 2x64x56x56 64 3x3 padding=1'
    """
    lines = _lines(STANDARD)
    plain = {line[0] for line in lines if "activation=relu" not in line}
    lines += [
        [name, USUAL] for name in OPERANDS if name not in plain and "ieee" in precisions(name)
    ]
    return [parse([line[0], _sized(line[1], batch), *line[2:]]) for line in lines]


def in_precisions(batch: int) -> list[Case]:
    """Cases of every operation that has another precision, on the devices sim and cuda.

    >>> str(in_precisions(2)[0])
    'conv2d 2x64x56x56 64 3x3 padding=1 precision=tf32'
    """
    lines = _lines(IN_PRECISIONS)
    named = {line[0] for line in lines}
    shapes = {case.op: case for case in reversed(standard(batch))}
    cases = [
        parse([line[0], _sized(line[1], batch), *line[2:-1]], precision=name)
        for line in lines
        for name in line[-1].split(",")
    ]
    others = [name for name in PRECISIONS if name not in named]
    return cases + [replace(shapes[name], precision="bf16") for name in others]


def _lines(table: str) -> list[list[str]]:
    return [line.replace(" x ", "x").split() for line in table.strip().splitlines()]


def _sized(shape: str, batch: int) -> str:
    """ "8nx1024" at batch 2 as "16x1024"."""
    first, _, rest = shape.partition("n")
    return f"{int(first or 1) * batch}{rest}"


def _of_layer(layer: Any, x: Shape) -> Case | None:
    """The layer's operation; None for one that computes nothing, or is not in the table."""
    names = {name.replace("_", ""): name for name in OPERANDS}  # as layers are called
    name = names.get(type(layer).__name__.lower())
    if name is None:
        return None
    given: dict[str, Any] = {}
    if name in ("conv2d", "max_pool2d", "avg_pool2d", "sum_pool2d"):
        of = layer.window
        given = {"kernel": of.kernel_size, "padding": _plain(of.padding)}
        given["dilation"] = _plain(of.dilation)
        if of.stride != ((1, 1) if name == "conv2d" else of.kernel_size):
            given["stride"] = _plain(of.stride)
    if name == "conv2d":
        given |= {"filters": layer.out_channels, "groups": layer.groups}
    elif name == "linear":
        given["filters"] = layer.out_features
    elif name == "adaptive_avg_pool2d":
        given["kernel"] = layer.size
    elif name == "local_response_norm":
        given["filters"] = layer.arguments[0]
    return Case(name, x, **given)


def _plain(value: Any) -> Any:
    """((1, 1), (1, 1)) and (1, 1) as 1, ((1, 1), (2, 2)) as (1, 2)."""
    if isinstance(value, tuple) and len(value) == 2 and value[0] == value[1]:
        return _plain(value[0])
    if isinstance(value, tuple) and all(isinstance(s, tuple) and s[0] == s[1] for s in value):
        return tuple(side[0] for side in value)
    return value


def _operand(name: str, word: str) -> Any:
    sizes = _sizes(name.upper(), word)
    if name == "kernel" and len(sizes) <= 2:
        return sizes if len(sizes) == 2 else sizes * 2
    if len(sizes) != 1:
        raise ValueError(f"bench: {name.upper()} must be a number, got {word!r}")
    return sizes[0]


def _sizes(what: str, text: str, minimum: int = 1) -> Shape:
    if not re.fullmatch(r"\d{1,9}(x\d{1,9})*", text):
        raise ValueError(f"bench: {what} must be numbers joined by x, as 16x64x56x56, got {text!r}")
    sizes = tuple(map(int, text.split("x")))
    if min(sizes) < minimum:
        raise ValueError(f"bench: {what} must be at least {minimum}, got {text!r}")
    return sizes


def _written(value: Any) -> str:
    simple = isinstance(value, tuple) and all(isinstance(side, int) for side in value)
    return "x".join(map(str, value)) if simple else str(value).replace(" ", "")
