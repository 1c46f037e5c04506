"""What each operation's outlines take against what NumPy reports of the operation itself."""

import gc
import threading
import tracemalloc

import numpy as np
import pytest

from gpuconv import ops
from gpuconv.cpu import workspace
from gpuconv.cuda.outline import Meter, Outline
from gpuconv.ops import in_place
from gpuconv.ops.op import Op

RNG = np.random.default_rng(3)
LEFT_OUT = 48_000  # bytes of small things that no outline stands for: plans, biases, statistics


def floats(*shape):
    return RNG.standard_normal(shape, np.float32)


def channels(*shape):
    """The middle channels of a wider array."""
    return floats(shape[0], shape[1] + 5, *shape[2:])[:, 2:-3]


def outlined(meter, a):
    """An outline with a's shape and layout; channels of a wider array stay so."""
    if not isinstance(a, np.ndarray):
        return a
    if not a.flags.c_contiguous:
        return Outline(meter, a.base.shape)[:, 2:-3]
    return Outline(meter, a.shape, a.dtype)


def predicted(function, args):
    """(bytes over those of the arguments at the peak, bytes left in results)."""
    meter = Meter()
    args = [outlined(meter, a) for a in args]
    before = meter.used
    meter.peak = before
    found = function(*args)
    kept = meter.kept
    left = meter.used - before + kept
    del found
    return meter.peak - before + kept, left


def measured(function, args, monkeypatch):
    """The same of the real operation's second call, where nobody else asks for workspaces."""
    function(*args)  # compiles, plans, hires
    monkeypatch.setattr(workspace, "_kept", threading.local())
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        function(*args)
        tracemalloc.reset_peak()
        found = function(*args)
        after, peak = tracemalloc.get_traced_memory()
        del found
        return peak - before, after - before
    finally:
        tracemalloc.stop()


