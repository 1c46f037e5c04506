"""Arrays of 16 bits on a device: casts, and the operations whose kernels read and write them.

What a number of 16 bits is follows here from its bits, and rounding from a search among all of
them; results are those of the definitions in float64.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from simulated import DEVICE

from gpuconv import ops
from gpuconv.arrays import to_device, to_numpy
from gpuconv.cuda import runtime as runtimes
from gpuconv.ops.batch_norm2d_max_pool2d import (
    batch_norm2d_relu_max_pool2d,
    batch_norm2d_relu_max_pool2d_backward,
)
from gpuconv.ops.statistics import batch_norm2d_statistics

FORMATS = {"fp16": (np.dtype(np.float16), 5, 10), "bf16": (np.dtype(np.uint16), 8, 7)}


def value(bits: int, exponents: int, mantissas: int) -> float:
    sign = -1.0 if bits >> 15 else 1.0
    exponent = bits >> mantissas & (1 << exponents) - 1
    mantissa = bits & (1 << mantissas) - 1
    bias = (1 << exponents - 1) - 1
    if exponent == (1 << exponents) - 1:
        return math.nan if mantissa else sign * math.inf
    if exponent == 0:
        return sign * math.ldexp(mantissa, 1 - bias - mantissas)
    return sign * math.ldexp((1 << mantissas) + mantissa, exponent - bias - mantissas)


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.slow)])
def checked(request):
    """The device; on the simulator also with every access to memory verified."""
    if DEVICE != "sim" or not request.param:
        yield runtimes.runtime(DEVICE)
        return
    from gpuconv.cuda.sim import SimRuntime

    on = SimRuntime(check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtimes, "runtime", lambda device: on)
        yield on


TABLES = {
    name: np.array([value(bits, e, m) for bits in range(1 << 16)])
    for name, (_, e, m) in FORMATS.items()
}


def nearest(x: np.ndarray, name: str) -> np.ndarray:
    """Each number rounded to the nearest of 16 bits, of two to the one whose bits are even."""
    table = TABLES[name][: 1 << 15]
    finite = table[np.isfinite(table)]  # ascending
    size = np.abs(np.asarray(x, np.float64))
    above = np.searchsorted(finite, size).clip(1, len(finite) - 1)
    low, high = finite[above - 1], finite[above]
    up = (high - size < size - low) | ((high - size == size - low) & (above % 2 == 0))
    found = np.where(up, high, low)
    beyond = finite[-1] + (finite[-1] - finite[-2]) / 2  # from here on the next one is nearer
    found = np.where(size >= beyond, np.inf, found)
    return np.copysign(np.where(np.isnan(x), np.nan, found), x)


def floats(array) -> np.ndarray:
    """The numbers of a device's array, float64."""
    host = to_numpy(array)
    name = next((n for n, (dtype, *_) in FORMATS.items() if dtype == host.dtype), None)
    return host.astype(np.float64) if name is None else TABLES[name][host.view(np.uint16)]


def drawn(rng, shape, name, last=True):
    """(an array of 16 bits on a device, its numbers)."""
    x = rng.normal(size=shape).astype(np.float32)
    if last and len(shape) == 4:
        wide = to_device(np.ascontiguousarray(x.transpose(0, 2, 3, 1)), DEVICE).transpose(
            0, 3, 1, 2
        )
    else:
        wide = to_device(x, DEVICE)
    array = ops.cast(wide, name)
    return array, floats(array)


@pytest.mark.parametrize("name", FORMATS)
def test_all_numbers_become_what_their_bits_say(name):
    bits = np.arange(1 << 16, dtype=np.uint16).view(FORMATS[name][0])
    found = ops.uncast(to_device(bits, DEVICE))
    assert found.dtype == np.float32
    with np.errstate(invalid="ignore"):  # signalling NaNs
        np.testing.assert_array_equal(to_numpy(found).astype(np.float64), TABLES[name])


