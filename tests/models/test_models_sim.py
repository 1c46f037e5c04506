"""Every architecture takes one full training step on device sim: forward, loss, backward, update.

Two things are held to the definitions. Every operation of the step, on the very arrays that the
step gave it: equal where it selects, copies or adds, else within `OPERATION` of the size of what it
computes in float64. And the step as a whole, against the same step of the model on `reference`.
"""

from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
from simulated import sim  # noqa: F401  skips where the simulator cannot run
from small_models import MODELS

from gpuconv import models, nn, ops, optim
from gpuconv.arrays import device_of, to_device, to_numpy
from gpuconv.ops.op import Op

CLASSES, LR, DECAY = 5, 0.05, 1e-3

LARGE = {"alexnet", "vgg16", "vgg16_bn", "vgg19"}  # past 50 million weights: no room for float64
TWINS = {"vgg16", "vgg19", "resnet34"}  # of vgg16_bn, alexnet and resnet18: no other operations

OPERATION = 1e-5  # of the size of an operation's result: sums of up to 25,088 products
LOSS, RUNNING = 1e-4, 5e-4
# A rounding that turns one value of a ReLU, or one window of a pool, the other way changes a
# gradient by far more than itself, and batch norm over eight values carries it on: the cpu path
# and the definitions in float32 are as far off. So this bound only tells that nothing is missing
# or in the wrong place; what each operation computes is what OPERATION bounds.
GRADIENTS = 0.1

EQUAL = {
    *("relu", "relu_backward", "max_pool2d", "add", "scale", "assign", "accumulate", "dropout"),
    "multiply",
}
MADE_OF_OTHERS = {"conv2d_relu_max_pool2d", "conv2d_relu_max_pool2d_backward"}
SAMPLE = 11  # every eleventh weight's update is looked at
ROWS = 512  # of a linear layer's weights that are widened to float64 at a time


QUICK = {"lenet", "googlenet", "resnet18"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in MODELS]
)
def test_one_training_step(name, record_property):
    assert set(MODELS) == set(models.MODELS)
    model = models.MODELS[name](num_classes=CLASSES, seed=1, **MODELS[name])
    restore = as_it_is(model)
    expected = step(model.to("reference", np.float32 if name in LARGE else np.float64))
    restore(model.to("cpu", np.float32))
    before = {key: array.reshape(-1)[::SAMPLE].copy() for key, array in model.state_dict().items()}
    with nullcontext({}) if name in TWINS else operations_checked() as worst:
        found = step(model.to("sim"))
    record_property("worst", worst)
    assert found["loss"] == pytest.approx(expected["loss"], rel=LOSS)
    assert found["gradients"].keys() == expected["gradients"].keys()
    off, size = norm_of_difference(found["gradients"], expected["gradients"])
    assert off <= GRADIENTS * size
    for key, statistics in expected["running"].items():
        off = np.linalg.norm(found["running"][key] - statistics)
        assert off <= RUNNING * np.linalg.norm(statistics), key
    after = model.state_dict()
    for key, gradient in found["gradients"].items():
        flat = (a.reshape(-1)[::SAMPLE] for a in (gradient, after[key]))
        updated(key, before[key], *flat)


def as_it_is(model):
    """What puts back all that a training step without an update changes: the running statistics,
    and the place in each sequence of dropout's masks.
    """
    statistics = [b.data.copy() for _, b in model.named_buffers()]
    dropouts = [layer for layer in model.modules() if isinstance(layer, nn.Dropout)]
    drawn = [layer.rng_state for layer in dropouts]

    def restore(model):
        for (_, buffer), array in zip(model.named_buffers(), statistics, strict=True):
            buffer.data[...] = array
        for layer, state in zip(dropouts, drawn, strict=True):
            layer.rng_state = state

    return restore


