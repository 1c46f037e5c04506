"""Shape-only arrays: NumPy's shapes without values, and each operation's rule against real runs."""

import math

import numpy as np
import pytest
from cases import conv_case, pool_case

from gpuconv import ops
from gpuconv.arrays import ShapeOnly, device_of, empty_images, to_device, to_numpy

RNG = np.random.default_rng(5)


def floats(*shape):
    return RNG.standard_normal(shape, np.float32)


def without_values(args):
    return [ShapeOnly(a.shape, a.dtype) if isinstance(a, np.ndarray) else a for a in args]


def kinds(result):
    """Shapes and dtypes of what an operation returns; its floats by their type."""
    parts = result if isinstance(result, tuple) else (result,)
    return [(a.shape, a.dtype) if hasattr(a, "shape") else type(a) for a in parts]


def same(operation, *args):
    real, inferred = operation(*args), operation(*without_values(args))
    assert kinds(inferred) == kinds(real)
    first_alone = [without_values(args[:1])[0], *args[1:]]
    assert kinds(operation(*first_alone)) == kinds(real)
    arrays = inferred if isinstance(inferred, tuple) else (inferred,)
    assert all(isinstance(a, ShapeOnly | float) for a in arrays)


@pytest.mark.parametrize("seed", range(40))
def test_convolutions(seed):
    args = conv_case(seed)
    same(ops.conv2d, *args)
    same(ops.conv2d, *(a.astype("f4") if isinstance(a, np.ndarray) else a for a in args))
    same(ops.conv2d_relu_max_pool2d, *args, (1, 2))


@pytest.mark.parametrize("padding", ["same", "valid", "full"])
def test_named_padding_and_activations(padding):
    for activation in (None, "relu", "tanh"):
        same(ops.conv2d, floats(2, 3, 9, 8), floats(4, 3, 3, 2), None, 2, padding, 1, 1, activation)


@pytest.mark.parametrize("seed", range(40))
def test_pools(seed):
    x, *geometry = pool_case(seed)
    same(ops.max_pool2d, x, *geometry)
    same(ops.sum_pool2d, x, *geometry)
    same(ops.avg_pool2d, x, *geometry)
    same(ops.adaptive_avg_pool2d, x, geometry[0])


IMAGES, ROWS, LABELS = floats(2, 3, 5, 4), floats(6, 4), np.array([0, 1, 2, 3, 0, 1])