@pytest.mark.parametrize("name", FORMATS)
def test_floats_become_the_nearest(name):
    rng = np.random.default_rng(3)
    table = TABLES[name][np.isfinite(TABLES[name])]
    near = rng.choice(table, 4000)
    between = (near + np.nextafter(near, np.inf)) / 2
    ties = (table[:-1] + table[1:])[rng.integers(0, len(table) - 1, 4000)] / 2
    wide = rng.normal(size=4000) * 10.0 ** rng.integers(-12, 9, 4000)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519.9, 65520, 1e-8, 3.4e38, -3.4e38]
    x = np.concatenate([near, between, ties, wide, special]).astype(np.float32)
    found = floats(ops.cast(to_device(x, DEVICE), name))
    expected = nearest(x, name)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))


@pytest.mark.parametrize("name", FORMATS)
def test_a_factor_on_the_device_multiplies_before_the_rounding(name):
    x = np.random.default_rng(4).normal(size=(2, 5, 3, 7)).astype(np.float32)
    factor = to_device(np.float32([1024]), DEVICE)
    found = ops.cast(to_device(x, DEVICE), name, factor)
    np.testing.assert_array_equal(floats(found), nearest(x * np.float32(1024), name))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(2, 8, 5, 3), (3, 6, 4, 5)], ids=["vectors", "single"])
def test_layouts_are_converted_without_a_library(checked, name, shape):
    rng = np.random.default_rng(5)
    for last in (False, True):
        array, numbers = drawn(rng, shape, name, last=last)
        nhwc, plain = checked.as_nhwc(array), checked.contiguous(array)
        assert nhwc.dtype == plain.dtype == FORMATS[name][0]
        np.testing.assert_array_equal(floats(nhwc), numbers.transpose(0, 2, 3, 1))
        np.testing.assert_array_equal(floats(plain), numbers)


def cases(rng, name):
    """(operation, arguments on the device, the same as numbers)."""

    def of(*shape):
        return drawn(rng, shape, name)

    def plain(*shape):
        x = rng.uniform(0.5, 2, shape).astype(np.float32)
        return to_device(x, DEVICE), x.astype(np.float64)

    for C in (8, 6):
        x, y, small = of(2, C, 6, 5), of(2, C, 6, 5), of(2, C, 3, 2)
        w, b, mean, var = (plain(C) for _ in range(4))
        for op, *given in (
            (ops.relu, x), (ops.relu_backward, x, y), (ops.add, x, y), (ops.multiply, x, y),
            (ops.tanh, x), (ops.sigmoid_backward, x, y), (ops.softmax, x),
            (ops.scale, x, 0.37), (ops.dropout, x, 0.3, 11), (ops.local_response_norm, x, 3),
            (ops.max_pool2d, x, 2), (ops.max_pool2d, x, 3, 2, 1),
            (ops.avg_pool2d, x, 3, 2, 1), (ops.avg_pool2d_backward, small, (2, C, 6, 5), 2),
            (ops.adaptive_avg_pool2d, x, 1), (ops.adaptive_avg_pool2d, x, (4, 3)),
            (ops.adaptive_avg_pool2d_backward, small, (2, C, 6, 5)),
            (ops.batch_norm2d, x, w, b, mean, var, 1e-3, "relu"),
            (ops.batch_norm2d, x, w, b, mean, var, 1e-3, "relu", y),
            (ops.batch_norm2d, x, w, b, None, None, 1e-3),
            (ops.batch_norm2d_backward, x, y, w, b, mean, var, 1e-3, "relu", True),
            (batch_norm2d_statistics, x),
            (batch_norm2d_relu_max_pool2d, x, w, b, mean, var, 1e-3, (2,)),
        ):  # fmt: skip
            pairs = [a if isinstance(a, tuple) and is_device_pair(a) else (a, a) for a in given]
            yield op, [p[0] for p in pairs], [p[1] for p in pairs]


def is_device_pair(a):
    return len(a) == 2 and isinstance(a[1], np.ndarray)