def step(model):
    """Loss, gradients (float32) and running statistics of two images; on a device the update too.

    The reference's update is left out: it would need twice the memory, and is a line of its own.
    """
    rng = np.random.default_rng(0)
    dtype = model.parameters()[0].data.dtype
    x = rng.standard_normal((2, *model.input_shape)).astype(dtype)
    loss = nn.AuxiliaryLoss()
    scores = model.train()(to_device(x, model.device))
    value = loss(scores, to_device(np.array([1, 3]), model.device))
    value.backward()
    named = model.named_parameters()
    assert all(device_of(p.grad) == device_of(p.data) for _, p in named)
    gradients = {key: to_numpy(p.grad).astype(np.float32, copy=False) for key, p in named}
    if model.device == "sim":
        optim.SGD(model.parameters(), lr=LR, weight_decay=DECAY).step()
    running = {key: to_numpy(b.data) for key, b in model.named_buffers()}
    return {"loss": float(value), "gradients": gradients, "running": running}


def norm_of_difference(found, expected):
    """(norm of the difference, norm) over all arrays of two dictionaries."""
    off = size = 0.0
    for key, array in expected.items():
        assert np.isfinite(found[key]).all(), key
        off += np.linalg.norm(found[key] - array).astype(float) ** 2
        size += np.linalg.norm(array).astype(float) ** 2
    return off**0.5, size**0.5


def updated(key, p, gradient, after):
    """p - lr * (gradient + decay * p), each operation rounded once."""
    move = gradient + np.float32(DECAY) * p
    expected = p - np.float32(LR) * move
    bound = 2.0**-22 * (abs(p) + LR * (abs(gradient) + DECAY * abs(p))) + 1e-37
    assert (abs(after - expected) <= bound).all(), key


@contextmanager
def operations_checked():
    """Meanwhile every operation on a device is compared; {operation: its worst share of the bound}
    is what is yielded.
    """
    original, worst, busy = Op._on_device, {}, []

    def on_device(self, device, *args):
        if busy or self.__name__ in MADE_OF_OTHERS:
            return original(self, device, *args)
        given = [host(a) for a in args]
        found = original(self, device, *args)
        busy.append(self)
        try:
            share = compare(self, given, args, found)
        finally:
            busy.clear()
        worst[self.__name__] = max(share, worst.get(self.__name__, 0.0))
        return found

    def patched(function):
        Op._on_device = function
        for operation in vars(ops).values():
            if isinstance(operation, Op):
                operation._accepted.clear()  # it remembers what runs for arguments like these

    patched(on_device)
    try:
        yield worst
    finally:
        patched(original)


def host(a):
    """An argument, arrays of a device as NumPy's."""
    return tuple(map(host, a)) if isinstance(a, tuple) else to_numpy(a) if device_of(a) else a


def compare(operation, given, args, found):
    """The largest share that a difference has of its bound; fails above 1."""
    name = operation.__name__
    if name == "linear":
        return compare_linear(operation, given, found)
    if name == "linear_chain":  # each layer from what was found before it
        (x, layers), share = given, 0.0
        for layer, y in zip(layers, found, strict=True):
            share = max(share, compare_linear(ops.linear, [x, *layer], y))
            x = to_numpy(y)
        return share
    if name == "linear_backward":
        return compare_linear_backward(operation, given, found)
    if name in EQUAL:
        expected = several(operation.definition(*given))
        for one, other in zip(several(found), expected, strict=True):
            # -ftz=true: what is below the smallest normal number becomes 0
            assert (abs(to_numpy(one) - other) <= 2.0**-126).all(), name
        return 0.0
    if name == "batch_norm2d_backward":
        given, found = off_the_edge(operation, given, args)
    exact = several(operation.definition(*map(double, given)))
    sizes = dict(zip(range(3), sizes_of(name, given, exact), strict=False))
    return max(
        share_of(f"{name} {number}", one, other, sizes.get(number))
        for number, (one, other) in enumerate(zip(several(found), exact, strict=True))
    )