@pytest.mark.parametrize(
    ("operation", "args"),
    [
        (ops.linear, (ROWS, floats(5, 4), floats(5), "tanh")),
        (ops.batch_norm2d, (IMAGES, floats(3), floats(3))),
        (ops.batch_norm2d, (IMAGES, None, None, floats(3), np.ones(3, "f4"), 1e-5, "relu")),
        (ops.local_response_norm, (IMAGES, 5)),
        (ops.relu, (IMAGES,)),
        (ops.tanh, (IMAGES,)),
        (ops.scaled_tanh, (ROWS,)),
        (ops.sigmoid, (np.float64([[1.0, 2.0]]),)),
        (ops.softmax, (ROWS,)),
        (ops.dropout, (IMAGES, 0.5, 7)),
        (ops.add, (IMAGES, IMAGES, "relu")),
        (ops.multiply, (IMAGES, IMAGES)),
        (ops.scale, (IMAGES, 2.0)),
        (ops.cross_entropy, (ROWS, LABELS, 0.1)),
        (ops.half_squared_error, (ROWS, LABELS)),
        (ops.hinge, (ROWS, LABELS)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_other_operations(operation, args):
    same(operation, *args)


def test_a_batch_of_none():
    same(ops.conv2d, floats(0, 3, 6, 6), floats(4, 3, 3, 3))
    same(ops.linear, floats(0, 4), floats(5, 4))


def test_operations_in_place_return_their_first_arguments_untouched():
    total, mean, var = floats(2, 3, 4, 4), np.zeros(3, "f4"), np.ones(3, "f4")
    before = total.copy()
    assert ops.accumulate(total, ShapeOnly(total.shape)) is total
    assert ops.assign(total, ShapeOnly(total.shape)) is total
    new = ShapeOnly((3,))
    assert ops.batch_norm2d_track(mean, var, new, new, 32, 0.1) == (mean, var)
    assert np.array_equal(total, before)
    assert np.array_equal(mean, np.zeros(3))
    assert np.array_equal(var, np.ones(3))


def test_the_check_comes_first():
    x = ShapeOnly((2, 3, 8, 8))
    with pytest.raises(ValueError, match="conv2d: x has 3 channels, w expects 4 per group"):
        ops.conv2d(x, floats(4, 4, 3, 3))
    with pytest.raises(TypeError, match="relu: x must be float32 or float64, got int64"):
        ops.relu(ShapeOnly((2,), np.int64))
    with pytest.raises(ValueError, match="linear: x has 3 features"):
        ops.linear(floats(2, 3), ShapeOnly((5, 4)))
    with pytest.raises(ValueError, match="label 9 is out of range"):
        ops.cross_entropy(ShapeOnly((2, 4)), np.array([1, 9]))


def test_an_operation_without_a_rule():
    dy = ShapeOnly((2, 3, 4, 4))
    with pytest.raises(NotImplementedError, match="sum_pool2d_backward: has no rule for the shape"):
        ops.sum_pool2d_backward(dy, (2, 3, 8, 8), 2)


@pytest.mark.parametrize("seed", range(20))
def test_multiply_adds_of_a_convolution(seed):
    x, w, b, *geometry = conv_case(seed)
    y = ops.conv2d(x, w, b, *geometry)
    expected = y.size * math.prod(w.shape[1:])
    assert ops.conv2d.multiply_adds(x, w, b, *geometry) == expected
    assert ops.conv2d.multiply_adds(ShapeOnly(x.shape, x.dtype), w, b, *geometry) == expected
    pooled = ops.conv2d_relu_max_pool2d
    assert pooled.multiply_adds(x, w, b, *geometry, pool=(1, 2)) == expected


def test_multiply_adds_of_others():
    assert ops.linear.multiply_adds(ROWS, floats(5, 4)) == 6 * 5 * 4
    assert ops.relu.multiply_adds(IMAGES) == 0
    with pytest.raises(ValueError, match="linear: x has 4 features"):
        ops.linear.multiply_adds(ROWS, floats(5, 3))


SHAPES = [(), (3,), (2, 3, 4, 5), (0, 3, 2), (1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_attributes_are_those_of_numpy(shape, dtype):
    real, a = np.zeros(shape, dtype), ShapeOnly(shape, dtype)
    for name in ("shape", "dtype", "ndim", "size", "nbytes"):
        assert getattr(a, name) == getattr(real, name)
    if real.size:
        assert a.strides == real.strides
    assert a.T.shape == real.T.shape
    assert a.astype("f8").dtype == np.float64
    assert a.copy().shape == shape


@pytest.mark.parametrize(
    "key",
    [
        *(1, -1, np.int64(1), slice(1, None), None, (..., 0), (slice(None), 2)),
        *((0, slice(None, None, 2)), (slice(None), slice(5, 1))),
        (slice(None, None, -1), 0, ..., 1),
    ],
)
def test_slices_are_those_of_numpy(key):
    real, a = np.zeros((2, 3, 4, 5)), ShapeOnly((2, 3, 4, 5))
    assert a[key].shape == real[key].shape


def test_what_a_slice_refuses():
    a = ShapeOnly((2, 3))
    with pytest.raises(IndexError):
        a[2]
    with pytest.raises(IndexError):
        a[0, 0, 0]
    for key in ([0, 1], np.array([True, False])):
        with pytest.raises(TypeError):
            a[key]


@pytest.mark.parametrize("shape", [(6, 20), (-1,), (2, -1, 5), (2, 3, 4, 5, 1), [8, 15], (0,)])
def test_reshapes_are_those_of_numpy(shape):
    real, a = np.zeros((2, 3, 4, 5)), ShapeOnly((2, 3, 4, 5))
    if tuple(shape) == (0,):
        with pytest.raises(ValueError, match="cannot reshape"):
            a.reshape(shape)
        return
    assert a.reshape(shape).shape == a.reshape(*shape).shape == real.reshape(shape).shape


def test_reshapes_that_numpy_refuses():
    for shape in ((-1, -1), (7, -1), (0, -1)):
        for a in (np.zeros((2, 3)), ShapeOnly((2, 3))):
            with pytest.raises(ValueError, match=r"reshape|specify"):
                a.reshape(shape)
    assert ShapeOnly((0, 4)).reshape(0, 2, 2).shape == (0, 2, 2)


def test_transposes_are_those_of_numpy():
    real, a = np.zeros((2, 3, 4, 5)), ShapeOnly((2, 3, 4, 5))
    for axes in ((), (0, 2, 3, 1), (-1, 0, 1, 2), ((3, 2, 1, 0),)):
        assert a.transpose(*axes).shape == real.transpose(*axes).shape
    for axes in ((0, 1), (0, 0, 1, 2), (0, 1, 2, 4)):
        for array in (real, a):
            with pytest.raises(ValueError, match="ax"):
                array.transpose(axes)


def test_no_values():
    a = ShapeOnly((2, 3))
    for use in (np.asarray, float, bool, np.sum, to_numpy, lambda a: a + a, lambda a: 2 * a):
        with pytest.raises(TypeError):
            use(a)
    with pytest.raises(TypeError):
        np.ones((2, 3)) + a
    assert [part.shape for part in a] == [(3,), (3,)]
    with pytest.raises(TypeError):
        len(ShapeOnly(()))


def test_shape_only_arrays_are_on_every_device():
    a = ShapeOnly((2, 3, 4, 4), np.float64)
    assert device_of(a) == "meta"
    assert all(to_device(a, device) is a for device in ("cpu", "sim"))
    assert kinds(empty_images((1, 2, 3, 4), a)) == [((1, 2, 3, 4), np.float64)]


def test_weights_of_a_device():
    from simulated import DEVICE  # skips this test alone where there is no device

    w = to_device(floats(4, 3, 3, 3), DEVICE)
    assert kinds(ops.conv2d(ShapeOnly((2, 3, 8, 8)), w)) == [((2, 4, 6, 6), np.float32)]


def test_wrong_shapes():
    with pytest.raises(ValueError, match="cannot be negative"):
        ShapeOnly((2, -1))
    with pytest.raises(TypeError):
        ShapeOnly((2.0,))