def require_near(found, expected, name):
    """Within half a step between numbers of 16 bits, and what sums in float32 err by."""
    assert (found is None) == (expected is None)
    if found is None:
        return
    numbers, exact = floats(found), np.asarray(expected, np.float64)
    step = 2.0 ** -(FORMATS[name][2] + 1) if found.dtype == FORMATS[name][0] else 0.0
    bound = np.abs(exact) * step + 2e-6 * (1 + np.abs(exact).max(initial=0)) + 2.0**-25
    assert (np.abs(numbers - exact) <= bound).all()


@pytest.mark.parametrize("name", FORMATS)
def test_operations_compute_in_float32_and_store_16_bits(checked, name):
    rng = np.random.default_rng(6)
    for op, given, numbers in cases(rng, name):
        found, expected = op.stored(*given), op.definition(*numbers)
        several = isinstance(found, tuple)
        found, expected = (r if several else (r,) for r in (found, expected))
        narrow = 0 if op is batch_norm2d_statistics else 1
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            if a is not None and a.dtype != np.uint8:
                assert a.dtype == (FORMATS[name][0] if i < narrow else np.float32), op
            require_near(a, b, name)


@pytest.mark.parametrize("name", FORMATS)
def test_gradients_of_pools_add_what_the_windows_pass(checked, name):
    rng = np.random.default_rng(7)
    for C in (8, 6):
        x, numbers = drawn(rng, (2, C, 7, 6), name)
        y, argmax = ops.max_pool2d.stored(x, 3, 2, 1)
        dy, dy_numbers = drawn(rng, y.shape, name)
        _, where = ops.max_pool2d.definition(numbers, 3, 2, 1)
        np.testing.assert_array_equal(to_numpy(argmax), where)
        dx = ops.max_pool2d_backward.stored(dy, argmax, x.shape, 3, 2, 1)
        expected = ops.max_pool2d_backward.definition(dy_numbers, where, x.shape, 3, 2, 1)
        assert dx.dtype == x.dtype
        require_near(dx, expected, name)
        parameters = [rng.uniform(0.5, 2, C).astype(np.float32) for _ in range(4)]
        there = [to_device(a, DEVICE) for a in parameters]
        _, argmax = batch_norm2d_relu_max_pool2d.stored(x, *there, 1e-3, (3, 2, 1))
        found = batch_norm2d_relu_max_pool2d_backward.stored(dy, argmax, x, *there, 1e-3, (3, 2, 1))
        expected = batch_norm2d_relu_max_pool2d_backward.definition(
            dy_numbers, to_numpy(argmax), numbers, *map(np.float64, parameters), 1e-3, (3, 2, 1)
        )
        for a, b in zip(found, expected, strict=True):
            require_near(a, b, name)
        assert [a.dtype for a in found] == [x.dtype, np.float32, np.float32]


@pytest.mark.parametrize("name", FORMATS)
def test_sums_in_place_and_channels_side_by_side(checked, name):
    rng = np.random.default_rng(8)
    for C in (8, 6):
        (a, a_numbers), (b, b_numbers) = (drawn(rng, (2, C, 4, 5), name) for _ in range(2))
        both = ops.assign.stored(drawn(rng, (2, 2 * C, 4, 5), name)[0][:, C:], a)
        np.testing.assert_array_equal(floats(both), a_numbers)
        assert ops.accumulate.stored(both, b) is both
        np.testing.assert_array_equal(floats(both), nearest(a_numbers + b_numbers, name))
    (flat, numbers), (more, more_numbers) = (drawn(rng, (7, 9), name) for _ in range(2))
    found = floats(ops.accumulate.stored(flat, more))
    np.testing.assert_array_equal(found, nearest(numbers + more_numbers, name))


def test_two_types_of_16_bits_are_refused_and_uint16_alone_is_no_float():
    rng = np.random.default_rng(9)
    (a, _), (b, _) = drawn(rng, (4, 4), "fp16"), drawn(rng, (4, 4), "bf16")
    with pytest.raises(TypeError, match="add: arrays of both types of 16 bits"):
        ops.add.stored(a, b)
    with pytest.raises(TypeError, match="relu: x must be float32 or float64, got uint16"):
        ops.relu(b)