def conv(x, w, **geometry):
    """The passes of one convolution, as cases."""
    b, given = floats(len(w)), {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | geometry
    y = ops.conv2d(x, w, b, **given)
    dy = channels(*y.shape)
    numbers = tuple(given.values())
    yield ops.conv2d, (x, w, b, *numbers)
    yield ops.conv2d_backward, (dy, x, w, b, *numbers)
    yield ops.conv2d_backward, (dy, x, w, b, *numbers, "relu", y, False)


def pooled(x, w, pool, **geometry):
    b, given = floats(len(w)), {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | geometry
    numbers = (*given.values(), pool)
    y, argmax = ops.conv2d_relu_max_pool2d(x, w, b, *numbers)
    yield ops.conv2d_relu_max_pool2d, (x, w, b, *numbers)
    for need_dx in (True, False):
        arguments = (floats(*y.shape), y, argmax, x, w, b, *numbers, need_dx)
        yield ops.conv2d_relu_max_pool2d_backward, arguments


def convolutions():
    """Every algorithm: planes, columns, products, Winograd, winners of a pool."""
    yield from conv(floats(4, 3, 97, 90), floats(40, 3, 7, 7), stride=2, padding=3)
    yield from conv(channels(16, 96, 56, 50), floats(64, 96, 3, 3), padding=1)
    yield from conv(floats(32, 256, 7, 7), floats(512, 256, 3, 3), padding=1)
    yield from conv(floats(4, 320, 14, 14), floats(330, 320, 3, 3), padding=1, stride=2)
    yield from conv(floats(8, 64, 40, 40), floats(96, 64, 1, 1))
    yield from conv(floats(8, 64, 40, 40), floats(96, 64, 1, 1), stride=2)
    yield from conv(floats(8, 64, 28, 28), floats(48, 32, 5, 5), padding=2, groups=2)
    yield from conv(floats(64, 40, 15, 15), floats(200, 40, 15, 15))  # linear layers
    yield from conv(floats(3, 8, 60, 61), floats(10, 8, 3, 3), dilation=2, stride=3)
    yield from pooled(floats(64, 1, 32, 32), floats(6, 1, 5, 5), (2,))
    yield from pooled(floats(64, 6, 14, 14), floats(16, 6, 5, 5), (2,))
    yield from pooled(floats(8, 3, 66, 70), floats(64, 3, 3, 3), (3, 2), padding=1)


def others():
    x, wide = floats(16, 48, 40, 41), channels(16, 48, 40, 41)
    mean, var, C = floats(48), np.abs(floats(48)), floats(48)
    for a in (x, wide):
        for name in ("relu", "tanh", "scaled_tanh", "softmax", "local_response_norm"):
            rest = (5,) if "norm" in name else ()
            yield getattr(ops, name), (a, *rest)
            backward = getattr(ops, f"{name}_backward")
            yield backward, (a, x, *rest)
        yield ops.sigmoid, (a,)
        yield ops.sigmoid_backward, (a, x)
        yield ops.add, (x, a)
        yield ops.add, (a, x, "relu")
        yield ops.dropout, (a, 0.5, 3)
        yield ops.batch_norm2d, (a, C, C)
        yield ops.batch_norm2d_backward, (wide, a, C, C, mean, var, 1e-5, "relu")
        yield ops.batch_norm2d_backward, (wide, a, None, None, mean, var, 1e-5, None, True, False)
        yield ops.adaptive_avg_pool2d, (a, (3, 2))
        for name in ("max", "avg", "sum"):
            yield getattr(ops, f"{name}_pool2d"), (a, 3, 2, 1)
    yield ops.scale, (x, 0.5)
    yield ops.assign, (wide, x)
    yield ops.accumulate, (x.copy(), wide)
    yield ops.batch_norm2d_track, (mean, var, mean, var, 9, 0.1)
    yield in_place.relu_into, (x,)
    yield in_place.relu_backward_into, (x, wide)
    yield in_place.add_into, (x, wide, "relu")
    yield in_place.dropout_into, (x, 0.5, 3)
    yield in_place.batch_norm2d_backward_into, (x, wide, C, C, mean, var, 1e-5, "relu", True)
    yield ops.adaptive_avg_pool2d_backward, (floats(16, 48, 1, 1), x.shape)
    y, argmax = ops.max_pool2d(x, 3, 2, 1)
    yield ops.max_pool2d_backward, (channels(*y.shape), argmax, x.shape, 3, 2, 1)
    yield ops.avg_pool2d_backward, (channels(*y.shape), x.shape, 3, 2, 1)
    yield ops.sum_pool2d_backward, (channels(*y.shape), x.shape, 3, 2, 1)


def matrices():
    x, w, b, y = floats(64, 900), floats(1200, 900), floats(1200), floats(64, 1200)
    labels = RNG.integers(0, 1200, 64)
    yield ops.linear, (x, w, b, "relu")
    yield ops.linear, (x, w, None, "tanh")
    yield ops.linear_backward, (y, x, w, b, "relu", y)
    yield ops.linear_backward, (y, x, w, None, None, None, False)
    for name in ("cross_entropy", "half_squared_error", "hinge"):
        yield getattr(ops, name), (y, labels)
        yield getattr(ops, f"{name}_backward"), (y, labels)
    table = np.where(RNG.random((90, 70)) < 0.5, -1, 0).astype(np.int32)
    table[table == 0] = np.arange((table == 0).sum())
    places = np.flatnonzero(table.ravel() >= 0).astype(np.int32)
    yield ops.partial_filters, (floats(len(places), 5, 5), table)
    yield ops.partial_filters_backward, (floats(90, 70, 5, 5), places)


CASES = [*convolutions(), *others(), *matrices()]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_outlines_take_what_the_operation_takes(number, monkeypatch):
    function, args = CASES[number]
    peak, left = predicted(function, args)
    real_peak, real_left = measured(function, args, monkeypatch)
    assert abs(left - real_left) <= LEFT_OUT, (function, left, real_left)
    assert abs(peak - real_peak) <= LEFT_OUT + 0.02 * real_peak, (function, peak, real_peak)


def test_every_operation_has_a_case():
    public = {name for name in ops.__all__ if isinstance(getattr(ops, name), Op)}
    assert public == {getattr(ops, name).__name__ for name in public}
    assert public <= {function.__name__ for function, _ in CASES}