def share_of(what, one, other, size=None):
    if other is None:
        assert one is None, what
        return 0.0
    value = to_numpy(one) if device_of(one) else np.float64(one)  # a loss is a number
    assert np.shape(value) == np.shape(other), what
    bound = OPERATION * (np.abs(other).max() if size is None else size) + 1e-37
    share = float(np.abs(value - other).max() / bound)
    assert share <= 1, (what, np.shape(other), share)
    return share


def sizes_of(name, given, exact):
    """Of the results whose terms may cancel: how large they are without their signs."""
    if name == "conv2d_backward":
        dy, x = np.abs(double(given[0])), np.abs(given[1])
        sums = dy.sum((0, 2, 3)).max()
        return None, max(np.abs(exact[1]).max(), 1e-2 * sums * x.max()), sums
    if name == "batch_norm2d_relu_max_pool2d_backward":
        dy, argmax, x, *rest, pool = given[:9]
        dy = ops.max_pool2d_backward.definition(np.abs(double(dy)), argmax, x.shape, *pool)
        return sizes_of("batch_norm2d_backward", [dy, x, *rest], exact)
    if name == "batch_norm2d_backward":
        dy = np.abs(double(given[0]))
        x, w, var, eps = (given[i] for i in (1, 2, 5, 6))
        z = np.abs(x - given[4][:, None, None]) / np.sqrt(var + eps)[:, None, None]
        scale = np.abs(1 if w is None else w) / np.sqrt(var + eps)
        most = dy.max((0, 2, 3))
        return (scale * most).max(), (dy * z).sum((0, 2, 3)).max(), dy.sum((0, 2, 3)).max()
    return ()


def off_the_edge(operation, given, args):
    """The arguments and results without gradients where y is within rounding of the ReLU's edge:
    there either side is right.
    """
    dy, x, w, b, mean, var, eps, activation, *_ = given
    if activation is None:
        return given, operation(*args)
    y = ops.batch_norm2d.definition(*map(double, (x, w, b, mean, var, eps)))[0]
    dy = np.where(np.abs(y) <= 1e-5 * np.abs(y).max(), np.float32(0), dy)
    there = to_device(dy, "sim", weights=True)
    return [dy, *given[1:]], operation(there, *args[1:])


def compare_linear(operation, given, found):
    """By parts of its outputs, of 4096 the first and the last of eight: all weights in float64 may
    be all the memory there is.
    """
    x, w, b, activation, *_ = given
    y, worst = to_numpy(found), 0.0
    for rows in parts(w)[::7]:
        exact = operation.definition(*map(double, (x, w[rows], b[rows], activation)))
        size = np.abs(x).max() * np.abs(w[rows]).sum(1).max()
        worst = max(worst, share_of("linear", y[:, rows], exact, size))
    return worst


def compare_linear_backward(operation, given, found):
    """dx from all parts of the weights; of dw and db the parts that `compare_linear` takes."""
    dy, x, w, b, activation, y, need_dx, *_ = given
    dx, dw, db = (a if a is None else to_numpy(a) for a in found)
    whole, worst = 0.0, 0.0
    for number, rows in enumerate(parts(w)):
        cut = dy[:, rows], x, w[rows], b[rows], activation, y if y is None else y[:, rows], need_dx
        part, *exact = operation.definition(*map(double, cut))
        whole = None if part is None else whole + part
        if number % 7 == 0:
            worst = max(
                worst, share_of("dw", dw[rows], exact[0]), share_of("db", db[rows], exact[1])
            )
    return max(worst, share_of("linear dx", dx, whole))


def parts(w):
    return [slice(first, first + ROWS) for first in range(0, len(w), ROWS)]


def several(found):
    return found if isinstance(found, tuple) else (found,)


def double(a):
    floats = isinstance(a, np.ndarray) and a.dtype == np.float32
    return a.astype(np.float64) if floats else a
