"""The layers and functions that ONNX's operators become.

An entry of OPERATORS takes a `Node` and returns the function of its step, or None where it added
the step itself. What it keeps of the inputs, such as weights, it takes out of `node.reads`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv import nn, ops
from gpuconv.autograd import Tensor, operators
from gpuconv.nn import functional as F
from gpuconv.onnx.network import Step
from gpuconv.onnx.node import Node
from gpuconv.onnx.on_host import HOST

if TYPE_CHECKING:
    from gpuconv.onnx.load import Reader

Function = Callable[..., Any]
OWN = ("", "ai.onnx")  # the names of ONNX's own domain


def fold(reader: Reader, proto: Any) -> None:
    """Compute a node of stored arrays now."""
    inputs = list(filter(None, proto.input))
    if proto.domain in OWN and proto.op_type in HOST and reader.arrays.keys() >= set(inputs):
        function = HOST[proto.op_type](Node(reader, proto))
        found = function(*(reader.arrays.get(name) for name in proto.input))
        reader.store(proto.output[0], np.asarray(found), inputs[0] if inputs else None)


def convert(reader: Reader, proto: Any) -> None:
    """Add the step of one node."""
    node, table, where = Node(reader, proto), OPERATORS, ""
    if node.op == "Shape" or reader.host >= set(filter(None, proto.input)):
        table, where = HOST, " on shapes and stored numbers alone"
        reader.host.update(node.outputs)
    if proto.domain not in OWN or node.op not in table:
        where = where if node.op in OPERATORS else ""
        raise NotImplementedError(f"{node.name}: gpuconv has no such operator{where}")
    function = table[node.op](node)
    if function is not None:
        while node.reads and not node.reads[-1]:  # left out
            node.reads.pop()
        reader.add(Step(node.name, tuple(node.reads), node.outputs, function))


# ---- with weights --------------------------------------------------------------------------------


def _conv(node: Node) -> None:
    w = node.array(1, "its weights")
    K, C = w.shape[:2]
    groups = node.attribute("group", 1)
    stride, padding, dilation = node.window(w.shape[2:])
    b = node.array(2, "its bias") if node.has(2) else node.bias_that_follows(K, pixels=True)
    shape = C * groups, K, w.shape[2:], stride, padding, dilation, groups
    node.layer(lambda: nn.Conv2d(*shape, bias=b is not None), weight=w, bias=b)


def _gemm(node: Node) -> None:
    if node.attribute("transA", 0):
        raise NotImplementedError(f"{node.name}: transA is not supported")
    w, alpha = node.array(1, "its weights"), node.attribute("alpha", 1.0)
    w = w if node.attribute("transB", 0) else w.T
    if node.has(2):
        b = np.broadcast_to(node.array(2, "its bias"), (1, len(w)))[0] * node.attribute("beta", 1.0)
    else:
        b = node.bias_that_follows(len(w), pixels=False)
    _fully_connected(node, w if alpha == 1 else w * w.dtype.type(alpha), b)


def _matmul(node: Node) -> Function | None:
    w = node.reader.arrays.get(node.inputs[1])
    if w is None or w.ndim != 2 or node.ndim(0) not in (2, None):
        return operators.matmul
    _fully_connected(node, w.T, node.bias_that_follows(w.shape[1], pixels=False))
    return None


def _fully_connected(node: Node, w: np.ndarray, b: np.ndarray | None) -> None:
    node.layer(lambda: nn.Linear(w.shape[1], w.shape[0], b is not None), weight=w, bias=b)


def _batch_norm(node: Node) -> None:
    if node.attribute("training_mode", 0):
        raise NotImplementedError(f"{node.name}: it is in training mode; export after eval()")
    names = ("weight", "bias", "running_mean", "running_var")
    arrays = {name: node.array(i, f"its {name}") for i, name in enumerate(names, 1)}
    momentum, eps = 1 - node.attribute("momentum", 0.9), node.attribute("epsilon", 1e-5)
    of_vectors = node.ndim(0) == 2
    if of_vectors:
        node.around(lambda x: x.reshape((*x.shape, 1, 1)))
    node.layer(lambda: nn.BatchNorm2d(len(arrays["weight"]), eps, max(momentum, 0.0)), **arrays)
    if of_vectors:
        node.after(lambda y: F.flatten(y, 1))


def _channelwise(operator: Function) -> Callable[[Node], Function | None]:
    """x and a stored number for each channel, (C, 1, 1), as a depthwise convolution, which every
    device has; else the operator.
    """

    def build(node: Node) -> Function | None:
        if node.attribute("axis", None) is not None:
            raise NotImplementedError(f"{node.name}: axis, of opset 6, is not supported")
        for i in (1, 0) if node.op in ("Add", "Mul") else (1,):
            c = node.reader.arrays.get(node.inputs[i])
            if c is None or c.ndim < 3 or c.shape[-3] < 2 or c.size != c.shape[-3]:
                continue
            shape = node.shape(1 - i) or ()
            if len(shape) == 4 and shape[1] == c.size:
                node.inputs = [node.inputs[1 - i], node.inputs[i]]
                _each_channel(node, c.reshape(-1))
                return None
        return operator

    return build


def _each_channel(node: Node, c: np.ndarray) -> None:
    ones, C = np.ones_like(c), len(c)
    w, b = {"Mul": (c, None), "Div": (1 / c, None), "Add": (ones, c), "Sub": (ones, -c)}[node.op]
    if b is None:
        b = node.bias_that_follows(C, pixels=True)
    node.layer(
        lambda: nn.Conv2d(C, C, 1, groups=C, bias=b is not None),
        weight=w.reshape(C, 1, 1, 1),
        bias=b,
    )


def _dropout(node: Node) -> None:
    p = float(node.constant(1, "ratio", 0.5))
    node.layer(lambda: nn.Dropout(p, seed=len(node.reader.network._steps)))


# ---- pooling -------------------------------------------------------------------------------------


def _max_pool(node: Node) -> partial[Any]:
    kernel = node.attribute("kernel_shape", ())
    stride, padding, dilation = node.window(kernel)
    return partial(
        F.max_pool2d, kernel_size=tuple(kernel), stride=stride, padding=padding, dilation=dilation,
        ceil_mode=bool(node.attribute("ceil_mode", 0)),
    )  # fmt: skip


def _average_pool(node: Node) -> Function:
    include = bool(node.attribute("count_include_pad", 0))
    return partial(F.avg_pool2d, count_include_pad=include, **_max_pool(node).keywords)


def _global_average(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1)


def _global_max(x: Tensor) -> Tensor:
    return F.max_pool2d(x, tuple(x.shape[2:]))


def _pad(node: Node) -> Function | None:
    pads, value = node.padding(), float(node.constant(2, "value", 0.0))
    if node.attribute("mode", "constant") != "constant" or pads is None:
        raise NotImplementedError(
            f"{node.name}: only a constant around height and width is supported"
        )
    if node.joins_what_follows(pads, value):
        return None
    if value:
        raise NotImplementedError(f"{node.name}: only padding with 0 is supported, not {value:g}")
    return partial(F.sum_pool2d, kernel_size=1, stride=1, padding=pads)


def _reduced(function: Function) -> Callable[[Node], Function]:
    def build(node: Node) -> Function:
        axes, keep = node.constant(1, "axes", None), bool(node.attribute("keepdims", 1))

        def reduce(x: Tensor) -> Tensor:
            axis = None if axes is None else tuple(sorted(int(a) % x.ndim for a in axes))
            if function is operators.mean and axis == (2, 3) and x.ndim == 4:
                return _global_average(x) if keep else F.flatten(_global_average(x), 1)
            return function(x, axis, keep)

        return reduce

    return build


# ---- shapes --------------------------------------------------------------------------------------


def _reshape(node: Node) -> Function:
    batch, keep_zero = node.reader.batch, node.attribute("allowzero", 0)
    node.reads = [node.inputs[0]]
    given = node.attribute("shape", None)
    if given is None and node.inputs[1] not in node.reader.arrays:
        node.reads = list(node.inputs)  # computed from other shapes
    elif given is None:
        given = node.reader.arrays[node.inputs[1]]

    def reshape(x: Tensor, shape: Any = given) -> Tensor:
        sizes = [int(size) for size in shape]
        if given is not None and sizes and sizes[0] == batch:
            sizes[0] = x.shape[0]  # a file for one image takes any number
        pairs = enumerate(sizes)
        return x.reshape(tuple(x.shape[i] if n == 0 and not keep_zero else n for i, n in pairs))

    return reshape


def _flatten(node: Node) -> Function:
    axis = node.attribute("axis", 1)
    if axis == 1:
        return lambda x: F.flatten(x, 1)
    return lambda x: x.reshape((math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


def _squeeze(node: Node) -> Function:
    axes = node.constant(1, "axes", None)

    def squeeze(x: Tensor) -> Tensor:
        gone = range(1, x.ndim) if axes is None else [int(a) % x.ndim for a in axes]
        kept = [n for i, n in enumerate(x.shape) if i not in gone or (axes is None and n != 1)]
        return x.reshape(tuple(kept))

    return squeeze


def _unsqueeze(node: Node) -> Function:
    axes = [int(a) for a in node.constant(1, "axes", ())]
    return lambda x: x.reshape(np.expand_dims(np.broadcast_to(0, x.shape), tuple(axes)).shape)


def _split(node: Node) -> Function:
    axis, sizes = node.attribute("axis", 0), node.constant(1, "split", None)

    def split(x: Tensor) -> tuple[Tensor, ...]:
        whole = -(-x.shape[axis] // len(node.outputs))
        lengths = [whole] * len(node.outputs) if sizes is None else list(map(int, sizes))
        ends = np.cumsum(lengths)
        before = (slice(None),) * (axis % x.ndim)
        return tuple(x[(*before, slice(e - n, e))] for e, n in zip(ends, lengths, strict=True))

    return split


def _transpose(node: Node) -> Function:
    perm = node.attribute("perm", None)
    return partial(operators.transpose, axes=None if perm is None else tuple(perm))


def _concat(node: Node) -> Function:
    axis = node.attribute("axis", 1)

    def concat(*xs: Tensor) -> Tensor:
        if axis % xs[0].ndim != 1:
            raise NotImplementedError(
                f"arrays are joined along the channels, not along axis {axis}"
            )
        return F.cat(xs)

    return concat


# ---- element by element --------------------------------------------------------------------------


def _own(op: Any) -> Callable[[Node], Function]:
    """An operation that says itself which operator it is."""
    function, attributes = getattr(F, op.__name__), op.onnx[1]

    def build(node: Node) -> Function:
        given = {own: node.attribute(name, None) for name, own in attributes.items()}
        return partial(
            function, **{own: value for own, value in given.items() if value is not None}
        )

    return build


def _softmax(node: Node) -> Function:
    merges = node.reader.opset < 13  # all axes from this one on are one
    axis = node.attribute("axis", 1 if merges else -1)

    def softmax(x: Tensor) -> Tensor:
        at = axis % x.ndim
        if merges and at == 1:
            return F.softmax(F.flatten(x, 1)).reshape(x.shape)
        if at == x.ndim - 1:
            return F.softmax(x.reshape((-1, x.shape[at]))).reshape(x.shape)
        if at != 1:
            raise NotImplementedError(f"probabilities along axis {axis} are not supported")
        return F.softmax(x)

    return softmax


def _lrn(node: Node) -> Function:
    size = node.attribute("size", 1)
    if size % 2 == 0:
        raise NotImplementedError(f"{node.name}: only an odd size is supported, not {size}")
    alpha, beta = node.attribute("alpha", 1e-4), node.attribute("beta", 0.75)
    return partial(
        F.local_response_norm, size=size, alpha=alpha, beta=beta, k=node.attribute("bias", 1.0)
    )


def _clip(node: Node) -> Function:
    low, high = node.constant(1, "min", -math.inf), node.constant(2, "max", math.inf)
    return partial(clip, low=float(low), high=float(high))


def clip(x: Tensor, low: float, high: float) -> Tensor:
    """x between two numbers, such as 0 and 6 of ReLU6."""
    if low > -math.inf:
        x = F.relu(x - low) + low if low else F.relu(x)
    return x - F.relu(x - high) if high < math.inf else x


def _hard_sigmoid(node: Node) -> Function:
    return partial(
        hard_sigmoid, alpha=node.attribute("alpha", 0.2), beta=node.attribute("beta", 0.5)
    )


def hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    """alpha x + beta between 0 and 1."""
    return clip(x * alpha + beta, 0.0, 1.0)


def _hard_swish(x: Tensor) -> Tensor:
    return x * hard_sigmoid(x, 1 / 6, 0.5)


def _prelu(x: Tensor, slope: Any) -> Tensor:
    if isinstance(slope, Tensor) and slope.ndim == 1 and x.ndim > 2:  # of opset 6: the channels'
        slope = slope.reshape((-1, *(1,) * (x.ndim - 2)))
    return F.relu(x) - F.relu(-x) * slope


def _power(node: Node) -> Function:
    exponent = node.array(1, "its exponent")
    if exponent.size != 1:
        raise NotImplementedError(f"{node.name}: only one number is supported as exponent")
    return partial(operators.power, exponent=float(exponent.item()))


def _sum(*xs: Any) -> Any:
    first, *others = xs
    for x in others:
        first = operators.add(first, x)
    return first


def _cast(node: Node) -> Function:
    if node.attribute("to", 1) not in (1, 10, 11, 16):  # FLOAT, FLOAT16, DOUBLE, BFLOAT16
        raise NotImplementedError(f"{node.name}: values become integers")
    return lambda x: x


def _always(function: Function) -> Callable[[Node], Function]:
    return lambda node: function


OPERATORS: dict[str, Callable[[Node], Any]] = {
    "Add": _channelwise(operators.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _channelwise(operators.divide),
    "Dropout": _dropout,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _always(_global_average),
    "GlobalMaxPool": _always(_global_max),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _always(_hard_swish),
    "Identity": _always(lambda x: x),
    "LRN": _lrn,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Mul": _channelwise(operators.multiply),
    "Neg": _always(operators.negate),
    "PRelu": _always(_prelu),
    "Pad": _pad,
    "Pow": _power,
    "ReduceMean": _reduced(operators.mean),
    "ReduceSum": _reduced(operators.total),
    "Reshape": _reshape,
    "Slice": HOST["Slice"],
    "Softmax": _softmax,
    "Split": _split,
    "Sqrt": _always(partial(operators.power, exponent=0.5)),
    "Squeeze": _squeeze,
    "Sub": _channelwise(operators.subtract),
    "Sum": _always(_sum),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    **{op.onnx[0]: _own(op) for op in vars(ops).values() if getattr(op, "onnx", None)},
}
